"""A run that is killed and resumed ends as one that was left alone: bit for bit, whenever it was killed."""

import io
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecEnv

from agents import training
from agents.algorithms import HYPERPARAMS
from agents.checkpoint import CHECKPOINT, read
from agents.environments import make_env, make_training_envs
from agents.resumable import Resumable
from agents.warm_start import WarmStart
from optigrad_env import OptiGradEnv
from train_agent import main, parse

ROOT = Path(__file__).parents[2]
LENGTHS = {"rounds": 8, "clone_steps": 2, "gradient_steps": 2, "value_steps": 2, "batch": 2, "samples": 8}

# A process that kills itself with SIGKILL, which nothing can catch, where it is told to.
KILLED = """
import os, signal, sys
from functools import partial
from agents import callbacks, checkpoint, training
from agents.environments import make_env
from agents.warm_start import WarmStart
import fl_core.files, train_agent

where, number = sys.argv[1].split(":")
training.make_env = partial(make_env, rounds=4)
training.WarmStart = lambda: WarmStart(**LENGTHS)

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if where == "step":
    on_step = callbacks.RoundCurves._on_step
    callbacks.RoundCurves._on_step = lambda self: die() if self.num_timesteps >= int(number) else on_step(self)
elif where == "model":  # between the model and the checkpoint of that time step, whichever comes first
    keep, save = callbacks.Saving._keep, callbacks.Saving._save
    def first(self, write):
        write(self)
        if self.num_timesteps == int(number):
            die()
    callbacks.Saving._keep = lambda self: first(self, keep)
    callbacks.Saving._save = lambda self: first(self, save)
elif where == "warm_start":
    training.warm_critic = die
else:  # while the so many-th checkpoint is written: its content is in a temporary file
    saves, write = [], checkpoint.write_atomically
    def write_and_die(path, content):
        saves.append(path)
        if len(saves) == int(number):
            os.fsync = die
        write(path, content)
    checkpoint.write_atomically = write_and_die
train_agent.main(train_agent.parse(sys.argv[2:]))
""".replace("LENGTHS", repr(LENGTHS))


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "make_env", partial(make_env, rounds=4))
    monkeypatch.setattr(training, "WarmStart", lambda: WarmStart(**LENGTHS))
    monkeypatch.setattr(training, "affordable", lambda *_: {"--warm-start-length": 1.0})


def command(algorithm: str, directory: Path) -> list[str]:
    entry = yaml.safe_load((HYPERPARAMS / f"{algorithm}.yml").read_text())["after_warm_start"]
    few = {"n_envs": 1, "n_steps": 8, "batch_size": 8}
    file = directory / f"{algorithm}.yml"
    file.write_text(yaml.safe_dump({"default": {**entry, **{k: v for k, v in few.items() if k in entry}}}))
    flags = {"--algo": algorithm, "--hyperparams": file, "--timesteps": 40, "--n-envs": 1, "--num-clients": 4}
    flags |= {"--eval-every": 16, "--eval-episodes": 1, "--checkpoint-every": 8, "--warm-start": "clone"}
    return [str(word) for pair in flags.items() for word in pair] + ["--quiet"]


def ended(directory: Path) -> dict[str, Any]:
    """Everything in which two runs could differ, but for the time that they took."""
    _, parameters, variables = load_from_zip_file(directory / "model.zip")
    checkpoint = read(directory / CHECKPOINT)
    with np.load(directory / "evaluations.npz") as kept:
        evaluations = {name: kept[name].tolist() for name in kept}
    return {
        "parameters": parameters,
        "variables": variables,
        "evaluations": evaluations,
        "policy": (directory / "policy.safetensors").read_bytes(),
        "random": checkpoint.random_state,
        "models": sorted(path.name for path in (directory / "checkpoints").iterdir()),
    }


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_equal(*pair, f"{where}/{i}")
    elif isinstance(a, torch.Tensor | np.ndarray):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b)), where
    else:
        assert a == b, where


@pytest.mark.parametrize(
    ("algorithm", "where"),
    [
        ("ppo", "step:13"),  # in the middle of a rollout and of an episode
        ("ppo", "save:1"),  # while the first checkpoint is written: begins again
        ("ppo", "save:3"),
        ("ppo", "model:16"),
        ("ppo", "model:40"),
        ("ppo", "warm_start:0"),
        ("sac", "step:13"),
        ("td3", "save:4"),
    ],
)
def test_a_run_killed_at_any_moment_and_resumed_equals_one_that_was_left_alone(
    algorithm: str, where: str, tmp_path: Path
) -> None:
    words = command(algorithm, tmp_path)
    assert main(parse([*words, "--run-dir", str(tmp_path / "whole")])) == 0
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, where, *words, "--run-dir", str(tmp_path / "killed")],
        cwd=ROOT,
        check=False,
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert main(parse(["--resume", "--run-dir", str(tmp_path / "killed"), "--quiet"])) == 0
    assert_equal(ended(tmp_path / "killed"), ended(tmp_path / "whole"))


def test_a_longer_run_goes_on_where_the_shorter_one_ended(tmp_path: Path) -> None:
    words = command("ppo", tmp_path)
    assert main(parse([*words, "--run-dir", str(tmp_path / "whole")])) == 0
    assert main(parse([*words, "--run-dir", str(tmp_path / "parts"), "--timesteps", "16"])) == 0
    assert main(parse(["--resume", "--run-dir", str(tmp_path / "parts"), "--timesteps", "40", "--quiet"])) == 0
    whole, parts = ended(tmp_path / "whole"), ended(tmp_path / "parts")
    for name in ("parameters", "random", "policy"):
        assert_equal(parts[name], whole[name], name)


def test_a_checkpoint_holds_the_replay_buffer(tmp_path: Path) -> None:
    assert main(parse([*command("sac", tmp_path), "--run-dir", str(tmp_path / "run")])) == 0
    buffer = pickle.loads(read(tmp_path / "run" / CHECKPOINT).replay_buffer or b"")
    assert buffer.size() == LENGTHS["rounds"] + 40
    assert (buffer.rewards[: buffer.size()] != 0).mean() > 0.9


@pytest.mark.parametrize("content", [b"", b"half a pick", b"\x80\x05N."])
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.pkl"):
        read(tmp_path / CHECKPOINT)


@pytest.mark.parametrize("attack", ["sign_flip", "label_flip"])
def test_an_environment_continues_an_episode_bit_for_bit_and_so_does_the_next_one(attack: str) -> None:
    scenarios = {"attacks": (attack,), "onset": (0, 0)}
    whole, other = (Resumable(OptiGradEnv(num_clients=4, rounds=24, scenarios=scenarios)) for _ in range(2))
    rng = np.random.default_rng(0)
    whole.reset(seed=3)
    other.reset(seed=9)
    for _ in range(21):  # past the refresh of the autoencoder
        whole.step(rng.uniform(-1, 1, 4).astype(np.float32))
    other.load_saved_state(whole.saved_state())
    for _ in range(2):
        for _ in range(3):
            action = rng.uniform(-1, 1, 4).astype(np.float32)
            (seen, reward, _, done, info), (same, equal, *_, told) = whole.step(action), other.step(action)
            np.testing.assert_array_equal(same, seen)
            assert equal == reward
            assert told["attack"] == info["attack"]
            if done:
                np.testing.assert_array_equal(other.reset()[0], whole.reset()[0])


@pytest.fixture
def shared_out() -> Iterator[Callable[[], VecEnv]]:
    opened: list[VecEnv] = []

    def make() -> VecEnv:
        opened.append(make_training_envs("OptiGrad/Digits-v0", 3, 0, processes=2, num_clients=3, rounds=4))
        return opened[-1]

    yield make
    for envs in opened:
        envs.close()


def test_environments_in_several_processes_continue_too_returns_of_episodes_included(
    shared_out: Callable[[], VecEnv],
) -> None:
    one, two = shared_out(), shared_out()
    actions = np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3)
    one.reset()
    two.reset()
    one.step(actions)
    two.load_saved_states(one.saved_states())  # type: ignore[attr-defined]
    for _ in range(4):
        (seen, rewards, _, infos), (same, equal, _, told) = one.step(actions), two.step(actions)
        np.testing.assert_array_equal(same, seen)
        np.testing.assert_array_equal(equal, rewards)
        for mine, yours in zip(infos, told, strict=True):
            assert ("episode" in mine) == ("episode" in yours)
            if "episode" in mine:
                assert mine["episode"]["r"] == yours["episode"]["r"]


def test_loading_a_model_from_a_checkpoint_does_not_reset_its_environments(tmp_path: Path) -> None:
    assert main(parse([*command("ppo", tmp_path), "--run-dir", str(tmp_path / "run")])) == 0
    data, _, _ = load_from_zip_file(io.BytesIO(read(tmp_path / "run" / CHECKPOINT).model))
    assert data is not None
    assert data["num_timesteps"] == 40
    assert data["_last_obs"].shape == (1, 4, 6)
