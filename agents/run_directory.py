"""A training run's directory: what is in it, and when it may be written to."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from fl_core.files import lock, write_json

CONFIG, MODEL, EVALUATIONS, TENSORBOARD = "config.json", "model.zip", "evaluations.npz", "tensorboard"
# The policy that a run began with, if any: what it was taken from may change or go.
START = "start"
# The file that --hyperparams named, if any, for the same reason.
HYPERPARAMS = "hyperparams.yml"
# Held by the process that trains.
LOCK = ".lock"

# A run may be made longer, its data may lie elsewhere, and the command that began it is not the one that resumes it.
_MAY_CHANGE = ("timesteps", "command", "data_dir", "download")

# What tells the settings of a run from another program's config.json.
_OF_A_RUN = {"algo", "timesteps", "seed"}


def check_run(directory: Path, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Whether ``open_run`` may have the directory; nothing is written or deleted.

    Raises:
        ValueError: It exists and neither is allowed, or there is nothing to resume, or a run with other settings.
    """
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other: the one keeps the old run, the other deletes it")
    if resume:
        _check_resumable(directory, config)
    elif directory.exists() and not _is_free(directory):
        if not (directory / CONFIG).is_file():
            raise ValueError(
                f"{directory} holds no {CONFIG}, so it is not a run directory; it is not deleted: "
                "give another --run-dir"
            )
        read_config(directory)
        if not overwrite:
            raise ValueError(f"{directory} exists already; give --resume to continue it or --overwrite to delete it")


def open_run(directory: Path, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Path:
    """Makes the directory and writes ``config.json``, or goes on with an old run.

    Args:
        directory: The run directory.
        config: All settings of the run.
        resume: Continue the run that is there.
        overwrite: Delete the run that is there.

    Raises:
        ValueError: See ``check_run``; or it cannot be made.
    """
    check_run(directory, config, resume=resume, overwrite=overwrite)
    if resume:
        config = {**config, "command": read_config(directory).get("command", config.get("command"))}
    try:
        # The settings last: whoever is killed before has a run directory still, and may overwrite it again.
        for old in sorted(_contents(directory), key=lambda path: path.name == CONFIG) if overwrite else ():
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            else:
                old.unlink()
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the run directory {directory}: {error.strerror}") from error
    write_json(directory / CONFIG, config)
    return directory


def lock_run(directory: Path) -> IO[bytes]:
    """Makes the directory, and keeps other processes from training in it until what is returned is closed.

    Raises:
        ValueError: Another process trains in it; or it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return lock(directory / LOCK)
    except BlockingIOError as error:
        raise ValueError(
            f"{directory} is being written to by another train_agent.py; wait for it, or give another --run-dir"
        ) from error
    except OSError as error:
        raise ValueError(f"cannot make the run directory {directory}: {error.strerror}") from error


def _contents(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.name != LOCK] if directory.exists() else []


def _is_free(directory: Path) -> bool:
    """Whether a directory holds nothing but what a run leaves that was killed while it wrote its settings."""
    return directory.is_dir() and all(path.name.startswith(f".{CONFIG}.") for path in _contents(directory))


def read_config(directory: Path) -> dict[str, Any]:
    """The settings of the run in a directory.

    Raises:
        ValueError: There is no run, or its ``config.json`` is damaged or another program's.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise ValueError(f"nothing to resume: {directory} does not hold {CONFIG}")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict) or not config.keys() >= _OF_A_RUN:
        raise ValueError(
            f"{path} is not that of a run: it lacks {', '.join(sorted(_OF_A_RUN - {*config}))}; nothing in {directory} "
            "is changed: give another --run-dir"
        )
    return config


def _check_resumable(directory: Path, config: Mapping[str, Any]) -> None:
    old = read_config(directory)
    # A setting that the run's version did not know yet is none that can differ.
    known = [name for name in config if name in old and name not in _MAY_CHANGE]
    changed = [name for name in known if old[name] != config[name]]
    if changed:
        differences = ", ".join(f"{name} was {old[name]!r}, is {config[name]!r}" for name in changed)
        raise ValueError(f"{directory} is a run with other settings ({differences}); only timesteps may change")
