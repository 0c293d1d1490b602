"""Attacks on this project's own defence: they know its reference update, or all its six features."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from fl_core.aggregation.base import require_reference
from fl_core.aggregation.view import ServerView
from fl_core.attacks.adversary import AdversaryView, Knowledge
from fl_core.attacks.base import register_attack
from fl_core.attacks.colluding import CommonVectorAttack, CoordinatedAttack
from fl_core.attacks.optimised import NEGLIGIBLE, axes, check_budget, deviation_against
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
class FeatureBox(CoordinatedAttack):
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
    none inside is found, the least conspicuous one is sent.

    Attributes:
        evaluations: Budget: fingerprints that are computed in a round, two more than this at most.
    """

    knows: ClassVar[Knowledge] = Knowledge.FINGERPRINT
    evaluations: int = 60

    def __post_init__(self) -> None:
        super().__post_init__()
        check_budget("feature_box", "evaluations", self.evaluations)

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.corrupt``."""
        places, everyone = adversary.places(own, honest), adversary.arrange(own, honest)
        view = adversary.server_view("feature_box", everyone)
        typical = _Typical.of(view, places, require_reference(view, "feature_box"))
        peculiar = _peculiar(own, [typical.unit, typical.agreed])
        mean, disguised = honest.mean(dim=0).double(), self.disguise(own, adversary)

        def sent(common: Tensor, apart: float | Tensor) -> Tensor:
            return disguised((common + apart * peculiar).to(own.dtype))

        def score(rows: Tensor) -> Score:
            arranged = adversary.arrange(rows, honest)
            features = adversary.server_view("feature_box", arranged).fingerprint.observation
            return -float(_outside(features, places)[places].max()), -float(rows.double().mean(dim=0) @ mean)

        # A fifth of the budget finds where to start from, beginning with the clients that fit the box best.
        order = _outside(view.fingerprint.observation, places).argsort(stable=True)
        starts = [typical.like(row, len(own)) for row in everyone[order[: max(self.evaluations // 5, 1)]]]
        common, apart = max(starts, key=lambda start: score(sent(*start)))
        basis = _basis([typical.unit, typical.agreed, common, mean, deviation_against(honest)])
        best = evolve(
            lambda point: score(sent(point[:-1] @ basis, point[-1])),
            [torch.cat([basis @ common, torch.full_like(common[:1], apart)])],
            0.3 * float(typical.length),
            max(self.evaluations - len(starts), 1),
            adversary.generator,
        )
        return sent(best[:-1] @ basis, best[-1])


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
