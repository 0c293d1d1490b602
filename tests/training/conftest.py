"""Training runs of a few rounds."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml

from agents import training
from agents.algorithms import HYPERPARAMS
from agents.environments import make_env
from agents.settings import TrainingSettings


@pytest.fixture(autouse=True)
def short_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation episodes of 4 rounds instead of 20."""
    monkeypatch.setattr(training, "make_env", partial(make_env, rounds=4))


@pytest.fixture
def short_rollouts() -> Callable[[str, Path], Path]:
    """Writes an algorithm's settings as they ship, but with rollouts of 8 rounds, and learning from the 8th on."""
    return write_short_rollouts


def write_short_rollouts(name: str, directory: Path) -> Path:
    entry = yaml.safe_load((HYPERPARAMS / f"{name}.yml").read_text())["default"]
    short = {"n_envs": 1, "n_steps": 8, "batch_size": 8, "learning_starts": 8}
    file = directory / f"{name}.yml"
    file.write_text(yaml.safe_dump({"default": {**entry, **{k: v for k, v in short.items() if k in entry}}}))
    return file


@pytest.fixture
def arguments(tmp_path: Path) -> TrainingSettings:
    return TrainingSettings(
        hyperparams=write_short_rollouts("ppo", tmp_path),
        timesteps=16,
        n_envs=1,
        num_clients=3,
        run_dir=tmp_path / "runs" / "tiny",
        warm_start="none",
        eval_every=8,
        eval_episodes=1,
        checkpoint_every=8,
        progress=False,
    )
