"""One federation from its first round to its last under one rule, and what it was worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isnan
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.evaluation.contestants import ORACLES, REFERENCES, Contestant
from agents.evaluation.controls import ROOT_LABELS_SHUFFLED, ShuffledRootFederation
from agents.evaluation.detection import THRESHOLD, Detection
from agents.evaluation.grid import FINAL_ROUNDS, NO_ATTACK, Cell, Grid, parse_attack
from agents.evaluation.stopwatch import Stopwatch
from fl_core import Federation, Scenario
from fl_core.aggregation import ReferenceRule, Rule
from fl_core.attacks import Attack, make_attack
from fl_core.config import FederationConfig

# Test accuracy is measured at this many rounds of a run at most, evenly spread, for the learning curves.
CURVE_POINTS = 20
# Before the final rounds, whose accuracy is the result, a part of a large test side says enough for a curve.
CURVE_SAMPLES = 2000
# Along whose run the features are recorded: an honest one, the same for every grid.
RECORDED = ORACLES[1]

Arrays = dict[str, NDArray[Any]]


def curve_rounds(rounds: int) -> list[int]:
    """The rounds after which test accuracy is measured: evenly spread, and always the last ones."""
    spread = np.linspace(0, rounds - 1, min(rounds, CURVE_POINTS)).round().astype(int)
    return sorted({*map(int, spread), *range(rounds - FINAL_ROUNDS, rounds)})


def meets_attackers(grid: Grid, contestant: Contestant) -> bool:
    """Whether a contestant's run depends on what the attackers do.

    The references look at honest clients or at none: they are run once for all attacks on the same clients, except for
    the one along whose run the attackers' features are recorded.
    """
    return contestant.label not in REFERENCES or (grid.features and contestant.label == RECORDED)


def run_rule(grid: Grid, contestant: Contestant, cell: Cell) -> tuple[dict[str, Any], dict[str, Any], Arrays]:
    """One run of a cell; test data is looked at for the figures only.

    Returns:
        The row of results.csv, without what needs the other rules, the row of timings.csv, and the curves.
    """
    config = grid.config(cell.env_id, cell.num_clients, cell.seed)
    if meets_attackers(grid, contestant):
        trace = _run(config, contestant, cell, grid.rounds, features=grid.features)
    else:
        trace = _run_unattacked(config, contestant, replace(cell, attack=NO_ATTACK), grid.rounds, grid.attacks)
        trace = replace(trace, corrupted=corrupted_rounds(cell.scenario(), trace.malicious, grid.rounds))
    attack_success = trace.attack_success.get(cell.attack)
    if isinstance(attack_success, Exception):
        raise attack_success
    threshold = contestant.policy.threshold if contestant.policy is not None else None
    detection = Detection(THRESHOLD if threshold is None else threshold)
    for weights, attacked in zip(trace.weights, trace.corrupted, strict=True):
        detection.add(weights, attacked)
    label = contestant.label
    figures = {**trace.figures, "attack_success": attack_success, **detection.figures()}
    curves: Arrays = {
        "curve_rounds": np.array(curve_rounds(grid.rounds)),
        "malicious": trace.malicious.numpy(),
        "corrupted": trace.corrupted.numpy(),
        f"{label}/accuracy": np.array(trace.accuracies, dtype=np.float32),
    }
    if any(weights is not None for weights in trace.weights):
        unjudged = np.full(cell.num_clients, np.nan, dtype=np.float32)
        judged = [unjudged if weights is None else weights.numpy().astype(np.float32) for weights in trace.weights]
        curves[f"{label}/weights"] = np.stack(judged)
    if trace.features:
        curves["features"] = np.stack(trace.features)
    return (
        {"rule": label, **identity(grid, contestant, cell), **figures},
        {"rule": label, **_key(cell), **trace.timing},
        curves,
    )


def corrupted_rounds(scenario: Scenario, malicious: Tensor, rounds: int) -> Tensor:
    """Whose update is an attack in which round, (rounds, N) bool, from the clients (N,) that are malicious."""
    attack = scenario.make_attack()
    attack.reset()
    active = [scenario.under_attack(attack, number) for number in range(rounds)]
    return torch.tensor(active)[:, None] & malicious


def _fresh(spec: str) -> Attack:
    name, options = parse_attack(spec)
    attack = make_attack(name, **options)
    attack.reset()
    return attack


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


@dataclass(frozen=True, eq=False)
class _Trace:
    """What was seen along a run.

    Attributes:
        figures: Columns of results.csv on test data.
        attack_success: By attack, mean over the final rounds; ``None`` for one without a target, and what was raised by
            one that failed.
        timing: Columns of timings.csv.
        accuracies: Test accuracy at ``curve_rounds``.
        malicious: (N,) bool.
        corrupted: (rounds, N) bool, whose update was an attack.
        weights: (N,) on the CPU for each round, or ``None``.
        features: (N, 6) float16 for each round, if they were recorded.
    """

    figures: dict[str, Any]
    attack_success: dict[str, float | Exception | None]
    timing: dict[str, float | None]
    accuracies: list[float]
    malicious: Tensor
    corrupted: Tensor
    weights: list[Tensor | None]
    features: list[NDArray[np.float16]]


@torch.no_grad()
def _run(
    config: FederationConfig,
    contestant: Contestant,
    cell: Cell,
    rounds: int,
    others: tuple[str, ...] = (),
    *,
    features: bool = False,
) -> _Trace:
    """Runs a rule in a cell; ``others`` are attacks that are asked about their success beside the cell's own."""
    kind = ShuffledRootFederation if contestant.control == ROOT_LABELS_SHUFFLED else Federation
    federation = kind(config)
    federation.reset(cell.scenario(), entropy=cell.seed)
    watch = Stopwatch()
    federation.fingerprinter = watch.around(federation.fingerprinter)
    rule = ready(contestant.make(config, cell.seed), federation)
    scores = _Scores(federation, {cell.attack: federation.attack, **{spec: _fresh(spec) for spec in others}})
    # What searches against the deployed rule has nothing to search against along an oracle's run.
    recording = features and contestant.label == RECORDED and not federation.attack.knows.needs_rule
    weights: list[Tensor | None] = []
    corrupted, recorded = [], []
    measured = curve_rounds(rounds)
    for number in range(rounds):
        with watch.round():
            round_ = federation.local_round(rule)
            with watch.server(last=number == rounds - 1):
                aggregate = rule(round_.view)
        if recording:
            recorded.append(round_.view.fingerprint.observation.cpu().numpy().astype(np.float16))
        with watch.round_goes_on():
            federation.apply(aggregate.update)
        corrupted.append(round_.corrupted)
        # A copy: a rule may go on writing into what it has returned.
        weights.append(None if aggregate.weights is None else aggregate.weights.detach().cpu().clone())
        if number in measured:
            scores.add(final=number >= rounds - FINAL_ROUNDS)
    return _Trace(
        scores.figures(),
        scores.attack_success(),
        watch.figures(),
        scores.accuracies,
        federation.malicious,
        torch.stack(corrupted),
        weights,
        recorded,
    )


# Attacks are the innermost axis of a grid: what came before the last few scenarios is not asked for again.
_run_unattacked = lru_cache(maxsize=2 * len(REFERENCES))(_run)


class _Scores:
    """Test figures of a run: a curve of accuracy, and means over the final rounds."""

    def __init__(self, federation: Federation, attacks: Mapping[str, Attack]) -> None:
        self._federation, self._attacks = federation, attacks
        self._final: list[Mapping[str, float]] = []
        self._success: dict[str, list[float | Exception]] = {spec: [] for spec in attacks}
        self._classes: list[NDArray[np.float64]] = []
        self._clients: list[NDArray[np.float64]] = []
        self.accuracies: list[float] = []

    def add(self, *, final: bool) -> None:
        """Measures the present model."""
        federation = self._federation
        present = torch.zeros_like(federation.shared[None])
        metrics = federation.evaluate(present, "test", at_most=None if final else CURVE_SAMPLES)
        accuracy = float(metrics.accuracy[0])
        self.accuracies.append(accuracy)
        if final:
            self._final.append({"test_accuracy": accuracy, "test_loss": float(metrics.loss[0])})
            for spec, attack in self._attacks.items():
                self._success[spec].append(_asked(federation, attack))
            self._classes.append(metrics.class_accuracy[0].cpu().numpy())
            honest = (~federation.malicious).nonzero().flatten()
            self._clients.append(federation.evaluate_personalised("test", honest).cpu().numpy())

    def attack_success(self) -> dict[str, float | Exception | None]:
        """By attack, see ``_Trace``."""
        return {spec: _mean(answers) for spec, answers in self._success.items()}

    def figures(self) -> dict[str, Any]:
        """Means over the final rounds; the worst class and client are those whose own mean is lowest."""
        classes, clients = np.mean(self._classes, axis=0), np.mean(self._clients, axis=0)
        classes, clients = (values[~np.isnan(values)] for values in (classes, clients))
        return {
            **{name: _mean([figures[name] for figures in self._final]) for name in self._final[0]},
            "worst_class_accuracy": float(classes.min()) if len(classes) else None,
            "personalised_accuracy": float(clients.mean()) if len(clients) else None,
            "worst_client_accuracy": float(clients.min()) if len(clients) else None,
        }


def _asked(federation: Federation, attack: Attack) -> float | Exception:
    """An attack's success against the present model; what it raises, if it cannot say."""
    try:
        return federation.attack_success("test", attack)
    except Exception as error:  # a user's attack may raise anything; the others are asked all the same
        return error


def _mean(values: Sequence[float | Exception]) -> float | Exception | None:
    """Mean of those that are numbers, ``None`` if none is; the first error, if there is one."""
    errors = [value for value in values if isinstance(value, Exception)]
    known = [value for value in values if not isinstance(value, Exception) and not isnan(value)]
    if errors:
        return errors[0]
    return sum(known) / len(known) if known else None
