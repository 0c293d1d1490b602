"""Rules that add updates of the server's own making to the clients' before they aggregate."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fl_core.aggregation.base import Aggregate, Rule, register_rule
from fl_core.aggregation.byzantine import assumed_byzantine
from fl_core.aggregation.sorting import trimmed_mean
from fl_core.aggregation.view import ServerView
from fl_core.registry import check_known

BASES = ("trimmed_mean", "median")


@register_rule("foundationfl")
@dataclass(frozen=True)
class FoundationFL(Rule):
    """Trimmed mean or median of the updates and of copies of the one that lies farthest from the extremes; n ≥ 2f + 1.

    Formula: ``sᵢ = min(‖Δᵢ − max‖, ‖Δᵢ − min‖)`` with the coordinate-wise largest and smallest values; m copies of
        the update with the largest s; trimmed mean (f of each side) or median of all n + m.
    Source: Fang et al. 2025, arXiv 2501.17381, algorithm 1.
    Checked against: the formula written out in numpy.

    No root data is used: the synthetic updates are copies. How many is a parameter of the paper; half as many as there
    are clients here. Of equal scores the update nearest to the mean is taken. The bound is the trimmed mean's and says
    nothing of the copies: attackers whose noise sets the extremes are themselves far from both, and may be copied.

    Attributes:
        base: ``trimmed_mean`` or ``median``.
        copies: m as a share of the clients, at least one copy.
        num_byzantine: f of the trimmed mean; ``None`` assumes 30 % of the clients.
    """

    base: str = "trimmed_mean"
    copies: float = 0.5
    num_byzantine: int | None = None

    def __post_init__(self) -> None:
        check_known("base of foundationfl", [self.base], BASES)
        if not 0 < self.copies < float("inf"):
            raise ValueError(f"foundationfl: copies must be a share greater than 0, got {self.copies}")

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        updates = view.accepted
        copies = max(int(self.copies * len(updates)), 1)
        together = torch.cat([updates, updates[_least_extreme(updates)].expand(copies, -1)])
        trim = (len(together) - 1) // 2
        if self.base == "trimmed_mean":
            trim = assumed_byzantine(self.num_byzantine, view, "foundationfl")
        return Aggregate(trimmed_mean(together, trim), None)


def _least_extreme(updates: Tensor) -> int:
    """Row of the update that is farthest from the nearer of the two extremes."""
    low, high, middle = updates.amin(dim=0), updates.amax(dim=0), updates.double().mean(dim=0)
    scores = [min(_distance(row, high), _distance(row, low)) for row in updates]
    nearness = [-_distance(row, middle) for row in updates]
    return max(range(len(updates)), key=lambda i: (scores[i], nearness[i]))


def _distance(one: Tensor, other: Tensor) -> float:
    return float(torch.linalg.vector_norm(one.double() - other))
