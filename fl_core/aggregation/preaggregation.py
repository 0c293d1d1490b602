"""Steps before a rule: they mix or shorten the updates, and any rule follows (``make_rule("nnm+trimmed_mean")``)."""

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from fl_core.aggregation.base import Mixed, PreAggregation, register_preaggregation, round_generator
from fl_core.aggregation.byzantine import assumed_byzantine
from fl_core.aggregation.gram import squared_distances
from fl_core.aggregation.view import ServerView
from fl_core.fingerprint.geometry import norm_factors, norms


@register_preaggregation("nnm")
@dataclass(frozen=True)
class NearestNeighbourMixing(PreAggregation):
    """Replaces every update by the mean of the n − f updates nearest to it, itself included; n >= 2f + 1.

    Formula: ``Δᵢ ← mean of the n − f nearest Δⱼ``.
    Source: Allouah et al. 2023, arXiv 2302.01772, algorithm 2.
    Checked against: byzfl.NNM, byzpy.NearestNeighborMixing.

    Attributes:
        num_byzantine: f; ``None`` assumes 30 % of the clients.
    """

    num_byzantine: int | None = None

    def mix(self, view: ServerView) -> Mixed:
        """See ``PreAggregation.mix``."""
        n = len(view.accepted)
        kept = n - assumed_byzantine(self.num_byzantine, view, "nnm")
        distances = squared_distances(view.accepted).fill_diagonal_(-1)  # itself before its twins
        nearest = distances.sort(dim=1, stable=True).indices[:, :kept]
        mixing = torch.zeros(n, n).scatter_(1, nearest, 1 / kept)
        return Mixed(mixing.to(view.accepted) @ view.accepted, mixing)


@register_preaggregation("bucketing")
@dataclass(frozen=True)
class Bucketing(PreAggregation):
    """Puts the updates into random buckets of s and replaces each bucket by its mean.

    Formula: a random order of the clients, then means of s in a row; the last bucket may hold fewer.
    Source: Karimireddy et al. 2022, arXiv 2006.09365, algorithm 1.
    Checked against: byzpy.Bucketing with the same order.

    The rule behind it sees the buckets as its clients: f is still the number of bad ones (at worst each spoils another
    bucket), but without ``num_byzantine`` 30 % of the *buckets* are assumed, and bounds such as n >= 2f + 3 are theirs.

    Attributes:
        bucket: s.
        seed: Of the order, which differs from round to round.
    """

    keeps_clients: ClassVar[bool] = False
    bucket: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.bucket < 1:
            raise ValueError(f"bucket must be at least 1, got {self.bucket}")

    def mix(self, view: ServerView) -> Mixed:
        """See ``PreAggregation.mix``."""
        n = len(view.accepted)
        buckets = torch.randperm(n, generator=round_generator(self.seed, view)).split(self.bucket)
        mixing = torch.zeros(len(buckets), n)
        for row, members in zip(mixing, buckets, strict=True):
            row[members] = 1 / len(members)
        return Mixed(mixing.to(view.accepted) @ view.accepted, mixing)


@register_preaggregation("clipping")
@dataclass(frozen=True)
class Clipping(PreAggregation):
    """Cuts every update to a largest norm.

    Formula: ``Δᵢ ← Δᵢ·min(1, C / ‖Δᵢ‖)``.
    Source: static: Sun et al. 2019, arXiv 1911.07963; the median norm of the round is ours.
    Checked against: byzfl.Clipping, byzpy.Clipping.

    Attributes:
        norm: C; ``None`` takes the median norm of the round.
    """

    norm: float | None = None

    def __post_init__(self) -> None:
        if self.norm is not None and not 0 < self.norm < inf:
            raise ValueError(f"norm must be above 0 and finite, or None for the round's median; got {self.norm}")

    def mix(self, view: ServerView) -> Mixed:
        """See ``PreAggregation.mix``."""
        return Mixed(_scaled(view.accepted, norm_factors(view.accepted, self.norm)), None)


@register_preaggregation("arc")
@dataclass(frozen=True)
class AdaptiveRobustClipping(PreAggregation):
    """Cuts the k longest updates to the norm of the longest of the others; n >= 2f + 1.

    Formula: ``k = ⌊2 (f / n) (n − f)⌋``, C = the norm at place k + 1 from the top, ``Δᵢ ← Δᵢ·min(1, C / ‖Δᵢ‖)``.
    Source: Allouah et al. 2025, arXiv 2405.14432, algorithm 2.
    Checked against: byzfl.ARC, byzpy.ARC.

    Attributes:
        num_byzantine: f; ``None`` assumes 30 % of the clients.
    """

    num_byzantine: int | None = None

    def mix(self, view: ServerView) -> Mixed:
        """See ``PreAggregation.mix``."""
        n = len(view.accepted)
        f = assumed_byzantine(self.num_byzantine, view, "arc")
        clipped = 2 * f * (n - f) // n
        bound = float(norms(view.accepted).sort().values[n - clipped - 1])
        return Mixed(_scaled(view.accepted, norm_factors(view.accepted, bound)), None)


def _scaled(updates: Tensor, factors: Tensor) -> Tensor:
    return updates * factors.to(updates)[:, None]
