"""From trust to an update: clip, weigh, and let the reference update take part."""

from abc import abstractmethod
from dataclasses import dataclass, field
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from fl_core.aggregation.base import Aggregate, Rule, register_rule, require_reference, weighted_mean
from fl_core.aggregation.view import ServerView
from fl_core.fingerprint.geometry import clip_to, clip_to_median, norms, root_cosine
from fl_core.registry import check_known

CLIPS = ("none", "median", "reference")


@dataclass(frozen=True)
class TrustWeighting:
    """How one trust value a client becomes one update.

    The aggregate is ``Σ wᵢ·clip(Δᵢ) + w₀·reference`` with weights proportional to trust, and the reference taking part
    as one more client with trust ``root_anchor``: so the aggregate is never worse founded than root data alone.

    Attributes:
        update_clip: Norm that updates are cut down to: ``"median"`` of the round, ``"reference"``'s, or ``"none"``.
        root_anchor: Trust of the reference update; 1 is a fully trusted client, 0 switches it off.
    """

    update_clip: str = "median"
    root_anchor: float = 1.0

    def __post_init__(self) -> None:
        check_known("update_clip", [self.update_clip], CLIPS)
        if not 0 <= self.root_anchor < inf:
            raise ValueError(f"root_anchor must be 0 or more and finite, got {self.root_anchor}")

    def weights(self, trust: Tensor) -> tuple[Tensor, Tensor]:
        """Trust (..., A) to client weights (..., A) and root weight (...,), which together sum to 1."""
        total = trust.sum(dim=-1) + self.root_anchor
        return trust / total[..., None], self.root_anchor / total

    def clip(self, updates: Tensor, reference: Tensor) -> Tensor:
        """Updates (A, P) cut down to the chosen norm."""
        if self.update_clip == "none":
            return updates
        if self.update_clip == "reference":
            return clip_to(updates, norms(reference[None])[0])
        return clip_to_median(updates)

    def __call__(self, view: ServerView, trust: Tensor) -> Aggregate:
        """Combines the view's accepted updates (A, P) by their trust (A,), values of 0 or more.

        If no trust is left at all, the reference update is used alone.
        """
        reference = require_reference(view, "trust-weighted aggregation")
        if not self.root_anchor and float(trust.sum()) <= 0:
            return Aggregate(reference, torch.zeros_like(trust), root_weight=1.0)
        weights, root_weight = self.weights(trust)
        clipped = self.clip(view.accepted, reference)
        return Aggregate(weighted_mean(clipped, weights) + root_weight * reference, weights, float(root_weight))


class TrustRule(Rule):
    """A rule that is a trust value for each client, in [0, 1], weighed by a ``TrustWeighting``."""

    needs_root: ClassVar[bool] = True
    weighting: TrustWeighting

    @abstractmethod
    def trust(self, view: ServerView) -> Tensor:
        """Trust (A,) of the accepted clients."""

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        return self.weighting(view, self.trust(view))


@dataclass(frozen=True, eq=False)
class GivenTrust(TrustRule):
    """Trust that somebody else has decided on: an agent's action.

    Attributes:
        values: (N,), one for every client of the view, rejected ones included (theirs are ignored).
    """

    values: Tensor
    weighting: TrustWeighting = field(default_factory=TrustWeighting)

    def trust(self, view: ServerView) -> Tensor:
        """See ``TrustRule.trust``; raises ValueError for another number of clients."""
        if self.values.shape != view.rejected.shape:
            raise ValueError(f"got trust of shape {tuple(self.values.shape)} for {len(view.rejected)} clients")
        return self.values[~view.rejected].to(view.updates.device)


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

    weighting: TrustWeighting = field(default_factory=TrustWeighting)

    def trust(self, view: ServerView) -> Tensor:
        """See ``TrustRule.trust``."""
        reference = require_reference(view, "root_cosine")
        return root_cosine(view.accepted, reference).clamp_min(0).to(reference.dtype)
