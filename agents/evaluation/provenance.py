"""Where results come from: versions, revision, data, policies."""

import hashlib
import platform
import re
import subprocess
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from agents.deployed import PRETRAINED
from agents.evaluation.grid import Grid
from fl_core import Federation
from fl_core.data import load_dataset
from fl_core.training import native

_PACKAGES = ("optigradtrust", "torch", "numpy", "scipy", "scikit-learn", "gymnasium", "stable-baselines3")


def provenance(grid: Grid, command: str) -> dict[str, Any]:
    """What a report states beside its figures.

    Args:
        grid: What is run.
        command: The command line.
    """
    return {
        "command": command,
        "revision": git_revision(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "engines": _engines(grid),
        "seeds": list(grid.seeds),
        "policies": policies(grid),
    }


def policies(grid: Grid) -> dict[str, dict[str, Any]]:
    """Card and checksum of every policy, by its label and environment."""
    return {
        f"{one.label} on {env_id}": {
            "source": _shown(one.policy.source),
            "checksum": one.policy.checksum,
            "weighting": asdict(one.policy.weighting),
            "attacks_seen": None if one.policy.seen is None else list(one.policy.seen),
            "provenance": one.policy.provenance,
        }
        for env_id in dict.fromkeys(grid.env_ids)
        for one in grid.contestants(env_id)
        if one.policy is not None and one.control is None
    }


def _shown(source: str) -> str:
    """A policy of the package by its name: where the package lies is nobody else's concern."""
    path = Path(source)
    return f"{path.name}, ships with the package" if path.parent == PRETRAINED else source


def data_checksums(grid: Grid) -> dict[str, str]:
    """SHA-256 of the images, labels and test border of every data set in the grid, by environment."""
    return {env_id: _checksum(grid, env_id) for env_id in dict.fromkeys(grid.env_ids)}


def git_revision() -> str | None:
    """Commit of the working copy that this code stands in, with a mark if it was changed; ``None`` outside of one.

    A repository that merely lies around this code, where it is installed in somebody's environment, is not asked.
    """
    here = Path(__file__).parent
    try:
        _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
        tree = _git(here, "rev-parse", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{tree} with local changes" if changed else tree


def _processor() -> str:
    """Its model's name, as far as the system tells: results of two processors differ by rounding."""
    with suppress(OSError):
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found.group(1)
    return platform.processor() or platform.machine()


def _engines(grid: Grid) -> dict[str, str]:
    """By environment the training engine that ``auto`` stands for here, the native one with its kernels and library."""
    found = {}
    for env_id in dict.fromkeys(grid.env_ids):
        name = Federation(grid.config(env_id)).engine.name
        if name == "native":
            name += f", {native.instruction_set()}, {native.checksum()[:12]}"
        found[env_id] = name
    return found


def _git(folder: Path, *arguments: str) -> str:
    # Asking must not write: whoever is killed while git refreshes its index leaves a lock in the user's repository.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _checksum(grid: Grid, env_id: str) -> str:
    config = grid.config(env_id)
    data = load_dataset(config.dataset, config.data_dir, download=config.download, **dict(config.dataset_options))
    digest = hashlib.sha256()
    for part in (data.pixels, data.labels, data.train, data.test):
        digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
