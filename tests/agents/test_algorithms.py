"""Every algorithm: learns, runs with another number of clients, deploys; and why others cannot work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from sb3_contrib import TQC, TRPO
from stable_baselines3 import A2C, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from agents.algorithms import (
    algorithm_names,
    load_algorithm,
    make_algorithm,
)
from agents.deployed import load_policy, save_policy
from agents.off_policy import OffPolicyAttentionPolicy
from agents.policies import AttentionPolicy
from agents.trust_net import TrustNet
from agents.vec_env import FederationVecEnv
from optigrad_env.observation import action_space, observation_space

SMALL = {"architecture": {"width": 16, "depth": 1, "heads": 2}}


class MaskedBandit(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """Each client's cosine says, by its sign, which action is right for it; clients come and go.

    The reward is the mean of action times sign over those who are there.
    """

    def __init__(self, clients: int = 6, rounds: int = 5) -> None:
        self.clients, self.rounds = clients, rounds
        self.observation_space = spaces.Dict(clients=observation_space(clients), mask=spaces.MultiBinary(clients))
        self.action_space = action_space(clients)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.round = 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float((action * self._sign)[self._mask].mean())
        self.round += 1
        return self._observe(), reward, False, self.round >= self.rounds, {}

    def _observe(self) -> dict[str, np.ndarray]:
        self._mask = self.np_random.random(self.clients) < 0.7
        self._mask[self.np_random.integers(self.clients)] = True
        self._sign = self.np_random.choice([-1.0, 1.0], self.clients)
        rows = self.np_random.uniform(-0.3, 0.3, (self.clients, 6))
        rows[:, 1] = 0.8 * self._sign
        return {"clients": (rows * self._mask[:, None]).astype(np.float32), "mask": self._mask.astype(np.int8)}


def bandit(clients: int = 6, seed: int = 0) -> VecEnv:
    envs = DummyVecEnv([lambda: MaskedBandit(clients)])
    envs.seed(seed)
    return envs


def mean_reward(act: Callable[[VecEnvObs], np.ndarray], clients: int) -> float:
    envs, rewards = bandit(clients, seed=1), []
    observed = envs.reset()
    for _ in range(40):
        observed, reward, *_ = envs.step(act(observed))
        rewards.append(reward[0])
    return float(np.mean(rewards))


@pytest.mark.parametrize("name", algorithm_names())
def test_every_algorithm_learns_where_clients_come_and_go_and_its_network_runs_alone_with_more_of_them(
    name: str, fast: Callable[[str], Path], tmp_path: Path
) -> None:
    model = make_algorithm(name, bandit(), seed=0, timesteps=640, hyperparams=fast(name))
    before = mean_reward(lambda o: model.predict(o, deterministic=True)[0], 6)
    model.learn(640)
    after = mean_reward(lambda o: model.predict(o, deterministic=True)[0], 6)
    assert after > before + 0.2
    policy = load_policy(save_policy(model.policy.trust_net, tmp_path))

    def act(observed: Any) -> np.ndarray:
        score, _ = policy.score_and_value(torch.from_numpy(observed["clients"]), torch.from_numpy(observed["mask"]) > 0)
        return score.numpy() / 5

    assert mean_reward(act, 15) > after / 2
    larger = make_algorithm(name, bandit(15), seed=1, hyperparams=fast(name))
    larger.policy.load_state_dict(model.policy.state_dict())
    assert mean_reward(lambda o: larger.predict(o, deterministic=True)[0], 15) == pytest.approx(
        mean_reward(act, 15), abs=1e-4
    )


@pytest.mark.parametrize("name", algorithm_names())
def test_every_algorithm_trains_on_a_federation_and_comes_back_from_a_file(
    name: str, federation: VecEnv, fast: Callable[[str], Path], tmp_path: Path
) -> None:
    model = make_algorithm(name, federation, seed=0, timesteps=64, hyperparams=fast(name))
    before = {key: value.clone() for key, value in model.policy.trust_net.state_dict().items()}
    model.learn(64)
    moved = [key for key, value in model.policy.trust_net.state_dict().items() if not torch.equal(value, before[key])]
    assert {"embed.weight", "score_head.weight"} <= set(moved)
    model.save(tmp_path / "model.zip")
    loaded = load_algorithm(name, tmp_path / "model.zip", federation)
    observed = federation.reset()
    np.testing.assert_array_equal(
        loaded.predict(observed, deterministic=True)[0], model.predict(observed, deterministic=True)[0]
    )
    from_zip = load_policy(tmp_path / "model.zip", trusted=True)
    trust = from_zip(torch.from_numpy(np.asarray(observed)))
    torch.testing.assert_close(trust, model.policy.trust_net(torch.from_numpy(np.asarray(observed))))


@pytest.mark.parametrize("name", algorithm_names())
def test_the_action_without_noise_is_the_trust_that_is_deployed(name: str, federation: VecEnv) -> None:
    model = make_algorithm(name, federation, seed=0)
    observed = federation.reset()
    action, _ = model.predict(observed, deterministic=True)
    net: TrustNet = model.policy.trust_net
    trust = net(torch.from_numpy(np.asarray(observed))).detach()
    torch.testing.assert_close(torch.sigmoid(5 * torch.from_numpy(action)), trust)


def test_td3_explores_by_noise_of_its_own_and_has_targets_that_begin_where_it_does(federation: VecEnv) -> None:
    model = make_algorithm("td3", federation, seed=0)
    assert model.action_noise._sigma == pytest.approx(np.full(4, 0.3))
    for part in ("actor", "critic"):
        target = getattr(model.policy, f"{part}_target").state_dict()
        assert all(torch.equal(v, target[k]) for k, v in getattr(model.policy, part).state_dict().items())


def test_tqc_has_quantiles_and_sac_has_none(federation: VecEnv) -> None:
    observed, actions = torch.zeros(2, 4, 6), torch.zeros(2, 4)
    assert make_algorithm("tqc", federation, seed=0).critic(observed, actions).shape == (2, 2, 25)
    assert [q.shape for q in make_algorithm("sac", federation, seed=0).critic(observed, actions)] == [(2, 1)] * 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dqn", "discrete actions"),
        ("qrdqn", "discrete actions"),
        ("ppo_mask", "masked in the observation"),
        ("recurrent_ppo", "number of clients change"),
        ("ppo_lstm", "number of clients change"),
        ("her", "goals"),
    ],
)
def test_what_cannot_work_says_why(name: str, reason: str, federation: VecEnv) -> None:
    with pytest.raises(ValueError, match=rf"'{name}' cannot work here: .*{reason}.*there are: ppo, a2c"):
        make_algorithm(name, federation, seed=0)


def test_an_unknown_algorithm_is_refused_with_the_list(federation: VecEnv) -> None:
    for call in (
        lambda: make_algorithm("a2d", federation, seed=0),
        lambda: load_algorithm("a2d", Path("nowhere.zip"), federation),
    ):
        with pytest.raises(ValueError, match=r"'a2d'; there are: ppo, a2c, trpo, sac, td3, tqc"):
            call()


@pytest.mark.parametrize(
    ("name", "distribution", "reason"),
    [
        ("td3", "beta", "td3: its actor is deterministic"),
        ("sac", "gaussian", "leave the box"),
        ("tqc", "gaussian", "leave the box"),
        ("ppo", "cauchy", "there are: squashed, beta, gaussian"),
    ],
)
def test_a_distribution_that_does_not_go_with_an_algorithm_is_refused_with_the_reason(
    name: str, distribution: str, reason: str, federation: VecEnv
) -> None:
    with pytest.raises(ValueError, match=reason):
        make_algorithm(name, federation, seed=0, distribution=distribution)


PLAIN: dict[type[BaseAlgorithm], tuple[Any, dict[str, Any], dict[str, Any]]] = {
    PPO: (AttentionPolicy, {}, {"n_steps": 8, "batch_size": 8}),
    A2C: (AttentionPolicy, {}, {}),
    TRPO: (AttentionPolicy, {}, {"n_steps": 8, "batch_size": 8}),
    SAC: (OffPolicyAttentionPolicy, {}, {"learning_starts": 8}),
    TD3: (OffPolicyAttentionPolicy, {"distribution": None}, {"learning_starts": 8}),
    TQC: (OffPolicyAttentionPolicy, {"n_quantiles": 25}, {"learning_starts": 8}),
}


@pytest.mark.parametrize("algorithm", PLAIN)
def test_every_class_works_without_this_package_s_settings(algorithm: Any, tmp_path: Path) -> None:
    policy, told, settings = PLAIN[algorithm]
    model = algorithm(policy, MaskedBandit(4), policy_kwargs={**SMALL, **told}, device="cpu", **settings).learn(16)
    model.save(tmp_path / "model.zip")
    algorithm.load(tmp_path / "model.zip", device="cpu")


@pytest.mark.parametrize(
    ("algorithm", "told", "message"),
    [
        (TD3, {}, r"policy_kwargs=dict\(distribution=None\), got distribution 'squashed'"),
        (TQC, {}, r"policy_kwargs=dict\(n_quantiles=25\)"),
        (SAC, {"distribution": None}, "SAC and TQC draw actions"),
        (TQC, {"distribution": None, "n_quantiles": 25}, "SAC and TQC draw actions"),
    ],
)
def test_a_class_whose_policy_was_not_told_what_it_needs_says_so(
    algorithm: Any, told: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        algorithm(
            OffPolicyAttentionPolicy, MaskedBandit(4), policy_kwargs={**SMALL, **told}, learning_starts=8, device="cpu"
        ).learn(16)


def test_whether_an_off_policy_actor_has_a_target_can_be_asked() -> None:
    for algorithm, told in ((SAC, {}), (TD3, {"distribution": None})):
        model = algorithm(OffPolicyAttentionPolicy, MaskedBandit(4), policy_kwargs={**SMALL, **told}, device="cpu")
        assert hasattr(model.policy, "actor_target") == (algorithm is TD3)


def test_gsde_is_refused_off_policy_too(federation: VecEnv) -> None:
    with pytest.raises(ValueError, match=r"use_sde=True.*number of clients"):
        SAC(OffPolicyAttentionPolicy, federation, use_sde=True, device="cpu")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (spaces.Box(-1, 1, (24,)), action_space(4), "not flattened"),
        (spaces.Dict(clients=observation_space(4)), action_space(4), "mask=MultiBinary"),
        (
            spaces.Dict(clients=observation_space(4), mask=spaces.MultiBinary(5)),
            action_space(4),
            "mask=MultiBinary",
        ),
        (observation_space(4), spaces.Discrete(4), r"action must be Box\(-1, 1, \(4,\)\)"),
        (observation_space(4), action_space(5), r"action must be Box\(-1, 1, \(4,\)\)"),
    ],
)
def test_other_spaces_are_refused_in_words(observations: Any, actions: Any, message: str) -> None:
    for policy in (AttentionPolicy, OffPolicyAttentionPolicy):
        with pytest.raises(ValueError, match=message):
            policy(observations, actions, lambda _: 1e-3)


def test_a_vector_of_environments_with_masks_hands_on_what_each_of_them_shows() -> None:
    envs = FederationVecEnv(
        SyncVectorEnv([lambda: MaskedBandit(5, rounds=2)] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    )
    envs.seed(4)
    alone = MaskedBandit(5, rounds=2)
    first, _ = alone.reset(seed=5)
    observed = envs.reset()
    assert isinstance(observed, dict)
    np.testing.assert_array_equal(observed["clients"][1], first["clients"])
    np.testing.assert_array_equal(observed["mask"][1], first["mask"])
    actions = np.full((2, 5), 0.5, np.float32)
    for _ in range(2):
        expected, reward, *_ = alone.step(actions[1])
        observed, rewards, dones, infos = envs.step(actions)
        assert rewards[1] == pytest.approx(reward)
    assert dones.all()
    np.testing.assert_array_equal(infos[1]["terminal_observation"]["clients"], expected["clients"])
    np.testing.assert_array_equal(infos[1]["terminal_observation"]["mask"], expected["mask"])


@pytest.mark.parametrize("algorithm", [PPO, SAC])
@pytest.mark.parametrize(("low", "high"), [(0, 1), (-2, 2)])
def test_an_action_box_that_would_cut_trust_off_is_refused(algorithm: Any, low: float, high: float) -> None:
    policy, told, settings = PLAIN[algorithm]
    env = gym.wrappers.RescaleAction(MaskedBandit(4), low, high)
    with pytest.raises(ValueError, match=r"the action must be Box\(-1, 1, \(4,\)\)"):
        algorithm(policy, env, policy_kwargs={**SMALL, **told}, device="cpu", **settings)


def test_an_exploration_scale_that_has_met_its_bound_comes_back() -> None:
    model = SAC(OffPolicyAttentionPolicy, MaskedBandit(4), policy_kwargs=SMALL, device="cpu")
    actor: Any = model.policy.actor
    for sign, bound in ((-1, 0.0), (1, -5.0), (-1, 0.0)):
        for _ in range(200):
            actor.optimizer.zero_grad()
            (sign * actor._scale().sum()).backward()
            for group in actor.optimizer.param_groups:
                group["lr"] = 0.1
            actor.optimizer.step()
        assert actor.log_std.item() == bound
    with pytest.raises(ValueError, match=r"log_std_init must lie in \[-5.0, 0.0\], got 0.5"):
        SAC(OffPolicyAttentionPolicy, MaskedBandit(4), policy_kwargs={**SMALL, "log_std_init": 0.5}, device="cpu")
