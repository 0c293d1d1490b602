"""Environments for training: by id, each with its own split of the data."""

from functools import partial

import numpy as np
import pytest
from stable_baselines3 import PPO

from agents.environments import (
    environment_ids,
    make_env,
    make_training_envs,
)
from agents.policies import AttentionPolicy
from agents.warm_start import WarmStart, warm_start
from optigrad_env import OptiGradEnv
from optigrad_env.env import federated
from optigrad_env.scenarios import EVALUATION_SPLIT, TRAINING_SPLITS
from optigrad_env.wrappers import ClientHistory, FeatureDropout


def test_ids_are_those_of_this_package() -> None:
    assert "OptiGrad/Digits-v0" in environment_ids()
    assert all(name.startswith("OptiGrad/") for name in environment_ids())


def test_settings_reach_the_environment() -> None:
    env = federated(make_env("OptiGrad/Digits-v0", num_clients=3, rounds=7, split_seed=5))
    assert isinstance(env, OptiGradEnv)
    assert (env.federation.config.num_clients, env.rounds, env.federation.config.split_seed) == (3, 7, 5)


@pytest.mark.parametrize(
    "env_id",
    ["OptiGrad/Digit-v0", "OptiGrad/Digits-v9", "OptiGard/Digits-v0", "bad id!", "", "CartPole-v1"],
)
def test_an_id_that_is_not_ours_is_refused_with_the_list(env_id: str) -> None:
    with pytest.raises(ValueError, match=r"OptiGrad/Digits-v0") as refused:
        make_env(env_id, num_clients=3)
    assert repr(env_id) in str(refused.value)


@pytest.mark.parametrize("setting", [{"num_client": 3}, {"rounds": 0}, {"num_clients": 10**6}])
def test_a_wrong_setting_is_refused_by_name(setting: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        make_env("OptiGrad/Digits-v0", **setting)


@pytest.mark.parametrize("count", [0, -1])
def test_at_least_one_training_environment_is_needed(count: int) -> None:
    with pytest.raises(ValueError, match=f"n-envs.*{count}"):
        make_training_envs("OptiGrad/Digits-v0", count, 0)


def test_training_and_evaluation_use_root_and_validation_data_of_their_own() -> None:
    envs = make_training_envs("OptiGrad/Digits-v0", 1, 0, num_clients=3, rounds=2)
    assert envs.env_method("get_wrapper_attr", "federation")[0].config.split_seed == TRAINING_SPLITS
    envs.close()
    assert EVALUATION_SPLIT not in range(TRAINING_SPLITS, TRAINING_SPLITS + 1000)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_wrappers_go_around_each_environment_and_an_algorithm_learns_behind_them(processes: int) -> None:
    around = (partial(FeatureDropout, probability=0.5), partial(ClientHistory, k=2))
    envs = make_training_envs(
        "OptiGrad/Softmax-v0",
        2,
        0,
        processes=processes,
        around=around,
        num_clients=3,
        rounds=4,
        sybil_exponent=1.0,
        sybil_power=2.0,
    )
    try:
        assert envs.observation_space.shape == (3, 6 + 2 * 7)
        model = PPO(AttentionPolicy, envs, n_steps=8, batch_size=16).learn(16)
        with pytest.raises(ValueError, match="a wrapper changes what the policy sees of them: train without a warm"):
            warm_start(model.policy.trust_net, envs, (), WarmStart().scaled(1e-6), 0, lambda _: None)
    finally:
        envs.close()


def test_environments_in_worker_processes_play_what_they_play_in_this_one() -> None:
    action = np.zeros((1, 3), np.float32)
    one = make_training_envs("OptiGrad/Digits-v0", 1, 4, num_clients=3, rounds=2)
    two = make_training_envs("OptiGrad/Digits-v0", 2, 4, num_clients=3, rounds=2)
    try:
        np.testing.assert_array_equal(one.reset()[0], two.reset()[0])
        alone, together = one.step(action), two.step(np.repeat(action, 2, axis=0))
        np.testing.assert_array_equal(alone[0][0], together[0][0])
        assert alone[1][0] == pytest.approx(together[1][0], rel=1e-6)  # one of them keeps float32
        assert together[1][0] != together[1][1]
    finally:
        one.close()
        two.close()
