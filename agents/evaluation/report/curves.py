"""Curves of a results directory: what was recorded round by round in its cells."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from agents.evaluation.files import read_curves
from agents.evaluation.grid import Cell
from fl_core.fingerprint import FEATURES

Arrays = Mapping[str, NDArray[Any]]
# Clients a kind that a violin is drawn of, at most: more change nothing that one could see.
_SHOWN = 4000


@dataclass(frozen=True)
class Recorded:
    """A cell whose curves are there.

    Attributes:
        cell: The cell.
        path: The file.
    """

    cell: Cell
    path: Path

    def load(self) -> Arrays:
        """The arrays, see ``CellResult.curves``; none if the file is damaged."""
        return read_curves(self.path) or {}


def learning_curves(
    cells: Sequence[Recorded], rules: Sequence[str]
) -> tuple[NDArray[Any], dict[str, NDArray[np.float64]]]:
    """Rounds (T,), and for each rule its test accuracy (cells, T), of cells of one grid."""
    found: dict[str, list[NDArray[Any]]] = {}
    rounds: NDArray[Any] = np.empty(0, dtype=int)
    for recorded in cells:
        arrays = recorded.load()
        rounds = arrays.get("curve_rounds", rounds)
        for rule in rules:
            if f"{rule}/accuracy" in arrays:
                found.setdefault(rule, []).append(arrays[f"{rule}/accuracy"])
    return rounds, {rule: np.stack(curves).astype(np.float64) for rule, curves in found.items()}


def feature_samples(cells: Sequence[Recorded]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Features (M, 6) of clients along the anchored oracle's run under attack, and who of them attacked (M,)."""
    features, corrupted = [], []
    for _, (seen, attacking) in _features(cells):
        features.append(seen)
        corrupted.append(attacking)
    if not features:
        return np.empty((0, len(FEATURES)), dtype=np.float32), np.empty(0, dtype=bool)
    every, who = np.concatenate(features), np.concatenate(corrupted)
    keep = np.concatenate([_thinned(np.flatnonzero(who == kind)) for kind in (False, True)])
    return every[keep], who[keep]


def feature_aurocs(cells: Sequence[Recorded]) -> list[dict[str, Any]]:
    """How well each feature by itself tells attackers from honest clients: a row per attack, heterogeneity, feature.

    0.5 is chance; below it, the feature points the wrong way. Large reconstruction errors and norms count as signs of
    an attack, small values of the other features likewise. Within each cell; the mean over cells is returned.
    """
    signs = np.array([-1, 1, 1, -1, 1, 1])
    found: dict[tuple[str, str, str], list[list[float]]] = {}
    for cell, (seen, attacking) in _features(cells):
        scores = [float(roc_auc_score(~attacking, column)) for column in (seen * signs).T]
        found.setdefault((cell.env_id, cell.attack, cell.heterogeneity), []).append(scores)
    return [
        {"env_id": env_id, "attack": attack, "heterogeneity": kind, "feature": feature, "auroc": float(value)}
        for (env_id, attack, kind), scores in found.items()
        for feature, value in zip(FEATURES, np.mean(scores, axis=0), strict=True)
    ]


def _features(cells: Sequence[Recorded]) -> Iterator[tuple[Cell, tuple[NDArray[np.float32], NDArray[np.bool_]]]]:
    """Of each cell with an attack: features (M, 6) and who attacked (M,), of the rounds in which somebody did."""
    for recorded in cells:
        if recorded.cell.malicious_fraction == 0:
            continue
        arrays = recorded.load()
        if "features" not in arrays:
            continue
        attacked = arrays["corrupted"].any(axis=1)
        if attacked.any():
            features = arrays["features"][attacked].astype(np.float32).reshape(-1, len(FEATURES))
            yield recorded.cell, (features, arrays["corrupted"][attacked].reshape(-1))


def _thinned(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    return indices[:: -(-len(indices) // _SHOWN) or 1]
