"""Time and memory of aggregation rules at 50 clients with a million parameters, against ByzFL's.

    make setup
    python benchmarks/rules.py

One thread, the two taking turns in one process, medians over the repetitions and the median of the ratios within them.
Ours are timed from the server view to the aggregate, with the check for clients that are not finite. The geometric
median is ours converged against ByzFL's three steps. Memory is the peak of the process during one call, above what it
held before, in copies of the matrix of updates. ByzFL's NNM gathers n (n − f) rows, 8 GB here, and takes long: it is
called once. Writes results/rules.csv.
"""

import importlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from agents.evaluation.stopwatch import reset_peak, resident
from fl_core.aggregation import ServerView, make_rule
from fl_core.data.vision import import_torchvision
from fl_core.files import write_csv

PATIENCE = 20.0  # seconds of a call beyond which once is enough


@dataclass(frozen=True)
class Arguments:
    """Times aggregation rules against ByzFL's."""

    clients: int = 50
    """Number of clients, n."""
    parameters: int = 1_000_000
    """Length of an update, P."""
    byzantine: int = 10
    """Number of attackers that the rules are told, f."""
    repetitions: int = 5
    """Repetitions to take the median of."""
    rules: tuple[str, ...] = ()
    """Names of rules; empty for all that are compared."""
    out: Path = Path("results/rules.csv")
    """Where the table goes."""


def main(arguments: Arguments) -> None:
    """Times every pair in turn."""
    torch.set_num_threads(1)
    shape = (arguments.clients, arguments.parameters)
    updates = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows = []
    for name, theirs in byzfl_rules(arguments.byzantine).items():
        if arguments.rules and name not in arguments.rules:
            continue
        rows += compare(name, our_rule(name, arguments.byzantine), theirs, updates, arguments.repetitions)
        print(*rows[-2].values(), "|", *rows[-1].values(), file=sys.stderr)
    write_csv(arguments.out, rows)
    table = Table("rule", "who", "ms", "times as fast", "extra memory, matrices")
    for row in rows:
        table.add_row(row["rule"], row["who"], *(str(row[k]) for k in ("milliseconds", "times_as_fast", "matrices")))
    Console(width=100).print(table)


def our_rule(name: str, byzantine: int) -> Callable[[Tensor], Any]:
    """Our rule from the received matrix on; a fresh view each time, as it remembers what it has checked."""
    told = {"num_byzantine": byzantine} if name in TOLD else {}
    rule = make_rule(name, **told, **OPTIONS.get(name, {}))
    return lambda updates: rule(ServerView(updates))


TOLD = {"krum", "multi_krum", "nnm+fedavg", "trimmed_mean", "mean_around_median"}
OPTIONS = {"centered_clipping": {"radius": 100.0}, "norm_bounding": {"bound": 100.0}}


def byzfl_rules(f: int) -> dict[str, Callable[[Tensor], Any]]:
    """ByzFL's rules by the names of ours. Its clipping edits what it is given, so it is given a copy."""
    import_torchvision()  # ByzFL imports it, and a CPU build of torch needs our tolerant import
    try:
        byzfl: Any = importlib.import_module("byzfl")
    except ModuleNotFoundError as error:
        sys.exit(f"rules: ByzFL is not installed ({error}): make setup")
    clipping, mixing = byzfl.Clipping(c=100.0), byzfl.NNM(f)
    average = byzfl.Average()
    return {
        "fedavg": average,
        "median": byzfl.Median(),
        "trimmed_mean": byzfl.TrMean(f),
        "mean_around_median": byzfl.Meamed(f),
        "krum": byzfl.Krum(f),
        "multi_krum": byzfl.MultiKrum(f),
        "geometric_median": byzfl.GeometricMedian(),
        "centered_clipping": byzfl.CenteredClipping(),
        "norm_bounding": lambda updates: average(clipping(updates.clone())),
        "nnm+fedavg": lambda updates: average(mixing(updates)),
    }


def compare(
    name: str, ours: Callable[[Tensor], Any], theirs: Callable[[Tensor], Any], updates: Tensor, repetitions: int
) -> list[dict[str, Any]]:
    """Two rows of the table. The first call warms up and measures memory; where it takes long it is the only one."""
    sides = {"ByzFL": theirs, "ours": ours}
    memory, times = {}, {}
    for who, rule in sides.items():
        started = time.perf_counter()
        memory[who] = peak_memory(rule, updates)
        times[who] = [time.perf_counter() - started]
    if max(times["ByzFL"] + times["ours"]) < PATIENCE:
        times = {who: [] for who in sides}
        for _ in range(repetitions):
            for who, rule in sides.items():
                started = time.perf_counter()
                rule(updates)
                times[who].append(time.perf_counter() - started)
    ratio = statistics.median(a / b for a, b in zip(times["ByzFL"], times["ours"], strict=True))
    return [
        {
            "rule": name,
            "who": who,
            "clients": len(updates),
            "parameters": updates.shape[1],
            "milliseconds": round(1e3 * statistics.median(times[who]), 1),
            "times_as_fast": round(ratio, 1) if who == "ours" else 1.0,
            "matrices": "" if held is None else round(held / updates.nbytes, 2),
            "repetitions": len(times[who]),
        }
        for who, held in memory.items()
    ]


def peak_memory(rule: Callable[[Tensor], Any], updates: Tensor) -> int | None:
    """Bytes that the process held at the peak of a call above what it held before; ``None`` but on Linux."""
    before = reset_peak()
    rule(updates)
    peak = resident("VmHWM")
    return None if before is None or peak is None else peak - before


if __name__ == "__main__":
    main(tyro.cli(Arguments))
