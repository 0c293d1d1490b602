"""Error and cost of each Shapley estimator, against exact values, on real rounds of the digits federation.

    python benchmarks/shapley.py

Federations of ten clients, three of them attackers with the train attacks by turns, each in its independent and its
colluding form; root data, initial weights and partition differ. The global model moves by the mean of the updates
clipped to their median norm. Writes results/shapley.csv.
"""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor

from fl_core import Federation, Scenario, configure
from fl_core.files import write_csv
from fl_core.fingerprint import CoalitionGame, ShapleyEstimator, geometry, make_shapley
from fl_core.fingerprint.shapley import PermutationShapley
from fl_core.training import Engine
from optigrad_env.scenarios import TRAIN_ATTACKS

COLUMNS = (
    "estimator", "attack", "games", "spearman_mean", "spearman_median", "spearman_p10", "relative_rmse", "passes",
    "milliseconds", "exact_over_this",
)  # fmt: skip
ESTIMATORS: dict[str, ShapleyEstimator] = {
    "exact": make_shapley("exact"),
    "surrogate": make_shapley("surrogate"),
    "permutation (10)": PermutationShapley(10),
    "permutation (20)": PermutationShapley(20),
    "permutation (100)": PermutationShapley(100),
}


@dataclass(frozen=True)
class Arguments:
    """Compares estimators of the Shapley value with exact values."""

    federations: int = 30
    """Number of federations."""
    rounds: tuple[int, ...] = (0, 2, 5, 8, 12)
    """Rounds in which the game is solved."""
    alpha: float = 0.5
    """Dirichlet concentration."""
    out: Path = Path("results/shapley.csv")
    """Where the table goes."""


@dataclass(frozen=True)
class Result:
    """One estimator in one game: rank correlation to exact values, RMSE over the exact values' RMS, cost."""

    attack: str
    spearman: float
    error: float
    passes: int
    seconds: float
    exact_seconds: float


class CountingEngine:
    """Counts the models that another engine runs."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.passes = 0

    def logits(self, shared: Tensor, local: Tensor, images: Tensor) -> Tensor:
        """See ``Engine.logits``."""
        self.passes += len(shared)
        return self._engine.logits(shared, local, images)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the other engine's."""
        return getattr(self._engine, name)


def main(arguments: Arguments) -> None:
    """Measures, prints the table, writes the file."""
    torch.set_num_threads(1)
    results: dict[str, list[Result]] = {name: [] for name in ESTIMATORS}
    for seed in range(arguments.federations):
        scenario = Scenario(
            TRAIN_ATTACKS[seed % len(TRAIN_ATTACKS)],
            malicious_fraction=0.3,
            alpha=arguments.alpha,
            attack_options={"colluding": bool(seed // len(TRAIN_ATTACKS) % 2)},
        )
        federation = Federation(configure(split_seed=seed))
        federation.reset(scenario, entropy=seed)
        for round_ in range(max(arguments.rounds) + 1):
            game = _game(federation)
            if round_ in arguments.rounds:
                for name, result in _compare(game, scenario.attack, seed).items():
                    results[name].append(result)
            federation.apply(game.mean_update)
    _write(arguments.out, [row for name, found in results.items() for row in _rows(name, found)])


def _game(federation: Federation) -> CoalitionGame:
    """The present round's game, as the fingerprint plays it."""
    view = federation.local_round().view
    assert view.global_model is not None
    assert view.server_local is not None
    lengths, utility = geometry.norms(view.updates), federation.splits.utility
    return CoalitionGame(
        engine=CountingEngine(federation.engine),
        shared=view.global_model,
        local=view.server_local,
        updates=view.updates,
        clip=geometry.clip_factors(lengths, geometry.median(lengths)),
        reference_images=federation.simulator.images,
        images=federation.dataset.images(utility),
        labels=federation.dataset.labels[utility],
        num_classes=federation.dataset.num_classes,
    )


def _compare(game: CoalitionGame, attack: str, seed: int) -> dict[str, Result]:
    assert isinstance(game.engine, CountingEngine)
    assert game.statistics is not None  # computed here, so that no estimator pays for it
    results: dict[str, Result] = {}
    for name, estimator in ESTIMATORS.items():
        game.engine.passes, started = 0, time.perf_counter()
        values = estimator(game, torch.Generator().manual_seed(seed)).numpy()
        seconds = time.perf_counter() - started
        if name == "exact":
            exact, exact_seconds = values, seconds
        correlation = float(spearmanr(exact, values).statistic)
        error = float(np.sqrt(np.mean((values - exact) ** 2) / np.mean(exact**2)))
        results[name] = Result(attack, correlation, error, game.engine.passes, seconds, exact_seconds)
    return results


def _rows(name: str, results: list[Result]) -> list[list[str | float]]:
    rows: list[list[str | float]] = []
    for attack in ("all", *TRAIN_ATTACKS):
        chosen = [result for result in results if attack in ("all", result.attack)]
        if not chosen:
            continue
        spearman = [result.spearman for result in chosen]
        rows.append(
            [
                name,
                attack,
                len(chosen),
                statistics.fmean(spearman),
                statistics.median(spearman),
                float(np.quantile(spearman, 0.1)),
                statistics.median(result.error for result in chosen),
                statistics.median(result.passes for result in chosen),
                1e3 * statistics.median(result.seconds for result in chosen),
                statistics.median(result.exact_seconds / result.seconds for result in chosen),
            ]
        )
    return rows


def _write(out: Path, rows: list[list[str | float]]) -> None:
    write_csv(out, [dict(zip(COLUMNS, row, strict=True)) for row in rows])
    table = Table(*COLUMNS, title="10 clients, 3 attackers, one thread")
    for row in rows:
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row))
    Console(width=160).print(table)
    print(f"written to {out}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
