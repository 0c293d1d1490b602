"""The vector environment: Gymnasium's conventions, and each federation equal to the single environment."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from optigrad_env import OptiGradEnv, OptiGradVectorEnv
from optigrad_env.scenarios import TRAINING_SPLITS

TINY = {"num_clients": 4, "rounds": 3, "local_steps": 1, "batch_size": 8}
ATTACKED = {"attack": "sign_flip", "malicious_fraction": 0.5, "alpha": 0.5, "onset": 0}
DIGITS = "OptiGrad/Digits-v0"
E = 3


def make(mode: str = "NextStep", num_envs: int = E, **kwargs: Any) -> OptiGradVectorEnv:
    envs = gym.make_vec(DIGITS, num_envs, autoreset_mode=mode, **{**TINY, **kwargs})
    assert isinstance(envs, OptiGradVectorEnv)
    return envs


def singles() -> list[OptiGradEnv]:
    return [OptiGradEnv(**TINY, split_seed=TRAINING_SPLITS + i) for i in range(E)]


def actions(steps: int, num_envs: int = E) -> np.ndarray:
    return np.random.default_rng(7).uniform(-1, 1, (steps, num_envs, 4)).astype(np.float32)


def assert_info_of(infos: dict[str, Any], i: int, expected: dict[str, Any]) -> None:
    """Environment i's part of a vector info is exactly this single environment's info."""
    present = {key for key in infos if not key.startswith("_") and infos[f"_{key}"][i]}
    assert present - {"final_obs", "final_info"} == set(expected)
    for key, value in expected.items():
        if isinstance(value, dict):
            assert_info_of(infos[key], i, value)
        else:
            np.testing.assert_array_equal(infos[key][i], value)


def test_every_id_has_a_vector_environment_with_its_own_defaults(env_id: str) -> None:
    envs = gym.make_vec(env_id, 2, **TINY)
    assert isinstance(envs, OptiGradVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert "autoreset_mode" not in OptiGradEnv.metadata
    assert envs.num_envs == 2
    assert envs.single_observation_space == gym.make(env_id, **TINY).observation_space
    space = envs.observation_space
    assert (space["clients"] if isinstance(space, gym.spaces.Dict) else space).shape == (2, 4, 6)
    assert envs.action_space.shape == (2, 4)
    assert {env.federation.config.dataset for env in envs.envs} == {gym.spec(env_id).kwargs["dataset"]}
    observations, _ = envs.reset(seed=0)
    assert observations in envs.observation_space
    assert envs.step(envs.action_space.sample())[0] in envs.observation_space
    envs.close()


def test_every_federation_has_data_and_weights_of_its_own_and_split_seed_is_the_first_ones() -> None:
    envs = make(split_seed=50)
    assert [env.federation.config.split_seed for env in envs.envs] == [50, 51, 52]
    roots = [env.federation.splits.reference for env in envs.envs]
    assert not np.array_equal(np.sort(roots[0]), np.sort(roots[1]))
    weights = [env.federation.initial_model()[0] for env in envs.envs]
    assert not np.array_equal(weights[0], weights[1])


def test_next_step_autoreset_plays_what_single_environments_play() -> None:
    envs, alone = make("NextStep"), singles()
    observations, infos = envs.reset(seed=5)
    done = np.zeros(E, dtype=bool)
    for i, env in enumerate(alone):
        observation, info = env.reset(seed=5 + i)
        np.testing.assert_array_equal(observations[i], observation)
        assert_info_of(infos, i, info)
    for action in actions(8):  # two episodes of three rounds and the resets between them
        observations, rewards, terminations, truncations, infos = envs.step(action)
        for i, env in enumerate(alone):
            observation, reward, terminated, truncated, info = (
                (*env.reset()[:1], 0.0, False, False, None) if done[i] else env.step(action[i])
            )
            np.testing.assert_array_equal(observations[i], observation)
            assert (rewards[i], terminations[i], truncations[i]) == (reward, terminated, truncated)
            if info is None:
                assert not infos.get("_weights", np.zeros(E))[i]
            else:
                assert_info_of(infos, i, info)
        done = truncations
    assert envs.step(actions(1)[0])[1].all()


def test_same_step_autoreset_plays_what_single_environments_play() -> None:
    envs, alone = make("SameStep"), singles()
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    envs.reset(seed=5)
    for i, env in enumerate(alone):
        env.reset(seed=5 + i)
    ended = 0
    for action in actions(7):
        observations, rewards, _, truncations, infos = envs.step(action)
        for i, env in enumerate(alone):
            observation, reward, _, truncated, info = env.step(action[i])
            assert (rewards[i], truncations[i]) == (reward, truncated)
            if truncated:
                ended += 1
                np.testing.assert_array_equal(infos["final_obs"][i], observation)
                assert infos["_final_obs"][i]
                assert_info_of(infos["final_info"], i, info)
                observation, info = env.reset()
            np.testing.assert_array_equal(observations[i], observation)
            assert_info_of(infos, i, info)
    assert ended == 2 * E


def test_the_step_after_a_partial_reset_goes_on_in_the_others() -> None:
    envs, alone = make("Disabled"), singles()
    envs.reset(seed=[1, 2, 3], options=dict(ATTACKED))
    for seed, env in zip((1, 2, 3), alone, strict=True):
        env.reset(seed=seed, options=ATTACKED)
    first, second = actions(2)
    envs.step(first)
    expected = [env.step(a)[0] for env, a in zip(alone, first, strict=True)]
    expected[1], _ = alone[1].reset(seed=9, options=ATTACKED)
    observations, infos = envs.reset(
        seed=[None, 9, None], options={**ATTACKED, "reset_mask": np.array([False, True, False])}
    )
    np.testing.assert_array_equal(observations, np.stack(expected))
    assert infos["_attack"].tolist() == [False, True, False]
    expected = [env.step(a)[0] for env, a in zip(alone, second, strict=True)]
    np.testing.assert_array_equal(envs.step(second)[0], np.stack(expected))


def test_options_pin_the_scenario_of_every_federation() -> None:
    _, infos = make().reset(seed=0, options=dict(ATTACKED))
    assert infos["attack"].tolist() == ["sign_flip"] * E
    assert infos["malicious"].sum(axis=1).tolist() == [2] * E


def test_equal_seeds_give_equal_episodes_and_seeds_count_upwards() -> None:
    left, right = make(), make()
    np.testing.assert_array_equal(left.reset(seed=3)[0], right.reset(seed=[3, 4, 5])[0])
    for action in actions(5):
        np.testing.assert_equal(left.step(action), right.step(action))
    assert left.np_random_seed == (3, 4, 5)


def test_a_federation_does_not_depend_on_how_many_there_are_beside_it() -> None:
    few, many = make(num_envs=1, split_seed=TRAINING_SPLITS + 2), make(num_envs=3)
    np.testing.assert_array_equal(few.reset(seed=7)[0][0], many.reset(seed=5)[0][2])
    for action in actions(4):
        np.testing.assert_array_equal(few.step(action[2:])[0][0], many.step(action)[0][2])


def test_it_plays_what_gymnasiums_own_vector_environment_plays() -> None:
    makers = [lambda i=i: OptiGradEnv(**TINY, split_seed=TRAINING_SPLITS + i) for i in range(E)]
    ours, gymnasiums = make(), SyncVectorEnv(makers)
    np.testing.assert_equal(ours.reset(seed=1), gymnasiums.reset(seed=1))
    for action in actions(5):
        np.testing.assert_equal(ours.step(action), gymnasiums.step(action))


def test_returned_arrays_are_not_written_to_by_later_steps() -> None:
    envs = make()
    first, _ = envs.reset(seed=0)
    kept = first.copy()
    second = envs.step(actions(1)[0])
    copies = [np.copy(part) for part in second[:4]]
    envs.step(actions(2)[1])
    np.testing.assert_array_equal(first, kept)
    for part, copy in zip(second[:4], copies, strict=True):
        np.testing.assert_array_equal(part, copy)


def test_gymnasiums_vector_wrappers_run_around_it() -> None:
    envs = gym.wrappers.vector.RecordEpisodeStatistics(make("SameStep"))
    envs.reset(seed=0)
    rewards = [envs.step(action) for action in actions(3)]
    episode = rewards[-1][4]["episode"]
    assert episode["l"].tolist() == [3] * E
    np.testing.assert_allclose(episode["r"], sum(step[1] for step in rewards))


def test_pictures_come_from_every_federation() -> None:
    envs = make(render_mode="rgb_array")
    envs.reset(seed=0)
    pictures = envs.render()
    assert pictures is not None
    assert [picture.dtype for picture in pictures] == [np.uint8] * E


@pytest.mark.parametrize("num_envs", [0, -2])
def test_at_least_one_federation_is_needed(num_envs: int) -> None:
    with pytest.raises(ValueError, match=f"num_envs.*{num_envs}"):
        OptiGradVectorEnv(num_envs, **TINY)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_envs": "2"}, "num_envs must be a whole number, got '2'"),
        ({"num_envs": 1.5}, r"num_envs must be a whole number, got 1\.5"),
        ({"split_seed": "a"}, "split_seed must be a whole number, got 'a'"),
        ({"around": (5,)}, r"around must be a list of wrappers.*got \(5,\)"),
        ({"around": 5}, "around must be a list of wrappers.*got 5"),
    ],
)
def test_arguments_of_another_type_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptiGradVectorEnv(**{**TINY, **wrong})


def test_an_unknown_autoreset_mode_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match=r"'same_step'.*NextStep"):
        make("same_step")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((E + 1, 4)), r"shape \(3, 4\).*\(4, 4\)"),
        (np.zeros((E, 5)), r"shape \(3, 4\).*\(3, 5\)"),
        (np.zeros(4), r"shape \(3, 4\).*\(4,\)"),
        (np.full((E, 4), np.nan), "finite"),
    ],
)
def test_wrong_actions_are_refused_before_any_federation_takes_a_step(wrong: np.ndarray, message: str) -> None:
    envs, other = make(), make()
    envs.reset(seed=0)
    other.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        envs.step(wrong)
    np.testing.assert_equal(envs.step(actions(1)[0]), other.step(actions(1)[0]))


def test_wrong_seeds_and_masks_are_refused() -> None:
    envs = make()
    with pytest.raises(ValueError, match="num_envs=3"):
        envs.reset(seed=[1, 2])
    with pytest.raises(TypeError, match="reset_mask"):
        envs.reset(options={"reset_mask": [True, False, False]})
    with pytest.raises(ValueError, match="'atack'"):
        envs.reset(options={"atack": "sign_flip"})
