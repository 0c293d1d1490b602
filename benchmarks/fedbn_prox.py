"""FedBN-Prox against FedAvg, FedProx and FedBN, without attack, under four kinds of heterogeneity.

    python benchmarks/fedbn_prox.py --data-dir DIR

Every objective sees the same partition, initial weights and batches for a seed. Rounds-to-accuracy is read off
validation data; the reported figures are means over the last three rounds on test data: of the global model, and of
each client's own model (with its own BatchNorm, on test images mixed and seen as the client's), as the mean over
clients and the worst of them. Rows are written as they are done, and a second start goes on where the first stopped.
Writes results/fedbn_prox.csv and results/fedbn_prox.png.
"""

import csv
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from fl_core import Federation, Scenario, configure
from fl_core.aggregation import make_rule
from fl_core.files import write_csv
from fl_core.training import objective_names

FIGURES = ("global_accuracy", "personalised_accuracy", "worst_client_accuracy")
FINAL_ROUNDS = 3


@dataclass(frozen=True)
class Setting:
    """One kind of heterogeneity.

    Attributes:
        dataset: Name.
        scenario: The clients' differences.
        target: Validation accuracy that rounds are counted to.
        federation: Settings of the federation.
    """

    dataset: str
    scenario: Scenario
    target: float
    federation: dict[str, Any]


# Fashion-MNIST's were fixed before the first run; MRI's were set by validation data of the federation of seed 0 under
# FedBN-Prox, after Fashion-MNIST's had left every MRI run at the majority class (docs/fedbn_prox.md).
_FASHION = {
    "network_options": {"channels": (16, 32), "hidden": 64},
    "local_steps": 5,
    "learning_rate": 0.1,
}
_MRI = {
    "dataset_options": {"image_size": 32},
    "network_options": {"channels": (16, 32)},
    "local_steps": 20,
    "learning_rate": 0.02,
}
SETTINGS = {
    "fashion, Dirichlet 0.5": Setting("fashion_mnist", Scenario(alpha=0.5), 0.75, _FASHION),
    "fashion, Dirichlet 0.1": Setting("fashion_mnist", Scenario(alpha=0.1), 0.75, _FASHION),
    "fashion, feature shift": Setting("fashion_mnist", Scenario(feature_shift=1.0), 0.75, _FASHION),
    "MRI, by subject": Setting("alzheimer_mri", Scenario(partition="by_group"), 0.45, _MRI),
}


@dataclass(frozen=True)
class Arguments:
    """Compares the four objectives."""

    data_dir: Path | None = None
    """Where the files are; by default $OPTIGRAD_DATA, else the user's cache directory."""
    settings: tuple[str, ...] = tuple(SETTINGS)
    """Kinds of heterogeneity."""
    seeds: int = 5
    """Seeds, from 0 upwards."""
    rounds: int = 40
    """Rounds of a run."""
    mu: float = 0.1
    """Weight of the proximal term."""
    engine: str = "auto"
    """Training engine."""
    workers: int = 2
    """Processes, one thread each."""
    out: Path = Path("results/fedbn_prox.csv")
    """Where the rows go; rows that are there are kept and not run again, so give another file for other rounds."""


def main(arguments: Arguments) -> None:
    """Runs what is missing, prints the table, draws the picture."""
    cells = list(product(arguments.settings, range(arguments.seeds), objective_names()))
    rows: list[dict[str, Any]] = [*read(arguments.out)]
    others = {float(row["mu"]) for row in rows} - {0.0, arguments.mu}
    if others:
        raise SystemExit(f"{arguments.out} has rows with mu {others.pop()}, not {arguments.mu}; give another --out")
    known = {(row["setting"], row["objective"], row["seed"]) for row in rows}
    missing = [cell for cell in cells if (cell[0], cell[2], str(cell[1])) not in known]
    for row in tqdm(run_all(missing, arguments), total=len(missing), desc="runs"):
        rows.append(row)
        write_csv(arguments.out, rows)
    written = read(arguments.out)
    Console(width=140).print(to_table(written))
    draw(written, arguments.out.with_suffix(".png"))


def run_all(cells: list[tuple[str, int, str]], arguments: Arguments) -> Iterator[dict[str, Any]]:
    """Runs cells in worker processes."""
    with ProcessPoolExecutor(arguments.workers, get_context("forkserver"), torch.set_num_threads, (1,)) as pool:
        yield from pool.map(run, cells, [arguments] * len(cells))


def run(cell: tuple[str, int, str], arguments: Arguments) -> dict[str, Any]:
    """One federation from its first round to its last."""
    name, seed, objective = cell
    setting = SETTINGS[name]
    federation = Federation(
        configure(
            dataset=setting.dataset,
            data_dir=arguments.data_dir,
            objective=objective,
            mu=arguments.mu,
            batch_size=32,
            engine=arguments.engine,
            split_seed=seed,
            **setting.federation,
        )
    )
    federation.reset(setting.scenario, entropy=seed)
    rule, nothing = make_rule("fedavg"), torch.zeros(1, federation.layout.num_shared)
    reached, finals = None, []
    for number in range(1, arguments.rounds + 1):
        federation.apply(rule(federation.local_round().view).update)
        if reached is None and float(federation.evaluate(nothing, "validation").accuracy[0]) >= setting.target:
            reached = number
        if number > arguments.rounds - FINAL_ROUNDS:
            own = federation.evaluate_personalised("test")
            finals.append(
                [float(federation.evaluate(nothing, "test").accuracy[0]), float(own.mean()), float(own.min())]
            )
    figures = dict(zip(FIGURES, np.mean(finals, axis=0).round(5).tolist(), strict=True))
    return {
        "setting": name,
        "objective": objective,
        "mu": arguments.mu if objective.endswith("prox") else 0.0,
        "seed": seed,
        "rounds_to_accuracy": reached,
        **figures,
    }


def read(path: Path) -> list[dict[str, str]]:
    """Rows of an earlier start."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def summary(rows: list[dict[str, str]], setting: str, objective: str, figure: str) -> tuple[float, float]:
    """Mean and standard error over seeds, in points."""
    values = [100 * float(r[figure]) for r in rows if (r["setting"], r["objective"]) == (setting, objective)]
    return float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def to_table(rows: list[dict[str, str]]) -> Table:
    """Mean ± standard error; rounds as a median, with the number of runs that never got there."""
    table = Table("setting", "objective", "rounds to accuracy", *(figure.replace("_", " ") for figure in FIGURES))
    for setting in dict.fromkeys(row["setting"] for row in rows):
        for objective in objective_names():
            mine = [row for row in rows if (row["setting"], row["objective"]) == (setting, objective)]
            if not mine:
                continue
            rounds = [float(row["rounds_to_accuracy"] or "inf") for row in mine]
            never = sum(np.isinf(rounds))
            reached = f"{np.median(rounds):.0f}" if np.isfinite(np.median(rounds)) else "-"
            cells = ["{:.1f} ± {:.1f}".format(*summary(rows, setting, objective, figure)) for figure in FIGURES]
            table.add_row(setting, objective, reached + (f" ({never} of {len(mine)} never)" if never else ""), *cells)
        table.add_section()
    return table


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """Bars: a panel a figure, a group a setting, a bar an objective."""
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(FIGURES), sharey=True), FIGURES, strict=True):
        for i, objective in enumerate(objective_names()):
            values = np.array([summary(rows, setting, objective, name) for setting in settings])
            axes.bar(np.arange(len(settings)) + 0.2 * (i - 1.5), values[:, 0], 0.2, yerr=values[:, 1], label=objective)
        axes.set_xticks(range(len(settings)), [setting.replace(", ", "\n") for setting in settings], fontsize=8)
        axes.set_title(name.replace("_", " "))
    figure.axes[0].set_ylabel("test accuracy, points")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
