"""Rules that choose by distances between updates."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fl_core.aggregation.base import Aggregate, Rule, fall_back, register_rule, require_reference, weighted_mean
from fl_core.aggregation.byzantine import Bound, assumed_byzantine
from fl_core.aggregation.gram import distances_to, squared_distances
from fl_core.aggregation.sorting import mean_around_median
from fl_core.aggregation.view import ServerView

_KRUM = Bound("n >= 2f + 3", lambda n: (n - 3) // 2)
_BULYAN = Bound("n >= 4f + 3", lambda n: (n - 3) // 4)
_HALF = Bound("n >= 2f", lambda n: n // 2)


@register_rule("krum")
@dataclass(frozen=True)
class Krum(Rule):
    """The update with the smallest sum of squared distances to its n − f − 2 nearest others; n >= 2f + 3.

    Formula: ``argminᵢ Σ ‖Δᵢ − Δⱼ‖²`` over the n − f − 2 nearest j ≠ i.
    Source: Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", section 4.
    Checked against: Flower's aggregate_krum; byzfl.Krum and byzpy.Krum with f + 1 (they count n − f − 1 neighbours).

    Of equal scores the update nearer to *all* others wins, then the first. The paper takes the first at once; but with
    one neighbour two updates that are each other's nearest always tie, and the order of clients should not decide.

    Attributes:
        num_byzantine: f; ``None`` assumes 30 % of the clients.
    """

    num_byzantine: int | None = None

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``; raises ValueError for fewer than three clients."""
        if too_few := _too_few(view, "krum", _KRUM):
            return too_few
        f = assumed_byzantine(self.num_byzantine, view, "krum", _KRUM)
        best = krum_order(squared_distances(view.accepted), f)[:1]
        return Aggregate(view.accepted[best[0]].clone(), _equal_shares(best, len(view.accepted)))


@register_rule("multi_krum")
@dataclass(frozen=True)
class MultiKrum(Rule):
    """Mean of the m updates with the best Krum scores; n >= 2f + 3.

    Formula: mean over the m smallest ``Σ ‖Δᵢ − Δⱼ‖²`` (n − f − 2 nearest j ≠ i), scored once.
    Source: Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", section 4
        and its experiments (m = n − f).
    Checked against: Flower's aggregate_krum; byzfl.MultiKrum and byzpy.MultiKrum with their neighbour count.

    Attributes:
        num_byzantine: f; ``None`` assumes 30 % of the clients.
        selected: m, n − f at most; ``None`` is n − f.
    """

    num_byzantine: int | None = None
    selected: int | None = None

    def __post_init__(self) -> None:
        if self.selected is not None and self.selected < 1:
            raise ValueError(f"selected must be at least 1, or None for n - f; got {self.selected}")

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``; raises ValueError for fewer than three clients."""
        if too_few := _too_few(view, "multi_krum", _KRUM):
            return too_few
        f = assumed_byzantine(self.num_byzantine, view, "multi_krum", _KRUM)
        n = len(view.accepted)
        best = krum_order(squared_distances(view.accepted), f)[: min(self.selected or n, n - f)]
        weights = _equal_shares(best, n)
        return Aggregate(weighted_mean(view.accepted, weights), weights)


@register_rule("bulyan")
@dataclass(frozen=True)
class Bulyan(Rule):
    """Krum again and again until n − 2f updates are chosen, then their mean around the median; n >= 4f + 3.

    Formula: θ = n − 2f times Krum on what is left; per coordinate the mean of the θ − 2f chosen values nearest to
        their median.
    Source: El Mhamdi et al. 2018, arXiv 1802.07927, section 4.
    Checked against: Flower's aggregate_bulyan.

    Of r updates left Krum looks at the r − f − 2 nearest, at least one.

    Attributes:
        num_byzantine: f; ``None`` assumes 30 % of the clients, as far as n >= 4f + 3 lets it.
    """

    num_byzantine: int | None = None

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``; raises ValueError for fewer than three clients."""
        if too_few := _too_few(view, "bulyan", _BULYAN):
            return too_few
        f = assumed_byzantine(self.num_byzantine, view, "bulyan", _BULYAN)
        n = len(view.accepted)
        chosen = self._select(squared_distances(view.accepted), f, n - 2 * f)
        return Aggregate(mean_around_median(view.accepted[chosen], n - 4 * f), None)

    @staticmethod
    def _select(distances: Tensor, f: int, count: int) -> Tensor:
        left = torch.arange(len(distances))
        chosen = []
        for _ in range(count):
            best = krum_order(distances[left][:, left], f)[0]
            chosen.append(left[best])
            left = left[left != left[best]]
        return torch.stack(chosen).sort().values


@register_rule("monna")
@dataclass(frozen=True)
class MoNNA(Rule):
    """Mean of the n + 1 − f updates that are nearest to the server's own, its own included; n >= 2f.

    Formula: mean of the n + 1 − f of {reference, Δ₁ … Δₙ} that minimise ``‖Δ − reference‖``.
    Source: Farhadkhani et al. 2023, arXiv 2209.10931, "Robust Collaborative Learning with Linear Gradient Overhead".
    Checked against: byzfl.MoNNA and byzpy.MoNNA with the reference as one more vector and the pivot.

    In the paper every node is its own pivot; a server with root data is a node like the others, with its reference
    update as the pivot, so that nobody else's is trusted. The n of the bound counts the clients.

    Attributes:
        num_byzantine: f; ``None`` assumes 30 % of the clients.
    """

    needs_root: ClassVar[bool] = True
    num_byzantine: int | None = None

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        reference = require_reference(view, "monna")
        f = assumed_byzantine(self.num_byzantine, view, "monna", _HALF)
        n = len(view.accepted)
        nearest = distances_to(view.accepted, reference).sort(stable=True).indices[: n - f]
        share = 1 / (n + 1 - f)
        weights = torch.zeros(n).index_fill_(0, nearest, share)
        return Aggregate(weighted_mean(view.accepted, weights) + share * reference, weights, root_weight=share)


def krum_order(distances: Tensor, f: int) -> Tensor:
    """Rows of (n, n) squared distances by their Krum score, best first; of equal scores the one nearer to all."""
    n = len(distances)
    to_others = distances.sort(dim=1).values[:, 1:]  # the first is the 0 to itself
    by_all = to_others.sum(dim=1).sort(stable=True).indices
    scores = to_others[:, : max(n - f - 2, 1)].sum(dim=1)
    return by_all[scores[by_all].sort(stable=True).indices]


def _too_few(view: ServerView, rule: str, bound: Bound) -> Aggregate | None:
    """What to do where fewer than three updates are left to compare.

    Returns:
        The fallback where the others have sent nonsense, ``None`` where there are enough.

    Raises:
        ValueError: There have never been three clients.
    """
    n = len(view.accepted)
    if n >= 3:
        return None
    if len(view.updates) < 3:
        raise ValueError(f"{rule} needs {bound.text}, so at least 3 finite updates; got n={n}")
    return fall_back(view)


def _equal_shares(chosen: Tensor, n: int) -> Tensor:
    return torch.zeros(n).index_fill_(0, chosen, 1 / len(chosen))
