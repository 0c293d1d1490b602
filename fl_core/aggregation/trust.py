"""From trust to an update: clip, discount sybils, weigh with the reference update, look before the step is taken."""

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from fl_core.aggregation.base import Aggregate, Rule, fall_back, register_rule, require_reference, weighted_mean
from fl_core.aggregation.similarity import SimilarityMemory, similarity_mass
from fl_core.aggregation.view import ServerView
from fl_core.fingerprint.geometry import clip_to, clip_to_median, median, norms, root_cosine
from fl_core.registry import check_known

# Of the root's trust and of the margin: far beyond what makes a difference, and within what float32 holds.
_LARGEST = 1e6
# No discount leaves nothing: trust would be divided by none.
_FAINTEST = 1e-30
CLIPS = ("none", "median", "reference", "median_or_reference")
# Shares that the clients keep in the safeguard's candidates; the first, all, is what trust alone would do.
_KEPT = (1.0, 0.75, 0.5, 0.25)


@dataclass(frozen=True)
class TrustWeighting:
    """How one trust value a client becomes one update.

    The aggregate is ``Σ wᵢ·clip(Δᵢ) + w₀·reference`` with weights proportional to trust, and the reference taking part
    as one more client with trust ``root_anchor``: so, unless that is 0, the reference always has a share.

    The *safeguard* is a line search on root data: of nine candidates it takes the one whose model has the least loss on
    the utility half. They are that aggregate, the same without the clients whose Shapley value is not positive, both of
    them with the clients' weights scaled to 75, 50 or 25 % and the rest given to the reference update, and the
    reference update alone. The least of nine losses on a few samples is not always the best model: a candidate replaces
    the first only if it gains more than a margin, in standard errors of the difference between the two, sample by
    sample. So no round ends worse, by that loss, than trust alone would have ended it, nor, but for the margin, than
    root data alone, whoever was trusted.

    *Sybils*, clients that send the same, are discounted: client i has the similarity mass
    ``mᵢ = Σⱼ max(cos(Δᵢ, Δⱼ), 0)^p``, itself included, and its trust is multiplied by its discount,
    ``min(1, median(m)/mᵢ)``. Honest clients are alike to each other too, so nobody loses but those whose mass is above
    the median client's, by as much as it is. The idea is FoolsGold's (Fung et al. 2020, arXiv 1808.04866): here nobody
    is left without weight, and each round stands for itself.

    With a *power* q a client's discount is ``min(1, 1/Mᵢ)^q`` instead: Mᵢ is the mean, over the rounds that it took
    part in, of ``mᵢ`` over the median of m weighted by trust. So a client that is more alike to others than most, be it
    by little but in every round, is weighed less and less. Where honest clients differ, as their classes do, clients
    who share a backdoor are among them; where honest clients are more alike than those, it is they who lose.

    Attributes:
        update_clip: Norm that updates are cut down to: ``"median"`` of the round, ``"reference"``'s, the larger of the
            two (``"median_or_reference"``: a majority that sends next to nothing cannot shrink the others), or
            ``"none"``.
        root_anchor: Trust of the reference update; 1 is a fully trusted client, 0 switches it off.
        safeguard: Search for the best candidate; otherwise the first is taken. Needs the view's root data.
        safeguard_margin: Standard errors by which a candidate's loss must be less than the first's; 0 for any gain. A
            utility half of one sample has no spread, and so no margin.
        sybil_exponent: p, what cosines are raised to in the similarity mass: at 2 each of six copies of one update
            has a mass of 6, and each of six updates of cosine 0.5 to each other 2.25. 0 switches it off.
        sybil_power: q; 0 counts each round by itself. Above 0 clients are remembered by their number from round to
            round, and ``sybil_exponent`` must be above 0 too.
    """

    update_clip: str = "median"
    root_anchor: float = 1.0
    safeguard: bool = False
    safeguard_margin: float = 0.5
    sybil_exponent: float = 0.0
    sybil_power: float = 0.0

    def __post_init__(self) -> None:
        check_known("update_clip", [self.update_clip], CLIPS)
        for name in ("root_anchor", "safeguard_margin", "sybil_exponent", "sybil_power"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LARGEST:
                raise ValueError(f"{name} must be a number from 0 to {_LARGEST:g}, got {value!r}")
            object.__setattr__(self, name, float(value))
        if not isinstance(self.safeguard, bool):
            raise ValueError(f"safeguard must be true or false, got {self.safeguard!r}")
        if self.sybil_power and not self.sybil_exponent:
            raise ValueError(
                f"sybil_power={self.sybil_power:g} needs a sybil_exponent above 0, for the similarity mass: give one, "
                "such as 1, or sybil_power=0"
            )

    def weights(self, trust: Tensor) -> tuple[Tensor, Tensor]:
        """Trust (..., A) to client weights (..., A) and root weight (...,), which together sum to 1."""
        total = trust.sum(dim=-1) + self.root_anchor
        return trust / total[..., None], self.root_anchor / total

    def clip(self, updates: Tensor, reference: Tensor) -> Tensor:
        """Updates (A, P) cut down to the chosen norm."""
        if self.update_clip == "none":
            return updates
        if self.update_clip == "median":
            return clip_to_median(updates)
        norm = norms(reference[None])[0]
        if self.update_clip == "median_or_reference":
            norm = norm.maximum(median(norms(updates)))
        return clip_to(updates, norm)

    def discount(self, updates: Tensor) -> Tensor:
        """What the trust of updates (A, P) is multiplied by in a round by itself, (A,) float32 in (0, 1]."""
        if not self.sybil_exponent or not len(updates):
            return updates.new_ones(len(updates), dtype=torch.float32)
        mass = similarity_mass(updates, self.sybil_exponent)
        return (median(mass) / mass).clamp_max(1).to(updates.device, torch.float32)

    def discounted(self, view: ServerView, trust: Tensor, similarity: SimilarityMemory | None = None) -> Tensor:
        """Trust (A,) of the accepted clients, multiplied by their discounts.

        Args:
            view: What the server has.
            trust: (A,).
            similarity: Of earlier rounds; where there is a power, this round is added to it. By default there are none.
        """
        if not self.sybil_power or not len(trust):
            return trust * self.discount(view.accepted) if self.sybil_exponent else trust
        similarity = SimilarityMemory() if similarity is None else similarity
        means = similarity.remember(view, self.sybil_exponent, trust)
        discount = means.reciprocal().clamp_max(1) ** self.sybil_power
        return trust * discount.clamp_min(_FAINTEST).to(trust)

    def __call__(self, view: ServerView, trust: Tensor, similarity: SimilarityMemory | None = None) -> Aggregate:
        """Combines the view's accepted updates (A, P) by their trust (A,), values of 0 or more.

        If no trust is left at all, the reference update is used alone.

        Args:
            view: What the server has.
            trust: (A,).
            similarity: See ``discounted``.

        Raises:
            ValueError: A view without root data; trust of another shape, or that is negative or not finite.
        """
        reference = require_reference(view, "trust-weighted aggregation")
        _check_trust(trust, len(view.accepted))
        trust = self.discounted(view, trust, similarity)
        if not self.root_anchor and float(trust.sum()) <= 0:
            return fall_back(view)
        weights, root_weight = self.weights(trust)
        clipped = self.clip(view.accepted, reference)
        if self.safeguard:
            helpful = view.fingerprint.column("shapley")[~view.rejected] > 0
            # Where nobody with trust helps and there is no anchor either, nothing is left to be shared out.
            either = torch.stack([weights, self.weights(trust * helpful)[0].nan_to_num()])
            return _safest(view, clipped, either, self.safeguard_margin)
        return Aggregate(weighted_mean(clipped, weights) + root_weight * reference, weights, float(root_weight))


class TrustRule(Rule):
    """A rule that is a trust value for each client, in [0, 1], weighed by a ``TrustWeighting``.

    Attributes:
        reads_fingerprint: Whether the trust is made from the view's fingerprint.
        weighting: How trust becomes an update.
    """

    needs_root: ClassVar[bool] = True
    reads_fingerprint: ClassVar[bool] = True
    weighting: TrustWeighting

    @cached_property
    def similarity(self) -> SimilarityMemory:
        """What is remembered of earlier rounds, if the weighting remembers anything."""
        return SimilarityMemory()

    @property
    def by_client(self) -> bool:  # type: ignore[override]  # a class says it of all its rules, this one of each
        """See ``Rule``."""
        return bool(self.weighting.sybil_power)

    def reset(self) -> None:
        """See ``Rule.reset``."""
        self.similarity.forget()

    @abstractmethod
    def trust(self, view: ServerView) -> Tensor:
        """Trust (A,) of the accepted clients."""

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        return self.weighting(view, self.trust(view), self.similarity)


@dataclass(frozen=True, eq=False)
class GivenTrust(TrustRule):
    """Trust that somebody else has decided on: an agent's action.

    Attributes:
        values: (N,), one for every client of the view, rejected ones included (theirs are ignored).
        weighting: How trust becomes an update.
        similarity: What is remembered of earlier rounds; by default nothing.
    """

    values: Tensor
    weighting: TrustWeighting = field(default_factory=TrustWeighting)
    similarity: SimilarityMemory = field(default_factory=SimilarityMemory)

    def __post_init__(self) -> None:
        if not isinstance(self.values, Tensor):
            raise ValueError(f"trust must be a tensor, one value a client, got {type(self.values).__name__}")

    def trust(self, view: ServerView) -> Tensor:
        """See ``TrustRule.trust``; raises ValueError for another number of clients."""
        if self.values.shape != view.rejected.shape:
            raise ValueError(f"got trust of shape {tuple(self.values.shape)} for {len(view.rejected)} clients")
        return self.values[~view.rejected].to(view.updates.device)


def _check_trust(trust: Tensor, clients: int) -> None:
    if trust.shape != (clients,):
        raise ValueError(f"trust must be one value for each of {clients} clients, got the shape {tuple(trust.shape)}")
    wrong = trust[~((trust >= 0) & trust.isfinite())]
    if len(wrong):
        raise ValueError(
            f"trust must be 0 or more and finite, got {float(wrong[0])} for {len(wrong)} of {clients} clients"
        )


def _safest(view: ServerView, clipped: Tensor, weights: Tensor, margin: float) -> Aggregate:
    """Weights (2, A), trust alone first, each mixed with the reference: the candidate that ``_least`` chooses."""
    reference = require_reference(view, "the safeguard")
    candidates = torch.cat([*(share * weights for share in _KEPT), torch.zeros_like(weights[:1])])
    root_weights = 1 - candidates.sum(dim=1)
    updates = candidates.to(clipped) @ clipped + root_weights.to(reference)[:, None] * reference
    best = _least(view.root_sample_losses(updates), margin)
    # Copies: what is kept of the round should not hold on to all candidates.
    return Aggregate(updates[best].clone(), candidates[best].clone(), max(float(root_weights[best]), 0.0))


def _least(losses: Tensor, margin: float) -> int:
    """Index of a candidate, given the losses (K, V) of K of them on V samples.

    The one of least mean loss, among the first and those that are better by more than ``margin`` standard errors of the
    difference; of equals the first.
    """
    means, gains = losses.mean(dim=1), losses[0] - losses
    # Without Bessel's correction, which is 1 % at fifty samples and undefined at one.
    error = gains.std(dim=1, correction=0) / losses.shape[1] ** 0.5
    return int(torch.where(gains.mean(dim=1) > margin * error, means, means[0]).argmin())


@register_rule("shapley")
@dataclass(frozen=True)
class ShapleyTrust(TrustRule):
    """Trust is the Shapley value's positive part: a strong control without any learning.

    Formula: ``τᵢ = max(φᵢ, 0)/maxⱼ |φⱼ|``, clipped and anchored as ``TrustWeighting`` says.
    Source: ours.
    Checked against: the feature of the fingerprint.

    Attributes:
        weighting: How trust becomes an update.
    """

    weighting: TrustWeighting = field(default_factory=TrustWeighting)

    def trust(self, view: ServerView) -> Tensor:
        """See ``TrustRule.trust``."""
        return view.fingerprint.column("shapley")[~view.rejected].clamp_min(0)


@register_rule("safeguarded_shapley")
@dataclass(frozen=True)
class SafeguardedShapley(ShapleyTrust):
    """The rule ``shapley`` with the safeguard: all of a deployed policy but the policy.

    Formula: ``τᵢ = max(φᵢ, 0)/maxⱼ |φⱼ|``; of nine mixtures with the reference that with the least loss on the utility
        half, if that is less than trust alone's by more than the margin, as ``TrustWeighting`` says.
    Source: ours.
    Checked against: the losses of its candidates one by one.

    Attributes:
        weighting: How trust becomes an update; the safeguard is on, whatever it says.
    """

    def __post_init__(self) -> None:
        object.__setattr__(self, "weighting", replace(self.weighting, safeguard=True))


@register_rule("root_cosine")
@dataclass(frozen=True)
class RootCosineTrust(TrustRule):
    """Trust is the positive part of the cosine to the reference: FLTrust's judgement with this project's weighting.

    Formula: ``τᵢ = max(cos(Δᵢ, r), 0)``, clipped and anchored as ``TrustWeighting`` says.
    Source: ours; the trust is that of Cao et al. 2021, arXiv 2012.13995.
    Checked against: the feature of the fingerprint.

    Attributes:
        weighting: How trust becomes an update.
    """

    reads_fingerprint: ClassVar[bool] = False
    weighting: TrustWeighting = field(default_factory=TrustWeighting)

    def trust(self, view: ServerView) -> Tensor:
        """See ``TrustRule.trust``."""
        reference = require_reference(view, "root_cosine")
        return root_cosine(view.accepted, reference).clamp_min(0).to(reference.dtype)
