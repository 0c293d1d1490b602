"""Feature 0: how badly a VAE that knows only simulated honest updates reconstructs an update.

Encoder 512-256-128 and latent 64 on a 256-dimensional random projection: the sizes of arXiv 2507.23638, section 3.3.
"""

import copy
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_core.fingerprint.geometry import clip_to

SKETCH = 256
_HIDDEN = (512, 256, 128)
_LATENT = 64
# The sketch of an update as long as the reference has coordinates of about 1/√256; the network likes them near 1.
_GAIN = SKETCH**0.5
# Longer updates are cut to this many times the reference: beyond, squares overflow and the relative error is the same.
_FAR = 1e6
_KL_WEIGHT = 1e-3
_LEARNING_RATE = 1e-3
_BATCH = 64


class UpdateAutoencoder(nn.Module):
    """Variational autoencoder over sketches of updates, in units of the reference's norm.

    Args:
        num_parameters: P.
        generator: Source of the random projection and of the initial weights.
    """

    signs: Tensor
    typical_error: Tensor

    def __init__(self, num_parameters: int, generator: torch.Generator) -> None:
        super().__init__()
        padded = -(-num_parameters // SKETCH) * SKETCH
        signs = torch.randint(0, 2, (padded,), generator=generator) * 2.0 - 1.0
        self.register_buffer("signs", signs)
        self.register_buffer("typical_error", torch.ones(()))
        self.encoder = _dense(SKETCH, *_HIDDEN, generator=generator)
        self.latent = _linear(_HIDDEN[-1], 2 * _LATENT, generator)
        self.decoder = nn.Sequential(
            _dense(_LATENT, *reversed(_HIDDEN), generator=generator), _linear(_HIDDEN[0], SKETCH, generator)
        )

    def sketch(self, updates: Tensor, scale: Tensor) -> Tensor:
        """Random projection of updates in units of ``scale``: (N, P) to (N, 256).

        A signed fold: random signs, then the sum of every 256th coordinate (a count sketch, Charikar et al. 2002, with
        strided buckets). It preserves norms and cosines in expectation, in one pass and without a dense matrix.
        """
        scale = scale.clamp_min(torch.finfo(torch.float32).tiny)
        updates = clip_to(updates, _FAR * scale)
        padding = len(self.signs) - updates.shape[1]
        signed = F.pad(updates, (0, padding)) * self.signs
        folded = signed.view(len(updates), -1, SKETCH).sum(dim=1)
        return folded / scale

    @torch.enable_grad()
    def fit(self, sketches: Tensor, steps: int, generator: torch.Generator) -> None:
        """Trains on sketches of honest updates (M, 256) by Adam; deterministic for a generator."""
        optimizer = torch.optim.Adam(self.parameters(), lr=_LEARNING_RATE)
        for _ in range(steps):
            x = _GAIN * sketches[torch.randint(0, len(sketches), (_BATCH,), generator=generator)]
            mean, log_variance = self._encode(x)
            noise = torch.randn(mean.shape, generator=generator)
            reconstruction = self.decoder(mean + noise * (log_variance / 2).exp())
            divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(dim=1).mean()
            loss = (reconstruction - x).square().sum(dim=1).mean() / SKETCH + _KL_WEIGHT * divergence
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def calibrate(self, sketches: Tensor) -> None:
        """Sets ``typical_error`` to the median error on honest sketches that ``fit`` has not seen."""
        self.typical_error.copy_(self.error(sketches).median())

    @torch.no_grad()
    def error(self, sketches: Tensor) -> Tensor:
        """``‖x − VAE(x)‖² / ‖x‖²``, with the mean of the latent code: (N, 256) to (N,); 0 for a zero update."""
        x = _GAIN * sketches
        mean, _ = self._encode(x)
        energy = x.square().sum(dim=1)
        error = (self.decoder(mean) - x).square().sum(dim=1)
        return torch.where(energy > 0, error / energy.clamp_min(torch.finfo(torch.float32).tiny), 0.0)

    def refreshed(self, train: Tensor, calibration: Tensor, steps: int, generator: torch.Generator) -> Self:
        """A copy trained on from a warm start; this one is left as it is."""
        fresh = copy.deepcopy(self)
        fresh.fit(train, steps, generator)
        fresh.calibrate(calibration)
        return fresh

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.latent(self.encoder(x)).chunk(2, dim=1)
        return mean, log_variance.clamp(-10, 10)


def _dense(*widths: int, generator: torch.Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [_linear(width_in, width_out, generator), nn.ReLU()]
    return nn.Sequential(*layers)


def _linear(width_in: int, width_out: int, generator: torch.Generator) -> nn.Linear:
    """A dense layer with He-uniform weights from ``generator`` (PyTorch's own initialisation takes none)."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, width_in, width_out)
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
    nn.init.zeros_(layer.bias)
    return layer
