"""Rules that look for the direction in which the updates vary most."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fl_core.aggregation.base import Aggregate, Rule, register_rule, round_generator, weighted_mean
from fl_core.aggregation.byzantine import Bound, assumed_byzantine
from fl_core.aggregation.gram import relative_gram
from fl_core.aggregation.view import ServerView


@register_rule("dnc")
@dataclass(frozen=True)
class DnC(Rule):
    """Drops the updates that lie farthest along the principal direction of random coordinates; n > c·f.

    Formula: per iteration, on b random coordinates, drop the c·f largest ``⟨Δᵢ − μ, v⟩²`` for the top right singular
        vector v; the mean of those that no iteration has dropped.
    Source: Shejwalkar and Houmansadr 2021, "Manipulating the Byzantine", NDSS, algorithm 2 (DnC).
    Checked against: a singular value decomposition of the chosen coordinates.

    Where no update survives all iterations, those that survived the most are taken; the paper leaves it open.

    Attributes:
        num_byzantine: f; ``None`` assumes 30 % of the clients.
        iterations: Random subsets of coordinates.
        coordinates: b; with fewer parameters all are used.
        filter_share: c, updates dropped for each expected attacker.
        seed: Of the random coordinates; they differ from round to round.
    """

    num_byzantine: int | None = None
    iterations: int = 1
    coordinates: int = 10_000
    filter_share: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("iterations", "coordinates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.filter_share < float("inf"):
            raise ValueError(f"filter_share must be above 0 and finite, got {self.filter_share}")

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        n = len(view.accepted)
        f = assumed_byzantine(self.num_byzantine, view, "dnc", Bound(f"n > {self.filter_share:g}f", self._most))
        kept = n - int(self.filter_share * f)
        generator = round_generator(self.seed, view)
        survived = torch.zeros(n)
        for _ in range(self.iterations):
            survived[_central(self._sample(view.accepted, generator), kept).cpu()] += 1
        weights = (survived == survived.max()).float()
        weights /= weights.sum()
        return Aggregate(weighted_mean(view.accepted, weights), weights)

    def _most(self, n: int) -> int:
        """Largest f that leaves somebody."""
        return max(f for f in range(n) if int(self.filter_share * f) < n)

    def _sample(self, updates: Tensor, generator: torch.Generator) -> Tensor:
        size = updates.shape[1]
        if size <= self.coordinates:
            return updates
        return updates[:, torch.randperm(size, generator=generator)[: self.coordinates].to(updates.device)]


@register_rule("caf")
@dataclass(frozen=True)
class CAF(Rule):
    """Lowers the weight of updates along the principal direction until the weighted covariance is small; n >= 2f + 1.

    Formula: while ``Σ cᵢ > n − 2f``: μ, λ, v of the c-weighted mean and covariance, ``cᵢ ← cᵢ·(1 − τᵢ / max τ)`` with
        ``τᵢ = ⟨v, Δᵢ − μ⟩²``; the μ with the smallest λ.
    Source: Allouah et al. 2025, arXiv 2505.01874, "Towards Trustworthy Federated Learning with Untrusted
        Participants", algorithm 2 (covariance-bound agnostic filter).
    Checked against: the same loop on a singular value decomposition of the updates.

    The principal direction is exact, from the (n, n) inner products: nothing is drawn at random. The maximum of τ is
    taken over updates that still count, so that every step takes the weight of one more: ByzFL and byzpy take it over
    all, and an attacker who is out already but far away then keeps the loop from ever ending.

    Attributes:
        num_byzantine: f; ``None`` assumes 30 % of the clients.
    """

    num_byzantine: int | None = None

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        f = assumed_byzantine(self.num_byzantine, view, "caf")
        weights = covariance_filter(relative_gram(view.accepted), f).float()
        return Aggregate(weighted_mean(view.accepted, weights), weights)


def covariance_filter(gram: Tensor, f: int) -> Tensor:
    """The weights (n,), of sum 1, under which the largest variance is smallest, as CAF finds them.

    Args:
        gram: (n, n) float64 inner products relative to any one point.
        f: Expected number of attackers.
    """
    n = len(gram)
    counts = torch.ones(n, dtype=torch.float64)
    best, smallest = counts / n, float("inf")
    while float(counts.sum()) > n - 2 * f:
        weights = counts / counts.sum()
        products = gram @ weights
        centred = gram - products[:, None] - products[None, :] + weights @ products
        root = weights.sqrt()
        # The weighted covariance Σ wᵢ (Δᵢ − μ)(Δᵢ − μ)ᵀ and this (n, n) matrix have the same eigenvalues.
        values, vectors = torch.linalg.eigh(root[:, None] * centred * root[None, :])
        if float(values[-1]) < smallest:
            best, smallest = weights, float(values[-1])
        along = (centred @ (root * vectors[:, -1])).square()
        along[counts == 0] = 0
        if float(along.max()) <= 0:
            break
        counts = counts * (1 - along / along.max())
    return best


def _central(sample: Tensor, kept: int) -> Tensor:
    """Indices of the rows (n, b) that lie least far from the mean along the principal direction."""
    exact = sample.double()
    centred = exact - exact.mean(dim=0)
    # The left singular vector: the projections on the right one, up to a common factor.
    direction = torch.linalg.eigh(centred @ centred.T).eigenvectors[:, -1]
    central: Tensor = direction.square().sort(stable=True).indices[:kept]
    return central.cpu()
