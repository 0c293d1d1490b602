"""Robust statistics of benchmark rows: inter-quartile means, bootstrap intervals, paired comparisons, profiles.

The definitions are those of Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice" (arXiv 2108.13264, the ``rliable`` library), on matrices of scores (S seeds, T tasks): a task is a scenario.
One thing differs. There the runs of two tasks are independent, so each task is resampled by itself. Here a seed is the
same root data, partition and initial model under every attack: resampled by itself, one lucky seed in twenty attacks
would count as twenty runs. Seeds are therefore drawn once for all tasks (``shared_seeds``), which is wider and right.
"""

import csv
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = Mapping[str, Any]
Scores = NDArray[np.float64]
# Of an array of score matrices (..., S, T) to one number each (...).
Statistic = Callable[[Scores], Scores]

REPETITIONS = 2000
CONFIDENCE = 0.95
# What tells two scenarios apart, beside the seed.
TASK = ("env_id", "num_clients", "heterogeneity", "attack", "malicious_fraction")
_WORDS = ("rule", "attack", "env_id", "heterogeneity")


@dataclass(frozen=True)
class Estimate:
    """A statistic with its bootstrap interval.

    Attributes:
        value: The statistic; NaN without data.
        low: Lower end of the 95 % interval; NaN for fewer than two seeds.
        high: Upper end.
        seeds: Number of seeds.
    """

    value: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]" if self.seeds > 1 else f"{self.value:.2f}"


NOTHING = Estimate(nan, nan, nan, 0)


def mean(scores: Scores) -> Scores:
    """Mean over seeds and tasks of (..., S, T)."""
    result: Scores = np.asarray(scores.mean(axis=(-2, -1)))
    return result


def interquartile_mean(scores: Scores) -> Scores:
    """Mean of the middle half of all S·T scores: a quarter, rounded down, is cut at either end."""
    flat = scores.reshape(*scores.shape[:-2], -1)
    cut = flat.shape[-1] // 4
    middle = np.partition(flat, (cut, flat.shape[-1] - cut - 1), axis=-1)[..., cut : flat.shape[-1] - cut]
    result: Scores = np.asarray(middle.mean(axis=-1))
    return result


def probability_of_improvement(ours: Scores, theirs: Scores) -> Scores:
    """P(X > Y) for a run of ours and one of theirs, ties counting half; mean over tasks.

    Args:
        ours: (..., S, T).
        theirs: (..., S', T).
    """
    x, y = ours[..., :, None, :], theirs[..., None, :, :]
    result: Scores = np.asarray(((x > y) + 0.5 * (x == y)).mean(axis=(-3, -2, -1)))
    return result


def performance_profile(scores: Scores, thresholds: Scores) -> Scores:
    """Share of the S·T runs above each threshold: (..., S, T), (K,) to (..., K)."""
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    above = [(flat > threshold).mean(axis=-1) for threshold in thresholds]
    return np.stack(above, axis=-1)


def resampled(scores: Scores, *, repetitions: int = REPETITIONS, shared_seeds: bool = True, entropy: int = 0) -> Scores:
    """Bootstrap replicates of a score matrix, stratified by task: seeds are drawn, tasks stay.

    Args:
        scores: (S, T).
        repetitions: R.
        shared_seeds: Draw the seeds once for all tasks; otherwise for every task by itself, as rliable does.
        entropy: Seed of the draw. Two rules with equal entropy get the same seeds, so their difference is paired.

    Returns:
        (R, S, T).
    """
    seeds, tasks = scores.shape
    generator = np.random.default_rng(entropy)
    picks = generator.integers(seeds, size=(repetitions, seeds, 1 if shared_seeds else tasks))
    return scores[picks, np.arange(tasks)]


def estimate(scores: Scores, statistic: Statistic = mean, *, shared_seeds: bool = True) -> Estimate:
    """A statistic of (S, T) scores and its percentile interval; (0, T) or (S, 0) has none."""
    if 0 in scores.shape:
        return NOTHING
    return _interval(statistic(scores), lambda: statistic(resampled(scores, shared_seeds=shared_seeds)), len(scores))


def estimate_improvement(ours: Scores, theirs: Scores) -> Estimate:
    """Probability of improvement of rules that saw the same seeds and tasks, both (S, T)."""
    if 0 in ours.shape:
        return NOTHING

    def replicates() -> Scores:
        # Tasks share their seeds, so wins can be averaged over tasks before seeds are drawn.
        x, y = ours[:, None], theirs[None]
        wins = ((x > y) + 0.5 * (x == y)).mean(axis=-1)
        seeds = np.arange(len(ours), dtype=np.float64)[:, None]
        picks = resampled(seeds)[..., 0].astype(np.intp)
        result: Scores = wins[picks[:, :, None], picks[:, None, :]].mean(axis=(1, 2))
        return result

    return _interval(probability_of_improvement(ours, theirs), replicates, len(ours))


def _interval(value: Scores, replicates: Callable[[], Scores], seeds: int) -> Estimate:
    if seeds < 2:
        return Estimate(float(value), nan, nan, seeds)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(replicates(), [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high), seeds)


def task_of(row: Row) -> tuple[Any, ...]:
    """The scenario of a row, without its seed."""
    return tuple(row.get(name) for name in TASK)


def score_matrix(rows: Iterable[Row], column: str, scale: float = 1.0) -> tuple[Scores, list[Any], list[Any]]:
    """Rows of one rule as (S, T) scores, with its seeds and its tasks.

    A matrix has no holes: a seed in which a task is missing (a cell that failed, a figure that is not defined there)
    costs the task, if fewer values are lost that way than by leaving out the seed, else the seed.
    """
    values = {(row["seed"], task_of(row)): row.get(column) for row in rows}
    known = {key: scale * float(value) for key, value in values.items() if value is not None and not isnan(value)}
    seeds, tasks = (list(dict.fromkeys(key[i] for key in known)) for i in (0, 1))
    matrix = np.array([[known.get((seed, task), nan) for task in tasks] for seed in seeds], dtype=np.float64)
    matrix = matrix.reshape(len(seeds), len(tasks))
    holes = np.isnan(matrix)
    rows_left, tasks_left = np.ones(len(seeds), dtype=bool), np.ones(len(tasks), dtype=bool)
    while holes.any():
        by_seed, by_task = holes.sum(axis=1), holes.sum(axis=0)
        seed, task = by_seed.argmax(), by_task.argmax()
        if by_seed[seed] / tasks_left.sum() >= by_task[task] / rows_left.sum():
            rows_left[seed], holes[seed] = False, False
        else:
            tasks_left[task], holes[:, task] = False, False
    kept = [
        [one for one, left in zip(names, flags, strict=True) if left]
        for names, flags in ((seeds, rows_left), (tasks, tasks_left))
    ]
    return matrix[rows_left][:, tasks_left], kept[0], kept[1]


def paired_scores(rows: Sequence[Row], rule: str, other: str, column: str, scale: float = 1.0) -> tuple[Scores, Scores]:
    """Scores of two rules on the seeds and tasks that both have, each (S, T)."""
    theirs = {
        (row["seed"], task_of(row)): scale * float(row[column])
        for row in rows
        if row["rule"] == other and row.get(column) is not None and not isnan(float(row[column]))
    }
    common = [row for row in rows if row["rule"] == rule and (row["seed"], task_of(row)) in theirs]
    ours, seeds, tasks = score_matrix(common, column, scale)
    matrix = np.array([[theirs[seed, task] for task in tasks] for seed in seeds], dtype=np.float64)
    return ours, matrix.reshape(ours.shape)


def read_results(path: Path, needed: Sequence[str] = ("rule", "seed")) -> list[dict[str, Any]]:
    """Rows of a ``results.csv`` or ``timings.csv``: numbers as numbers, empty fields as ``None``.

    Older files have no column ``heterogeneity``; it is filled in from ``alpha``.

    Raises:
        ValueError: It is no table, lacks a column that is needed, or is damaged.
    """
    try:
        with path.open(newline="") as file:
            table = csv.DictReader(file)
            columns = table.fieldnames or ()
            needed = (*needed, *(() if "heterogeneity" in columns else ("alpha",)))
            missing = [name for name in needed if name not in columns]
            if missing:
                raise ValueError(
                    f"{path} has no column {', '.join(missing)}; give a results.csv that evaluate.py wrote"
                )
            rows = [_typed(row, f"{path}, line {table.line_num},") for row in table]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no table: {error}") from error
    for row in rows:
        if "heterogeneity" not in row:
            row["heterogeneity"] = "iid" if row["alpha"] is None else f"{row['alpha']:g}"
    return rows


def _typed(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    if None in row or None in row.values():  # how csv tells of too many fields, and of too few
        raise ValueError(f"{where} is damaged: it has another number of fields than the header")
    try:
        return {name: _parse(name, value) for name, value in row.items()}
    except ValueError as error:
        raise ValueError(f"{where} is damaged: {error}") from error


def _parse(name: str, value: str) -> Any:
    if name in _WORDS:
        return value
    if value in ("True", "False"):
        return value == "True"
    return None if value == "" else float(value)


def heterogeneities_of(rows: Iterable[Row]) -> list[str]:
    """Kinds of heterogeneity in the rows, in their order."""
    return list(dict.fromkeys(row["heterogeneity"] for row in rows))


def main(path: str, rule: str) -> None:
    """Prints the paired comparison of a rule to every other: ``python -m agents.statistics results.csv RULE``.

    Over all attacks together, and for each heterogeneity and share of attackers by itself; environments and numbers of
    clients are scenarios like attacks.
    """
    try:
        rows = read_results(Path(path), ("rule", "seed", "malicious_fraction", "test_accuracy"))
    except OSError as error:
        sys.exit(f"cannot read {path}: {error.strerror}; give the results.csv of a directory that evaluate.py wrote")
    except ValueError as error:
        sys.exit(str(error))
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    if rule not in rules:
        sys.exit(f"no rule {rule!r} in {path}; there are: {', '.join(rules) or 'none'}")
    print(
        f"{rule} minus another rule, points of test accuracy, with 95 % bootstrap intervals over seeds;\n"
        "P: probability that a run of it is better"
    )
    groups = {"all, malicious": [row for row in rows if row["malicious_fraction"]]}
    for row in rows:
        malicious = f"{100 * row['malicious_fraction']:g} % malicious" if row["malicious_fraction"] else "no attack"
        groups.setdefault(f"{row['heterogeneity']}, {malicious}", []).append(row)
    wide, widest = (max(map(len, names)) for names in (groups, rules))
    for name, chosen in groups.items():
        for other in rules:
            ours, theirs = paired_scores(chosen, rule, other, "test_accuracy", 100)
            if other != rule and ours.size:
                better = probability_of_improvement(ours, theirs)
                print(f"  {name:>{wide}}  {other:>{widest}}  {estimate(ours - theirs)!s:>24}  P {better:.2f}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m agents.statistics results.csv RULE")
    main(*sys.argv[1:])
