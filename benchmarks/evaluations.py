"""What an algorithm added to the policy that it began with, from a run's evaluations; prints a line an evaluation.

    python benchmarks/evaluations.py results/pretrained/digits.npz

Evaluations play the same episodes again and again, so differences to the first are paired, and their standard error is
that over episodes. The largest of several differences is flattered by being the largest.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro


@dataclass(frozen=True)
class Arguments:
    """Which run."""

    evaluations: Annotated[Path, tyro.conf.Positional]
    """`evaluations.npz` of a run directory."""


def main(arguments: Arguments) -> None:
    """Prints steps, mean reward, and gain over the first evaluation."""
    with np.load(arguments.evaluations) as kept:
        steps, rewards = kept["timesteps"], kept["results"]
    gains = rewards - rewards[0]
    errors = gains.std(axis=1, ddof=1) / np.sqrt(gains.shape[1])
    for step, reward, gain, error in zip(steps, rewards.mean(axis=1), gains.mean(axis=1), errors, strict=True):
        print(f"{step:>8} rounds   mean reward {reward:+.4f}   gain {gain:+.4f} ± {error:.4f}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
