"""From cheap environments to the target."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from optigrad_env import OptiGradEnv
from optigrad_env.curriculum import Curriculum
from optigrad_env.wrappers import FeatureDropout, RoundRecorder

TINY: dict[str, Any] = {"num_clients": 3, "rounds": 4, "local_steps": 1, "batch_size": 8}
STAGES = [("OptiGrad/Softmax-v0", 6), ("OptiGrad/Quadratic-v0", 3)]


def played(env: Any, steps: int) -> list[str]:
    """Data set and loss of each step."""
    kept = []
    for _ in range(steps):
        truncated = env.step(np.zeros(3, np.float32))[3]
        config = env.unwrapped.federation.config
        kept.append(f"{config.dataset} {config.loss}")
        if truncated:
            env.reset()
    return kept


def test_stages_follow_each_other_at_the_first_reset_after_their_steps() -> None:
    env = Curriculum(OptiGradEnv(**TINY), STAGES)
    env.reset(seed=0)
    # Episodes of four rounds: six steps are over after the second, nine after the third.
    assert played(env, 16) == (
        ["gaussian_clusters cross_entropy"] * 8 + ["gaussian_clusters squared"] * 4 + ["digits cross_entropy"] * 4
    )


def test_the_stages_have_the_targets_clients_rounds_reward_and_scenarios() -> None:
    target = OptiGradEnv(**TINY, reward="progress", scenarios={"attacks": ["scaling"]}, split_seed=10_003)
    env = Curriculum(target, STAGES)
    _, info = env.reset(seed=0)
    inner = env.unwrapped
    assert inner is not target
    assert info["attack"] == "scaling"
    assert (inner.rounds, inner.federation.config.num_clients, inner.federation.config.split_seed) == (4, 3, 10_003)
    *_, reward, _, _, info = env.step(np.zeros(3, np.float32))
    assert reward == info["reward_terms"]["progress"]


def test_equal_seeds_give_equal_curricula_and_the_spaces_never_change() -> None:
    runs = []
    for _ in range(2):
        env = Curriculum(OptiGradEnv(**TINY), STAGES)
        observations = [env.reset(seed=7)[0]]
        for _ in range(14):
            observation, _, _, truncated, _ = env.step(np.zeros(3, np.float32))
            assert observation in env.observation_space
            observations.append(env.reset()[0] if truncated else observation)
        runs.append(np.stack(observations))
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize("steps", [1, 9, 14])
def test_a_fresh_environment_goes_on_from_a_state_whichever_stage_it_is_of(steps: int) -> None:
    """Gymnasium's wrappers of each stage refuse to step what they have never seen reset."""
    left, right = (Curriculum(gym.make("OptiGrad/Digits-v0", **TINY), STAGES) for _ in range(2))
    left.reset(seed=3)
    played(left, steps)
    right.reset(seed=8)
    right.load_state_dict(left.state_dict())
    action = np.zeros(3, np.float32)
    for _ in range(2):
        np.testing.assert_equal(left.step(action), right.step(action))
    np.testing.assert_equal(left.reset(), right.reset())


def test_every_federation_of_a_vector_environment_has_its_curriculum() -> None:
    around = (partial(Curriculum, stages=[("OptiGrad/Softmax-v0", 2)]),)
    envs = gym.make_vec("OptiGrad/Digits-v0", 2, autoreset_mode="SameStep", around=around, **{**TINY, "rounds": 2})
    envs.reset(seed=0)
    played_ = []
    for _ in range(4):
        played_.append([env.unwrapped.federation.config.dataset for env in envs.envs])
        envs.step(np.zeros((2, 3), np.float32))
    assert played_ == [["gaussian_clusters"] * 2] * 2 + [["digits"] * 2] * 2


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([("OptiGrad/Sofmax-v0", 5)], "'OptiGrad/Sofmax-v0'.*OptiGrad/Softmax-v0"),
        *[([("OptiGrad/Softmax-v0", n)], "steps of 'OptiGrad/Softmax-v0' must be a whole") for n in ("3", 1.5)],
        *[(wrong, "stages must be a list of ids") for wrong in (None, "OptiGrad/Softmax-v0", ["OptiGrad/Softmax-v0"])],
        ([("OptiGrad/Softmax-v0", 0)], "OptiGrad/Softmax-v0.*at least 1 step.*0"),
        ([("OptiGrad/SoftmaxMasked-v0", 5)], "OptiGrad/SoftmaxMasked-v0.*mask.*the target Box"),
    ],
)
def test_bad_stages_are_refused(stages: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        Curriculum(OptiGradEnv(**TINY), stages)


def test_a_curriculum_around_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match=r"environment of federations.*CartPole"):
        Curriculum(gym.make("CartPole-v1"), STAGES)


def test_the_spec_of_a_curriculum_survives_json_and_is_the_targets_in_every_stage() -> None:
    env = Curriculum(gym.make("OptiGrad/Digits-v0", **TINY), STAGES)
    env.reset(seed=0)
    assert env.spec is not None
    assert env.spec.id == "OptiGrad/Digits-v0"
    copy = gym.make(EnvSpec.from_json(env.spec.to_json()))
    np.testing.assert_equal(copy.reset(seed=1), env.reset(seed=1))
    assert played(copy, 10) == played(env, 10)


@pytest.mark.parametrize("wrap", [lambda env: FeatureDropout(env, probability=0.5), RoundRecorder])
def test_a_wrapper_that_only_the_target_would_have_is_refused(wrap: Any) -> None:
    with pytest.raises(ValueError, match=r"Curriculum goes inside (FeatureDropout|RoundRecorder)"):
        Curriculum(wrap(OptiGradEnv(**TINY)), STAGES)
    wrap(Curriculum(OptiGradEnv(**TINY), STAGES)).reset(seed=0)
