"""Feature 5: the Shapley value of each client, by one of three estimators behind one interface.

The game: the value of a coalition S is the utility of ``w + mean of clip(Δᵢ), i in S``; of the empty one, that of w.
Utility is minus the capped cross-entropy on the utility half.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import factorial, log
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_core.registry import check_known
from fl_core.training import Engine

MAX_EXACT_CLIENTS = 12
_MODELS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class CoalitionGame:
    """One round's game.

    Attributes:
        engine: Runs models.
        shared: (P,) global model w.
        local: (L,) the server's BatchNorm: one set of statistics for all coalitions.
        updates: (N, P), clipped to the median norm.
        images: (V, C, H, W), the utility half.
        labels: (V,) int64.
        num_classes: C.
    """

    engine: Engine
    shared: Tensor
    local: Tensor
    updates: Tensor
    images: Tensor
    labels: Tensor
    num_classes: int

    @property
    def cap(self) -> float:
        """Largest loss that one sample may count: twice that of a uniform guess."""
        return 2 * log(self.num_classes)

    @cached_property
    def mean_update(self) -> Tensor:
        """(P,), the grand coalition's."""
        return self.updates.mean(dim=0)

    def logits(self, offsets: Tensor) -> Tensor:
        """Outputs of ``w + offset``: (M, P) to (M, V, C)."""
        pieces = offsets.split(_MODELS_AT_ONCE)
        return torch.cat(
            [
                self.engine.logits(self.shared + piece, self.local.expand(len(piece), -1), self.images)
                for piece in pieces
            ]
        )

    def losses(self, logits: Tensor) -> Tensor:
        """Uncapped cross-entropy of every sample: (M, V, C) to (M, V) float64."""
        flat = F.cross_entropy(logits.flatten(0, 1).double(), self.labels.repeat(len(logits)), reduction="none")
        return flat.view(len(logits), -1).nan_to_num(nan=float("inf"))

    def values(self, members: Tensor) -> Tensor:
        """Utility of coalitions: (M, N) bool to (M,) float64."""
        weights = members.to(self.updates.dtype)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(1)
        return -self.losses(self.logits(weights @ self.updates)).clamp_max(self.cap).mean(dim=1)


class ShapleyEstimator(Protocol):
    """Shapley values (N,) float64 of a game."""

    def __call__(self, game: CoalitionGame, generator: torch.Generator) -> Tensor:
        """Estimates; ``generator`` is for estimators that sample."""
        ...


@dataclass(frozen=True)
class ExactShapley:
    """All 2ᴺ coalitions (Shapley 1953). For N up to 12."""

    def __call__(self, game: CoalitionGame, generator: torch.Generator) -> Tensor:
        """See ``ShapleyEstimator``; raises ValueError for more than 12 clients."""
        n = len(game.updates)
        if n > MAX_EXACT_CLIENTS:
            raise ValueError(
                f"exact Shapley values take 2^N models: N={n} is more than {MAX_EXACT_CLIENTS}; "
                "use 'surrogate' or 'permutation'"
            )
        codes = torch.arange(2**n)
        members = (codes[:, None] >> torch.arange(n)) % 2 == 1
        values = game.values(members)
        size = members.sum(dim=1)
        weight = torch.tensor(
            [factorial(s) * factorial(n - s - 1) / factorial(n) for s in range(n)] + [0.0], dtype=torch.float64
        )
        shapley = []
        for i in range(n):
            without = codes[~members[:, i]]
            shapley.append((weight[size[without]] * (values[without + 2**i] - values[without])).sum())
        return torch.stack(shapley)


@dataclass(frozen=True)
class PermutationShapley:
    """Monte Carlo over orders in which clients join (Castro et al. 2009), in antithetic pairs.

    Each order is used forwards and backwards, and each coalition is evaluated once.

    Attributes:
        num_permutations: Orders, an even number; arXiv 2507.23638 uses 100.
    """

    num_permutations: int = 100

    def __post_init__(self) -> None:
        if self.num_permutations < 2 or self.num_permutations % 2:
            raise ValueError(f"num_permutations must be even and at least 2, got {self.num_permutations}")

    def __call__(self, game: CoalitionGame, generator: torch.Generator) -> Tensor:
        """See ``ShapleyEstimator``."""
        n = len(game.updates)
        half = [torch.randperm(n, generator=generator) for _ in range(self.num_permutations // 2)]
        orders = torch.stack([order for forward in half for order in (forward, forward.flip(0))])
        position = orders.argsort(dim=1)
        # prefixes[r, k]: the members after k clients have joined in order r.
        prefixes = position[:, None, :] < torch.arange(n + 1)[None, :, None]
        coalitions, which = prefixes.flatten(0, 1).unique(dim=0, return_inverse=True)
        values = game.values(coalitions)[which].view(len(orders), n + 1)
        return values.diff(dim=1).gather(1, position).mean(dim=0)


@dataclass(frozen=True)
class SurrogateShapley:
    """Closed-form Shapley values of a quadratic surrogate of the game: N + 2 forward passes, no sampling.

    A coalition's logits are taken as the mean of its members' logit changes around the grand coalition; then the
    cross-entropy to second order is a quadratic function of that mean, and the expected marginals have a closed form
    in O(N²).

    Attributes:
        step: Share of the way from the mean update to a client's own at which its logit change is measured.
    """

    step: float = 0.25

    def __call__(self, game: CoalitionGame, generator: torch.Generator) -> Tensor:
        """See ``ShapleyEstimator``."""
        mean = game.mean_update
        offsets = torch.cat([torch.zeros_like(mean)[None], mean[None], mean + self.step * (game.updates - mean)])
        logits = game.logits(offsets).double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        base, change = logits[1], (logits[2:] - logits[1]) / self.step
        # The changes of all members add up to none, as their offsets do: so the values share out the whole gain.
        change = change - change.mean(dim=0)
        losses = game.losses(logits[:2])
        # A sample at its cap contributes a constant.
        counted = (losses[1] < game.cap).double()[:, None] / len(game.labels)
        probability = base.softmax(dim=-1)
        residual = counted * (probability - F.one_hot(game.labels, base.shape[1]))
        slope = change.flatten(1) @ residual.flatten()
        # Q = mean over samples of dzᵀ(diag p − p pᵀ)dz.
        weighted = probability * change
        expected = weighted.sum(dim=-1)
        curvature = (counted * weighted).flatten(1) @ change.flatten(1).T - (counted[:, 0] * expected) @ expected.T
        empty, grand = -losses.clamp_max(game.cap).mean(dim=1)
        return quadratic_shapley(slope, curvature, grand, empty)


def quadratic_shapley(slope: Tensor, curvature: Tensor, constant: Tensor, empty: Tensor) -> Tensor:
    """Shapley values of ``v(S) = constant − b·m − ½ mᵀQm``, m the mean of the members' unit vectors; v(∅) = empty.

    For a client i and a uniformly drawn coalition of t others, the expected marginal needs only four averages: of b,
    of Q's diagonal and of Q's off-diagonal over the others, and of row i of Q over the others.

    Args:
        slope: (N,) float64, b.
        curvature: (N, N) float64 symmetric, Q.
        constant: Scalar.
        empty: Scalar, value of the empty coalition.

    Returns:
        (N,) float64.
    """
    n = len(slope)
    own = curvature.diagonal()
    alone = constant - slope - own / 2 - empty
    if n == 1:
        return alone
    total, row = curvature.sum(), curvature.sum(dim=1)
    others_slope = (slope.sum() - slope) / (n - 1)
    with_others = (row - own) / (n - 1)
    others_own = (own.sum() - own) / (n - 1)
    pairs = (n - 1) * (n - 2)
    others_pairs = (total - 2 * row + own - (own.sum() - own)) / pairs if pairs else torch.zeros_like(own)
    t = torch.arange(1, n, dtype=slope.dtype)[:, None]
    inside = t * others_own + t * (t - 1) * others_pairs
    after = (own + 2 * t * with_others + inside) / (t + 1) ** 2
    marginals = -(slope - others_slope) / (t + 1) - (after - inside / t**2) / 2
    return (alone + marginals.sum(dim=0)) / n


_ESTIMATORS: dict[str, Callable[[], ShapleyEstimator]] = {
    "surrogate": SurrogateShapley,
    "permutation": PermutationShapley,
    "exact": ExactShapley,
}


def shapley_names() -> list[str]:
    """Names that ``make_shapley`` accepts."""
    return list(_ESTIMATORS)


def make_shapley(name: str) -> ShapleyEstimator:
    """Builds an estimator with its defaults.

    Raises:
        ValueError: Unknown name.
    """
    check_known("Shapley estimator", [name], _ESTIMATORS)
    return _ESTIMATORS[name]()
