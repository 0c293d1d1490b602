"""The attack on the deployed policy itself, or on any other rule that an adversary may ask."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from math import acos, cos, inf, pi, sin
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor

from fl_core.aggregation.base import require_reference
from fl_core.attacks.adversary import AdversaryView, Knowledge
from fl_core.attacks.base import register_attack
from fl_core.attacks.colluding import CoordinatedAttack
from fl_core.attacks.optimised import axes, check_budget, deviation_against
from fl_core.attacks.search import Score, evolve
from fl_core.fingerprint.geometry import median, norms, root_cosine, unit_vector


@register_attack("policy_aware")
@dataclass(frozen=True)
class PolicyAware(CoordinatedAttack):
    """Against the deployed rule itself: scale, angle to the reference and share of coordinates, by black-box search.

    Formula: ``t·ρ·(cos φ·e₀ − sin φ·u)`` on the share q of coordinates with the largest |μ|, μ on the others; (t, φ, q)
        minimises ``rule(...)·μ``. e₀, u and ρ as in ``reference_orthogonal``. With ``apart`` each client i sends
        ``ρ·(a·e₀ − b·u + c·s + d·ownᵢ/‖ownᵢ‖)``, s the unit vector of the honest deviation against the sign of μ;
        (a, b, c, d) minimises the same.
    Source: ours.
    Checked against: ``reference_orthogonal``, one of the points that are tried, and for fedavg, fltrust and median
        ``ipm``: neither does more harm.

    Threat model: the adversary knows the honest updates and the server's reference, and can ask the frozen policy (or
    any other rule) what it would make of a round, as often as the budget lets it. φ = 0 is the reference itself,
    φ = π/2 orthogonal to it, φ = π its reverse. The search begins with twelve fixed points, and goes on as an evolution
    strategy. It minimises the aggregate's movement along the honest mean: to first order the honest clients' progress,
    which an adversary knows from their updates alone. The loss on root data would be what a defence with root data
    watches too, and the distance to the honest mean counts overshooting it as harm. Without ``apart`` all send one
    vector, which a rule that discounts sybils sees through whatever the search finds.

    Attributes:
        evaluations: Budget: how often the deployed rule is evaluated in a round.
        largest: Largest t, the length of what is sent in units of the median honest norm; of a, b, c and d the largest
            absolute value.
        apart: Each colluder adds a multiple, also a negative one, of its own update, and how much is searched for too.
    """

    knows: ClassVar[Knowledge] = Knowledge.POLICY
    evaluations: int = 60
    largest: float = 10.0
    apart: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_budget("policy_aware", "evaluations", self.evaluations)
        if not 0 < self.largest < inf:
            raise ValueError(f"policy_aware: largest must be above 0 and finite, got {self.largest}")

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.corrupt``."""
        view = adversary.server_view("policy_aware", adversary.arrange(own, honest))
        reference, mean = require_reference(view, "policy_aware"), honest.mean(dim=0).double()
        family = (_Apart if self.apart else _Alike).of(own, honest, reference)
        disguised = self.disguise(own, adversary)

        def score(point: Tensor) -> Score:
            updates = adversary.arrange(disguised(family.rows(point)), honest)
            return (-float(adversary.aggregate("policy_aware", updates).double() @ mean),)

        low, high = family.bounds(self.largest)
        starts = [torch.tensor(start, dtype=torch.float64) for start in family.starts(self.largest)]
        best = evolve(score, starts, 0.3, self.evaluations, adversary.generator, lambda point: point.clamp(low, high))
        return disguised(family.rows(best))


class _Family(Protocol):
    """Updates that colluders may send, by a few numbers."""

    @classmethod
    def of(cls, own: Tensor, honest: Tensor, reference: Tensor) -> Self:
        """The family of one round: own updates (f, P), honest ones (N − f, P), the reference (P,)."""
        ...

    def rows(self, point: Tensor) -> Tensor:
        """What a point (k,) float64 stands for, (f, P)."""
        ...

    def starts(self, largest: float) -> Iterable[tuple[float, ...]]:
        """Points to begin with."""
        ...

    def bounds(self, largest: float) -> tuple[Tensor, Tensor]:
        """The least and the greatest values of the numbers, (k,) each."""
        ...


@dataclass(frozen=True, eq=False)
class _Alike:
    """One vector for all: its scale, its angle to the reference, and on which share of the coordinates it attacks.

    Attributes:
        own: (f, P), whose shape and dtype is sent.
        unit: (P,) float64, along the reference.
        aside: (P,) float64, what honest clients agree on beside it.
        mean: (P,) float64, of the honest updates.
        order: (P,), coordinates by how large the mean is there.
        length: Median honest norm.
        natural: Angle of an honest update to the reference.
    """

    own: Tensor
    unit: Tensor
    aside: Tensor
    mean: Tensor
    order: Tensor
    length: Tensor
    natural: float

    @classmethod
    def of(cls, own: Tensor, honest: Tensor, reference: Tensor) -> Self:
        mean = honest.mean(dim=0).double()
        unit, aside = axes(reference, mean)
        natural = acos(float(median(root_cosine(honest, reference)).clamp(-1, 1)))
        order = mean.abs().argsort(descending=True, stable=True)
        return cls(own, unit, aside, mean, order, median(norms(honest)), natural)

    def rows(self, point: Tensor) -> Tensor:
        scale, angle, share = point.tolist()
        attacked = self.order[: round(share * len(self.order))]
        vector = self.mean.clone()
        vector[attacked] = (scale * self.length * (cos(angle) * self.unit - sin(angle) * self.aside))[attacked]
        return vector.to(self.own.dtype).expand_as(self.own)

    def starts(self, largest: float) -> Iterable[tuple[float, ...]]:
        return product((1.0, largest), (self.natural, pi / 2, pi), (1.0, 0.5))

    def bounds(self, largest: float) -> tuple[Tensor, Tensor]:
        return torch.zeros(3, dtype=torch.float64), torch.tensor([largest, pi, 1.0], dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class _Apart:
    """A common part in three directions, and a multiple of each colluder's own update.

    Attributes:
        own: (f, P), what is sent has its dtype.
        selves: (f, P) float64, the own updates at length 1.
        directions: (3, P) float64: along the reference, against what honest clients agree on beside it, and their
            deviation against the sign of their mean, each at length 1.
        length: Median honest norm.
        along: Cosine of an honest update to the reference.
    """

    own: Tensor
    selves: Tensor
    directions: Tensor
    length: Tensor
    along: float

    @classmethod
    def of(cls, own: Tensor, honest: Tensor, reference: Tensor) -> Self:
        unit, aside = axes(reference, honest.mean(dim=0))
        lengths = norms(own)[:, None]
        return cls(
            own,
            own.double() / torch.where(lengths > 0, lengths, 1.0),
            torch.stack([unit, -aside, unit_vector(deviation_against(honest))]),
            median(norms(honest)),
            float(median(root_cosine(honest, reference)).clamp(-1, 1)),
        )

    def rows(self, point: Tensor) -> Tensor:
        common = point[:3].to(self.directions) @ self.directions
        return (self.length * (common + float(point[3]) * self.selves)).to(self.own.dtype)

    def starts(self, largest: float) -> Iterable[tuple[float, ...]]:
        along, across = self.along, (1 - self.along**2) ** 0.5
        # As honest clients do, the reverse, nothing; then what is common, alone and together with what is not.
        return [
            *((0.0, 0.0, 0.0, each) for each in (1.0, -1.0, 0.0, -0.1, -3.0)),
            *((along, across, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (-1.0, 0.0, 0.0, 0.0), (0.7, 0.7, 0.0, 0.0)),
            *((along, 0.0, across, 0.0), (0.0, 0.5, 0.0, 0.5), (along / 2, across / 2, 0.0, -0.5)),
        ]

    def bounds(self, largest: float) -> tuple[Tensor, Tensor]:
        high = torch.full((4,), largest, dtype=torch.float64)
        return -high, high
