"""Feature 5: the Shapley value of each client, by one of three estimators behind one interface.

The game: the value of a coalition S is the utility of ``w + mean of clip(Δᵢ), i in S``; of the empty one, that of w.
Utility is minus the capped cross-entropy on the utility half.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import factorial, log
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_core.fingerprint import native
from fl_core.registry import check_known
from fl_core.training import Engine

MAX_EXACT_CLIENTS = 12
# Models that are made and run in one go: so many, or as many as have so many parameters together.
_MODELS_AT_ONCE = 256
_PARAMETERS_AT_ONCE = 2**27


@dataclass(frozen=True, eq=False)
class CoalitionGame:
    """One round's game.

    Attributes:
        engine: Runs models.
        shared: (P,) global model w.
        local: (L,) the server's BatchNorm after its reference training.
        updates: (N, P) as received. No clipped copy of them is ever made.
        clip: (N,) float64, what to multiply each update by: ``geometry.clip_factors`` to the median norm.
        reference_images: (R, C, H, W), the reference half, for BatchNorm's statistics.
        images: (V, C, H, W), the utility half.
        labels: (V,) int64.
        num_classes: C.
    """

    engine: Engine
    shared: Tensor
    local: Tensor
    updates: Tensor
    clip: Tensor
    reference_images: Tensor
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
        return (self.clip / len(self.clip)).to(self.updates.dtype) @ self.updates

    @cached_property
    def statistics(self) -> Tensor:
        """(L,), BatchNorm with the statistics of the grand coalition's model: one set for all coalitions."""
        model = self.shared + self.mean_update
        return self.engine.reestimate(model[None], self.local[None], self.reference_images)[0]

    def logits(self, models: Iterable[Tensor]) -> Tensor:
        """Outputs of models that come in pieces, each (m, P), to (M, V, C)."""
        outputs = [self.engine.logits(piece, self.statistics.expand(len(piece), -1), self.images) for piece in models]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def pieces(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Splits rows that stand for models into pieces of as many as are run in one go."""
        pieces: tuple[Tensor, ...] = rows.split(self.models_at_once)
        return pieces

    @property
    def models_at_once(self) -> int:
        """How many models are run in one go."""
        return min(_MODELS_AT_ONCE, max(_PARAMETERS_AT_ONCE // len(self.shared), 1))

    def losses(self, logits: Tensor) -> Tensor:
        """Uncapped cross-entropy of every sample: (M, V, C) to (M, V) float64."""
        flat = F.cross_entropy(logits.flatten(0, 1).double(), self.labels.repeat(len(logits)), reduction="none")
        return flat.view(len(logits), -1).nan_to_num(nan=float("inf"))

    def values(self, members: Tensor) -> Tensor:
        """Utility of coalitions: (M, N) bool to (M,) float64."""
        weights = self.clip * members / members.sum(dim=1, keepdim=True).clamp_min(1)
        pieces = self.pieces(weights.to(self.updates.dtype))
        logits = self.logits(torch.addmm(self.shared, piece, self.updates) for piece in pieces)
        return -self.losses(logits).clamp_max(self.cap).mean(dim=1)


class ShapleyEstimator(Protocol):
    """Shapley values (N,) float64 of a game.

    Attributes:
        draws: Whether it samples, and so needs a generator; for the others none is made, which would take longer than
            a small round's values.
    """

    draws: ClassVar[bool]

    def __call__(self, game: CoalitionGame, generator: torch.Generator | None) -> Tensor:
        """Estimates; ``generator`` is for estimators that sample."""
        ...


@dataclass(frozen=True)
class ExactShapley:
    """All 2ᴺ coalitions (Shapley 1953). For N up to 12."""

    draws: ClassVar[bool] = False

    def __call__(self, game: CoalitionGame, generator: torch.Generator | None) -> Tensor:
        """See ``ShapleyEstimator``; raises ValueError for more than 12 clients."""
        n = len(game.updates)
        if n > MAX_EXACT_CLIENTS:
            raise ValueError(
                f"exact Shapley values take 2^N models: N={n} is more than {MAX_EXACT_CLIENTS}; "
                "use 'surrogate' or 'permutation'"
            )
        codes = torch.arange(2**n)
        members = (codes[:, None] >> torch.arange(n)) % 2 == 1
        values = game.values(members.to(game.updates.device)).cpu()
        size = members.sum(dim=1)
        weight = torch.tensor(
            [factorial(s) * factorial(n - s - 1) / factorial(n) for s in range(n)] + [0.0], dtype=torch.float64
        )
        shapley = []
        for i in range(n):
            without = codes[~members[:, i]]
            shapley.append((weight[size[without]] * (values[without + 2**i] - values[without])).sum())
        return torch.stack(shapley).to(game.updates.device)


@dataclass(frozen=True)
class PermutationShapley:
    """Monte Carlo over orders in which clients join (Castro et al. 2009), in antithetic pairs.

    Each order is used forwards and backwards, and each coalition is evaluated once.

    Attributes:
        num_permutations: Orders, an even number; arXiv 2507.23638 uses 100.
    """

    draws: ClassVar[bool] = True
    num_permutations: int = 100

    def __post_init__(self) -> None:
        if self.num_permutations < 2 or self.num_permutations % 2:
            raise ValueError(f"num_permutations must be even and at least 2, got {self.num_permutations}")

    def __call__(self, game: CoalitionGame, generator: torch.Generator | None) -> Tensor:
        """See ``ShapleyEstimator``."""
        n = len(game.updates)
        half = [torch.randperm(n, generator=generator) for _ in range(self.num_permutations // 2)]
        orders = torch.stack([order for forward in half for order in (forward, forward.flip(0))])
        position = orders.argsort(dim=1)
        # prefixes[r, k]: the members after k clients have joined in order r.
        prefixes = position[:, None, :] < torch.arange(n + 1)[None, :, None]
        coalitions, which = prefixes.flatten(0, 1).unique(dim=0, return_inverse=True)
        values = game.values(coalitions.to(game.updates.device)).cpu()[which].view(len(orders), n + 1)
        return values.diff(dim=1).gather(1, position).mean(dim=0).to(game.updates.device)


@dataclass(frozen=True)
class SurrogateShapley:
    """Closed-form Shapley values of a surrogate of the game: N + 2 forward passes, no sampling.

    The values of nobody, of everybody and of each client alone are exact. In between a coalition's logits are taken as
    the mean of its members' logit changes around the grand coalition; then the cross-entropy to second order is a
    quadratic function of that mean, and the expected marginals have a closed form in O(N).
    """

    draws: ClassVar[bool] = False

    def __call__(self, game: CoalitionGame, generator: torch.Generator | None) -> Tensor:
        """See ``ShapleyEstimator``."""
        logits = game.logits(self._probes(game))
        if native.serves(logits) and game.labels.device.type == "cpu":
            return native.surrogate_shapley(logits, game.labels, game.cap, _quadratic_weights(len(game.updates)))
        values, slope, variance = self._expansion(game, logits)
        empty, grand = values[0], values[1]
        shapley = quadratic_shapley(slope, variance, grand, empty)
        return shapley + singles_shapley(values[2:] - (grand - slope - variance / 2))

    def _expansion(self, game: CoalitionGame, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values (N + 2,) of the probes, and of the loss of the grand coalition the first and second derivative (N,).

        The derivatives are along each client's logit change.
        """
        logits = logits.double()
        values = -game.losses(logits).clamp_max(game.cap).mean(dim=1)
        logits = logits.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        # The changes of all members add up to none, as their offsets do: so the values share out the whole gain.
        change = logits[2:] - logits[2:].mean(dim=0)
        likelihood = logits[1].log_softmax(dim=-1)
        probability, truth = likelihood.exp(), F.one_hot(game.labels, logits.shape[-1])
        # A sample at its cap contributes a constant.
        counted = (-(likelihood * truth).sum(dim=-1) < game.cap).double() / len(game.labels)
        slope = change.flatten(1) @ (counted[:, None] * (probability - truth)).flatten()
        # The diagonal of Q, the mean over samples of dzᵀ(diag p − p pᵀ)dz: the variance of the change under p.
        weighted = probability * change
        variance = (weighted * change).sum(dim=-1) - weighted.sum(dim=-1).square()
        return values, slope, variance @ counted

    def _probes(self, game: CoalitionGame) -> Iterator[Tensor]:
        """The models w, w + ū and w + clip(Δᵢ) for each client, in pieces."""
        if len(game.updates) <= game.models_at_once and native.serves(game.shared, game.updates):
            yield native.probes(game.shared, game.updates, game.clip)
            return
        ends = torch.stack([game.shared, game.shared + game.mean_update])
        factors = game.pieces(game.clip.to(ends.dtype)[:, None])
        for updates, factor in zip(game.updates.split(len(factors[0])), factors, strict=True):
            models = torch.addcmul(game.shared, updates, factor)
            yield torch.cat([ends, models]) if len(ends) else models
            ends = ends[:0]


def singles_shapley(values: Tensor) -> Tensor:
    """Shapley values (N,) of a game in which only coalitions of one client are worth something, ``values`` (N,).

    A client brings its own value when it comes first, and takes away the other's when it comes second.
    """
    n = len(values)
    return values if n == 1 else (values - (values.sum() - values) / (n - 1)) / n


def quadratic_shapley(slope: Tensor, own: Tensor, constant: Tensor, empty: Tensor) -> Tensor:
    """Shapley values of ``v(S) = constant − b·m − ½ mᵀQm``, m the mean of the members' unit vectors; v(∅) = empty.

    For a client i and a uniformly drawn coalition of t others, the expected marginal needs only four averages: of b,
    of Q's diagonal and of Q's off-diagonal over the others, and of row i of Q over the others. Q's rows add up to none,
    as the changes do that it is made of; so its diagonal says all that is needed, and the cost is O(N).

    Args:
        slope: (N,) float64, b.
        own: (N,) float64, diagonal of the symmetric Q, whose row sums are zero.
        constant: Scalar.
        empty: Scalar, value of the empty coalition.

    Returns:
        (N,) float64.
    """
    n = len(slope)
    weights = _quadratic_weights(n)
    common = (constant - empty) / n - weights.slopes * slope.sum() - weights.owns * own.sum()
    return common - weights.slope * slope - weights.own * own


class _QuadraticWeights(NamedTuple):
    """What each part of the quadratic game weighs in a Shapley value among n clients; plurals are sums over all."""

    slope: float
    slopes: float
    own: float
    owns: float


@lru_cache(maxsize=256)
def _quadratic_weights(n: int) -> _QuadraticWeights:
    """Sums the expected marginals of joining t = 0 ... n − 1 others.

    With Q̄ᵢⱼ the mean over the others j, and ``inside`` what t others have among themselves, t·Q̄ⱼⱼ + t(t − 1)·Q̄ⱼₖ,
    a marginal is −(bᵢ − b̄ⱼ)/(t + 1) and minus half of (Qᵢᵢ + 2t·Q̄ᵢⱼ + inside)/(t + 1)² − inside/t².
    """
    t = torch.arange(1, n, dtype=torch.float64)
    after, before = 1 / (t + 1).square(), 1 / t.square()
    reach = float((1 / (t + 1)).sum())
    alone = 1 + float(after.sum())
    with_others = float((2 * t * after).sum()) / max(n - 1, 1)
    others_own = float((t * (after - before)).sum()) / max(n - 1, 1)
    others_pairs = float((t * (t - 1) * (after - before)).sum()) / max((n - 1) * (n - 2), 1)
    return _QuadraticWeights(
        slope=(1 + reach + reach / max(n - 1, 1)) / n,
        slopes=-reach / max(n - 1, 1) / n,
        own=(alone - with_others - others_own + 2 * others_pairs) / (2 * n),
        owns=(others_own - others_pairs) / (2 * n),
    )


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
