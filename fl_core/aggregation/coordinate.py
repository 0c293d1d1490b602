"""Rules that work on each coordinate by itself (Yin et al. 2018, arXiv 1803.01498)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fl_core.aggregation.base import Aggregate, Rule, register_rule
from fl_core.aggregation.byzantine import assumed_byzantine
from fl_core.aggregation.view import ServerView


@register_rule("median")
class Median(Rule):
    """Coordinate-wise median; for an even number of clients the mean of the two middle values."""

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        trim = (len(view.accepted) - 1) // 2
        return Aggregate(trimmed_mean(view.accepted, trim), None)


@register_rule("trimmed_mean")
@dataclass(frozen=True)
class TrimmedMean(Rule):
    """Coordinate-wise mean without the f largest and the f smallest values; n ≥ 2f + 1.

    Attributes:
        num_byzantine: f; ``None`` assumes 30 % of the clients.
    """

    num_byzantine: int | None = None

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        n, rejected = len(view.updates), len(view.updates) - len(view.accepted)
        trim = assumed_byzantine(self.num_byzantine, n, rejected, lambda n: (n - 1) // 2, "trimmed_mean", "n >= 2f + 1")
        return Aggregate(trimmed_mean(view.accepted, trim), None)


def trimmed_mean(updates: Tensor, trim: int) -> Tensor:
    """Mean over clients of each coordinate, without the ``trim`` largest and smallest: (n, P) to (P,)."""
    return torch.sort(updates, dim=0).values[trim : len(updates) - trim].mean(dim=0)
