"""Measures whether the autoencoder still knows honest updates late in a run, and what its refreshes cost.

    python benchmarks/autoencoder.py

A digits federation without attackers moves by the mean of its clients' updates. In every round the autoencoder scores
these honest updates and isotropic noise of the same lengths. Writes results/autoencoder.csv, a row a window of rounds:
the AUROC within a round (mean), that of all rounds of the window in units of the typical error, the median relative
error of honest updates, the median log-ratio to the typical error, and milliseconds a round: median, and refreshes
amortised.
"""

import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score
from torch import Tensor

from fl_core import Federation, Scenario, configure
from fl_core.files import write_csv

COLUMNS = ("alpha", "rounds", "auroc_in_round", "auroc_pooled", "honest_error", "log_ratio", "ms", "refresh_ms_a_round")
_WINDOW = 20


@dataclass(frozen=True)
class Arguments:
    """Measures the autoencoder along honest runs."""

    seeds: int = 5
    """Federations, each with root data, initial weights and partition of its own."""
    alphas: tuple[float, ...] = (0.1, 0.5)
    """Dirichlet concentrations."""
    rounds: int = 60
    """Length of a run."""
    out: Path = Path("results/autoencoder.csv")
    """Where the table goes."""


@dataclass(frozen=True, eq=False)
class Scored:
    """One round: errors in units of the typical one, (N,) each, and seconds."""

    honest: Tensor
    noise: Tensor
    typical: float
    seconds: float


def main(arguments: Arguments) -> None:
    """Measures, prints the table, writes the file."""
    torch.set_num_threads(1)
    rows = []
    for alpha in arguments.alphas:
        windows: dict[int, list[Scored]] = defaultdict(list)
        for seed in range(arguments.seeds):
            for round_, scored in enumerate(run(seed, alpha, arguments.rounds)):
                windows[round_ // _WINDOW].append(scored)
        rows += [_row(alpha, window, scored, arguments) for window, scored in windows.items()]
    write_csv(arguments.out, [dict(zip(COLUMNS, row, strict=True)) for row in rows])
    table = Table(*COLUMNS, title=f"digits, 10 honest clients, {arguments.seeds} seeds, one thread")
    for row in rows:
        table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else cell for cell in row))
    Console(width=130).print(table)
    print(f"written to {arguments.out}")


def run(seed: int, alpha: float, rounds: int) -> list[Scored]:
    """One honest federation, scored in every round."""
    federation = Federation(configure(split_seed=seed))
    federation.reset(Scenario(alpha=alpha), entropy=seed)
    fingerprinter, generator = federation.fingerprinter, torch.Generator().manual_seed(seed)
    assert fingerprinter.typical_error > 0  # trains the autoencoder now, before anything is timed
    scored = []
    for round_ in range(rounds):
        view = federation.local_round().view
        assert view.global_model is not None
        assert view.reference is not None
        assert view.server_local is not None
        noise = torch.randn(view.updates.shape, generator=generator)
        noise *= (view.updates.norm(dim=1) / noise.norm(dim=1))[:, None]
        both = torch.cat([view.updates, noise])
        started = time.perf_counter()
        errors = fingerprinter.reconstruction_error(both, view.global_model, view.reference, view.server_local, round_)
        seconds = time.perf_counter() - started
        typical = float(fingerprinter.typical_error)
        scored.append(Scored(errors[: len(noise)] / typical, errors[len(noise) :] / typical, typical, seconds))
        federation.apply(view.updates.mean(dim=0))
    return scored


def _row(alpha: float, window: int, scored: list[Scored], arguments: Arguments) -> list[str | float]:
    honest = torch.stack([s.honest for s in scored])
    noise = torch.stack([s.noise for s in scored])
    inside = [_auroc(h, n) for h, n in zip(honest, noise, strict=True)]
    plain = statistics.median(s.seconds for s in scored)
    last = min((window + 1) * _WINDOW, arguments.rounds) - 1
    return [
        f"{alpha}",
        f"{window * _WINDOW}-{last}",
        statistics.fmean(inside),
        _auroc(honest.flatten(), noise.flatten()),
        statistics.median(float(v) * s.typical for s in scored for v in s.honest),
        float(honest.log().median()),
        1e3 * plain,
        1e3 * (statistics.fmean(s.seconds for s in scored) - plain),
    ]


def _auroc(honest: Tensor, noise: Tensor) -> float:
    labels = [0] * len(honest) + [1] * len(noise)
    return float(roc_auc_score(labels, torch.cat([honest, noise]).numpy()))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
