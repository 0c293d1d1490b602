"""The benchmark: every rule and policy on the same federations, under the same attacks, from the same seeds."""

import csv
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from math import isnan
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from agents.deployed import TrustAggregator, load_policy
from fl_core import Federation, Scenario, configure
from fl_core.aggregation import ReferenceRule, Rule, make_rule, takes_num_byzantine
from optigrad_env import TRAIN_ATTACKS

COLUMNS = (
    "rule",
    "attack",
    "held_out",
    "malicious_fraction",
    "alpha",
    "seed",
    "test_accuracy",
    "test_loss",
    "personalised_accuracy",
    "attack_success",
    "regret",
    "regret_anchored",
    "detection_auroc",
    "honest_weight_share",
    "seconds_per_round",
)

# Accuracy is the mean over the last rounds, never the maximum.
FINAL_ROUNDS = 3
ORACLES = ("oracle", "anchored_oracle")


@dataclass(frozen=True)
class Grid:
    """What is compared on what.

    Attributes:
        rules: Names of aggregation rules; the oracles are always run, for the regret.
        policies: Directories of trained policies; each is one more rule, named after its directory.
        attacks: Names of attacks, for the malicious fractions above 0.
        malicious_fractions: Shares of malicious clients; 0 is one scenario without attack.
        alphas: Dirichlet concentrations; ``None`` for IID.
        seeds: Seeds. Each draws its own root data, partition, malicious clients, initial model and batches.
        rounds: Rounds of a run.
        num_byzantine: Number of malicious clients that rules are told; ``None`` lets each assume 30 %.
        settings: Settings of the federation, see ``fl_core.federation_settings()``.
    """

    rules: tuple[str, ...]
    policies: tuple[str, ...]
    attacks: tuple[str, ...]
    malicious_fractions: tuple[float, ...]
    alphas: tuple[float | None, ...]
    seeds: tuple[int, ...]
    rounds: int = 20
    num_byzantine: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("attacks", "malicious_fractions", "alphas", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: the benchmark would have no cells")
        if not self.rules and not self.policies:
            raise ValueError("neither rules nor policies to compare")
        if self.rounds < FINAL_ROUNDS:
            raise ValueError(f"rounds must be at least {FINAL_ROUNDS}, the rounds that are averaged; got {self.rounds}")
        names = [policy_label(policy) for policy in self.policies]
        if len(set(names)) < len(names):
            raise ValueError(f"two policies have the same directory name, which names their row: {self.policies}")
        taken = [name for name in names if name in (*self.rules, *ORACLES)]
        if taken:
            raise ValueError(f"policy directory {taken[0]!r} has the name of a rule, and would take its row; rename it")
        for rule in self.labels():
            self.make(rule)
        clients = Federation(configure(**self.settings)).config.num_clients
        for scenario, _ in self.cells():
            scenario.make_attack()
            if scenario.malicious_fraction > 0 and scenario.num_malicious(clients) == 0:
                raise ValueError(
                    f"malicious_fraction={scenario.malicious_fraction} of {clients} clients is not one whole client; "
                    f"take 0, or at least {1 / clients:.3g}"
                )

    def labels(self) -> list[str]:
        """Names of everything that is run: policies, rules, oracles."""
        names = [*map(policy_label, self.policies), *self.rules, *ORACLES]
        return list(dict.fromkeys(names))

    def make(self, label: str) -> Rule:
        """The rule behind a label.

        Raises:
            ValueError: Unknown rule, or a damaged policy.
        """
        for policy in self.policies:
            if policy_label(policy) == label:
                return TrustAggregator(load_policy(policy), configure(**self.settings).weighting)
        options = {"num_byzantine": self.num_byzantine} if self.num_byzantine is not None else {}
        return make_rule(label, **(options if takes_num_byzantine(label) else {}))

    def cells(self) -> list[tuple[Scenario, int]]:
        """Every scenario with every seed. Without malicious clients all attacks are one: ``none``."""
        scenarios = dict.fromkeys(
            ("none", 0.0, alpha) if fraction == 0 or attack == "none" else (attack, fraction, alpha)
            for fraction, attack, alpha in product(self.malicious_fractions, self.attacks, self.alphas)
        )
        return [(Scenario(*scenario), seed) for seed in self.seeds for scenario in scenarios]


def run(grid: Grid, workers: int) -> Iterator[list[dict[str, Any]]]:
    """Runs the grid; yields the rows of a scenario and seed as soon as it is done, in order of completion of the grid.

    Args:
        grid: What to run.
        workers: Processes, each with one thread.

    Raises:
        ValueError: ``workers`` below 1.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    cells = grid.cells()
    scenarios, seeds = [scenario for scenario, _ in cells], [seed for _, seed in cells]
    if workers == 1:
        yield from map(run_cell, [grid] * len(cells), scenarios, seeds)
        return
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(run_cell, [grid] * len(cells), scenarios, seeds)


def run_cell(grid: Grid, scenario: Scenario, seed: int) -> list[dict[str, Any]]:
    """All rules in one scenario from one seed: same data, attackers, initial model and batches for each."""
    rows = {label: run_rule(grid, label, scenario, seed) for label in grid.labels()}
    for row in rows.values():
        row["regret"] = rows["oracle"]["test_accuracy"] - row["test_accuracy"]
        row["regret_anchored"] = rows["anchored_oracle"]["test_accuracy"] - row["test_accuracy"]
    return [{column: row[column] for column in COLUMNS} for row in rows.values()]


@torch.no_grad()
def run_rule(grid: Grid, label: str, scenario: Scenario, seed: int) -> dict[str, Any]:
    """One federation from its first round to its last under one rule; test data is looked at for the figures only."""
    federation = Federation(configure(**{"split_seed": seed, **grid.settings}))
    federation.reset(scenario, entropy=seed)
    rule = grid.make(label)
    if isinstance(rule, ReferenceRule):
        rule = rule.told(federation.malicious)
    rule.reset()
    accuracies, losses, personalised, successes, aurocs, shares = [], [], [], [], [], []
    seconds = 0.0
    for round_number in range(grid.rounds):
        started = time.perf_counter()
        round_ = federation.local_round(rule)
        aggregate = rule(round_.view)
        federation.apply(aggregate.update)
        seconds += time.perf_counter() - started
        if round_.attacking and aggregate.weights is not None:
            aurocs.append(_auroc(aggregate.weights, round_.malicious))
            shares.append(_honest_share(aggregate.weights, round_.malicious))
        if round_number >= grid.rounds - FINAL_ROUNDS:
            metrics = federation.evaluate(torch.zeros(1, federation.layout.num_shared), "test")
            accuracies.append(float(metrics.accuracy[0]))
            losses.append(float(metrics.loss[0]))
            successes.append(federation.attack_success("test"))
            personalised.append(float(federation.evaluate_personalised("test")[~round_.malicious].mean()))
    return {
        "rule": label,
        "attack": scenario.attack,
        "held_out": scenario.attack not in (*TRAIN_ATTACKS, "none"),
        "malicious_fraction": scenario.malicious_fraction,
        "alpha": scenario.alpha,
        "seed": seed,
        "test_accuracy": _mean(accuracies),
        "test_loss": _mean(losses),
        "personalised_accuracy": _mean(personalised),
        "attack_success": _mean(successes),
        "detection_auroc": _mean(aurocs),
        "honest_weight_share": _mean(shares),
        "seconds_per_round": seconds / grid.rounds,
    }


class ResultsFile:
    """``results.csv``, a row per rule, scenario and seed; every row is on disk as soon as it is there.

    Args:
        path: The file.
        overwrite: Replace an old one.

    Raises:
        ValueError: It exists and may not be replaced.
    """

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        if path.exists() and not overwrite:
            raise ValueError(f"{path} exists already; give another --out, or --overwrite to replace it")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, COLUMNS)
        self._writer.writeheader()

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Writes rows; ``None`` becomes an empty field."""
        self._writer.writerows(rows)
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def policy_label(policy: str) -> str:
    """Name of a policy's row: that of its directory, also where that was given as ``.``."""
    return Path(policy).resolve().name


def _auroc(weights: Tensor, malicious: Tensor) -> float:
    return float(roc_auc_score((~malicious).numpy(), weights.cpu().numpy()))


def _honest_share(weights: Tensor, malicious: Tensor) -> float:
    total = float(weights.sum())
    return float(weights[~malicious].sum()) / total if total > 0 else float("nan")


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if not isnan(value)]
    return sum(known) / len(known) if known else None
