"""A state dict continues an episode bit for bit: in place, from disk, in a fresh process, several at once."""

import hashlib
import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import optigrad_env
from optigrad_env import OptiGradEnv, OptiGradVectorEnv, ScenarioDistribution
from optigrad_env.curriculum import Curriculum
from optigrad_env.masked import MaskedOptiGradEnv
from optigrad_env.wrappers import ClientHistory, FeatureDropout, FeatureShuffle

TINY: dict[str, Any] = {"num_clients": 4, "rounds": 4, "local_steps": 1, "batch_size": 8}
ATTACKED = {"attack": "gaussian_noise", "malicious_fraction": 0.5, "alpha": 0.5, "onset": 1}


def continued(env: Any, steps: int) -> str:
    """Plays on, through resets, and returns the hash of all that comes out of it."""
    digest, rng = hashlib.sha256(), np.random.default_rng(3)
    for _ in range(steps):
        observation, reward, _, truncated, info = env.step(rng.uniform(-1, 1, 4).astype(np.float32))
        if truncated:
            observation, info = env.reset()
        seen = observation.values() if isinstance(observation, dict) else [observation]
        for part in (*seen, np.float64(reward), info["malicious"], info["validation_loss"], info["rejected"]):
            digest.update(np.asarray(part).tobytes())
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """Arrays of objects, as vector infos have them, as lists: NumPy cannot compare them."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list) or (isinstance(value, np.ndarray) and value.dtype == object):
        return [plain(entry) for entry in value]
    return value


def begun(env: gym.Env[Any, Any], seed: int = 1) -> gym.Env[Any, Any]:
    env.reset(seed=seed, options=ATTACKED)
    for _ in range(2):
        env.step(np.linspace(-1, 1, 4, dtype=np.float32))
    return env


def test_another_instance_continues_from_the_pickled_state(env_id: str) -> None:
    env = begun(gym.make(env_id, **TINY))
    state = pickle.dumps(env.unwrapped.state_dict())
    expected = continued(env, 9)
    other = gym.make(env_id, **TINY)
    other.reset(seed=99)
    other.unwrapped.load_state_dict(pickle.loads(state))
    assert continued(other, 9) == expected


def test_a_state_does_not_change_when_the_episode_goes_on_and_can_be_loaded_twice() -> None:
    env = begun(OptiGradEnv(**TINY))
    state = env.state_dict()
    expected = continued(env, 7)
    for _ in range(2):
        env.load_state_dict(state)
        assert continued(env, 7) == expected


def test_a_fresh_process_continues_from_the_file(tmp_path: Path) -> None:
    env = begun(OptiGradEnv(**TINY))
    (tmp_path / "state").write_bytes(pickle.dumps(env.state_dict()))
    source = "\n".join(
        [
            "import hashlib, pickle, sys, numpy as np, torch\nfrom typing import Any\nfrom pathlib import Path",
            "from optigrad_env import OptiGradEnv\ntorch.set_num_threads(1)",
            inspect.getsource(continued),
            f"env = OptiGradEnv(**{TINY!r})",
            "env.load_state_dict(pickle.loads(Path(sys.argv[1]).read_bytes()))",
            "print(continued(env, 7))",
        ]
    )
    root = Path(optigrad_env.__file__).parents[1]
    command = [sys.executable, "-c", source, str(tmp_path / "state")]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert answer.stdout.strip() == continued(env, 7)


def test_the_calibration_of_a_long_episode_is_kept() -> None:
    """The typical error is measured anew in round 20; a state of round 21 must know it."""
    env = OptiGradEnv(**{**TINY, "rounds": 24})
    env.reset(seed=0, options=ATTACKED)
    for _ in range(21):
        env.step(np.zeros(4, np.float32))
    other = OptiGradEnv(**{**TINY, "rounds": 24})
    other.load_state_dict(env.state_dict())
    assert env.federation.fingerprinter.calibration()[0] == 20
    np.testing.assert_equal(env.step(np.ones(4, np.float32)), other.step(np.ones(4, np.float32)))


def test_what_is_remembered_of_clients_goes_on_too() -> None:
    settings = {**TINY, "sybil_exponent": 1.0, "sybil_power": 4.0}
    env, plain = begun(OptiGradEnv(**settings)), begun(OptiGradEnv(**TINY))
    other = OptiGradEnv(**settings)
    state = env.unwrapped.state_dict()
    other.load_state_dict(state)
    played = continued(env, 7)
    assert continued(other, 7) == played
    other.load_state_dict(state)
    assert continued(other, 7) == played
    other.load_state_dict(state)
    other._similarity.forget()
    assert continued(other, 7) != played
    with pytest.raises(ValueError, match=r"other settings: sybil_exponent was 0\.0, is 1\.0; sybil_power was 0\.0"):
        other.load_state_dict(plain.unwrapped.state_dict())


def test_pictures_go_on_too() -> None:
    env = begun(OptiGradEnv(**TINY, render_mode="rgb_array"))
    other = OptiGradEnv(**TINY, render_mode="rgb_array")
    other.load_state_dict(env.state_dict())
    np.testing.assert_array_equal(env.render(), other.render())


@pytest.mark.parametrize("root", [{"root_size": 30}, {"root_bias": 0.5}, {"root_draw": 3}])
def test_an_episode_with_other_root_data_continues(root: dict[str, Any]) -> None:
    env, other = OptiGradEnv(**TINY), OptiGradEnv(**TINY)
    env.reset(seed=1, options={**ATTACKED, **root})
    other.load_state_dict(env.state_dict())
    assert continued(other, 2) == continued(env, 2)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
@pytest.mark.parametrize("env_id", ["OptiGrad/Digits-v0", "OptiGrad/DigitsMasked-v0"])
def test_a_vector_environment_continues_with_what_it_was_about_to_reset(env_id: str, mode: str) -> None:
    def make() -> OptiGradVectorEnv:
        return gym.make_vec(env_id, 2, autoreset_mode=mode, around=(ClientHistory,), **TINY)

    envs, other = make(), make()
    envs.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-1, 1, (12, 2, 4)).astype(np.float32)
    for action in actions[:4]:
        envs.step(action)
    other.load_state_dict(pickle.loads(pickle.dumps(envs.state_dict())))
    if mode == "Disabled":
        mask = {"reset_mask": np.array([True, True])}
        np.testing.assert_equal(envs.reset(options=dict(mask)), other.reset(options=dict(mask)))
    for action in actions[4 : 8 if mode == "Disabled" else None]:
        np.testing.assert_equal(plain(envs.step(action)), plain(other.step(action)))


@pytest.mark.parametrize("wrapper", [ClientHistory, FeatureDropout, FeatureShuffle])
def test_wrappers_continue_with_what_they_remember(wrapper: type[Any]) -> None:
    env, other = wrapper(OptiGradEnv(**TINY)), wrapper(OptiGradEnv(**TINY))
    begun(env)
    other.load_state_dict(pickle.loads(pickle.dumps(env.state_dict())))
    assert continued(other, 7) == continued(env, 7)


@pytest.mark.parametrize(
    ("make", "other", "message"),
    [
        (lambda: ClientHistory(OptiGradEnv(**TINY), 2), lambda: ClientHistory(OptiGradEnv(**TINY), 3), "k was 2, is 3"),
        (
            lambda: FeatureDropout(OptiGradEnv(**TINY), 0.9, seed=1),
            lambda: FeatureDropout(OptiGradEnv(**TINY), 0.1, seed=1),
            "probability was 0.9, is 0.1",
        ),
        (
            lambda: Curriculum(OptiGradEnv(**TINY), [("OptiGrad/Softmax-v0", 6), ("OptiGrad/Digits-v0", 2)]),
            lambda: Curriculum(OptiGradEnv(**TINY), [("OptiGrad/Softmax-v0", 6)]),
            "stages was .*, is ",
        ),
    ],
)
def test_a_wrappers_state_with_other_settings_is_refused_and_nothing_is_loaded(
    make: Any, other: Any, message: str
) -> None:
    state, untouched = begun(make()).state_dict(), begun(other(), seed=2)
    with pytest.raises(ValueError, match=message):
        untouched.load_state_dict(state)
    assert continued(untouched, 3) == continued(begun(other(), seed=2), 3)


def test_a_curriculum_continues_in_its_stage() -> None:
    def make() -> Curriculum:
        return Curriculum(OptiGradEnv(**TINY), [("OptiGrad/Softmax-v0", 6)])

    env, other = make(), make()
    begun(env)
    other.load_state_dict(pickle.loads(pickle.dumps(env.state_dict())))
    assert continued(other, 12) == continued(env, 12)
    assert (env.stage, env.steps, other.steps) == (1, 14, 14)


def test_a_state_of_another_federation_is_refused_with_what_differs() -> None:
    state = begun(OptiGradEnv(**TINY)).unwrapped.state_dict()
    with pytest.raises(ValueError, match=r"mu was 0\.1, is 0\.2; num_clients was 4, is 5"):
        OptiGradEnv(**{**TINY, "num_clients": 5, "mu": 0.2}).load_state_dict(state)
    with pytest.raises(ValueError, match="1 federations, here are 2"):
        envs = OptiGradVectorEnv(1, **TINY)
        envs.reset(seed=0)
        OptiGradVectorEnv(2, **TINY).load_state_dict(envs.state_dict())


def test_a_state_is_not_continued_by_another_engine() -> None:
    """``auto`` is another one where the native library is not built, and rounds otherwise."""
    state = begun(OptiGradEnv(**TINY, engine="stacked")).state_dict()
    with pytest.raises(ValueError, match=r"engine was 'stacked', is 'sequential'"):
        other = OptiGradEnv(**TINY, engine="sequential")
        other.reset(seed=0)
        other.load_state_dict(state)
    assert state["federation"]["settings"]["engine"] == "stacked"
    auto = OptiGradEnv(**TINY)
    assert begun(auto).state_dict()["federation"]["settings"]["engine"] == auto.federation.engine.name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptiGradEnv(**{**TINY, "rounds": 5}), "an environment with other settings: rounds was 4, is 5$"),
        (
            lambda: OptiGradEnv(**TINY, reward="progress"),
            r"reward was \{'oracle_gap': 1\.0\}, is \{'progress': 1\.0\}$",
        ),
        (lambda: OptiGradEnv(**TINY, scenarios={"onset": (0, 1)}), r"scenarios was .*\(0, 5\).*, is .*\(0, 1\)"),
        (lambda: MaskedOptiGradEnv(**TINY, scenarios=ScenarioDistribution()), "masked was False, is True$"),
        (lambda: OptiGradEnv(**{**TINY, "rounds": 5}, reward="progress"), "reward was .*; rounds was 4, is 5$"),
        (
            lambda: ClientHistory(OptiGradEnv(**TINY)),
            "expected a state of env, settings, memory.*got one of environment",
        ),
    ],
)
def test_a_state_of_another_environment_is_refused_with_what_differs(make: Any, message: str) -> None:
    state = begun(OptiGradEnv(**TINY)).unwrapped.state_dict()
    with pytest.raises(ValueError, match=message):
        make().load_state_dict(state)


@pytest.mark.parametrize("state", [{}, None, {"env": None}])
@pytest.mark.parametrize(
    "make",
    [
        lambda: OptiGradEnv(**TINY),
        lambda: ClientHistory(OptiGradEnv(**TINY)),
        lambda: Curriculum(OptiGradEnv(**TINY), [("OptiGrad/Softmax-v0", 6)]),
        lambda: OptiGradVectorEnv(1, **TINY),
    ],
)
def test_what_is_no_state_is_refused(make: Any, state: Any) -> None:
    with pytest.raises(ValueError, match="expected a state of"):
        make().load_state_dict(state)


def test_a_wrappers_state_is_not_another_wrappers() -> None:
    env = begun(FeatureDropout(OptiGradEnv(**TINY)))
    with pytest.raises(ValueError, match=r"expected a state of _past, _waiting.*got one of _generator"):
        ClientHistory(OptiGradEnv(**TINY)).load_state_dict(env.state_dict())
