"""Rules that judge a client by a few statistics of its update: norm, signs, direction."""

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from fl_core.aggregation.base import Aggregate, Rule, register_rule, round_generator
from fl_core.aggregation.clusters import mean_shift
from fl_core.aggregation.selection import larger_of, mean_of
from fl_core.aggregation.view import ServerView
from fl_core.fingerprint.geometry import clip_factors, median, norms, root_cosine


@register_rule("signguard")
@dataclass(frozen=True)
class SignGuard(Rule):
    """Keeps updates of usual norm whose signs look like most others', clips them to the median norm, and averages.

    Formula: ``S₁ = {i: L ≤ ‖Δᵢ‖/M ≤ R}`` with M the median norm; S₂ the largest cluster of the shares of positive, zero
        and negative signs on a random tenth of the coordinates; mean over S₁ ∩ S₂ of ``min(1, M/‖Δᵢ‖)·Δᵢ``.
    Source: Xu et al. 2022, arXiv 2109.05872, algorithm 2.
    Checked against: the formula written out, with scikit-learn's MeanShift.

    The authors' script takes one run of neighbouring coordinates and divides each share by its largest; here, as in the
    paper, the coordinates are drawn one by one and the shares are left as they are. Where the two sets have nobody in
    common, the server's fallback is used. The clustering's bandwidth is the distance to the nearest half of the
    clients, oneself among them: of two or three, each is a cluster of its own unless shares are equal, and one is
    followed.

    Attributes:
        low: L.
        high: R.
        share: Share of the coordinates that signs are counted on.
        seed: Of their draw, anew in each round.
    """

    low: float = 0.1
    high: float = 3.0
    share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        _check_share("signguard", "share", self.share)
        if not 0 <= self.low < 1 < self.high:
            raise ValueError(f"signguard needs 0 <= low < 1 < high, got low={self.low}, high={self.high}")

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        lengths = norms(view.accepted).cpu()
        middle = median(lengths)
        usual = (lengths >= self.low * middle) & (lengths <= self.high * middle)
        alike = larger_of(mean_shift(self._sign_shares(view)), lengths)
        return mean_of(view, usual & alike, clip_factors(lengths, middle))

    def _sign_shares(self, view: ServerView) -> Tensor:
        """(A, 3) float64."""
        size = view.accepted.shape[1]
        count = max(round(self.share * size), 1)
        signs = view.accepted[:, torch.randperm(size, generator=round_generator(self.seed, view))[:count]].sign()
        return torch.stack([(signs == sign).double().mean(dim=1) for sign in (1, 0, -1)], dim=1).cpu()


@register_rule("lasa")
@dataclass(frozen=True)
class LASA(Rule):
    """Clips and sparsifies updates, then averages, layer by layer, those of usual norm and usual balance of signs.

    Formula: ``z(x) = |x − median|/std`` over clients; a client's layer is kept if ``z(‖Δᵢ‖) ≤ λₙ`` and ``z(ρᵢ) ≤ λₛ``,
        ``ρ = ½·(1 + Σ sgn/Σ|sgn|·(1 − sparsity))``, of updates clipped to the median norm, without their smallest
        entries.
    Source: Xu et al. 2025, arXiv 2409.01435, algorithm 1.
    Checked against: the formula written out in numpy, one layer and several.

    The layers are those of the view, ``ServerView(layers=...)``; without them the whole update is one. A client's
    weight is its share of the layers, by their sizes. The authors' script leaves one-dimensional parameters dense and
    uses strict inequalities, which for two clients would keep nobody; a layer of which nobody is left is averaged over
    all, as there.

    Attributes:
        norm_radius: λₙ.
        sign_radius: λₛ.
        sparsity: Share of each update, its smallest entries, that is set to zero.
    """

    norm_radius: float = 2.0
    sign_radius: float = 1.0
    sparsity: float = 0.3

    def __post_init__(self) -> None:
        _check_radius("lasa", "norm_radius", self.norm_radius)
        _check_radius("lasa", "sign_radius", self.sign_radius)
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"lasa: sparsity must be a share in [0, 1), got {self.sparsity}")

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        updates = view.accepted
        size = updates.shape[1]
        lengths = norms(updates).cpu()
        factors = clip_factors(lengths, median(lengths))
        thresholds = [_magnitude(row, self.sparsity) for row in updates]
        sums = updates.new_zeros(size)
        weights = torch.zeros(len(updates), dtype=torch.float64)
        for first, last in pairwise(accumulate(view.layers or (size,), initial=0)):
            rows = [_sparse(row[first:last], least) for row, least in zip(updates, thresholds, strict=True)]
            kept = self._benign(rows, factors)
            weights += kept.double() * (last - first) / (size * kept.sum())
            for i in kept.nonzero()[:, 0].tolist():
                sums[first:last].add_(rows[i], alpha=float(factors[i] / kept.sum()))
        return Aggregate(sums, weights.to(torch.float32))

    def _benign(self, rows: list[Tensor], factors: Tensor) -> Tensor:
        """(A,) bool for one layer's sparse rows."""
        lengths = torch.stack([norms(row[None])[0] for row in rows]).cpu() * factors
        signs = [row.sign() for row in rows]
        balance = torch.stack([s.sum(dtype=torch.float64) / s.count_nonzero().clamp_min(1) for s in signs]).cpu()
        positive = 0.5 * (1 + balance * (1 - self.sparsity))
        kept = _near_median(lengths, self.norm_radius) & _near_median(positive, self.sign_radius)
        return kept if bool(kept.any()) else torch.ones_like(kept)


@register_rule("alignins")
@dataclass(frozen=True)
class AlignIns(Rule):
    """Keeps updates whose direction fits the global model and whose largest entries fit the majority's signs.

    Formula: ``z(x) = |x − median|/std`` over clients; kept if ``z(cos(Δᵢ, w)) ≤ λ_c`` and ``z(aᵢ) ≤ λ_s``, aᵢ the
        share of the largest entries of Δᵢ with the sign ``sgn Σⱼ sgn Δⱼ``; mean of those, clipped to their median norm.
    Source: Xu et al. 2025, arXiv 2503.07978, algorithm 1.
    Checked against: the formula written out in numpy.

    Where nobody is left the authors leave the model as it is; here the server's fallback is used. Entries that tie
    with the smallest of the largest count too, and of an even number the median is the mean of the two in the middle,
    where theirs is the lower one. Their inequalities are strict, which for two clients would keep nobody. Without a
    global model in the view only the signs are inspected.

    Attributes:
        direction_radius: λ_c.
        sign_radius: λ_s.
        share: Share of an update's entries, the largest, whose signs count.
    """

    direction_radius: float = 1.0
    sign_radius: float = 1.0
    share: float = 0.3

    def __post_init__(self) -> None:
        _check_radius("alignins", "direction_radius", self.direction_radius)
        _check_radius("alignins", "sign_radius", self.sign_radius)
        _check_share("alignins", "share", self.share)

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        updates = view.accepted
        kept = _near_median(self._sign_alignment(updates), self.sign_radius)
        if view.global_model is not None:
            kept &= _near_median(root_cosine(updates, view.global_model).cpu(), self.direction_radius)
        lengths = norms(updates).cpu()
        middle = median(lengths[kept]) if bool(kept.any()) else median(lengths)
        return mean_of(view, kept, clip_factors(lengths, middle))

    def _sign_alignment(self, updates: Tensor) -> Tensor:
        """(A,) float64."""
        principal = torch.zeros_like(updates[0])
        for row in updates:
            principal += row.sign()
        principal.sign_()
        aligned = []
        for row in updates:
            largest = row.abs() >= _magnitude(row, 1 - self.share)
            aligned.append((largest & (row.sign() == principal)).sum().double() / largest.sum())
        return torch.stack(aligned).cpu()


def _magnitude(row: Tensor, share: float) -> Tensor:
    """Smallest magnitude, (P,) to (), that is left when a ``share`` of the entries, the smallest, is dropped."""
    return row.abs().kthvalue(min(int(share * len(row) + 1e-9) + 1, len(row))).values


def _sparse(row: Tensor, least: Tensor) -> Tensor:
    return torch.where(row.abs() >= least, row, 0.0)


def _near_median(values: Tensor, radius: float) -> Tensor:
    """(n,) bool: within ``radius`` standard deviations of the median. With a hair, for two clients stand at just 1."""
    return (values - median(values)).abs() <= radius * (1 + 1e-9) * values.std(correction=0) + 1e-12


def _check_share(rule: str, field: str, value: float) -> None:
    """Raises a ValueError that names the rule and the field, if a share does not lie in (0, 1]."""
    if not 0 < value <= 1:
        raise ValueError(f"{rule}: {field} must be a share in (0, 1], got {value}")


def _check_radius(rule: str, field: str, value: float) -> None:
    """Raises a ValueError that names the rule and the field, if a radius is not greater than 0."""
    if not value > 0:
        raise ValueError(f"{rule}: {field} must be greater than 0, got {value}")
