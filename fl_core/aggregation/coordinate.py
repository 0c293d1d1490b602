"""Rules that work on each coordinate by itself."""

from dataclasses import dataclass
from math import inf

import torch

from fl_core.aggregation.base import Aggregate, Rule, register_rule
from fl_core.aggregation.byzantine import assumed_byzantine
from fl_core.aggregation.sorting import mean_around_median, trimmed_mean
from fl_core.aggregation.view import ServerView
from fl_core.fingerprint.geometry import median


@register_rule("median")
@dataclass(frozen=True)
class Median(Rule):
    """Coordinate-wise median.

    Formula: the middle value of each coordinate; for an even number of clients the mean of the two middle ones.
    Source: Yin et al. 2018, arXiv 1803.01498, definition 1.
    Checked against: byzfl.Median, byzpy.CoordinateWiseMedian, Flower's aggregate_median.
    """

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        trim = (len(view.accepted) - 1) // 2
        return Aggregate(trimmed_mean(view.accepted, trim), None)


@register_rule("trimmed_mean")
@dataclass(frozen=True)
class TrimmedMean(Rule):
    """Coordinate-wise mean without the f largest and the f smallest values; n >= 2f + 1.

    Formula: mean of the sorted values f + 1 to n − f of each coordinate.
    Source: Yin et al. 2018, arXiv 1803.01498, definition 2.
    Checked against: byzfl.TrMean, byzpy.CoordinateWiseTrimmedMean, Flower's aggregate_trimmed_avg.

    Attributes:
        num_byzantine: f; ``None`` assumes 30 % of the clients.
    """

    num_byzantine: int | None = None

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        trim = assumed_byzantine(self.num_byzantine, view, "trimmed_mean")
        return Aggregate(trimmed_mean(view.accepted, trim), None)


@register_rule("mean_around_median")
@dataclass(frozen=True)
class MeanAroundMedian(Rule):
    """Mean of the n − f values of each coordinate that are nearest to its median (MeaMed); n >= 2f + 1.

    Formula: mean of the n − f values x that minimise ``|x − median|``, coordinate by coordinate.
    Source: Xie et al. 2018, arXiv 1802.10116, definition 5.
    Checked against: byzfl.Meamed, byzpy.MeanOfMedians.

    Of two values equally far on either side the smaller one counts; the paper leaves it open.

    Attributes:
        num_byzantine: f; ``None`` assumes 30 % of the clients.
    """

    num_byzantine: int | None = None

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        f = assumed_byzantine(self.num_byzantine, view, "mean_around_median")
        return Aggregate(mean_around_median(view.accepted, len(view.accepted) - f), None)


@register_rule("sign_majority")
@dataclass(frozen=True)
class SignMajority(Rule):
    """Every client votes with the sign of each coordinate, and the model moves by a common step (signSGD).

    Formula: ``step · sign(Σᵢ sign(Δᵢ))``.
    Source: Bernstein et al. 2019, arXiv 1810.05291, algorithm 1.
    Checked against: its formula, and that fewer than half of the clients cannot turn a coordinate that all others
        agree on.

    Attributes:
        step: Length of the step in each coordinate. ``None`` takes the median over clients of the mean ``|Δᵢ|``, which
            is ours: the paper has a learning rate there, and updates carry theirs.
    """

    step: float | None = None

    def __post_init__(self) -> None:
        if self.step is not None and not 0 < self.step < inf:
            raise ValueError(f"step must be above 0 and finite, or None; got {self.step}")

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        updates = view.accepted
        votes = torch.zeros_like(updates[0])
        lengths = []
        for update in updates:
            votes += update.sign()
            lengths.append(update.abs().double().mean())
        step = float(median(torch.stack(lengths))) if self.step is None else self.step
        return Aggregate(votes.sign_() * step, None)
