"""The SB3 policy: what PPO is told about actions, and that its weights know no number of clients."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from agents.algorithms import load_algorithm
from agents.environments import make_training_envs
from agents.off_policy import OffPolicyAttentionPolicy
from agents.policies import AttentionPolicy
from agents.trust_net import Architecture
from optigrad_env.observation import action_space, observation_space


def schedule(_: float) -> float:
    return 1e-3


@pytest.fixture(scope="module")
def envs() -> Iterator[VecEnv]:
    made = make_training_envs("OptiGrad/Digits-v0", 1, 0, num_clients=4, rounds=3)
    yield made
    made.close()


def small_ppo(envs: VecEnv, **kwargs: Any) -> PPO:
    return PPO(AttentionPolicy, envs, **{"seed": 0, "n_steps": 32, "batch_size": 32, "device": "cpu", **kwargs})


@pytest.fixture
def model(envs: VecEnv) -> PPO:
    return small_ppo(envs)


def a_policy(clients: int = 4) -> AttentionPolicy:
    torch.manual_seed(0)
    return AttentionPolicy(observation_space(clients), action_space(clients), schedule, log_std_init=-1.5)


def observations(clients: int = 4, batch: int = 3) -> torch.Tensor:
    return torch.rand(batch, clients, 6, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_gsde_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"use_sde=True.*number of clients"):
        AttentionPolicy(observation_space(4), action_space(4), schedule, use_sde=True)


def test_gsde_is_refused_through_the_algorithm_too(envs: VecEnv) -> None:
    with pytest.raises(ValueError, match="use_sde=True"):
        small_ppo(envs, use_sde=True)


@pytest.mark.parametrize("name", ["net_arch", "activation_fn", "ortho_init", "share_features_extractor"])
def test_a_setting_that_would_change_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} would change nothing.*architecture="):
        AttentionPolicy(observation_space(4), action_space(4), schedule, **{name: None})
    with pytest.raises(ValueError, match=f"{name} would change nothing.*architecture="):
        OffPolicyAttentionPolicy(observation_space(4), action_space(4), schedule, **{name: None})


def test_a_policy_alone_can_be_saved_and_loaded(tmp_path: Path) -> None:
    policy = AttentionPolicy(observation_space(4), action_space(4), schedule, architecture={"width": 16})
    policy.save(tmp_path / "policy.pt")
    again = AttentionPolicy.load(tmp_path / "policy.pt")
    assert again.trust_net.architecture == policy.trust_net.architecture


def test_log_probability_and_entropy_are_those_of_independent_normals() -> None:
    policy, observed = a_policy(), observations()
    actions = torch.linspace(-0.9, 0.9, 12).view(3, 4)
    value, log_prob, entropy = policy.evaluate_actions(observed, actions)
    score, expected_value = policy.trust_net.score_and_value(observed)
    normal = torch.distributions.Normal(score / 5, torch.exp(torch.tensor(-1.5)))
    torch.testing.assert_close(log_prob, normal.log_prob(actions).sum(dim=1))
    torch.testing.assert_close(entropy, normal.entropy().sum(dim=1))
    torch.testing.assert_close(value, expected_value[:, None])


def test_the_trust_of_the_deterministic_action_is_the_networks_trust() -> None:
    policy, observed = a_policy(), observations()
    actions, _, _ = policy(observed, deterministic=True)
    torch.testing.assert_close(torch.sigmoid(5 * actions), policy.trust_net(observed))


def test_sampled_actions_come_with_their_own_log_probability_and_spread() -> None:
    policy, observed = a_policy(), observations(batch=1).expand(4000, -1, -1)
    torch.manual_seed(0)
    actions, value, log_prob = policy(observed)
    again = policy.evaluate_actions(observed, actions)
    torch.testing.assert_close(log_prob, again[1])
    torch.testing.assert_close(value, again[0])
    torch.testing.assert_close(actions.std(dim=0), torch.full((4,), np.exp(-1.5)), rtol=0.05, atol=0, check_dtype=False)


def test_the_same_value_whichever_way_it_is_asked_for() -> None:
    policy, observed = a_policy(), observations()
    torch.testing.assert_close(policy.predict_values(observed), policy(observed)[1])
    torch.testing.assert_close(policy.get_distribution(observed).mode(), policy(observed, deterministic=True)[0])


def test_learning_moves_every_parameter(model: PPO) -> None:
    before = copy.deepcopy(model.policy.state_dict())
    model.learn(64)
    assert model.num_timesteps == 64
    after = model.policy.state_dict()
    assert before.keys() == after.keys()
    for name, value in after.items():
        assert value.isfinite().all(), name
        assert not torch.equal(value, before[name]), name


def test_weights_learned_with_four_clients_run_with_nine(model: PPO) -> None:
    learned, larger = model.policy, a_policy(9)
    assert isinstance(learned, AttentionPolicy)
    larger.load_state_dict(learned.state_dict())
    nine = observations(9)
    actions, _ = larger.predict(nine.numpy(), deterministic=True)
    assert actions.shape == (3, 9)
    torch.testing.assert_close(torch.sigmoid(5 * torch.from_numpy(actions)), learned.trust_net(nine))


def test_a_saved_model_acts_as_before_and_keeps_its_architecture(tmp_path: Path, envs: VecEnv) -> None:
    kwargs = {"architecture": Architecture(width=16, depth=1, heads=2), "log_std_init": -1.0}
    model = small_ppo(envs, policy_kwargs=kwargs)
    model.learn(32)
    model.save(tmp_path / "model.zip")
    loaded = load_algorithm("ppo", tmp_path / "model.zip", envs)
    observed = observations().numpy()
    np.testing.assert_array_equal(
        loaded.predict(observed, deterministic=True)[0], model.predict(observed, deterministic=True)[0]
    )
    assert loaded.policy.trust_net.architecture == Architecture(width=16, depth=1, heads=2)
    assert loaded.num_timesteps == 32


def test_a_policy_saved_by_itself_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy = AttentionPolicy(observation_space(4), action_space(4), schedule, architecture=Architecture(16, 1, 2))
    policy.save(tmp_path / "policy.pt")
    loaded = AttentionPolicy.load(tmp_path / "policy.pt")
    observed = observations()
    torch.testing.assert_close(loaded(observed, deterministic=True)[0], policy(observed, deterministic=True)[0])


def test_predictions_stay_inside_the_action_box(model: PPO) -> None:
    actions, _ = model.predict(observations(batch=200).numpy())
    assert (np.abs(actions) <= 1).all()


def test_equal_seeds_learn_equal_policies() -> None:
    learned = []
    for _ in range(2):
        envs = make_training_envs("OptiGrad/Digits-v0", 1, 0, num_clients=4, rounds=3)
        model = small_ppo(envs, seed=3, n_steps=16, batch_size=16)
        model.learn(16)
        learned.append(model.policy.state_dict())
        envs.close()
    for name, value in learned[0].items():
        assert torch.equal(value, learned[1][name]), name


def test_a_space_with_other_numbers_of_features_makes_a_fitting_network() -> None:
    space = spaces.Box(-1, 1, (4, 3), np.float32)
    policy = AttentionPolicy(space, action_space(4), schedule)
    assert policy(torch.zeros(2, 4, 3))[0].shape == (2, 4)
