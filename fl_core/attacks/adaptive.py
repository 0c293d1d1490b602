"""Attacks on this project's own defence: they know its six features, its reference update, or the policy itself."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from math import acos, cos, inf, pi, sin
from typing import ClassVar

import torch
from torch import Tensor

from fl_core.aggregation.base import require_reference
from fl_core.aggregation.view import ServerView
from fl_core.attacks.adversary import AdversaryView, Knowledge
from fl_core.attacks.base import Attack, check_jitter, jittered, register_attack
from fl_core.attacks.colluding import CommonVectorAttack
from fl_core.attacks.optimised import NEGLIGIBLE, axes, check_budget
from fl_core.attacks.search import Score, evolve
from fl_core.fingerprint import FEATURES
from fl_core.fingerprint.geometry import median, norms, root_cosine, unit_vector

# The honest range that a feature has to stay in: from one quantile of the honest clients' values to the other.
BOX = (0.05, 0.95)
# In the search for a start: how finely the colluders' own share is tried, and how much of what is orthogonal to the
# reference may go into geometry, the rest being left to look like a client's update.
_STEPS, _SHARED = 50, 0.9


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
        unit, aside = axes(reference, honest.mean(dim=0))
        length, cosine = median(norms(honest)), median(root_cosine(honest, reference)).clamp(-1, 1)
        return length * (cosine * unit - (1 - cosine.square()).sqrt() * aside)


@register_attack("feature_box")
@dataclass(frozen=True)
class FeatureBox(Attack):
    """Against the honest mean as far as all six features stay within the honest clients' 5 to 95 % range.

    Formula: minimise ``mean(xᵢ)·μ`` subject to ``q₅ ≤ feature(xᵢ) ≤ q₉₅`` for each of the six and every malicious
        client i, q the quantiles of the honest clients' features in the same round, with the xᵢ among them.
    Source: ours.
    Checked against: the features of what is sent, recomputed.

    Threat model: the adversary knows the honest updates and can compute the server's whole fingerprint, root data
    included; it does not know the rule. Colluding clients send a common vector, which lifts their peer cosine and so
    lets them point away from the honest ones, and each a multiple of what is peculiar to its own update, which lowers
    it again. The search begins at vectors of typical norm, root and peer cosine that are otherwise as one client's
    update is, and moves in the span of the best of them, the reference, what the honest clients agree on, their mean,
    and their standard deviation against the mean's sign. Outside the box a point counts by how far outside it is; if
    none inside is found, the least conspicuous one is sent. ``jitter`` comes after the search, and may lead out.

    Attributes:
        evaluations: Budget: fingerprints that are computed in a round, two more than this at most.
        jitter: Length of the noise that each malicious client adds, relative to the length of what it sends.
    """

    knows: ClassVar[Knowledge] = Knowledge.FINGERPRINT
    evaluations: int = 60
    jitter: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        check_jitter("feature_box", self.jitter)
        check_budget("feature_box", "evaluations", self.evaluations)

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.corrupt``."""
        places, everyone = adversary.places(own, honest), adversary.arrange(own, honest)
        view = adversary.server_view("feature_box", everyone)
        typical = _Typical.of(view, places, require_reference(view, "feature_box"))
        peculiar = _peculiar(own, [typical.unit, typical.agreed])
        mean = honest.mean(dim=0).double()

        def sent(common: Tensor, apart: float | Tensor) -> Tensor:
            return (common + apart * peculiar).to(own.dtype)

        def score(rows: Tensor) -> Score:
            arranged = adversary.arrange(rows, honest)
            features = adversary.server_view("feature_box", arranged).fingerprint.observation
            return -float(_outside(features, places)[places].max()), -float(rows.double().mean(dim=0) @ mean)

        # A fifth of the budget finds where to start from, beginning with the clients that fit the box best.
        order = _outside(view.fingerprint.observation, places).argsort(stable=True)
        starts = [typical.like(row, len(own)) for row in everyone[order[: max(self.evaluations // 5, 1)]]]
        common, apart = max(starts, key=lambda start: score(sent(*start)))
        basis = _basis([typical.unit, typical.agreed, common, mean, _against(honest)])
        best = evolve(
            lambda point: score(sent(point[:-1] @ basis, point[-1])),
            [torch.cat([basis @ common, torch.full_like(common[:1], apart)])],
            0.3 * float(typical.length),
            max(self.evaluations - len(starts), 1),
            adversary.generator,
        )
        return jittered(sent(best[:-1] @ basis, best[-1]), self.jitter, adversary.generator)


@register_attack("policy_aware")
@dataclass(frozen=True)
class PolicyAware(CommonVectorAttack):
    """Against the deployed rule itself: scale, angle to the reference and share of coordinates, by black-box search.

    Formula: ``t·ρ·(cos φ·e₀ − sin φ·u)`` on the share q of coordinates with the largest |μ|, μ on the others; (t, φ, q)
        minimises ``rule(...)·μ``. e₀, u and ρ as in ``reference_orthogonal``.
    Source: ours.
    Checked against: ``reference_orthogonal``, one of the points that are tried, and ``ipm``: neither does more harm.

    Threat model: the adversary knows the honest updates and the server's reference, and can ask the frozen policy (or
    any other rule) what it would make of a round, as often as the budget lets it. φ = 0 is the reference itself,
    φ = π/2 orthogonal to it, φ = π its reverse. The search begins with twelve fixed points, and goes on as an evolution
    strategy. It minimises the aggregate's movement along the honest mean: to first order the honest clients' progress,
    which an adversary knows from their updates alone. The loss on root data would be what a defence with root data
    watches too, and the distance to the honest mean counts overshooting it as harm.

    Attributes:
        evaluations: Budget: how often the deployed rule is evaluated in a round.
        largest: Largest t, the length of what is sent in units of the median honest norm.
    """

    knows: ClassVar[Knowledge] = Knowledge.POLICY
    evaluations: int = 60
    largest: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_budget("policy_aware", "evaluations", self.evaluations)
        if not 0 < self.largest < inf:
            raise ValueError(f"policy_aware: largest must be above 0 and finite, got {self.largest}")

    def vector(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``CommonVectorAttack.vector``."""
        view = adversary.server_view("policy_aware", adversary.arrange(own, honest))
        reference, mean = require_reference(view, "policy_aware"), honest.mean(dim=0).double()
        unit, aside = axes(reference, mean)
        length = median(norms(honest))
        order = mean.abs().argsort(descending=True, stable=True)

        def sent(point: Tensor) -> Tensor:
            scale, angle, share = point.tolist()
            attacked = order[: round(share * len(order))]
            vector = mean.clone()
            vector[attacked] = (scale * length * (cos(angle) * unit - sin(angle) * aside))[attacked]
            return vector.to(own.dtype)

        def score(point: Tensor) -> Score:
            update = adversary.aggregate("policy_aware", adversary.arrange(sent(point).expand_as(own), honest))
            return (-float(update.double() @ mean),)

        natural = acos(float(median(root_cosine(honest, reference)).clamp(-1, 1)))
        starts = product((1.0, self.largest), (natural, pi / 2, pi), (1.0, 0.5))
        points = [torch.tensor(start, dtype=torch.float64) for start in starts]
        low, high = torch.zeros(3, dtype=torch.float64), torch.tensor([self.largest, pi, 1.0], dtype=torch.float64)
        return sent(
            evolve(score, points, 0.3, self.evaluations, adversary.generator, lambda point: point.clamp(low, high))
        )


@dataclass(frozen=True, eq=False)
class _Typical:
    """The middle of what honest clients look like, in the three features that geometry sets.

    Attributes:
        unit: (P,) float64, along the reference.
        agreed: (P,) float64, sum of the honest unit vectors, without its part along the reference.
        along: That part.
        length: Median norm.
        root: Median root cosine.
        peers: Median peer cosine times the N − 1 peers.
    """

    unit: Tensor
    agreed: Tensor
    along: float
    length: Tensor
    root: float
    peers: float

    @classmethod
    def of(cls, view: ServerView, places: Tensor, reference: Tensor) -> "_Typical":
        honest, features = view.updates[~places], view.fingerprint.raw[~places]
        lengths = norms(honest)
        total = (1 / torch.where(lengths > 0, lengths, 1.0)) @ honest.double()
        unit = unit_vector(reference.double())
        return cls(
            unit=unit,
            agreed=total - (total @ unit) * unit,
            along=float(total @ unit),
            length=median(lengths),
            root=float(median(features[:, FEATURES.index("root_cosine")])),
            peers=float(median(features[:, FEATURES.index("peer_cosine")])) * (len(places) - 1),
        )

    def like(self, row: Tensor, colluders: int) -> tuple[Tensor, float]:
        """A common vector (P,), and the length of what each of ``colluders`` should add of its own.

        Typical in these three features, and otherwise as ``row`` (P,) is. Colluders are alike as far as can be, because
        their likeness is what they can point away from the others by.
        """
        agreed, strength = unit_vector(self.agreed), float(self.agreed.norm())
        room = max(1 - self.root**2, 0.0)
        part = apart = 0.0
        for step in range(_STEPS):  # the smallest own share with which the angles work out
            apart = (step / _STEPS * room) ** 0.5
            wanted = self.peers - (colluders - 1) * (1 - apart**2) - self.root * self.along
            part = wanted / strength if strength > 0 else 0.0
            if part**2 + apart**2 <= _SHARED * room:
                break
        else:
            part, apart = 0.0, room**0.5
        left = max(room - part**2 - apart**2, 0.0)
        basis = _basis([self.unit, agreed, row.double()])
        aside = basis[-1] if len(basis) == 3 else torch.zeros_like(agreed)
        common: Tensor = self.root * self.unit + part * agreed + left**0.5 * aside
        return self.length * common, apart * float(self.length)


def _peculiar(own: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Unit vectors (f, P) float64 of what each own update (f, P) has beside their mean and some directions (P,)."""
    basis = _basis(others)
    rows = own.double() - own.double().mean(dim=0)
    rows = rows - (rows @ basis.T) @ basis
    lengths = rows.norm(dim=1, keepdim=True)
    return rows / torch.where(lengths > NEGLIGIBLE * own.double().norm(), lengths, inf)


def _against(honest: Tensor) -> Tensor:
    """(P,) float64, the honest standard deviation against the sign of the honest mean."""
    spread: Tensor = honest.std(dim=0, correction=0) * honest.mean(dim=0).sign()
    return -spread.double()


def _outside(features: Tensor, malicious: Tensor) -> Tensor:
    """How far each client is outside the honest range, summed over the features: (N, 6), (N,) to (N,)."""
    honest = features[~malicious].double()
    low, high = honest.quantile(torch.tensor(BOX, dtype=torch.float64).to(honest.device), dim=0)
    beyond: Tensor = (low - features).clamp_min(0) + (features - high).clamp_min(0)
    return beyond.sum(dim=1)


def _basis(vectors: Sequence[Tensor]) -> Tensor:
    """Orthonormal directions (k, P) float64 of the same span as vectors (P,); one of zeros if they are all zero."""
    rows: list[Tensor] = []
    for vector in vectors:
        rest = vector.clone()
        for row in rows * 2:  # twice: once leaves rounding along the earlier directions
            rest = rest - (rest @ row) * row
        if rest.norm() > NEGLIGIBLE * vector.norm():
            rows.append(rest / rest.norm())
    return torch.stack(rows) if rows else torch.zeros_like(vectors[0])[None]
