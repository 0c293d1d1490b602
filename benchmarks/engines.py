"""Times local training, logits and re-estimated statistics, engine by engine.

    python benchmarks/engines.py

Engines take turns on the same data in one process and on one thread, and every figure is a median over the turns: the
machine may be shared and noisy, so ratios within a run mean more than milliseconds across runs. Writes
results/engines.csv. The native engine is timed with each kind of kernels that the processor has.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fl_core.files import write_csv
from fl_core.models import ParameterLayout
from fl_core.models.networks import small_cnn
from fl_core.training import Engine, make_engine, make_objective, native

FIELDS = ("work", "engine", "milliseconds", "relative_to_sequential", "command")


@dataclass(frozen=True)
class Arguments:
    """Times the engines."""

    turns: int = 21
    """Turns of each engine to take the median of."""
    out: Path = Path("results/engines.csv")
    """Where the table goes."""


@dataclass(frozen=True)
class Work:
    """What is timed: clients of one network, each with an epoch of batches, and images to score."""

    size: int
    samples: int
    batch: int
    channels: tuple[int, int]
    hidden: int | None
    clients: int = 10
    scored: int = 200

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return -(-self.samples // self.batch)


@dataclass(frozen=True)
class Competitor:
    """An engine, and the kernels that it is held to."""

    label: str
    engine: Engine
    kernels: str = ""


SMALL = Work(size=8, samples=100, batch=16, channels=(8, 16), hidden=None)
LARGE = Work(size=28, samples=600, batch=32, channels=(16, 32), hidden=64)
WORKS = (SMALL, replace(SMALL, batch=32, scored=0), LARGE)


def main(arguments: Arguments) -> None:
    """Times everything, prints the table, writes the file."""
    torch.set_num_threads(1)
    rows: list[dict[str, str]] = []
    for work in WORKS:
        turns = arguments.turns if work.size < 28 else max(3, arguments.turns // 3)
        for what, times in measure(work, turns).items():
            base = statistics.median(times["sequential"])
            rows += [_row(what, engine, statistics.median(values), base) for engine, values in times.items()]
    write_csv(arguments.out, rows)
    table = Table(title="one thread, medians")
    for column in ("work", "engine", "ms", "relative to sequential"):
        table.add_column(column, justify="right" if column in ("ms", "relative to sequential") else "left")
    for row in rows:
        table.add_row(row["work"], row["engine"], row["milliseconds"], f"{row['relative_to_sequential']}x")
    Console(width=110).print(table)
    print(f"written to {arguments.out}")


@torch.no_grad()
def measure(work: Work, turns: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of every turn, by what is done and engine."""
    network = small_cnn((1, work.size, work.size), 10, channels=work.channels, hidden=work.hidden)
    layout = ParameterLayout(network, local_batchnorm=True)
    jobs = _jobs(work, *layout.initial(network))
    competitors = list(_competitors(network, layout))
    times: dict[str, dict[str, list[float]]] = {what: {c.label: [] for c in competitors} for what in jobs}
    for turn in range(turns + 1):
        for what, job in jobs.items():
            for competitor in competitors:
                with _kernels(competitor.kernels):
                    started = time.perf_counter()
                    job(competitor.engine)
                    elapsed = time.perf_counter() - started
                if turn:  # the first is a warm-up
                    times[what][competitor.label].append(elapsed)
    return times


def _jobs(work: Work, shared: Tensor, state: Tensor) -> dict[str, Callable[[Engine], object]]:
    objective = make_objective("fedbn_prox")
    models, local = shared.repeat(work.clients, 1), state.repeat(work.clients, 1)
    shape = (work.clients, work.steps, work.batch)
    images, labels = torch.randn(*shape, 1, work.size, work.size), torch.randint(10, shape)
    scored = torch.randn(work.scored, 1, work.size, work.size)
    name = f"{work.size}x{work.size}, {work.channels[0]}-{work.channels[1]}{f'-fc{work.hidden}' * bool(work.hidden)}"
    jobs: dict[str, Callable[[Engine], object]] = {
        f"train {name}: {work.clients} clients x {work.samples}, batch {work.batch}": lambda engine: engine.train(
            shared, local, images, labels, objective=objective, learning_rate=0.1
        )
    }
    if work.scored:
        count = f"{work.clients} models x {work.scored}"
        jobs[f"logits {name}: {count}"] = lambda engine: engine.logits(models, local, scored)
        jobs[f"reestimate {name}: {count}"] = lambda engine: engine.reestimate(models, local, scored)
    return jobs


def _competitors(network: torch.nn.Module, layout: ParameterLayout) -> Iterator[Competitor]:
    yield Competitor("sequential", make_engine("sequential", network, layout))
    yield Competitor("stacked", make_engine("stacked", network, layout))
    if native.is_built():
        engine = make_engine("native", network, layout)
        for kernels in native.supported_instruction_sets():
            yield Competitor(f"native ({kernels})", engine, kernels)


@contextmanager
def _kernels(name: str) -> Iterator[None]:
    os.environ["OPTIGRAD_ISA"] = name
    try:
        yield
    finally:
        del os.environ["OPTIGRAD_ISA"]


def _row(what: str, engine: str, seconds: float, base: float) -> dict[str, str]:
    command = " ".join(["python", "benchmarks/engines.py", *sys.argv[1:]])
    values = (what, engine, f"{1000 * seconds:.2f}", f"{base / seconds:.1f}", command)
    return dict(zip(FIELDS, values, strict=True))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
