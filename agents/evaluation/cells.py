"""A cell of the grid: every rule on the same federation, under the same attack, from the same seed."""

import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.evaluation.contestants import ORACLES, Contestant
from agents.evaluation.controls import ROOT_LABELS_SHUFFLED, ShuffledRootFederation
from agents.evaluation.detection import THRESHOLD, Detection
from agents.evaluation.figures_of_merit import relative_figures
from agents.evaluation.grid import FINAL_ROUNDS, Cell, Grid, parse_attack
from agents.evaluation.stopwatch import Stopwatch
from fl_core import Federation
from fl_core.aggregation import ReferenceRule, Rule

# Test accuracy is measured at this many rounds of a run at most, evenly spread, for the learning curves.
CURVE_POINTS = 20
# Before the final rounds, whose accuracy is the result, a part of a large test side says enough for a curve.
CURVE_SAMPLES = 2000
# Along whose run the features are recorded: an honest one, the same for every grid.
RECORDED = ORACLES[1]

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Failure:
    """A rule that could not be run in a cell.

    Attributes:
        cell: The cell.
        rule: Label; ``None`` if the whole cell failed.
        error: Type and message, one line.
        trace: Where it happened.
    """

    cell: Cell
    rule: str | None
    error: str
    trace: str


@dataclass(frozen=True, eq=False)
class CellResult:
    """What came out of a cell.

    Attributes:
        cell: The cell.
        rows: A row of results.csv for each rule that could be run.
        timings: A row of timings.csv for each.
        curves: Arrays by name for the report: ``RULE/accuracy`` at ``curve_rounds``, ``RULE/weights`` (rounds, N;
            NaN in a round in which a rule judges nobody), ``malicious`` (N,), ``corrupted`` (rounds, N) and
            ``features`` (rounds, N, 6).
        failures: Rules that could not.
    """

    cell: Cell
    rows: list[dict[str, Any]]
    timings: list[dict[str, Any]]
    curves: Arrays
    failures: list[Failure]


def run_cell(grid: Grid, cell: Cell) -> CellResult:
    """All rules in one scenario from one seed: same data, attackers, initial model and batches for each."""
    rows: dict[str, dict[str, Any]] = {}
    timings, failures = [], []
    curves: Arrays = {}
    for contestant in grid.contestants(cell.env_id):
        try:
            row, timing, recorded = run_rule(grid, contestant, cell)
        except Exception as error:  # a user's rule may raise anything; the others go on
            failures.append(failure(cell, contestant.label, error))
            continue
        rows[contestant.label] = row
        timings.append(timing)
        curves |= recorded
    relative_figures(rows, curves)
    return CellResult(cell, list(rows.values()), timings, curves, failures)


def failure(cell: Cell, rule: str | None, error: BaseException) -> Failure:
    """A failure as a record."""
    message = f"{type(error).__name__}: {error}".splitlines()[0]
    return Failure(cell, rule, message, "".join(traceback.format_exception(error)))


def curve_rounds(rounds: int) -> list[int]:
    """The rounds after which test accuracy is measured: evenly spread, and always the last ones."""
    spread = np.linspace(0, rounds - 1, min(rounds, CURVE_POINTS)).round().astype(int)
    return sorted({*map(int, spread), *range(rounds - FINAL_ROUNDS, rounds)})


@torch.no_grad()
def run_rule(grid: Grid, contestant: Contestant, cell: Cell) -> tuple[dict[str, Any], dict[str, Any], Arrays]:
    """One federation from its first round to its last under one rule; test data is looked at for the figures only.

    Returns:
        The row of results.csv, without what needs the other rules, the row of timings.csv, and the curves.
    """
    config = grid.config(cell.env_id, cell.num_clients, cell.seed)
    kind = ShuffledRootFederation if contestant.control == ROOT_LABELS_SHUFFLED else Federation
    federation = kind(config)
    federation.reset(cell.scenario(), entropy=cell.seed)
    watch = Stopwatch()
    federation.fingerprinter = watch.around(federation.fingerprinter)
    rule = ready(contestant.make(config, cell.seed), federation)
    label = contestant.label
    threshold = contestant.policy.threshold if contestant.policy is not None else None
    detection = Detection(THRESHOLD if threshold is None else threshold)
    scores = _Scores(federation)
    corrupted, features = [], []
    weights: list[NDArray[np.float32] | None] = []
    measured = curve_rounds(grid.rounds)
    for number in range(grid.rounds):
        with watch.round():
            round_ = federation.local_round(rule)
            with watch.server(last=number == grid.rounds - 1):
                aggregate = rule(round_.view)
        if label == RECORDED and grid.features:
            features.append(round_.view.fingerprint.observation.cpu().numpy().astype(np.float16))
        with watch.round_goes_on():
            federation.apply(aggregate.update)
        detection.add(aggregate.weights, round_.corrupted)
        corrupted.append(round_.corrupted.numpy())
        weights.append(None if aggregate.weights is None else aggregate.weights.cpu().numpy().astype(np.float32))
        if number in measured:
            scores.add(final=number >= grid.rounds - FINAL_ROUNDS)
    row = {"rule": label, **identity(grid, contestant, cell), **scores.figures(), **detection.figures()}
    timing = {"rule": label, **_key(cell), **watch.figures()}
    curves: Arrays = {
        "curve_rounds": np.array(measured),
        "malicious": federation.malicious.numpy(),
        "corrupted": np.stack(corrupted),
        f"{label}/accuracy": np.array(scores.accuracies, dtype=np.float32),
    }
    if any(each is not None for each in weights):
        unjudged = np.full(cell.num_clients, np.nan, dtype=np.float32)
        curves[f"{label}/weights"] = np.stack([unjudged if each is None else each for each in weights])
    if features:
        curves["features"] = np.stack(features)
    return row, timing, curves


def identity(grid: Grid, contestant: Contestant, cell: Cell) -> dict[str, Any]:
    """The columns that say which cell a row is of, and whether anybody had seen its attack in training."""
    seen = contestant.seen
    name = parse_attack(cell.attack)[0]
    return {
        **_key(cell),
        "alpha": cell.alpha,
        "held_out": grid.is_held_out(cell.attack),
        "seen": None if seen is None else name in {parse_attack(attack)[0] for attack in seen},
    }


def _key(cell: Cell) -> dict[str, Any]:
    return {
        "attack": cell.attack,
        "malicious_fraction": cell.malicious_fraction,
        "heterogeneity": cell.heterogeneity,
        "seed": cell.seed,
        "env_id": cell.env_id,
        "num_clients": cell.num_clients,
    }


def ready(rule: Rule, federation: Federation) -> Rule:
    """The rule at the beginning of a run; a reference is told who is malicious."""
    if isinstance(rule, ReferenceRule):
        rule = rule.told(federation.malicious)
    rule.reset()
    return rule


class _Scores:
    """Test figures of a run: a curve of accuracy, and means over the final rounds."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._final: list[Mapping[str, float]] = []
        self._classes: list[NDArray[np.float64]] = []
        self._clients: list[NDArray[np.float64]] = []
        self.accuracies: list[float] = []

    def add(self, *, final: bool) -> None:
        """Measures the present model."""
        federation = self._federation
        present = torch.zeros(1, federation.layout.num_shared)
        metrics = federation.evaluate(present, "test", at_most=None if final else CURVE_SAMPLES)
        accuracy = float(metrics.accuracy[0])
        self.accuracies.append(accuracy)
        if final:
            figures = {"test_accuracy": accuracy, "test_loss": float(metrics.loss[0])}
            self._final.append({**figures, "attack_success": federation.attack_success("test")})
            self._classes.append(metrics.class_accuracy[0].cpu().numpy())
            self._clients.append(federation.evaluate_personalised("test").cpu()[~federation.malicious].numpy())

    def figures(self) -> dict[str, float | None]:
        """Means over the final rounds; the worst class and client are those whose own mean is lowest."""
        classes, clients = np.mean(self._classes, axis=0), np.mean(self._clients, axis=0)
        known = classes[~np.isnan(classes)]
        return {
            **{name: _mean([figures[name] for figures in self._final]) for name in self._final[0]},
            "worst_class_accuracy": float(known.min()) if len(known) else None,
            "personalised_accuracy": float(clients.mean()),
            "worst_client_accuracy": float(clients.min()),
        }


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if not isnan(value)]
    return sum(known) / len(known) if known else None
