"""Means and standard errors of benchmark rows, paired by seed."""

import csv
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, isnan, nan, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, each seed's value itself a mean over scenarios.

    Attributes:
        mean: The mean; NaN without data.
        standard_error: Over seeds; NaN for fewer than two.
        seeds: Number of seeds.
    """

    mean: float
    standard_error: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.standard_error:.2f}" if self.seeds > 1 else f"{self.mean:.2f}"


def over_seeds(rows: Iterable[Row], column: str, scale: float = 1.0) -> Estimate:
    """Mean of a column: within each seed first, then over seeds.

    Rules are compared on the same seeds, so scenario-to-scenario variation does not belong in the error.
    """
    by_seed: dict[Any, list[float]] = {}
    for row in rows:
        if row[column] is not None:
            by_seed.setdefault(row["seed"], []).append(scale * float(row[column]))
    means = [fmean(values) for values in by_seed.values()]
    if not means:
        return Estimate(nan, nan, 0)
    error = stdev(means) / sqrt(len(means)) if len(means) > 1 else nan
    return Estimate(fmean(means), error, len(means))


def worst_attack(rows: Sequence[Row], column: str, scale: float = 1.0) -> float:
    """The largest mean of a column over any single attack and heterogeneity; NaN without data."""
    keys = {(row["attack"], row["malicious_fraction"], row["alpha"]) for row in rows}
    groups = [[row for row in rows if (row["attack"], row["malicious_fraction"], row["alpha"]) == key] for key in keys]
    return max((over_seeds(group, column, scale).mean for group in groups), default=nan)


def alphas_of(rows: Iterable[Row]) -> list[float | None]:
    """Concentrations in the rows, IID (``None``) first, then from large to small."""
    return sorted({row["alpha"] for row in rows}, key=lambda alpha: inf if alpha is None else alpha, reverse=True)


def paired_difference(rows: Sequence[Row], rule: str, other: str, column: str = "test_accuracy") -> Estimate:
    """Mean over seeds of a rule's column minus another's under attack, in points; both saw the same seeds."""
    theirs = {_cell(row): row[column] for row in rows if row["rule"] == other}
    pairs = [
        {"seed": row["seed"], "difference": row[column] - theirs[_cell(row)]}
        for row in rows
        if row["rule"] == rule and row["malicious_fraction"] > 0 and _cell(row) in theirs
    ]
    return over_seeds(pairs, "difference", 100)


def _cell(row: Row) -> tuple[Any, ...]:
    return row["attack"], row["malicious_fraction"], row["alpha"], row["seed"]


def read_results(path: Path) -> list[dict[str, Any]]:
    """Rows of a ``results.csv``, numbers as numbers and empty fields as ``None``."""
    with path.open(newline="") as file:
        return [{name: _parse(name, value) for name, value in row.items()} for row in csv.DictReader(file)]


def _parse(name: str, value: str) -> Any:
    if name in ("rule", "attack"):
        return value
    if name == "held_out":
        return value == "True"
    return None if value == "" else float(value)


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One entry a rule, best mean regret under attack first; accuracies and regrets in percentage points.

    Args:
        rows: Rows of ``results.csv``.

    Returns:
        For each rule: ``accuracy`` and ``regret`` under attack, with the same per α in ``regret_by_alpha``, the
        ``worst_regret`` over attacks, ``accuracy_no_attack``, ``loss_to_fedavg_no_attack`` and
        ``seconds_per_round``.
    """

    def select(rule: str, condition: Callable[[Row], bool]) -> list[Row]:
        return [row for row in rows if row["rule"] == rule and condition(row)]

    def attacked(row: Row) -> bool:
        return bool(row["malicious_fraction"] > 0)

    alphas = alphas_of(rows)
    entries = []
    for rule in dict.fromkeys(row["rule"] for row in rows):
        under_attack = select(rule, attacked)
        quiet = select(rule, lambda row: not attacked(row))
        entries.append(
            {
                "rule": rule,
                "accuracy": asdict(over_seeds(under_attack, "test_accuracy", 100)),
                "regret": asdict(over_seeds(under_attack, "regret", 100)),
                "regret_anchored": asdict(over_seeds(under_attack, "regret_anchored", 100)),
                "regret_by_alpha": {
                    str(alpha): asdict(over_seeds([r for r in under_attack if r["alpha"] == alpha], "regret", 100))
                    for alpha in alphas
                },
                "worst_regret": worst_attack(under_attack, "regret", 100),
                "accuracy_no_attack": asdict(over_seeds(quiet, "test_accuracy", 100)),
                "loss_to_fedavg_no_attack": asdict(_loss_to_fedavg(quiet, rows)),
                "seconds_per_round": over_seeds(select(rule, lambda row: True), "seconds_per_round").mean,
            }
        )
    return sorted(entries, key=_regret_or_last)


def _loss_to_fedavg(quiet: Sequence[Row], rows: Sequence[Row]) -> Estimate:
    """Paired difference of test accuracy to FedAvg without attack, in points; positive is worse than FedAvg."""
    fedavg = {
        (row["alpha"], row["seed"]): row["test_accuracy"]
        for row in rows
        if row["rule"] == "fedavg" and not row["malicious_fraction"]
    }
    pairs = [
        {"seed": row["seed"], "loss": fedavg[row["alpha"], row["seed"]] - row["test_accuracy"]}
        for row in quiet
        if (row["alpha"], row["seed"]) in fedavg
    ]
    return over_seeds(pairs, "loss", 100)


def _regret_or_last(entry: Mapping[str, Any]) -> tuple[bool, float]:
    mean = entry["regret"]["mean"]
    return isnan(mean), mean


def main(path: str, rule: str) -> None:
    """Prints the paired difference of a rule to every other: ``python -m agents.statistics results.csv RULE``."""
    rows = read_results(Path(path))
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    if rule not in rules:
        sys.exit(f"no rule {rule!r} in {path}; there are: {', '.join(rules)}")
    print(f"{rule} minus another rule under attack, points of test accuracy, mean ± standard error over seeds")
    for alpha in [None, *alphas_of(rows)]:
        chosen = rows if alpha is None else [row for row in rows if row["alpha"] == alpha]
        for other in rules:
            if other != rule:
                print(f"  α {alpha or 'all'}  {other:>16}  {paired_difference(chosen, rule, other)}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m agents.statistics results.csv RULE")
    main(*sys.argv[1:])
