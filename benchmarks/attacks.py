"""What every attack costs FedAvg: does it bite?

    python benchmarks/attacks.py                      # digits
    python benchmarks/attacks.py --data-dir DIR       # and Fashion-MNIST

Ten clients, three of them malicious, Dirichlet α 0.5, 20 rounds; test accuracy is the mean over the last three rounds
and over the seeds, each paired with the same federation without attack. Nothing is chosen by these figures. An attack
that costs less than two points is listed with the reason. Writes results/attacks.csv.
"""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from math import isnan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from fl_core import Federation, Scenario, configure
from fl_core.aggregation import make_rule
from fl_core.attacks import attack_names
from fl_core.data import load_dataset
from fl_core.files import write_csv
from fl_core.registry import check_known
from optigrad_env.registration import ENVIRONMENTS
from optigrad_env.scenarios import TRAIN_ATTACKS

DATASETS = {"digits": "OptiGrad/Digits-v0", "fashion_mnist": "OptiGrad/FashionMNIST-v0"}
COLUMNS = ("dataset", "attack", "seed", "test_accuracy", "accuracy_without_attack", "attack_success")
ROUNDS, FINAL_ROUNDS = 20, 3
# Points of accuracy below which an attack is said not to bite, and why it need not.
BITES = 2.0
REASONS = {
    "scaling": "honest work, only longer: under a mean it speeds the model up as much as it skews it",
    "partial_scaling": "honest work, longer in half of the coordinates: see scaling",
    "gaussian_noise": "as long as an update, but spread over all coordinates: the mean takes most of it out",
    "mimic": "repeats an honest client: aims at heterogeneity, and at rules that drop outliers",
    "alie": "hides within one deviation of the mean: aims at medians and distances, not at the mean",
    "min_max": "stays within the honest distances: aims at rules that drop outliers",
    "min_sum": "stays within the honest distances: aims at rules that drop outliers",
    "free_rider": "repeats the last change: costs speed, not direction",
    "zero": "contributes nothing: costs speed, not direction",
    "ipm_small": "a tenth of the mean backwards: aims at rules that keep the small and the near",
    "targeted_label_flip": "concerns one class in ten",
    "on_off": "honest in three rounds of five, and in the first of the last three",
    "model_replacement": "wants the trigger to work and the rest to stay: see its success",
    "dba": "wants the trigger to work and the rest to stay: see its success",
    "edge_case": "wants rare samples of one class: see its success",
    "neurotoxin": "wants the trigger to work and the rest to stay: see its success",
}


@dataclass(frozen=True)
class Arguments:
    """Runs FedAvg under every attack."""

    data_dir: Path | None = None
    """Where Fashion-MNIST's files are; without it digits alone are run."""
    seeds: int = 5
    """Seeds on digits; Fashion-MNIST takes two fifths of them, at least two."""
    attacks: tuple[str, ...] = ()
    """Attacks by name; by default all."""
    workers: int = 2
    """Processes, one thread each."""
    out: Path = Path("results/attacks.csv")
    """Where the rows go."""


def main(arguments: Arguments) -> None:
    """Runs everything, writes the file after each row, prints the table."""
    check(arguments)
    names = [name for name in arguments.attacks or attack_names() if name != "none"]
    tasks = list(_tasks(arguments, ["none", *names]))
    quiet: dict[tuple[str, int], float] = {}
    rows: list[dict[str, Any]] = []
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(arguments.workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for (dataset, attack, seed, _), (accuracy, success) in zip(tasks, pool.map(run, tasks), strict=True):
            if attack == "none":  # comes first
                quiet[dataset, seed] = accuracy
            figures = (dataset, attack, seed, accuracy, quiet[dataset, seed], "" if isnan(success) else success)
            rows.append(dict(zip(COLUMNS, figures, strict=True)))
            write_csv(arguments.out, rows)
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        Console(width=120).print(_table(dataset, [row for row in rows if row["dataset"] == dataset]))


def check(arguments: Arguments) -> None:
    """Raises a ValueError for what would otherwise stop the run when its first rows have replaced earlier ones."""
    check_known("attack", arguments.attacks, attack_names())
    if arguments.data_dir is not None:
        load_dataset("fashion_mnist", arguments.data_dir)


def _tasks(arguments: Arguments, names: list[str]) -> Iterator[tuple[str, str, int, Path | None]]:
    for dataset in DATASETS if arguments.data_dir else ("digits",):
        seeds = arguments.seeds if dataset == "digits" else max(2 * arguments.seeds // 5, 2)
        for attack, seed in product(names, range(seeds)):
            yield dataset, attack, seed, arguments.data_dir


@torch.no_grad()
def run(task: tuple[str, str, int, Path | None]) -> tuple[float, float]:
    """Test accuracy and attack success of one federation under FedAvg."""
    dataset, attack, seed, data_dir = task
    federation = Federation(configure(split_seed=seed, data_dir=data_dir, **ENVIRONMENTS[DATASETS[dataset]]))
    federation.reset(Scenario(attack, 0.0 if attack == "none" else 0.3, alpha=0.5), entropy=seed)
    rule, nothing = make_rule("fedavg"), torch.zeros(1, federation.layout.num_shared)
    accuracies, successes = [], []
    for number in range(ROUNDS):
        federation.apply(rule(federation.local_round(rule).view).update)
        if number >= ROUNDS - FINAL_ROUNDS:
            accuracies.append(float(federation.evaluate(nothing, "test").accuracy[0]))
            successes.append(federation.attack_success("test"))
    return fmean(accuracies), fmean(successes)


def _table(dataset: str, rows: list[dict[str, Any]]) -> Table:
    """Attacks from the costliest on."""
    table = Table(title=f"FedAvg on {dataset}, 30 % malicious")
    for column in ("attack", "set", "accuracy %", "cost, points", "success %", "remark"):
        table.add_column(column, justify="right" if column.endswith(("%", "points")) else "left")
    costs: dict[str, list[float]] = {}
    for row in rows:
        costs.setdefault(row["attack"], []).append(100 * (row["accuracy_without_attack"] - row["test_accuracy"]))
    for attack, cost in sorted(costs.items(), key=lambda item: -fmean(item[1])):
        own = [row for row in rows if row["attack"] == attack]
        successes = [100 * row["attack_success"] for row in own if row["attack_success"] != ""]
        error = f" ± {stdev(cost) / len(cost) ** 0.5:.1f}" if len(cost) > 1 else ""
        table.add_row(
            attack,
            "train" if attack in TRAIN_ATTACKS else "" if attack == "none" else "held out",
            f"{100 * fmean(row['test_accuracy'] for row in own):.1f}",
            f"{fmean(cost):.1f}{error}",
            f"{fmean(successes):.0f}" if successes else "",
            REASONS.get(attack, "does not bite") if attack != "none" and fmean(cost) < BITES else "",
        )
    return table


if __name__ == "__main__":
    main(tyro.cli(Arguments))
