"""Feature shift: every client sees the same kind of things through another camera."""

from dataclasses import dataclass
from math import cos, exp, pi, sin

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class FeatureShift:
    """How one client's images differ from the set's: contrast, brightness, blur, rotation, in this order.

    The kind of heterogeneity that local BatchNorm is meant for (Li et al. 2021, arXiv 2102.07623: same labels, other
    appearance). Acts on standardised images, so 1 is one standard deviation of the data.

    Attributes:
        contrast: Factor around the data's mean.
        brightness: Offset, in standard deviations.
        blur: Standard deviation of a Gaussian 3x3 kernel, in pixels; 0 for none.
        rotation: Angle in degrees, counter-clockwise; the corners are filled with the border's pixels.
    """

    contrast: float = 1.0
    brightness: float = 0.0
    blur: float = 0.0
    rotation: float = 0.0

    def __call__(self, images: Tensor) -> Tensor:
        """Shifts images, (..., C, H, W) float32 to a new tensor of the same shape."""
        flat = images.flatten(0, -4) if images.ndim > 3 else images[None]
        shifted = flat * self.contrast + self.brightness
        if self.blur > 0:
            shifted = _blurred(shifted, self.blur)
        if self.rotation:
            shifted = _rotated(shifted, self.rotation)
        return shifted.view(images.shape)


def draw_shift(generator: np.random.Generator, strength: float) -> FeatureShift:
    """A client's shift: log-contrast in ±0.7, brightness in ±0.7, blur in 0 to 1, rotation in ±30°, times strength.

    Raises:
        ValueError: A strength outside [0, 10].
    """
    check_strength(strength)
    contrast, brightness, blur, rotation = generator.uniform(-1, 1, size=4)
    return FeatureShift(
        contrast=exp(0.7 * strength * contrast),
        brightness=0.7 * strength * brightness,
        blur=strength * abs(blur),
        rotation=30.0 * strength * rotation,
    )


def check_strength(strength: float) -> None:
    """Raises a ValueError, if a strength is negative or beyond all recognition (contrast e^±7)."""
    if not 0 <= strength <= 10:
        raise ValueError(f"feature_shift must lie in [0, 10], got {strength}")


def _blurred(images: Tensor, sigma: float) -> Tensor:
    line = torch.tensor([exp(-0.5 / sigma**2), 1.0, exp(-0.5 / sigma**2)]).to(images.device)
    kernel = torch.outer(line, line) / line.sum() ** 2
    channels = images.shape[1]
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernel.expand(channels, 1, 3, 3), groups=channels)


def _rotated(images: Tensor, degrees: float) -> Tensor:
    angle = degrees * pi / 180
    height, width = images.shape[-2:]
    # Coordinates run from -1 to 1 along either side, so that of an image that is not square a plain turn is a shear.
    turn = torch.tensor(
        [[cos(angle), -sin(angle) * height / width, 0.0], [sin(angle) * width / height, cos(angle), 0.0]]
    )
    grid = F.affine_grid(turn.to(images.device)[None], [1, *images.shape[1:]], align_corners=False)
    return F.grid_sample(images, grid.expand(len(images), -1, -1, -1), padding_mode="border", align_corners=False)
