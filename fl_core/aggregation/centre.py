"""Rules that look for a centre of the updates, or keep each of them near one."""

from dataclasses import dataclass, field
from math import inf

import torch
from torch import Tensor

from fl_core.aggregation.base import Aggregate, Rule, check_remembered, register_rule, weighted_mean
from fl_core.aggregation.gram import distances_to, relative_gram
from fl_core.aggregation.view import ServerView
from fl_core.fingerprint.geometry import clip_factors, median, norm_factors


@register_rule("geometric_median")
@dataclass(frozen=True)
class GeometricMedian(Rule):
    """The point with the smallest sum of distances to the updates, by Weiszfeld's iteration until it stands still.

    Formula: ``argmin_z Σ ‖z − Δᵢ‖``, distances below the smoothing counted as the smoothing.
    Source: Pillutla et al. 2022, arXiv 1912.13445, equation 4 and algorithm 2; Weiszfeld 1937.
    Checked against: byzpy.GeometricMedian; the optimality condition, that unit vectors to the updates cancel out.

    The iteration runs on the (n, n) inner products: a step costs n² numbers, not n·P, and the result is one weighted
    mean. It ends when the mean of the unit vectors from the updates to z is shorter than ``tolerance``.

    Attributes:
        smoothing: Least distance that is divided by, in units of the updates.
        tolerance: Length of the mean unit vector at which the iteration ends.
        iterations: Most steps; reached where the median lies very close to an update.
    """

    smoothing: float = 1e-6
    tolerance: float = 1e-6
    iterations: int = 1000

    def __post_init__(self) -> None:
        _check_positive(self, "smoothing", "tolerance", "iterations")

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        weights = weiszfeld(relative_gram(view.accepted), self.smoothing, self.iterations, self.tolerance)
        return Aggregate(weighted_mean(view.accepted, weights), weights.float())


@register_rule("rfa")
@dataclass(frozen=True)
class RFA(Rule):
    """The geometric median after T = 3 steps of Weiszfeld's iteration from the mean.

    Formula: ``wᵢ ∝ 1 / max(ν, ‖z − Δᵢ‖), z ← Σ wᵢ Δᵢ``, T times.
    Source: Pillutla et al. 2022, arXiv 1912.13445, algorithm 2 (T = 3 in its experiments).
    Checked against: byzfl.GeometricMedian of updates whose mean is 0, which is where it starts; byzpy.GeometricMedian.

    Attributes:
        smoothing: ν, least distance that is divided by, in units of the updates.
        iterations: T.
    """

    smoothing: float = 1e-6
    iterations: int = 3

    def __post_init__(self) -> None:
        _check_positive(self, "smoothing", "iterations")

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        weights = weiszfeld(relative_gram(view.accepted), self.smoothing, self.iterations, tolerance=0.0)
        return Aggregate(weighted_mean(view.accepted, weights), weights.float())


@dataclass
class _Memory:
    """The last aggregate (P,), the centre of the next round."""

    centre: Tensor | None = None


@register_rule("centered_clipping")
@dataclass(frozen=True)
class CenteredClipping(Rule):
    """The last aggregate, moved by the mean of the clients' differences from it, each cut to a radius.

    Formula: ``v ← v + mean (Δᵢ − v)·min(1, τ / ‖Δᵢ − v‖)``, L times, from the last round's v (at first 0).
    Source: Karimireddy et al. 2021, arXiv 2012.10333, algorithm 2.
    Checked against: byzfl.CenteredClipping and byzpy.CenteredClipping, over several rounds.

    The aggregate leans on earlier rounds, so there are no weights. In the paper clients send momenta; here updates.

    Attributes:
        radius: τ. ``None`` takes the median distance of the updates to v, which is ours: the paper tunes τ.
        iterations: L.
    """

    radius: float | None = None
    iterations: int = 1
    _memory: _Memory = field(default_factory=_Memory, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_positive(self, "iterations", *(["radius"] if self.radius is not None else []))

    def reset(self) -> None:
        """See ``Rule.reset``."""
        self._memory.centre = None

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``; raises ValueError if the last round's updates had another length."""
        updates = view.accepted
        centre = torch.zeros_like(updates[0]) if self._memory.centre is None else self._memory.centre
        check_remembered("centered_clipping", len(centre), updates)
        for _ in range(self.iterations):
            distances = distances_to(updates, centre)
            radius = median(distances) if self.radius is None else torch.tensor(self.radius, dtype=torch.float64)
            shares = clip_factors(distances, radius) / len(updates)
            centre = weighted_mean(updates, shares) + (1 - float(shares.sum())) * centre
        self._memory.centre = centre
        return Aggregate(centre.clone(), None)


@register_rule("norm_bounding")
@dataclass(frozen=True)
class NormBounding(Rule):
    """Mean of the updates, each cut to a largest norm.

    Formula: ``mean Δᵢ·min(1, M / ‖Δᵢ‖)``.
    Source: Sun et al. 2019, arXiv 1911.07963, section 4.
    Checked against: byzfl.Clipping and byzpy.Clipping, then the mean.

    Attributes:
        bound: M. ``None`` takes the median norm of the round, which is ours: the paper tunes M.
    """

    bound: float | None = None

    def __post_init__(self) -> None:
        if self.bound is not None:
            _check_positive(self, "bound")

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        n = len(view.accepted)
        update = weighted_mean(view.accepted, norm_factors(view.accepted, self.bound) / n)
        return Aggregate(update, torch.full((n,), 1 / n))


def weiszfeld(gram: Tensor, smoothing: float, iterations: int, tolerance: float) -> Tensor:
    """Weights (n,) float64, of sum 1, of the updates in their smoothed geometric median.

    Args:
        gram: (n, n) inner products relative to any one point.
        smoothing: Least distance that is divided by.
        iterations: Most steps, from equal weights.
        tolerance: Length of the mean unit vector from the updates to the point at which to end.
    """
    n = len(gram)
    weights = torch.full((n,), 1 / n, dtype=torch.float64)
    for _ in range(iterations):
        products = gram @ weights
        squared = gram.diagonal() - 2 * products + weights @ products
        inverse = 1 / squared.clamp_min(0).sqrt().clamp_min(smoothing)
        slope = inverse.sum() * weights - inverse
        if float((slope @ gram @ slope).clamp_min(0).sqrt()) < tolerance * n:
            break
        weights = inverse / inverse.sum()
    return weights


def _check_positive(rule: object, *names: str) -> None:
    for name in names:
        value = getattr(rule, name)
        if not 0 < value < inf:
            raise ValueError(f"{name} must be above 0 and finite, got {value}")
