"""Figures that need more than one run: against the references of the same cell, and against the cell without attack."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.evaluation.contestants import FLOOR, ORACLES

ORACLE, ANCHORED_ORACLE = ORACLES
# Below this distance of oracle and floor, in accuracy, the normalised score would be noise over noise.
SMALLEST_GAP = 0.02
# How good is good enough for "rounds to", as a share of the oracle's final accuracy.
REACHED = 0.9

# The columns of results.csv, in their order. Seconds are in timings.csv: what is here is a function of the grid.
COLUMNS = (
    "rule",
    "attack",
    "held_out",
    "malicious_fraction",
    "alpha",
    "seed",
    "test_accuracy",
    "test_loss",
    "regret",
    "regret_anchored",
    "detection_auroc",
    "honest_weight_share",
    "env_id",
    "num_clients",
    "heterogeneity",
    "seen",
    "normalised_score",
    "attack_success",
    "worst_class_accuracy",
    "personalised_accuracy",
    "worst_client_accuracy",
    "detection_precision",
    "detection_recall",
    "false_positive_rate",
    "rounds_to_oracle",
)
KEY = ("rule", "attack", "malicious_fraction", "heterogeneity", "seed", "env_id", "num_clients")
TIMING_COLUMNS = (
    *KEY,
    "seconds_per_round",
    "server_seconds",
    "feature_seconds",
    "first_round_seconds",
    "peak_memory_mib",
)

Row = Mapping[str, Any]


def relative_figures(
    rows: dict[str, dict[str, Any]], curves: Mapping[str, NDArray[Any]], known: Mapping[str, float] | None = None
) -> None:
    """Adds to the rows of one cell what is measured against its references; ``None`` where one of them failed.

    Args:
        rows: Rows by label; edited.
        curves: ``LABEL/accuracy`` at ``curve_rounds``, see ``CellResult``.
        known: Accuracy of what was run before, references among them.
    """
    accuracy = {**(known or {}), **{label: row["test_accuracy"] for label, row in rows.items()}}
    oracle, anchored, floor = (accuracy.get(label) for label in (ORACLE, ANCHORED_ORACLE, FLOOR))
    for label, row in rows.items():
        own = accuracy[label]
        row["regret"] = None if oracle is None else oracle - own
        row["regret_anchored"] = None if anchored is None else anchored - own
        row["normalised_score"] = normalised_score(own, oracle, floor)
        reached = None
        if oracle is not None and "curve_rounds" in curves:
            reached = rounds_to(curves[f"{label}/accuracy"], curves["curve_rounds"], REACHED * oracle)
        row["rounds_to_oracle"] = reached


def normalised_score(accuracy: float, oracle: float | None, floor: float | None) -> float | None:
    """(accuracy − floor) / (oracle − floor); ``None`` where the oracle is not clearly above the floor."""
    if oracle is None or floor is None or oracle - floor < SMALLEST_GAP:
        return None
    return (accuracy - floor) / (oracle - floor)


def rounds_to(accuracy: NDArray[Any], rounds: NDArray[Any], goal: float) -> int | None:
    """Number of rounds after which a curve first has ``goal``; ``None`` if it never has."""
    reached = np.flatnonzero(accuracy >= goal)
    return int(rounds[reached[0]]) + 1 if len(reached) else None


def with_attack_impact(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows with one more column, ``attack_impact``: a rule's accuracy without attack minus with, all else equal.

    ``None`` where the grid has no such cell without attack.
    """
    rows = list(rows)
    quiet = {_circumstances(row): row["test_accuracy"] for row in rows if not row["malicious_fraction"]}
    return [{**row, "attack_impact": _difference(quiet.get(_circumstances(row)), row["test_accuracy"])} for row in rows]


def _circumstances(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("rule", "env_id", "num_clients", "heterogeneity", "alpha", "seed"))


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else before - after
