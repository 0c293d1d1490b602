"""How well a rule's weights tell the malicious clients from the honest ones.

A client is *flagged* when its weight is below a threshold times the mean weight of the round's clients. The threshold
is one number for all rules, fixed on the train attacks and federations of training, never on held-out attacks:
``benchmarks/detection_threshold.py`` measures how well each value would do.
"""

from math import isnan

import numpy as np
import torch
from torch import Tensor

# Best balanced accuracy of python benchmarks/detection_threshold.py (results/detection_threshold.csv), which is flat
# around it. A policy's card may hold its own, under "detection_threshold".
THRESHOLD = 0.4


class Detection:
    """Figures of detection over the rounds of a run.

    Args:
        threshold: Share of the mean weight below which a client is flagged.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._aurocs: list[float] = []
        self._shares: list[float] = []
        self._flagged_malicious = self._flagged_honest = self._malicious = self._honest = 0

    def add(self, weights: Tensor | None, corrupted: Tensor) -> None:
        """One round; a rule without weights judges nobody.

        Args:
            weights: (N,), on any device.
            corrupted: (N,) bool, whose update was an attack in this round.
        """
        if weights is None:
            return
        weights = weights.cpu()
        flagged = flag(weights, self._threshold)
        self._flagged_malicious += int((flagged & corrupted).sum())
        self._flagged_honest += int((flagged & ~corrupted).sum())
        self._malicious += int(corrupted.sum())
        self._honest += int((~corrupted).sum())
        if bool(corrupted.any()) and not bool(corrupted.all()):
            self._aurocs.append(auroc(weights[~corrupted], weights[corrupted]))
            total = float(weights.sum())
            self._shares.append(float(weights[~corrupted].sum()) / total if total > 0 else float("nan"))

    def figures(self) -> dict[str, float | None]:
        """Columns of results.csv; ``None`` where there was nothing to detect, or no judgement."""
        flagged = self._flagged_malicious + self._flagged_honest
        return {
            "detection_auroc": _mean(self._aurocs),
            "detection_precision": _share(self._flagged_malicious, flagged) if self._malicious else None,
            "detection_recall": _share(self._flagged_malicious, self._malicious),
            "false_positive_rate": _share(self._flagged_honest, self._honest),
            "honest_weight_share": _mean(self._shares),
        }


def auroc(positive: Tensor, negative: Tensor) -> float:
    """Share of pairs of one of ``positive`` (A,) and one of ``negative`` (B,) in which the former is greater.

    Ties count half: the Mann-Whitney statistic, which is the area under the ROC curve. Both must hold a value. Every
    round of every run needs one: scikit-learn's takes 4 ms, as long as all else that is scored in a round of digits.
    """
    difference = positive[:, None] - negative
    return float((difference > 0).double().mean() + (difference == 0).double().mean() / 2)


def flag(weights: Tensor, threshold: float) -> Tensor:
    """Who is flagged, (N,) bool: weight below ``threshold`` times the mean weight; everybody if there is no weight."""
    if float(weights.sum()) <= 0:
        return torch.ones(len(weights), dtype=torch.bool)
    return weights < threshold * weights.mean()


def _share(count: int, of: int) -> float | None:
    return count / of if of else None


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if not isnan(value)]
    return float(np.mean(known)) if known else None
