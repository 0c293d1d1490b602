"""Colluding attacks: every malicious client sends the same vector; here, one made from the honest updates."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import ClassVar

from torch import Tensor

from fl_core.attacks.adversary import AdversaryView, Knowledge
from fl_core.attacks.base import Attack, check_finite, check_jitter, disguise, register_attack


@dataclass(frozen=True)
class CoordinatedAttack(Attack):
    """The malicious clients agree on what they send, and may disguise that they do.

    Attributes:
        jitter: Length of the noise that each malicious client adds, relative to the length of what it sends.
    """

    jitter: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        check_jitter(type(self).__name__, self.jitter)

    def disguise(self, own: Tensor, adversary: AdversaryView) -> Callable[[Tensor], Tensor]:
        """Draws this round's noise for each of the own updates (f, P): what adds it to rows (f, P) to be sent.

        One that searches for what to send tries it out with the noise that it will be sent with.
        """
        return disguise(own, self.jitter, adversary.generator)


@dataclass(frozen=True)
class CommonVectorAttack(CoordinatedAttack):
    """All malicious clients send one vector, made from everything that the adversary has."""

    @abstractmethod
    def vector(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """The vector (P,) that all send, from own updates (f, P) and the honest ones (N − f, P)."""

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.corrupt``."""
        return self.sent(self.vector(own, honest, adversary), own, adversary)

    def sent(self, vector: Tensor, own: Tensor, adversary: AdversaryView) -> Tensor:
        """The vector (P,) in place of every own update (f, P), with the noise that each adds."""
        return self.disguise(own, adversary)(vector.to(own.dtype).expand_as(own))


@dataclass(frozen=True)
class OmniscientAttack(CommonVectorAttack):
    """The vector is made from the honest updates alone."""

    knows: ClassVar[Knowledge] = Knowledge.HONEST_UPDATES

    @abstractmethod
    def common(self, honest: Tensor, num_malicious: int) -> Tensor:
        """The vector (P,) that all malicious clients send, from the honest updates (N − f, P)."""

    def vector(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``CommonVectorAttack.vector``."""
        return self.common(honest, len(own))


@register_attack("alie")
@dataclass(frozen=True)
class ALIE(OmniscientAttack):
    """A Little Is Enough: as far from the mean as the few honest clients are that a majority needs.

    Formula: ``μ − z·σ`` with s = ⌊n/2⌋ + 1 − f supporters and z = Φ⁻¹((n − f − s)/(n − f)).
    Source: Baruch et al. 2019, arXiv 1902.06156, algorithm 3.
    Checked against: byzfl.ALittleIsEnough and byzpy's LittleAttack for their own z; z against a table of Φ.

    The paper's adversary estimates μ and σ from its own clients' updates, here it knows the honest ones'; the paper
    writes μ + z·σ, and the minus is its authors' code's. σ is the population's deviation, as in the authors' code
    (byzfl divides by n − f − 1). z is negative where few of many are malicious: the formula's share is then below a
    half. Where the malicious clients are a majority by themselves (s < 1), one supporter is assumed, which keeps z
    finite; where all honest clients are needed as supporters, z is 0. byzpy has z = Φ⁻¹((n − s)/n) instead, which
    counts the malicious among those to be convinced.

    Attributes:
        z: Fixed number of standard deviations; ``None`` takes the paper's formula.
    """

    z: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.z is not None:
            check_finite("alie", "z", self.z)

    def common(self, honest: Tensor, num_malicious: int) -> Tensor:
        """See ``OmniscientAttack.common``."""
        z = alie_z(len(honest) + num_malicious, num_malicious) if self.z is None else self.z
        return honest.mean(dim=0) - z * honest.std(dim=0, correction=0)


def alie_z(num_clients: int, num_malicious: int) -> float:
    """The z of ALIE's algorithm 3 for n clients of which f are malicious."""
    honest = num_clients - num_malicious
    supporters = max(num_clients // 2 + 1 - num_malicious, 1)
    share = (honest - supporters) / honest
    return NormalDist().inv_cdf(share) if 0.0 < share < 1.0 else 0.0


@register_attack("ipm")
@dataclass(frozen=True)
class IPM(OmniscientAttack):
    """Inner-product manipulation: the honest mean, reversed.

    Formula: ``−ε·μ``.
    Source: Xie et al. 2020, arXiv 1903.03936, section 4.
    Checked against: byzfl.InnerProductManipulation, byzpy's EmpireAttack.

    Above (n − f)/f it reverses the mean of all clients.

    Attributes:
        epsilon: ε.
    """

    epsilon: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("ipm", "epsilon", self.epsilon)

    def common(self, honest: Tensor, num_malicious: int) -> Tensor:
        """See ``OmniscientAttack.common``."""
        return -self.epsilon * honest.mean(dim=0)


@register_attack("ipm_small")
@dataclass(frozen=True)
class IPMSmall(IPM):
    """Inner-product manipulation by little: a short reversed mean, that distance-based rules take for the centre.

    Formula: ``−ε·μ``, ε 0.1.
    Source: Xie et al. 2020, arXiv 1903.03936, section 4; ε as in Karimireddy et al. 2022, arXiv 2006.09365.
    Checked against: byzfl.InnerProductManipulation, byzpy's EmpireAttack.

    A name of its own, so that a benchmark over names meets both ends of ε.

    Attributes:
        epsilon: ε.
    """

    epsilon: float = 0.1
