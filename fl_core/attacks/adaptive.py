"""Attacks on this project's own defence: they know its six features, its reference update, or the policy itself."""

from dataclasses import dataclass
from math import inf, pi
from typing import ClassVar

import torch
from torch import Tensor

from fl_core.aggregation.base import require_reference
from fl_core.attacks.adversary import AdversaryView, Knowledge
from fl_core.attacks.base import register_attack
from fl_core.attacks.optimised import CommonVectorAttack, check_budget
from fl_core.attacks.search import Score, evolve
from fl_core.fingerprint.geometry import median, norms, root_cosine

# The honest range that a feature has to stay in: from one quantile of the honest clients' values to the other.
BOX = (0.05, 0.95)


@register_attack("reference_orthogonal")
@dataclass(frozen=True)
class ReferenceOrthogonal(CommonVectorAttack):
    """As long and as close to the reference as an honest update; all the rest against what honest clients agree on.

    Formula: ``ρ·(c·e₀ − √(1−c²)·u)``, e₀ the reference's unit vector, u that of the honest mean without its part along
        e₀; ρ and c the median honest norm and root cosine.
    Source: ours.
    Checked against: norm and root cosine, recomputed.

    Threat model: the adversary knows the honest updates and the server's reference, not the rule; no evaluation of
    anything. It hides from every judgement by root cosine and norm, and takes back what root data alone cannot teach.
    """

    knows: ClassVar[Knowledge] = Knowledge.FINGERPRINT

    def vector(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``CommonVectorAttack.vector``."""
        view = adversary.server_view("reference_orthogonal", adversary.arrange(own, honest))
        reference = require_reference(view, "reference_orthogonal")
        unit, aside = _axes(reference, honest.mean(dim=0))
        length, cosine = median(norms(honest)), median(root_cosine(honest, reference)).clamp(-1, 1)
        return length * (cosine * unit - (1 - cosine.square()).sqrt() * aside)


@register_attack("feature_box")
@dataclass(frozen=True)
class FeatureBox(CommonVectorAttack):
    """Against the honest mean as far as all six features stay within the honest clients' 5 to 95 % range.

    Formula: minimise ``x·μ`` subject to ``q₅ ≤ feature(x) ≤ q₉₅`` for each of the six, q the quantiles of the honest
        clients' features in the same round, with x among them.
    Source: ours.
    Checked against: the features of what is sent, recomputed.

    Threat model: the adversary knows the honest updates and can compute the server's whole fingerprint, root data
    included; it does not know the rule. Colluding clients send one vector: that lifts their peer cosine, and so lets
    them point away from the honest ones. Searched is a small space: the update of the client that fits the box best,
    its parts along the reference, along the honest mean, along the honest standard deviation (against the mean's
    sign), and the rest of it, each with its own factor. A point outside the box counts by how far outside it is; if
    none inside is found, the least conspicuous one is sent. ``jitter`` is added after the search.

    Attributes:
        evaluations: Budget: fingerprints that are computed in a round.
    """

    knows: ClassVar[Knowledge] = Knowledge.FINGERPRINT
    evaluations: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_budget("feature_box", "evaluations", self.evaluations)

    def vector(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``CommonVectorAttack.vector``."""
        places, mean = adversary.places(own, honest), honest.mean(dim=0)
        everyone = adversary.arrange(own, honest)
        view = adversary.server_view("feature_box", everyone)
        model = everyone[_outside(view.fingerprint.observation, places).argmin()]
        basis = _basis(model, require_reference(view, "feature_box"), honest)
        length = median(norms(honest))

        def score(point: Tensor) -> Score:
            sent = (point @ basis).to(own.dtype)
            updates = adversary.arrange(sent.expand_as(own), honest)
            features = adversary.server_view("feature_box", updates).fingerprint.observation
            return -float(_outside(features, places)[places].max()), -float(sent.double() @ mean.double())

        start = basis @ model.double()
        best = evolve(score, [start], 0.3 * float(length), self.evaluations - 1, adversary.generator)
        return best @ basis


def _outside(features: Tensor, malicious: Tensor) -> Tensor:
    """How far each client is outside the honest range, summed over the features: (N, 6), (N,) to (N,)."""
    honest = features[~malicious].double()
    low, high = honest.quantile(torch.tensor(BOX, dtype=torch.float64, device=honest.device), dim=0)
    return ((low - features).clamp_min(0) + (features - high).clamp_min(0)).sum(dim=1)


def _basis(model: Tensor, reference: Tensor, honest: Tensor) -> Tensor:
    """Orthonormal directions (at most 4, P) float64 whose span holds ``model`` (P,)."""
    mean = honest.mean(dim=0)
    spread = honest.std(dim=0, correction=0) * mean.sign()
    rows: list[Tensor] = []
    for vector in (reference, mean, model, spread):
        rest = vector.double()
        for row in rows * 2:  # twice: once leaves rounding along the earlier directions
            rest = rest - (rest @ row) * row
        if rest.norm() > 1e-9 * vector.double().norm():
            rows.append(rest / rest.norm())
    return torch.stack(rows) if rows else torch.zeros(1, len(model), dtype=torch.float64, device=model.device)


def _axes(reference: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors (P,) float64 along the reference, and along the part of the mean that is orthogonal to it.

    Zeros where there is no such direction.
    """
    unit = _unit(reference.double())
    aside = mean.double() - (mean.double() @ unit) * unit
    return unit, _unit(torch.where(aside.norm() > 1e-9 * mean.double().norm(), aside, 0.0))


def _unit(vector: Tensor) -> Tensor:
    length = vector.norm()
    return vector / torch.where(length > 0, length, 1.0)


@register_attack("policy_aware")
@dataclass(frozen=True)
class PolicyAware(CommonVectorAttack):
    """TODO."""

    knows: ClassVar[Knowledge] = Knowledge.POLICY
    evaluations: int = 60
    largest: float = 10.0
    damage: str = "movement"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_budget("policy_aware", "evaluations", self.evaluations)
        if not 0 < self.largest < inf:
            raise ValueError(f"policy_aware: largest must be above 0 and finite, got {self.largest}")

    def vector(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``CommonVectorAttack.vector``."""
        view = adversary.server_view("policy_aware", adversary.arrange(own, honest))
        reference, mean = require_reference(view, "policy_aware"), honest.mean(dim=0)
        unit, aside = _axes(reference, mean)
        length = median(norms(honest))
        order = mean.abs().argsort(descending=True, stable=True)

        def candidate(point: Tensor) -> Tensor:
            scale, angle, share = point.tolist()
            vector = scale * length * (torch.cos(point[1]) * unit - torch.sin(point[1]) * aside)
            count = round(share * len(order))
            sent = mean.double()
            sent[order[:count]] = vector[order[:count]]
            return sent.to(own.dtype)

        def score(point: Tensor) -> Score:
            update = adversary.aggregate("policy_aware", adversary.arrange(candidate(point).expand_as(own), honest))
            if self.damage == "loss":
                return (float(view.root_losses(update[None])[0]),)
            if self.damage == "distance":
                return (float((update - mean).double().norm()),)
            return (-float(update.double() @ mean.double()),)

        def project(point: Tensor) -> Tensor:
            low = point.new_tensor([0.0, 0.0, 0.0])
            high = point.new_tensor([self.largest, pi, 1.0])
            return point.clamp(low, high)

        cosine = float(median(root_cosine(honest, reference)).clamp(-1, 1))
        natural = float(torch.acos(torch.tensor(cosine)))
        starts = [
            torch.tensor([scale, angle, share], dtype=torch.float64)
            for scale in (1.0, self.largest)
            for angle in (natural, 0.5 * pi, pi)
            for share in (1.0, 0.5)
        ]
        best = evolve(score, starts, 0.3, self.evaluations, adversary.generator, project)
        return candidate(best)
