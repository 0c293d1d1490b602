"""The critic first: what the warm start has played is in the replay buffer, and the critic has learned it."""

from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import Logger

from agents.algorithms import make_algorithm
from agents.critics import critic_steps, replay_keeper, warm_critic
from agents.environments import make_env, make_training_envs
from agents.warm_start import record
from optigrad_env.env import federated

OFF_POLICY = ["sac", "td3", "tqc"]
SIZES: dict[str, Any] = {"num_clients": 4, "rounds": 4}


def played(name: str, rounds: int = 160) -> Any:
    """An algorithm whose buffer holds recorded rounds of random trust."""
    envs = make_training_envs("OptiGrad/Digits-v0", 1, 0, **SIZES)
    model = make_algorithm(name, envs, seed=0, warm_started=True)
    model.set_logger(Logger(None, []))
    rng = np.random.default_rng(0)

    def act(observations: Any, _: Any) -> np.ndarray:
        return rng.uniform(-1, 1, observations.shape[:2]).astype(np.float32)

    federations = [federated(make_env("OptiGrad/Digits-v0", **SIZES)).federation]
    record(envs, federations, rounds, act, lambda _: None, replay_keeper(model))
    return model


def critic_error(model: Any) -> float:
    """Mean squared error of the critics' mean against the reward, over the buffer."""
    buffer = model.replay_buffer
    rows = slice(0, buffer.size())
    observed, actions = (torch.from_numpy(a[rows, 0]) for a in (buffer.observations, buffer.actions))
    with torch.no_grad():
        values = model.critic(observed, actions)
    mean = values.mean(dim=(1, 2)) if isinstance(values, torch.Tensor) else torch.cat(values, dim=1).mean(dim=1)
    return float((mean - torch.from_numpy(buffer.rewards[rows, 0])).square().mean())


@pytest.mark.parametrize("name", OFF_POLICY)
def test_the_critic_learns_the_recorded_rewards_while_the_actor_stands_still(name: str) -> None:
    model = played(name)
    actor = {key: value.clone() for key, value in model.actor.state_dict().items()}
    error, entropy = critic_error(model), getattr(model, "log_ent_coef", torch.zeros(1)).clone()
    told: list[int] = []
    warm_critic(model, told.append)
    assert critic_error(model) < error
    assert sum(told) == critic_steps(model, 160) == 160
    assert all(torch.equal(value, actor[key]) for key, value in model.actor.state_dict().items())
    assert torch.equal(getattr(model, "log_ent_coef", torch.zeros(1)), entropy)
    assert all(parameter.requires_grad for parameter in model.actor.parameters())
    target = model.critic_target.state_dict()
    assert all(torch.equal(value, target[key]) for key, value in model.critic.state_dict().items())


def test_transitions_are_kept_in_order_and_the_end_of_an_episode_is_no_observation_of_the_next() -> None:
    buffer = played("sac", rounds=9).replay_buffer
    assert buffer.size() == 9
    assert buffer.dones[:9, 0].tolist() == [0, 0, 0, 1, 0, 0, 0, 1, 0]
    for i in range(8):
        follows = np.array_equal(buffer.next_observations[i, 0], buffer.observations[i + 1, 0])
        assert follows == (not buffer.dones[i, 0])


def test_an_algorithm_without_a_buffer_needs_none_of_it() -> None:
    envs = make_training_envs("OptiGrad/Digits-v0", 1, 0, **SIZES)
    model = make_algorithm("ppo", envs, seed=0)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    assert replay_keeper(model) is None
    assert critic_steps(model, 100) == 0
    warm_critic(model)
    assert all(torch.equal(value, before[key]) for key, value in model.policy.state_dict().items())
