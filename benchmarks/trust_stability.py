"""How steady the weights of a rule are over the rounds, from the curves of a benchmark's cells.

`python benchmarks/trust_stability.py results/held_out` reads `curves/` there and writes `results/trust_stability.csv`:
a row per rule, heterogeneity and attack, means over the cells. Only rounds with an attack count (all, where there is
none), and only two that follow each other are compared.
"""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from scipy.stats import spearmanr

from agents.evaluation.detection import auroc
from agents.evaluation.grid import Cell
from agents.statistics import read_results
from fl_core.files import write_csv

ENDS = 5


@dataclass(frozen=True)
class Arguments:
    """Which results, and where to."""

    results: Annotated[Path, tyro.conf.Positional]
    """Results directory with `results.csv` and `curves/`."""
    rules: tuple[str, ...] = (
        "optigradtrust (safeguard=false)",
        "optigradtrust",
        *("shapley", "fltrust", "logistic", "dnc", "anchored_oracle"),
    )
    """Rules that give weights. Without the safeguard a policy's are its trust and nothing else."""
    out: Path = Path("results/trust_stability.csv")
    """Where the rows go."""


def figures(weights: NDArray[np.float64], corrupted: NDArray[np.bool_]) -> dict[str, float]:
    """Of one run's weights (T, N) and who attacked when (T, N), in the rounds with an attack; in all, if there is none.

    Rounds in which the rule gave no weights (NaN) are left out.

    Returns:
        ``rank_correlation``: Spearman's of the clients' weights in a round and the next; NaN where all are equal.
        ``change``: mean absolute change of a client's weight from a round to the next, in units of the mean weight;
        NaN where no client ever has one.
        ``auroc_first``, ``auroc_last``, ``honest_share_first``, ``honest_share_last``: means over the first and last
        five rounds, or the first and the second half of fewer than ten.
    """
    attacked, judged = corrupted.any(axis=1), ~np.isnan(weights).any(axis=1)
    numbers = np.flatnonzero(judged & attacked if attacked.any() else judged)
    following = [(weights[i], weights[j]) for i, j in itertools.pairwise(numbers) if j == i + 1]
    told = [spearmanr(a, b).statistic for a, b in following if np.ptp(a) > 0 and np.ptp(b) > 0]
    change = _mean([float(np.abs(b - a).mean()) for a, b in following])
    usual = float(weights[numbers].mean()) if len(numbers) else 0.0
    found = {"rank_correlation": _mean(told), "change": change / usual if usual else float("nan")}
    ends = min(ENDS, len(numbers) // 2)
    for name, part in (("first", numbers[:ends]), ("last", numbers[len(numbers) - ends :])):
        rounds = [(w, c) for w, c in zip(weights[part], corrupted[part], strict=True) if c.any() and not c.all()]
        aurocs = [auroc(torch.from_numpy(w[~c]), torch.from_numpy(w[c])) for w, c in rounds]
        shares = [float(w[~c].sum() / w.sum()) for w, c in rounds if w.sum() > 0]
        found |= {f"auroc_{name}": _mean(aurocs), f"honest_share_{name}": _mean(shares)}
    return found


def main(arguments: Arguments) -> None:
    """Reads every cell, prints a summary and writes the table."""
    curves = {path.stem: path for path in (arguments.results / "curves").glob("*.npz")}
    if not curves:
        sys.exit(f"{arguments.results / 'curves'} holds no curves: run evaluate.py --out {arguments.results}")
    found: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for row in read_results(arguments.results / "results.csv"):
        if row["rule"] not in arguments.rules:
            continue
        name = Cell.of(row).name
        if name not in curves:
            sys.exit(f"{arguments.results / 'curves'} has no {name}.npz: run the benchmark again with another --out")
        with np.load(curves[name]) as arrays:
            if f"{row['rule']}/weights" not in arrays:
                sys.exit(f"rule {row['rule']} gives no weights; leave it out of --rules")
            of_run = figures(arrays[f"{row['rule']}/weights"].astype(np.float64), arrays["corrupted"])
        found.setdefault((row["rule"], row["heterogeneity"], row["attack"]), []).append(of_run)
    if not found:
        sys.exit(f"{arguments.results} has none of the rules {', '.join(arguments.rules)}")
    rows: list[dict[str, Any]] = [
        {
            **dict(zip(("rule", "heterogeneity", "attack"), key, strict=True)),
            **{name: round(_mean([run[name] for run in runs]), 4) for name in runs[0]},
            "runs": len(runs),
        }
        for key, runs in found.items()
    ]
    write_csv(arguments.out, rows)
    names = [name for name in rows[0] if name not in ("rule", "heterogeneity", "attack", "runs")]
    for rule in arguments.rules:
        for kind in dict.fromkeys(row["heterogeneity"] for row in rows):
            mine = [
                row for row in rows if (row["rule"], row["heterogeneity"]) == (rule, kind) and row["attack"] != "none"
            ]
            print(rule, kind, {name: round(_mean([row[name] for row in mine]), 3) for name in names})


def _mean(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
