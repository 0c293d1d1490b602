"""Omniscient colluding attacks: every malicious client sends the same vector, made from the honest updates."""

from abc import abstractmethod
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import ClassVar

import torch
from torch import Tensor

from fl_core.attacks.adversary import AdversaryView, Knowledge
from fl_core.attacks.base import Attack, check_finite, check_jitter, jittered, register_attack


@dataclass(frozen=True)
class OmniscientAttack(Attack):
    """Knows all honest updates; all malicious clients send ``common``.

    Attributes:
        jitter: Length of the noise that each malicious client adds, relative to the length of what it sends.
    """

    knows: ClassVar[Knowledge] = Knowledge.HONEST_UPDATES
    jitter: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        check_jitter(type(self).__name__, self.jitter)

    @abstractmethod
    def common(self, honest: Tensor, num_malicious: int) -> Tensor:
        """The vector (P,) that all malicious clients send, from the honest updates (N − f, P)."""

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.corrupt``."""
        return jittered(self.common(honest, len(own)).expand_as(own), self.jitter, adversary.generator)


@register_attack("alie")
@dataclass(frozen=True)
class ALIE(OmniscientAttack):
    """A Little Is Enough: ``μ − z·σ`` (Baruch et al. 2019, arXiv 1902.06156, algorithm 3).

    With s = ⌊n/2⌋ + 1 − f supporters needed, z = Φ⁻¹((n − f − s)/(n − f)). Where the malicious clients are a majority
    by themselves (s < 1), one supporter is assumed, which keeps z finite.

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
    """Inner-product manipulation: ``−ε·μ`` (Xie et al. 2020, arXiv 1903.03936, section 4).

    Attributes:
        epsilon: Above 1 it reverses the mean of few clients, below it hides among the honest ones.
    """

    epsilon: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("ipm", "epsilon", self.epsilon)

    def common(self, honest: Tensor, num_malicious: int) -> Tensor:
        """See ``OmniscientAttack.common``."""
        return -self.epsilon * honest.mean(dim=0)


@register_attack("min_max")
@dataclass(frozen=True)
class MinMax(OmniscientAttack):
    """AGR-agnostic min-max: ``μ + γ·p`` (Shejwalkar & Houmansadr, NDSS 2021, equation 7).

    p = −σ, the paper's inverse standard deviation. γ is the largest for which the malicious update is no further from
    any honest one than two honest ones are from each other; found by bisection in float64, without a cap.
    """

    def common(self, honest: Tensor, num_malicious: int) -> Tensor:
        """See ``OmniscientAttack.common``."""
        mean, direction = honest.mean(dim=0), -honest.std(dim=0, correction=0)
        return mean + min_max_gamma(honest, direction) * direction


def min_max_gamma(honest: Tensor, direction: Tensor, tolerance: float = 1e-6) -> float:
    """Largest γ with max ‖μ + γp − Δᵢ‖ ≤ max ‖Δᵢ − Δⱼ‖ over honest i, j.

    Args:
        honest: (H, P).
        direction: (P,) p; 0 gives γ = 0.
        tolerance: Relative width of the last bracket.
    """
    rows, p = honest.double(), direction.double()
    limit = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").max()
    if p.norm() == 0 or limit == 0:
        return 0.0
    offsets = rows.mean(dim=0) - rows
    # ‖offset + γp‖² is a parabola in γ for each honest client: three numbers a client instead of P.
    constant, linear, square = offsets.square().sum(dim=1), 2 * offsets @ p, p.square().sum()

    def holds(gamma: float) -> bool:
        return bool((constant + gamma * linear + gamma**2 * square).max() <= limit**2)

    low, high = 0.0, 1.0
    while holds(high):
        low, high = high, 2 * high
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
