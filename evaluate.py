"""Benchmarks trust policies against aggregation rules: `python evaluate.py --help`."""

import os
import platform
import shlex
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from tqdm import tqdm

from agents.benchmark import Grid, ResultsFile, policy_label, run
from agents.deployed import read_card
from agents.environments import base_env, given_settings, make_env
from agents.report import to_markdown, to_picture, to_rich, write_page
from agents.statistics import summarise
from fl_core import settings_of
from fl_core.files import write_atomically, write_json
from optigrad_env.scenarios import attack_set


@dataclass(frozen=True)
class Arguments:
    """Runs every rule and policy on the same federations and writes results.csv, summary.json, report.html and a PNG.

    Every rule sees the same partition, attackers, initial model and client batches for a seed. Accuracy is the mean
    over the last three rounds on test data that no choice has touched.
    """

    policies: tuple[str, ...] = ()
    """Run directories of trained policies."""
    rules: tuple[str, ...] = ("fedavg", "median", "trimmed_mean", "krum", "fltrust", "shapley", "root_only")
    """Aggregation rules; oracle and anchored_oracle are always run, for the regret."""
    attacks: tuple[str, ...] = ("held_out",)
    """Attacks by name, or train, held_out, all."""
    malicious_fraction: tuple[float, ...] = (0.0, 0.3)
    """Shares of malicious clients; 0 is one scenario without attack."""
    alpha: tuple[float, ...] = (0.5, 0.1)
    """Dirichlet concentrations of the clients' labels; small is heterogeneous."""
    seeds: int = 5
    """Number of seeds, from 0 upwards."""
    env_id: str = "OptiGrad/Digits-v0"
    """Environment whose federation is used."""
    num_clients: int | None = None
    """Clients, by default the environment's."""
    data_dir: Path | None = None
    """Where the data set's files are; by default $OPTIGRAD_DATA, else the user's cache directory."""
    download: bool = False
    """Fetch the data set's files if they are missing."""
    rounds: int = 20
    """Rounds of a run."""
    num_byzantine: int | None = None
    """What rules that need it are told; by default each assumes 30 % of the clients."""
    workers: int = os.cpu_count() or 1
    """Processes, one thread each."""
    out: Path = Path("results/evaluation")
    """Where the results go."""
    overwrite: bool = False
    """Replace the results that are there."""
    progress: bool = True
    """Show a progress bar."""


def main(arguments: Arguments) -> None:
    """Runs the benchmark and prints the table."""
    grid = _grid(arguments)
    learned = [policy_label(policy) for policy in grid.policies]
    facts = _facts(arguments, grid)  # before the long part: nothing may fail between the last row and the summary
    cells = len(grid.cells())
    print(
        f"{cells} scenarios x seeds, {len(grid.labels())} rules each, {grid.rounds} rounds, {arguments.workers} workers"
    )
    rows: list[dict[str, Any]] = []
    results = ResultsFile(arguments.out / "results.csv", overwrite=arguments.overwrite)
    try:
        for batch in tqdm(run(grid, arguments.workers), total=cells, desc="evaluate", disable=not arguments.progress):
            results.append(batch)
            rows += batch
    except KeyboardInterrupt:
        sys.exit(f"\ninterrupted: the {len(rows)} rows so far are in {arguments.out / 'results.csv'}")
    finally:
        results.close()

    entries = summarise(rows)
    picture = to_picture(rows, entries, learned)
    write_json(arguments.out / "summary.json", {**facts, "rules": entries})
    write_atomically(arguments.out / "summary.md", to_markdown(entries).encode())
    write_atomically(arguments.out / "regret.png", picture)
    write_page(arguments.out / "report.html", entries, picture, {name: str(value) for name, value in facts.items()})
    Console(width=None if sys.stdout.isatty() else 140).print(to_rich(entries, f"attacks: {facts['attacks']}", learned))
    print(f"report {arguments.out / 'report.html'}    picture {arguments.out / 'regret.png'}")


def _grid(arguments: Arguments) -> Grid:
    for name in ("seeds", "workers"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(arguments, name)}")
    given = given_settings(num_clients=arguments.num_clients, data_dir=arguments.data_dir, download=arguments.download)
    env = base_env(make_env(arguments.env_id, **given))
    settings = settings_of(env.federation.config)
    del settings["split_seed"]  # the benchmark's federations draw root data and initial weights by their own seeds
    return Grid(
        rules=arguments.rules,
        policies=arguments.policies,
        attacks=tuple(name for given in arguments.attacks for name in attack_set(given)),
        malicious_fractions=arguments.malicious_fraction,
        alphas=arguments.alpha,
        seeds=tuple(range(arguments.seeds)),
        rounds=arguments.rounds,
        num_byzantine=arguments.num_byzantine,
        settings=settings,
    )


def _facts(arguments: Arguments, grid: Grid) -> dict[str, Any]:
    return {
        "command": shlex.join(["python", *sys.argv]),
        "attacks": ", ".join(grid.attacks),
        "seeds": arguments.seeds,
        "versions": {name: version(name) for name in ("optigradtrust", "torch", "stable-baselines3", "numpy")},
        "python": platform.python_version(),
        "policies": {policy_label(policy): read_card(policy)["provenance"] for policy in grid.policies},
    }


def cli() -> None:
    """Entry point: errors of the user's making are one line, not a traceback."""
    torch.set_num_threads(1)
    try:
        main(tyro.cli(Arguments))
    except ValueError as error:
        sys.exit(f"evaluate: {error}")


if __name__ == "__main__":
    cli()
