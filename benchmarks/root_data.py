"""What rules that lean on root data are worth with less of it, and with root data of which one class has too much.

    python benchmarks/root_data.py      # half an hour on two cores; goes on where it was stopped

Digits, 20 clients, every held-out attack, test data; what results/held_out has of it, with 100 balanced samples, is
taken from there. Writes results/root_data.csv, a line for each root, α and rule; the runs stay in --runs. Nothing is
chosen by it.
"""

import csv
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from tqdm import tqdm

from agents.environments import available_cores
from agents.evaluation import Benchmark
from agents.evaluation.configuration import make_grid
from fl_core.files import write_csv

# Settings of the federation, beside its defaults: 100 samples, balanced.
ROOTS: tuple[dict[str, Any], ...] = ({}, {"root_bias": 0.3}, {"root_bias": 0.6}, {"root": 50}, {"root": 20})
RULES = ("fltrust", "safeguarded_shapley", "root_only")
FRACTION = 0.3
# Of the table, and where they stand in tables/circumstances.csv.
ATTACKED = {
    "accuracy": "accuracy",
    "regret": "regret",
    "regret_low": "regret, low",
    "regret_high": "regret, high",
    "worst_regret": "worst regret",
    "regret_to_anchored": "regret to anchored oracle",
    "above_root_only_worst": "above root only, worst attack",
}


@dataclass(frozen=True)
class Arguments:
    """How much is run, and where it goes."""

    seeds: int = 5
    """Seeds."""
    first_seed: int = 40
    """The first of them: the digits' policy and its weighting are older than any figure of 40 and after."""
    alphas: tuple[str, ...] = ("0.5", "0.1")
    """Dirichlet concentrations."""
    attacks: tuple[str, ...] = ("held_out",)
    """Attacks, as evaluate.py takes them."""
    workers: int = available_cores()
    """Processes, one thread each."""
    reuse: tuple[Path, ...] = (Path("results/held_out"),)
    """Results of runs with the default root data, which are not run again."""
    runs: Path = Path("runs/root_data")
    """Where the results directories of the benchmark go, one a root."""
    out: Path = Path("results/root_data.csv")
    """Where the table goes."""


def run(arguments: Arguments, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs the benchmark with one root, or what is missing of it; returns its lines of the table."""
    root = {"root": 100, "root_bias": 0.0, **settings}
    flags = {
        "rules": RULES,
        "policies": ("shipped",),
        "attacks": arguments.attacks,
        "malicious_fraction": (0.0, FRACTION),
        "heterogeneity": arguments.alphas,
        "seeds": arguments.seeds,
        "first_seed": arguments.first_seed,
        "num_clients": (20,),
        "features": not settings,  # as in the results that are taken over
        "settings": settings,
    }
    directory = arguments.runs / "{root}_{root_bias}".format(**root)
    reuse = () if settings else arguments.reuse
    benchmark = Benchmark(make_grid(flags), directory, shlex.join(["python", *sys.argv]), reuse=reuse)
    with benchmark.open() as opened, tqdm(total=len(opened.missing()), desc=directory.name, disable=None) as bar:
        failures = benchmark.run(opened, workers=arguments.workers, on_cell=lambda _: bar.update())
        if failures:
            sys.exit(f"{len(failures)} failed, the first: {failures[0].error}; see {directory}")
        benchmark.report()
    with (directory / "tables" / "circumstances.csv").open() as file:
        measured = {(row["in"], row["rule"]): row for row in csv.DictReader(file)}
    return [
        {**root, "alpha": alpha, "rule": rule, **figures(measured, alpha, rule), "seeds": arguments.seeds}
        for alpha in arguments.alphas
        for rule in dict.fromkeys(rule for _, rule in measured)
    ]


def figures(measured: dict[tuple[str, str], dict[str, str]], alpha: str, rule: str) -> dict[str, str]:
    """Means under attack, those of the worst attack, and regret without one; in points."""
    attacked = measured[f"α {alpha}, {round(100 * FRACTION)} % malicious", rule]
    found = {name: attacked[column] for name, column in ATTACKED.items()}
    found["no_attack_regret"] = measured[f"α {alpha}, no attack", rule]["regret"]
    return {name: f"{float(value):.2f}" for name, value in found.items()}


def main(arguments: Arguments) -> None:
    """Runs root after root; the table is written anew after each."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for settings in ROOTS:
        added = run(arguments, settings)
        rows += added
        write_csv(arguments.out, rows)
        for row in added:
            print(row, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
