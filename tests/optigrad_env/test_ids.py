"""Every registered id as Gymnasium and Stable-Baselines3 see it."""

import hashlib
import inspect
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env as gymnasium_check
from stable_baselines3.common.env_checker import check_env as sb3_check

import optigrad_env
from optigrad_env import OptiGradEnv, OptiGradVectorEnv

from .episodes import ATTACKED, SMALL, TINY, assert_same, episode, uniform


def play(env_id: str, seed: int) -> str:
    """Plays one episode and returns the hash of all that came out of it."""
    env = gym.make(env_id, num_clients=4, rounds=3, local_steps=1, batch_size=8)
    rng = np.random.default_rng(7)
    observation, info = env.reset(seed=seed)
    digest, done = hashlib.sha256(), False
    while not done:
        observation, reward, terminated, truncated, info = env.step(rng.uniform(-1, 1, 4).astype(np.float32))
        done = terminated or truncated
        seen = observation.values() if isinstance(observation, dict) else [observation]
        for part in (*seen, np.float64(reward), info["weights"], info["malicious"], info["validation_loss"]):
            digest.update(np.asarray(part).tobytes())
    return digest.hexdigest()


def clients_of(observation: Any) -> np.ndarray:
    """The rows of the clients, where there is a mask beside them too."""
    return observation["clients"] if isinstance(observation, dict) else observation


def test_both_checkers_pass_with_the_single_warning_that_observations_have_two_dimensions(env_id: str) -> None:
    """SB3 gives that warning about a part of a dictionary, too."""
    env = gym.make(env_id, **TINY)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gymnasium_check(env.unwrapped)
        sb3_check(env.unwrapped)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 1, messages
    assert "neither an image, nor a 1D vector" in messages[0]


def test_two_instances_with_the_same_seed_play_the_same_episode(env_id: str) -> None:
    assert_same(*(episode(gym.make(env_id, **TINY), seed=5) for _ in range(2)))


def test_another_process_plays_the_same_episode(env_id: str) -> None:
    imports = "import hashlib, gymnasium as gym, numpy as np, optigrad_env"
    source = "\n".join([imports, inspect.getsource(play), f"print(play({env_id!r}, 5))"])
    root = Path(optigrad_env.__file__).parents[1]
    answer = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, cwd=root)
    assert answer.stdout.strip() == play(env_id, 5)


def test_resetting_with_the_same_seed_begins_the_same_episode_again(env_id: str) -> None:
    env = gym.make(env_id, **TINY)
    first = episode(env, seed=5)
    other = episode(env, seed=6)
    assert_same(first, episode(env, seed=5))
    assert not np.array_equal(clients_of(first[0][0]), clients_of(other[0][0]))


def test_resets_without_a_seed_follow_from_the_last_seed_and_differ_from_each_other(env_id: str) -> None:
    left, right = gym.make(env_id, **TINY), gym.make(env_id, **TINY)
    left.reset(seed=5)
    right.reset(seed=5)
    second = left.reset()
    assert_same(second, right.reset())
    assert not np.array_equal(clients_of(second[0]), clients_of(left.reset()[0]))


def test_a_pickled_environment_continues_identically(env_id: str) -> None:
    env = gym.make(env_id, **TINY)
    env.reset(seed=1, options=ATTACKED)
    env.step(uniform())
    copy = pickle.loads(pickle.dumps(env.unwrapped))
    action = np.linspace(-1, 1, 4, dtype=np.float32)
    assert_same(env.unwrapped.step(action), copy.step(action))
    assert_same(env.unwrapped.step(-action), copy.step(-action))
    assert_same(env.unwrapped.reset(), copy.reset())


def test_the_spec_survives_json_and_makes_the_same_environment(env_id: str) -> None:
    env = gym.make(env_id, **TINY, scenarios={"attacks": ["sign_flip"], "alpha": [0.3, 0.6]}, mu=0.2)
    assert env.spec is not None
    copy = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert copy.unwrapped.scenarios == env.unwrapped.scenarios
    assert copy.unwrapped.federation.config == env.unwrapped.federation.config
    assert_same(env.reset(seed=2), copy.reset(seed=2))


def test_an_environment_plays_on_after_a_refused_reset(env_id: str) -> None:
    env = gym.make(env_id, **TINY)
    with pytest.raises(ValueError, match="'alpah'"):
        env.reset(options={"alpah": 0.5})
    assert_same(episode(env, seed=0), episode(gym.make(env_id, **TINY), seed=0))


def test_spaces_have_a_row_a_client_and_hold_every_observation(env_id: str) -> None:
    env = gym.make(env_id, **TINY)
    space = env.observation_space
    if isinstance(space, gym.spaces.Dict):
        assert space["mask"] == gym.spaces.MultiBinary(4)
        space = space["clients"]
    assert space.shape == (4, 6)
    assert space.dtype == np.float32
    assert env.action_space == gym.spaces.Box(-1, 1, (4,), np.float32)
    assert all(step[0] in env.observation_space for step in episode(env, seed=3, options=ATTACKED))


def test_ansi_shows_a_line_a_client_and_marks_the_malicious_ones(env_id: str) -> None:
    env = gym.make(env_id, **TINY, render_mode="ansi")
    _, info = env.reset(seed=0, options={**ATTACKED, "num_clients": 4})
    for _ in range(2):
        text = env.render()
        assert isinstance(text, str)
        marks = [bool(re.match(rf"\s*client {i} \*", line)) for i, line in enumerate(text.splitlines()[1:5])]
        assert marks == info["malicious"].tolist()
        assert sum(marks) == 2
        _, _, _, _, info = env.step(np.array([1, -1, 0, 0.5], np.float32))
    shown = [float(line.split()[-1]) for line in env.render().splitlines()[1:6]]
    assert shown == pytest.approx([*info["weights"], info["root_weight"]], abs=6e-4)


def test_rgb_array_is_a_picture_that_changes_with_the_weights(env_id: str) -> None:
    env = gym.make(env_id, **TINY, render_mode="rgb_array")
    env.reset(seed=0, options=ATTACKED)
    before = env.render()
    env.step(np.array([1, -1, 0, 0.5], np.float32))
    after = env.render()
    for picture in (before, after):
        assert picture.dtype == np.uint8
        assert picture.shape == (640, 1120, 3)
    assert not np.array_equal(before, after)


def test_record_video_makes_a_video_of_an_episode(tmp_path: Path) -> None:
    pytest.importorskip("moviepy", reason="RecordVideo needs the extra 'video'")
    env = gym.make("OptiGrad/DigitsMasked-v0", **TINY, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # moviepy's own
        env = gym.wrappers.RecordVideo(env, str(tmp_path), episode_trigger=lambda _: True, name_prefix="federation")
        episode(env, seed=0)
        env.close()
    (video,) = tmp_path.glob("federation*.mp4")
    assert video.stat().st_size > 5_000


def test_rendering_without_a_mode_warns_and_shows_nothing() -> None:
    env = OptiGradEnv(**SMALL)
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


@pytest.mark.parametrize("make", [OptiGradEnv, OptiGradVectorEnv])
def test_rendering_before_the_first_reset_asks_for_one(make: Any) -> None:
    env = make(**SMALL, render_mode="ansi")
    with pytest.raises(ResetNeeded, match="reset"):
        env.render()


def test_an_unknown_render_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'human'.*ansi, rgb_array"):
        OptiGradEnv(render_mode="human")
