"""Attacks that need nothing but the client's own update."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_core.attacks.adversary import AdversaryView
from fl_core.attacks.base import ColludableAttack, check_finite, register_attack


@register_attack("scaling")
@dataclass(frozen=True)
class Scaling(ColludableAttack):
    """Sends ``factor · Δ`` (arXiv 2507.23638, "scaling"). Knows nothing of the other clients."""

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
    """Scales a random ``share`` of the coordinates by ``factor`` (arXiv 2507.23638, "partial scaling").

    Colluding clients scale the same coordinates. Knows nothing of the other clients.
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
    """Sends ``−scale · Δ``. Knows nothing of the other clients."""

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
    """Adds isotropic Gaussian noise whose expected norm is ``factor`` times that of the client's own update.

    Colluding clients add the same noise. Knows nothing of the other clients.
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("gaussian_noise", "factor", self.factor)

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.corrupt``."""
        rows = 1 if self.colluding else len(own)
        noise = torch.randn(rows, own.shape[1], generator=adversary.generator).to(own) / math.sqrt(own.shape[1])
        lengths: Tensor = own.norm(dim=1, keepdim=True)
        return own + self.factor * lengths * noise
