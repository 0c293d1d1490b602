"""Times the fingerprint, feature by feature and as a whole, beside aggregation rules on the same updates.

    python benchmarks/fingerprint.py

Synthetic updates of many sizes first, where the Shapley value is left out, as its cost is that of running models; then
the digits federation with all six features. Every figure is a median of one interleaved run on one thread: the machine
may be shared and noisy, so ratios within a run mean more than milliseconds across runs. ``relative`` is the median of
the ratios of the whole fingerprint to that line in the same repetition. Writes results/fingerprint.csv.
"""

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fl_core import Federation, Scenario, configure
from fl_core.aggregation import ServerView, make_rule
from fl_core.files import write_csv
from fl_core.fingerprint import CoalitionGame, Fingerprinter, HonestSimulator, UpdateAutoencoder, geometry
from fl_core.randomness import Streams
from fl_core.training import LocalTraining, make_objective

RULES = ("fedavg", "krum", "median", "fltrust")
COLUMNS = ("updates", "clients", "parameters", "what", "milliseconds", "relative")
# Bytes that the hungriest line, the median's sort with its int64 indices, takes for each element of the updates.
_BYTES = 28
_WHOLE = "fingerprint"
Row = dict[str, Any]


@dataclass(frozen=True)
class Arguments:
    """Times the fingerprint."""

    clients: tuple[int, ...] = (10, 100)
    """Numbers of clients."""
    parameters: tuple[int, ...] = (20_000, 120_000, 1_000_000, 11_000_000)
    """Numbers of parameters of synthetic updates."""
    repetitions: int = 30
    """Repetitions to take the median of."""
    seconds: float = 15.0
    """Fewer repetitions, but at least 3, where they would take longer than this for one size."""
    out: Path = Path("results/fingerprint.csv")
    """Where the table goes."""


class NoShapley:
    """Stands in for an estimator where only the other five features are timed."""

    draws: ClassVar[bool] = False

    def __call__(self, game: CoalitionGame, generator: torch.Generator | None) -> Tensor:
        """Zeros."""
        return torch.zeros(len(game.updates), dtype=torch.float64)


def main(arguments: Arguments) -> None:
    """Times everything, prints the table, writes the file."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    for clients in arguments.clients:
        for parameters in arguments.parameters:
            needed, there = _BYTES * clients * parameters, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            if needed > there:
                print(f"left out: {clients} x {parameters:,} needs {needed / 1e9:.0f} GB, free are {there / 1e9:.0f}")
                continue
            lines = _lines_without_shapley(_synthetic(clients, parameters))
            rows += _timed("synthetic", clients, parameters, lines, arguments)
    for clients in (10, 50):
        federation, view = _digits(clients)
        lines = {**_lines_without_shapley(view), **_lines_of_digits(federation, view)}
        rows += _timed("digits", clients, view.updates.shape[1], lines, arguments)
    _write(arguments.out, rows)


def _lines_without_shapley(view: ServerView) -> dict[str, Callable[[], Any]]:
    assert view.reference is not None
    updates, reference = view.updates, view.reference
    autoencoder = UpdateAutoencoder(updates.shape[1], torch.Generator().manual_seed(0))
    scale = geometry.norms(reference[None])
    lines: dict[str, Callable[[], Any]] = {
        "reconstruction_error": lambda: autoencoder.error(autoencoder.sketch(updates, scale)),
        "root_cosine": lambda: geometry.root_cosine(updates, reference),
        "peer_cosine": lambda: geometry.peer_cosine(updates),
        "norm": lambda: geometry.norms(updates),
        "sign_agreement": lambda: geometry.sign_agreement(updates, reference),
        # What every rule pays once a round, before anything else: whose update is finite?
        "rejected": lambda: replace(view).rejected,
        _WHOLE: lambda: _fingerprint(view, _fingerprinter(autoencoder)),
    }
    if view.fingerprinter is not None:
        lines["fingerprint without shapley"] = lines.pop(_WHOLE)
    for name in RULES:
        rule = make_rule(name)
        lines[name] = partial(rule, view)
    return lines


def _lines_of_digits(federation: Federation, view: ServerView) -> dict[str, Callable[[], Any]]:
    assert view.global_model is not None
    assert view.server_local is not None
    fingerprinter, shared, local = federation.fingerprinter, view.global_model, view.server_local
    return {
        "shapley": lambda: fingerprinter.shapley(view.updates, shared, local, view.round),
        _WHOLE: lambda: _fingerprint(view, fingerprinter),
    }


def _fingerprint(view: ServerView, fingerprinter: Fingerprinter) -> Any:
    assert view.global_model is not None
    assert view.reference is not None
    assert view.server_local is not None
    return fingerprinter(view.updates, view.rejected, view.global_model, view.reference, view.server_local, view.round)


def _fingerprinter(autoencoder: UpdateAutoencoder) -> Fingerprinter:
    """One that needs no models: no Shapley value, and no refresh in round 0."""
    nothing = torch.zeros(0, 1, 1, 1)
    objective = make_objective("fedavg", 0.0)
    engine: Any = None
    simulator = HonestSimulator(engine, nothing, torch.zeros(0, dtype=torch.int64), LocalTraining(), objective)
    return Fingerprinter(simulator, nothing, torch.zeros(0), 10, lambda: autoencoder, NoShapley(), Streams(0))


def _synthetic(clients: int, parameters: int) -> ServerView:
    """Updates of unequal lengths around a common direction."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(parameters, generator=generator)
    updates = torch.randn(clients, parameters, generator=generator).add_(reference)
    updates *= torch.linspace(0.5, 2, clients)[:, None]
    return ServerView(updates, torch.zeros(parameters), reference, torch.zeros(0))


def _digits(clients: int) -> tuple[Federation, ServerView]:
    federation = Federation(configure(num_clients=clients))
    federation.reset(Scenario("sign_flip", malicious_fraction=0.3, alpha=0.5), entropy=0)
    for _ in range(3):
        federation.apply(federation.local_round().view.updates.mean(dim=0))
    return federation, federation.local_round().view


def _timed(
    updates: str, clients: int, parameters: int, lines: dict[str, Callable[[], Any]], arguments: Arguments
) -> list[Row]:
    """The lines taking turns."""
    times: dict[str, list[float]] = defaultdict(list)
    began = time.perf_counter()
    for repetition in range(-1, arguments.repetitions):  # the first warms up
        for what, work in lines.items():
            started = time.perf_counter()
            work()
            if repetition >= 0:
                times[what].append(time.perf_counter() - started)
        if repetition >= 2 and time.perf_counter() - began > arguments.seconds:
            break
    return [
        {
            "updates": updates,
            "clients": clients,
            "parameters": parameters,
            "what": what,
            "milliseconds": 1e3 * statistics.median(seconds),
            "relative": statistics.median(a / b for a, b in zip(times[_WHOLE], seconds, strict=True)),
        }
        for what, seconds in times.items()
    ]


def _write(out: Path, rows: list[Row]) -> None:
    write_csv(out, rows)
    table = Table(*COLUMNS, title="one thread, medians; relative: the whole fingerprint's time to this line's")
    for row in rows:
        numbers = f"{row['milliseconds']:.3f}", f"{row['relative']:.2f}x"
        table.add_row(row["updates"], str(row["clients"]), f"{row['parameters']:,}", row["what"], *numbers)
    Console(width=110).print(table)
    print(f"written to {out}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
