"""Min-max and min-sum: as far from the honest mean as the honest updates' own distances excuse, whatever the rule."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_core.aggregation.gram import squared_distances_of
from fl_core.attacks.base import register_attack
from fl_core.attacks.colluding import OmniscientAttack
from fl_core.registry import check_known

PERTURBATIONS = ("std", "sign", "unit")
# Elements of a chunk of columns, 2 MiB in float64: a copy of all updates would be twice as large as they are.
_CHUNK = 2**18


@dataclass(frozen=True)
class AGRAgnosticAttack(OmniscientAttack):
    """Sends ``μ + γ·p`` with the largest γ that a constraint on distances allows.

    Attributes:
        perturbation: p is the reverse of the honest updates' deviation ("std"), of their mean's signs ("sign") or of
            their mean at length 1 ("unit").
    """

    perturbation: str = "std"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_known("perturbation", [self.perturbation], PERTURBATIONS)

    @abstractmethod
    def gamma(self, honest: Tensor, direction: Tensor) -> float:
        """The largest γ for honest updates (H, P) and p (P,)."""

    def common(self, honest: Tensor, num_malicious: int) -> Tensor:
        """See ``OmniscientAttack.common``."""
        mean, direction = honest.mean(dim=0), perturbation(honest, self.perturbation)
        return mean + self.gamma(honest, direction) * direction


@register_attack("min_max")
@dataclass(frozen=True)
class MinMax(AGRAgnosticAttack):
    """Min-max: no further from any honest update than two honest ones are from each other.

    Formula: ``μ + γ·p``, the largest γ with max ‖μ + γp − Δᵢ‖ ≤ max ‖Δᵢ − Δⱼ‖; p is −σ, −sign μ or −μ/‖μ‖.
    Source: Shejwalkar & Houmansadr, NDSS 2021, the AGR-agnostic attack of this name.
    Checked against: the authors' bisection, written anew; the constraint holds at γ and fails at γ(1 + 10⁻³).

    γ is solved for instead of searched: the squared distances are parabolas in γ. The authors' search begins at 10, so
    it ends below 20 and at a resolution of 10⁻⁵, whatever the updates' scale; here there is no cap.

    Attributes:
        perturbation: p, "std", "sign" or "unit".
    """

    def gamma(self, honest: Tensor, direction: Tensor) -> float:
        """See ``AGRAgnosticAttack.gamma``."""
        return min_max_gamma(honest, direction)


@register_attack("min_sum")
@dataclass(frozen=True)
class MinSum(AGRAgnosticAttack):
    """Min-sum: no further from all honest updates together than one honest update is.

    Formula: ``μ + γ·p``, the largest γ with Σᵢ ‖μ + γp − Δᵢ‖² ≤ maxᵢ Σⱼ ‖Δᵢ − Δⱼ‖²; p is −σ, −sign μ or −μ/‖μ‖.
    Source: Shejwalkar & Houmansadr, NDSS 2021, the AGR-agnostic attack of this name.
    Checked against: the authors' bisection, written anew; the constraint holds at γ and fails at γ(1 + 10⁻³).

    γ is solved for as in min-max.

    Attributes:
        perturbation: p, "std", "sign" or "unit".
    """

    def gamma(self, honest: Tensor, direction: Tensor) -> float:
        """See ``AGRAgnosticAttack.gamma``."""
        return min_sum_gamma(honest, direction)


def perturbation(honest: Tensor, kind: str) -> Tensor:
    """p (P,) of honest updates (H, P)."""
    if kind == "std":
        return -honest.std(dim=0, correction=0)
    mean = honest.mean(dim=0)
    if kind == "sign":
        return -mean.sign()
    length = mean.double().norm()
    return -mean / torch.where(length > 0, length, 1.0).to(mean.dtype)


def min_max_gamma(honest: Tensor, direction: Tensor) -> float:
    """Largest γ with max ‖μ + γp − Δᵢ‖ ≤ max ‖Δᵢ − Δⱼ‖ over honest i, j.

    Args:
        honest: (H, P).
        direction: (P,) p; 0 gives γ = 0.
    """
    gram, along, square = _moments(honest, direction)
    return _largest(gram.diagonal(), along, square, squared_distances_of(gram).max())


def min_sum_gamma(honest: Tensor, direction: Tensor) -> float:
    """Largest γ with Σᵢ ‖μ + γp − Δᵢ‖² ≤ maxᵢ Σⱼ ‖Δᵢ − Δⱼ‖² over honest i, j.

    Args:
        honest: (H, P).
        direction: (P,) p; 0 gives γ = 0.
    """
    gram, along, square = _moments(honest, direction)
    limit = squared_distances_of(gram).sum(dim=1).max()
    return _largest(gram.trace()[None], along.sum()[None], len(honest) * square, limit)


def _moments(honest: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All that the distances are made of, float64, with oᵢ = μ − Δᵢ: oᵢ·oⱼ (H, H), oᵢ·p (H,) and ‖p‖² ()."""
    gram, along, square = torch.zeros(()), torch.zeros(()), torch.zeros(())
    width = max(_CHUNK // len(honest), 1)
    for rows, part in zip(honest.split(width, dim=1), direction.split(width), strict=True):
        exact, p = rows.double(), part.double()
        offsets = exact.mean(dim=0) - exact
        gram, along, square = gram + offsets @ offsets.T, along + offsets @ p, square + p @ p
    return gram, along, square


def _largest(constant: Tensor, along: Tensor, square: Tensor, limit: Tensor) -> float:
    """Largest γ with ``constant + 2·along·γ + square·γ² ≤ limit`` for each of the parabolas; 0 where none moves.

    The mean's distances (γ = 0) are never above the limit, so there is a root that is not negative.
    """
    if square == 0:
        return 0.0
    room = (limit - constant).clamp_min(0)
    root = (along.square() + square * room).sqrt()
    # The same root in two forms: each takes a difference of near numbers where the other takes a sum.
    sides = along + root
    gammas = torch.where(along > 0, room / torch.where(sides > 0, sides, 1.0), (root - along) / square)
    return float(gammas.min())
