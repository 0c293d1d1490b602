"""Attacks that are optimised against an aggregation rule: one that they assume, or the one that is deployed."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from fl_core.aggregation.base import require_reference
from fl_core.aggregation.gram import squared_distances
from fl_core.aggregation.root import FLTrust
from fl_core.attacks.adversary import AdversaryView, Knowledge
from fl_core.attacks.base import Attack, register_attack
from fl_core.attacks.colluding import CommonVectorAttack, CoordinatedAttack
from fl_core.attacks.search import line_search
from fl_core.fingerprint.geometry import unit_vector

# A direction shorter than this, relative to what it is a part of, is rounding of float32 updates.
NEGLIGIBLE = 1e-6


@register_attack("fang_trim")
@dataclass(frozen=True)
class FangTrim(Attack):
    """Against trimmed mean and median: every value just beyond the honest extreme that lies against the honest way.

    Formula: ``s = sign(mean of all updates before the attack)``; where s = −1 a value between max and b·max of the
        honest ones (max/b if that is negative), where s = 1 between min and min/b (b·min if that is negative).
    Source: Fang et al. 2020, arXiv 1911.11815, section 3.3, full knowledge; on updates, as in the authors' code.
    Checked against: the interval itself, per coordinate.

    Every malicious client draws its own values. The paper's formula is for model parameters and is not the same at
    another origin; the authors' code applies it to gradients, and so does this. The paper's s is the way of the
    attacked rule's aggregate without attack; the authors' code takes that of the sum, and so does this. Their extremes
    run over all updates. A coordinate whose honest extreme is 0 stays 0.

    Attributes:
        b: Width of the interval beyond the extreme, above 1.
    """

    knows: ClassVar[Knowledge] = Knowledge.HONEST_UPDATES
    b: float = 2.0

    def __post_init__(self) -> None:
        if not 1 < self.b < inf:
            raise ValueError(f"fang_trim: b must be above 1 and finite, got {self.b}")

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.corrupt``."""
        upwards = _way(own, honest) > 0
        extreme = torch.where(upwards, honest.min(dim=0).values, honest.max(dim=0).values)
        stretch = 1 + (self.b - 1) * torch.rand(own.shape, generator=adversary.generator).to(own)
        # Beyond the extreme is nearer to zero where the honest values lie on the far side of it, else away from zero.
        return torch.where(upwards == (extreme > 0), extreme / stretch, extreme * stretch)


@register_attack("fang_krum")
@dataclass(frozen=True)
class FangKrum(CommonVectorAttack):
    """Against Krum: as far against the honest way as Krum still chooses.

    Formula: ``−λ·s``, ``s = sign(mean of all updates before the attack)``; λ is halved from the paper's upper bound
        (theorem 1) until Krum, told the true f, chooses the vector.
    Source: Fang et al. 2020, arXiv 1911.11815, section 3.2, full knowledge.
    Checked against: the registered ``krum``, which must choose the vector at λ and not at 2λ.

    Krum is simulated: the deployed rule is not asked. The paper's s is the way of Krum's choice without attack; the
    authors' code takes that of the sum, and so does this. If λ shrinks to nothing the clients send their own updates,
    as in the authors' code. For n < 2f + 3, where Krum has no bound, it is taken to look at one neighbour at least.

    Attributes:
        halvings: Budget: how often λ may be halved, at O(N²) each; no rule is evaluated.
    """

    knows: ClassVar[Knowledge] = Knowledge.HONEST_UPDATES
    halvings: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        check_budget("fang_krum", "halvings", self.halvings)

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.corrupt``."""
        vector = self.vector(own, honest, adversary)
        return self.sent(vector, own, adversary) if vector.any() else own

    def vector(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``CommonVectorAttack.vector``; zeros where Krum falls for nothing."""
        return -self.strength(own, honest) * _way(own, honest)

    def strength(self, own: Tensor, honest: Tensor) -> float:
        """The first λ that Krum falls for; 0 if there is none."""
        f, (num_honest, size) = len(own), honest.shape
        way, among = _way(own, honest).double(), squared_distances(honest).to(honest.device)
        energy, along = honest.double().square().sum(dim=1), honest.double() @ way
        neighbours = max(num_honest - 2, 1)

        def chosen(strength: float) -> bool:
            to_vector = (energy + 2 * strength * along + strength**2 * way.square().sum()).clamp_min(0)
            colluders = to_vector.new_zeros(f - 1)
            score = torch.cat([colluders, to_vector]).sort().values[:neighbours].sum()
            others = torch.cat([among.clone().fill_diagonal_(inf), to_vector[:, None].expand(-1, f)], dim=1)
            return bool(score <= others.sort(dim=1).values[:, :neighbours].sum(dim=1).min())

        nearest = among.sort(dim=1).values[:, 1 : num_honest - 1].sum(dim=1).min()
        bound = (nearest / max(num_honest - f - 1, 1) / size).sqrt() + (energy.max() / size).sqrt()
        for halved in range(self.halvings + 1):
            strength = float(bound) * 0.5**halved
            if chosen(strength):
                return strength
        return 0.0


@dataclass(frozen=True)
class LineSearchAttack(CoordinatedAttack):
    """One direction for all, and the strength along it that moves the deployed rule furthest from the honest mean.

    Attributes:
        largest: Largest strength that is tried.
        evaluations: Budget: how often the deployed rule is evaluated in a round.
    """

    knows: ClassVar[Knowledge] = Knowledge.RULE
    _name: ClassVar[str]
    largest: float = 50.0
    evaluations: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.largest < inf:
            raise ValueError(f"{self._name}: largest must be above 0 and finite, got {self.largest}")
        check_budget(self._name, "evaluations", self.evaluations)

    @abstractmethod
    def candidate(self, honest: Tensor) -> Callable[[float], Tensor]:
        """The vector (P,) of a strength, from the honest updates (N − f, P)."""

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.corrupt``."""
        candidate, mean, disguised = self.candidate(honest), honest.mean(dim=0), self.disguise(own, adversary)

        def sent(strength: float) -> Tensor:
            return disguised(candidate(strength).to(own.dtype).expand_as(own))

        def damage(strength: float) -> float:
            update = adversary.aggregate(self._name, adversary.arrange(sent(strength), honest))
            return float((update - mean).double().norm())

        return sent(line_search(damage, self.largest, self.evaluations))


@register_attack("optimised_alie")
@dataclass(frozen=True)
class OptimisedALIE(LineSearchAttack):
    """A Little Is Enough with the z that moves the deployed rule furthest from the honest mean.

    Formula: ``μ − z·σ``, ``z = argmax ‖rule(z) − μ‖`` over (0, largest].
    Source: Baruch et al. 2019, arXiv 1902.06156; the line search as in Shejwalkar & Houmansadr, NDSS 2021, and ByzFL.
    Checked against: every z that was tried.

    ByzFL doubles a step from z = 0 and then shrinks it forwards only; this tries powers of ½ first and refines both
    ways. Under a plain mean no z is too large: ``largest`` is what bounds it.
    """

    _name: ClassVar[str] = "optimised_alie"

    def candidate(self, honest: Tensor) -> Callable[[float], Tensor]:
        """See ``LineSearchAttack.candidate``."""
        mean, deviation = honest.mean(dim=0), honest.std(dim=0, correction=0)
        return lambda z: mean - z * deviation


@register_attack("optimised_ipm")
@dataclass(frozen=True)
class OptimisedIPM(LineSearchAttack):
    """Inner-product manipulation with the ε that moves the deployed rule furthest from the honest mean.

    Formula: ``−ε·μ``, ``ε = argmax ‖rule(ε) − μ‖`` over (0, largest].
    Source: Xie et al. 2020, arXiv 1903.03936; the line search as in ``optimised_alie``.
    Checked against: every ε that was tried.
    """

    _name: ClassVar[str] = "optimised_ipm"

    def candidate(self, honest: Tensor) -> Callable[[float], Tensor]:
        """See ``LineSearchAttack.candidate``."""
        mean = honest.mean(dim=0)
        return lambda epsilon: -epsilon * mean


@register_attack("fltrust_adaptive")
@dataclass(frozen=True)
class FLTrustAdaptive(CommonVectorAttack):
    """Against FLTrust, with its reference update known: the vector that turns FLTrust's update furthest from its way.

    Formula: ``‖g₀‖·(c·e₀ − √(1−c²)·u)``, e₀ the reference's unit vector, u that of s without its part along e₀,
        ``s = sign(FLTrust's update without attack)``; c minimises s·(FLTrust's update under attack).
    Source: Cao et al. 2021, arXiv 2012.13995, section on adaptive attacks (the framework of Fang et al. 2020).
    Checked against: random unit vectors, none of which does FLTrust more harm.

    The paper ascends s·(g − g′) over all malicious unit vectors with zeroth-order gradients. The maximum is known: for
    given cosines every vector's remainder should lie along −u, and then Dinkelbach's form of the ratio is a sum of
    equal terms, one a client, so that one c is the best for all. It is found on a grid of 1,000; the deployed rule is
    not asked. Where s has no part but that along the reference, the clients withhold: they send −g₀, of no weight.
    """

    knows: ClassVar[Knowledge] = Knowledge.FINGERPRINT

    def vector(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``CommonVectorAttack.vector``."""
        view = adversary.server_view("fltrust_adaptive", adversary.arrange(own, honest))
        reference = require_reference(view, "fltrust_adaptive")
        way = FLTrust()(view).update.sign().double()
        unit, aside = axes(reference, way)
        if not aside.any():
            return -reference
        rows = honest.double()
        lengths = rows.norm(dim=1, keepdim=True)
        rows = rows / torch.where(lengths > 0, lengths, 1.0)
        trust = (rows @ unit).clamp_min(0)
        cosine = torch.linspace(0.001, 1.0, 1000, dtype=torch.float64, device=own.device)
        sine = (1 - cosine.square()).sqrt()
        moved = trust @ (rows @ way) + len(own) * cosine * (cosine * (way @ unit) - sine * (way @ aside))
        best = (moved / (trust.sum() + len(own) * cosine)).argmin()
        vector: Tensor = reference.double().norm() * (cosine[best] * unit - sine[best] * aside)
        return vector


def _way(own: Tensor, honest: Tensor) -> Tensor:
    """Sign (P,) of the mean of all updates before the attack, the malicious clients' own included."""
    return (own.sum(dim=0) + honest.sum(dim=0)).sign()


def check_budget(attack: str, field: str, budget: int) -> None:
    """Raises a ValueError that names the attack and the field, if a budget is below 1."""
    if budget < 1:
        raise ValueError(f"{attack}: {field} must be at least 1, got {budget}")


def axes(reference: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors (P,) float64 along the reference, and along the part of a vector that is orthogonal to it.

    Zeros where there is no such direction.
    """
    unit = unit_vector(reference.double())
    aside = vector.double() - (vector.double() @ unit) * unit
    return unit, unit_vector(torch.where(aside.norm() > NEGLIGIBLE * vector.double().norm(), aside, 0.0))


def deviation_against(honest: Tensor) -> Tensor:
    """(P,) float64, the honest standard deviation against the sign of the honest mean."""
    spread: Tensor = honest.std(dim=0, correction=0) * honest.mean(dim=0).sign()
    return -spread.double()
