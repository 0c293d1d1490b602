"""How far two runs of the same cells lie apart, for example on two machines.

    python evaluate.py --preset held-out --seeds 1 --first-seed 20 --no-features --out results/held_out_seed_20
    python benchmarks/same_cells.py results/held_out results/held_out_seed_20

Prints, for each rule and heterogeneity, over the cells under attack that both directories have: the mean test accuracy
of either, and the mean and the largest absolute difference of a cell.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated

import tyro

from agents.evaluation.figures_of_merit import KEY
from agents.statistics import read_results


@dataclass(frozen=True)
class Arguments:
    """Which results."""

    one: Annotated[Path, tyro.conf.Positional]
    """A results directory."""
    other: Annotated[Path, tyro.conf.Positional]
    """Another one with some of the same cells."""


def accuracies(directory: Path) -> dict[tuple[str, ...], float]:
    """Test accuracy in points of every row under attack, by the columns ``KEY``."""
    rows = read_results(directory / "results.csv")
    attacked = (row for row in rows if float(row["malicious_fraction"]) > 0)
    return {tuple(str(row[name]) for name in KEY): 100 * float(row["test_accuracy"]) for row in attacked}


def main(arguments: Arguments) -> None:
    """Prints a line for each rule and heterogeneity."""
    one, other = accuracies(arguments.one), accuracies(arguments.other)
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for key in one:
        if key in other:
            pairs[key[KEY.index("rule")], key[KEY.index("heterogeneity")]].append((one[key], other[key]))
    if not pairs:
        raise SystemExit(f"{arguments.one} and {arguments.other} have no cell under attack in common")
    for (rule, kind), found in pairs.items():
        means = [fmean(values) for values in zip(*found, strict=True)]
        apart = [abs(a - b) for a, b in found]
        print(
            f"{rule}  {kind}  {means[0]:.2f} and {means[1]:.2f} %  a cell {fmean(apart):.2f} apart, at most "
            f"{max(apart):.2f}  {len(found)} cells"
        )


if __name__ == "__main__":
    main(tyro.cli(Arguments))
