"""Attacks that need nothing but the client's own update."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_core.attacks.adversary import AdversaryView
from fl_core.attacks.base import Attack, ColludableAttack, check_finite, register_attack


@register_attack("scaling")
@dataclass(frozen=True)
class Scaling(ColludableAttack):
    """Sends its update many times over.

    Formula: ``factor · Δ``.
    Source: arXiv 2507.23638, "scaling".
    Checked against: numpy.

    Knows nothing of the other clients.

    Attributes:
        factor: How many times.
    """

    factor: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("scaling", "factor", self.factor)

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.corrupt``."""
        return self.factor * own


@register_attack("partial_scaling")
@dataclass(frozen=True)
class PartialScaling(ColludableAttack):
    """Scales a random part of the coordinates.

    Formula: ``factor · Δ`` in a random share of the coordinates, ``Δ`` in the others.
    Source: arXiv 2507.23638, "partial scaling".
    Checked against: the two values that a coordinate may take, and how often it takes each.

    Colluding clients scale the same coordinates. Knows nothing of the other clients.

    Attributes:
        factor: How many times.
        share: Probability of a coordinate to be scaled.
    """

    factor: float = 10.0
    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("partial_scaling", "factor", self.factor)
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"partial_scaling: share must lie in [0, 1], got {self.share}")

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.corrupt``."""
        rows = 1 if self.colluding else len(own)
        chosen = torch.rand(rows, own.shape[1], generator=adversary.generator).to(own.device) < self.share
        return torch.where(chosen, self.factor * own, own)


@register_attack("sign_flip")
@dataclass(frozen=True)
class SignFlip(ColludableAttack):
    """Sends the reverse of its update.

    Formula: ``−scale · Δ``.
    Source: Li et al. 2019 (RSA), arXiv 1811.03761; arXiv 2507.23638, "sign flipping".
    Checked against: byzfl.SignFlipping (one client's own update), byzpy's SignFlipAttack.

    Knows nothing of the other clients.

    Attributes:
        scale: How long the reverse is, relative to the update.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("sign_flip", "scale", self.scale)

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.corrupt``."""
        return -self.scale * own


@register_attack("gaussian_noise")
@dataclass(frozen=True)
class GaussianNoise(ColludableAttack):
    """Adds isotropic Gaussian noise to its update.

    Formula: ``Δ + factor · ‖Δ‖/√P · ξ`` with ξ standard normal, so the noise is ``factor · ‖Δ‖`` long in expectation.
    Source: arXiv 2507.23638, "noise".
    Checked against: length, mean and correlations of the noise.

    Colluding clients add the same noise. Knows nothing of the other clients.

    Attributes:
        factor: Length of the noise, relative to the update.
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("gaussian_noise", "factor", self.factor)

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.corrupt``."""
        return own + self.factor * _lengths(own) * _directions(own, self.colluding, adversary.generator)


@register_attack("random_direction")
@dataclass(frozen=True)
class RandomDirection(ColludableAttack):
    """Sends a random vector in place of its update.

    Formula: ``factor · ‖Δ‖/√P · ξ`` with ξ standard normal.
    Source: Blanchard et al. 2017, arXiv 1703.02757 (their Gaussian Byzantine has one deviation for all models: 200).
    Checked against: length, and correlation with the update.

    Colluding clients send the same vector. Knows nothing of the other clients.

    Attributes:
        factor: Its length in expectation, relative to the update.
    """

    factor: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("random_direction", "factor", self.factor)

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.corrupt``."""
        return self.factor * _lengths(own) * _directions(own, self.colluding, adversary.generator)


@register_attack("same_value")
@dataclass(frozen=True)
class SameValue(ColludableAttack):
    """Sends one and the same number in every coordinate.

    Formula: ``factor · ‖Δ‖/√P · 1``.
    Source: Li et al. 2019 (RSA), arXiv 1811.03761 (there the number itself is given: 100).
    Checked against: numpy.

    Knows nothing of the other clients.

    Attributes:
        factor: Length of what is sent, relative to the update; below 0 the number is negative.
    """

    factor: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("same_value", "factor", self.factor)

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.corrupt``."""
        return (self.factor * _lengths(own) / math.sqrt(own.shape[1])).expand_as(own)


@register_attack("zero")
@dataclass(frozen=True)
class Zero(Attack):
    """Sends zeros: takes part and contributes nothing.

    Formula: ``0``.
    Source: Fraboni et al. 2021, arXiv 2006.11901 (the plain free-rider).
    Checked against: the definition.

    Knows nothing of the other clients. Under an average it costs speed, not direction.
    """

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.corrupt``."""
        return torch.zeros_like(own)


def _lengths(own: Tensor) -> Tensor:
    """(f, 1), lengths of the updates (f, P)."""
    lengths: Tensor = own.norm(dim=1, keepdim=True)
    return lengths


def _directions(own: Tensor, shared: bool, generator: torch.Generator) -> Tensor:
    """Isotropic noise of expected length 1: (1, P) for colluding clients, else a row for each of (f, P)."""
    rows = 1 if shared else len(own)
    return torch.randn(rows, own.shape[1], generator=generator).to(own) / math.sqrt(own.shape[1])
