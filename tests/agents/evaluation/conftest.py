"""Grids of a second, and rows whose figures are known."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

from agents.evaluation import CellResult, Grid, run_grid, runs

MakeGrid = Callable[..., Grid]


def small_grid(**changes: Any) -> Grid:
    """A linear federation of five clients: a cell takes a fraction of a second."""
    fields: dict[str, Any] = {
        "rules": ("fedavg", "median"),
        "attacks": ("sign_flip", "alie"),
        "malicious_fractions": (0.0, 0.4),
        "env_ids": ("OptiGrad/Softmax-v0",),
        "num_clients": (5,),
        "rounds": 4,
        "features": False,
    }
    return Grid(**{**fields, **changes})


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    """References that an earlier test has run, perhaps on a federation of its own making, are not taken for others'."""
    runs._run_unattacked.cache_clear()


@pytest.fixture(scope="session")
def make_grid() -> MakeGrid:
    return small_grid


@pytest.fixture(scope="session")
def results() -> list[CellResult]:
    """A grid's results, with a rule that looks at features and with the features recorded."""
    return list(run_grid(small_grid(rules=("fedavg", "median", "shapley"), features=True)))


@pytest.fixture(scope="session")
def rows(results: list[CellResult]) -> list[dict[str, Any]]:
    return [row for result in results for row in result.rows]


def known_rows(
    kinds: tuple[str, ...] = ("0.5", "0.1"),
    attacks: tuple[str, ...] = ("alie", "sign_flip"),
    fractions: tuple[float, ...] = (0.0, 0.3),
    rules: tuple[str, ...] = ("mine", "fedavg", "oracle", "anchored_oracle", "root_only"),
    seeds: int = 5,
) -> list[dict[str, Any]]:
    """Rows as ``read_results`` gives them: rule i has accuracy 0.9 − 0.05·i, less 0.2 for fedavg under alie."""
    noise = np.random.default_rng(0).normal(0, 0.01, size=seeds)
    made = []
    for seed, kind, fraction, attack in product(range(seeds), kinds, fractions, attacks):
        name = attack if fraction else "none"
        for i, rule in enumerate(rules):
            hurt = 0.2 * (rule == "fedavg" and name == "alie")
            accuracy = 0.9 - 0.05 * i - hurt + noise[seed]
            made.append(
                {
                    "rule": rule,
                    "attack": name,
                    "held_out": name == "alie",
                    "malicious_fraction": fraction,
                    "alpha": float(kind) if kind[0].isdigit() else None,
                    "heterogeneity": kind,
                    "seed": float(seed),
                    "env_id": "OptiGrad/Digits-v0",
                    "num_clients": 10.0,
                    "seen": rule == "mine" and name == "sign_flip",
                    "test_accuracy": accuracy,
                    "regret": 0.05 * i + hurt - 0.1,
                    "regret_anchored": 0.05 * i + hurt,
                    "normalised_score": 1 - 0.1 * i,
                    "attack_success": None,
                    "worst_class_accuracy": accuracy / 2,
                    "personalised_accuracy": accuracy,
                    "worst_client_accuracy": accuracy / 2,
                    "detection_auroc": 0.9 if fraction else None,
                    "detection_precision": 1.0 if fraction else None,
                    "detection_recall": 0.5 if fraction else None,
                    "false_positive_rate": 0.1,
                    "honest_weight_share": 0.7 if fraction else None,
                    "rounds_to_oracle": 7.0,
                }
            )
    unique = {(r["rule"], r["attack"], r["malicious_fraction"], r["heterogeneity"], r["seed"]): r for r in made}
    return list(unique.values())


@pytest.fixture
def make_rows() -> Callable[..., list[dict[str, Any]]]:
    return known_rows
