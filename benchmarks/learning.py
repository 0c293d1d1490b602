"""Does honest training learn? FedAvg, IID, no attack, on real files.

    python benchmarks/learning.py --data-dir DIR

Ten clients, 600 samples a client and round, `small_cnn`. Step sizes were chosen on validation data; test accuracy is
printed after every fifth round and is that of the last round in the table. Writes results/learning.csv as it goes.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from fl_core import Federation, Scenario, configure
from fl_core.aggregation import make_rule
from fl_core.data import load_dataset
from fl_core.files import write_csv
from fl_core.registry import check_known

COLUMNS = ("dataset", "round", "test_accuracy", "test_loss", "seconds")

_SETTINGS: dict[str, dict[str, Any]] = {
    "mnist": {"network_options": {"channels": (16, 32), "hidden": 64}},
    "fashion_mnist": {"network_options": {"channels": (16, 32), "hidden": 64}},
    "cifar10": {"network_options": {"channels": (32, 64), "hidden": 128}},
}
# The floors that a working federation must pass.
_EXPECTED = {"mnist": 0.97, "fashion_mnist": 0.85, "cifar10": 0.55}


@dataclass(frozen=True)
class Arguments:
    """Trains plain federations to see that they learn."""

    datasets: tuple[str, ...] = tuple(_SETTINGS)
    """Data sets."""
    data_dir: Path | None = None
    """Where their files are; by default $OPTIGRAD_DATA, else the user's cache directory."""
    rounds: int = 30
    """Rounds."""
    engine: str = "auto"
    """Training engine."""
    out: Path = Path("results/learning.csv")
    """Where the figures go."""


def main(arguments: Arguments) -> None:
    """Runs every data set and prints the table."""
    check(arguments)
    torch.set_num_threads(1)
    table = Table(title=f"FedAvg, IID, 10 clients x 600 samples a round, {arguments.rounds} rounds")
    for column in ("data set", "test accuracy", "expected", "s a round"):
        table.add_column(column, justify="left" if column == "data set" else "right")
    rows: list[dict[str, Any]] = []
    for name in arguments.datasets:
        for row in learn(name, arguments):
            rows.append(row)
            write_csv(arguments.out, rows)
            print(row, flush=True)
        seconds = f"{rows[-1]['seconds'] / arguments.rounds:.2f}"
        table.add_row(name, f"{rows[-1]['test_accuracy']:.1%}", f"{_EXPECTED[name]:.0%}", seconds)
    Console(width=100).print(table)


def check(arguments: Arguments) -> None:
    """Raises a ValueError for what would otherwise stop the run when its first rows have replaced earlier ones."""
    check_known("data set", arguments.datasets, _SETTINGS)
    for name in arguments.datasets:
        load_dataset(name, arguments.data_dir)


def learn(name: str, arguments: Arguments) -> Iterator[dict[str, Any]]:
    """One federation; yields its test figures after every fifth round and after the last."""
    federation = Federation(
        configure(
            dataset=name,
            data_dir=arguments.data_dir,
            objective="fedavg",
            local_steps=20,
            batch_size=30,
            learning_rate=0.1,
            engine=arguments.engine,
            **_SETTINGS[name],
        )
    )
    federation.reset(Scenario(), entropy=0)
    rule, nothing, seconds = make_rule("fedavg"), torch.zeros(1, federation.layout.num_shared), 0.0
    for number in range(1, arguments.rounds + 1):
        started = time.perf_counter()
        federation.apply(rule(federation.local_round().view).update)
        seconds += time.perf_counter() - started
        if number % 5 == 0 or number == arguments.rounds:
            metrics = federation.evaluate(nothing, "test")
            figures = (name, number, float(metrics.accuracy[0]), float(metrics.loss[0]), round(seconds, 2))
            yield dict(zip(COLUMNS, figures, strict=True))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
