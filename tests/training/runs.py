"""What a run directory holds."""

from pathlib import Path

import numpy as np


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def timesteps(directory: Path) -> list[int]:
    with np.load(directory / "evaluations.npz") as kept:
        result: list[int] = kept["timesteps"].tolist()
    return result
