"""Feature 0: how badly a VAE that knows only simulated honest updates reconstructs an update.

Encoder 512-256-128 and latent 64 on a 256-dimensional random projection: the sizes of arXiv 2507.23638, section 3.3.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from fl_core.fingerprint import geometry, native
from fl_core.fingerprint.geometry import SKETCH

_HIDDEN = (512, 256, 128)
_LATENT = 64
# The sketch of an update as long as the reference has coordinates of about 1/√256; the network likes them near 1.
_GAIN = SKETCH**0.5
# Longer updates are cut to this many times the reference: beyond, squares overflow and the relative error is the same.
_FAR = 1e6
_KL_WEIGHT = 1e-3
# Small, as training begins at the optimum of the linear network.
_LEARNING_RATE = 1e-4
_BATCH = 64
# Variance of a direction at which its code may as well be half noise: the loss of noise s² is variance·s²/256 plus
# _KL_WEIGHT·½(s² − log s²), smallest at s² = 1/(1 + variance/_WORTH).
_WORTH = SKETCH * _KL_WEIGHT / 2


class UpdateAutoencoder(nn.Module):
    """Variational autoencoder over sketches of updates, in units of the reference's norm.

    Args:
        num_parameters: P.
        generator: Source of the random projection.
    """

    signs: Tensor
    typical_error: Tensor

    def __init__(self, num_parameters: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("signs", torch.randint(0, 2, (num_parameters,), generator=generator) * 2.0 - 1.0)
        self.register_buffer("typical_error", torch.ones(()))
        self.encoder = _dense(SKETCH, *_HIDDEN)
        self.latent = _linear(_HIDDEN[-1], 2 * _LATENT)
        self.decoder = nn.Sequential(_dense(_LATENT, *reversed(_HIDDEN)), _linear(_HIDDEN[0], SKETCH))
        encoder, (*decoder, last) = _linear_layers(self.encoder), _linear_layers(self.decoder)
        # What a sketch goes through on its way to its reconstruction; of the latent layer the first half, the mean.
        self._chain = [
            *((layer, layer.out_features, True) for layer in encoder),
            (self.latent, _LATENT, False),
            *((layer, layer.out_features, True) for layer in decoder),
            (last, SKETCH, False),
        ]

    def sketch(self, updates: Tensor, scale: Tensor) -> Tensor:
        """Random projection of updates in units of ``scale``: (N, P) to (N, 256), see ``geometry.fold``."""
        return in_units(geometry.fold(updates, self.signs), geometry.norms(updates), scale)

    def fit(self, sketches: Tensor, steps: int, generator: torch.Generator) -> None:
        """Trains on sketches of honest updates (M, 256); deterministic for a generator.

        Adam begins at the optimum of the *linear* VAE, which is known: the principal directions (Lucas et al. 2019,
        "Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse"). From random weights it did not come
        near to it, with the few hundred updates that a server can afford to simulate: it answered zero.
        """
        self._start_linear(sketches)
        self._descend(sketches, steps, generator)

    @torch.no_grad()
    def calibrate(self, sketches: Tensor) -> None:
        """Sets ``typical_error`` to the median error on honest sketches that ``fit`` has not seen."""
        self.typical_error.copy_(geometry.median(self.error(sketches)))

    @torch.no_grad()
    def error(self, sketches: Tensor) -> Tensor:
        """``‖x − VAE(x)‖² / ‖x‖²``, with the mean of the latent code: (N, 256) to (N,); 0 for a zero update."""
        if native.serves(sketches, self.latent.weight):  # the other layers are of its dtype and where it is
            return native.reconstruction_errors(self._chain, _GAIN, sketches)
        x = _GAIN * sketches
        mean, _ = self._encode(x)
        energy = x.square().sum(dim=1)
        error = (self.decoder(mean) - x).square().sum(dim=1)
        return torch.where(energy > 0, error / energy.clamp_min(torch.finfo(torch.float32).tiny), 0.0)

    @torch.no_grad()
    def _start_linear(self, sketches: Tensor) -> None:
        """Writes the linear VAE's optimum into the weights: code k is the k-th principal direction, whitened.

        A layer of 2n ReLUs carries n numbers unchanged, as their positive and negative parts: with hidden layers of
        512, 256 and 128 the first 256, 128 and 64 directions. Such a network is homogeneous: it knows an update at any
        length, and honest updates do shrink along a run.
        """
        x = (_GAIN * sketches).double()
        # On the CPU whatever the device is: each library chooses the directions' signs in its own way.
        variance, directions = (part.to(x.device) for part in torch.linalg.eigh((x.T @ x / len(x)).cpu()))
        variance = variance.flip(0)[:_LATENT].clamp_min(_WORTH / 10).float()
        directions = directions.flip(1).T.float()
        deviation = variance.sqrt()[:, None]

        encoder, decoder = _linear_layers(self.encoder), _linear_layers(self.decoder)
        for layer in [*encoder, self.latent, *decoder]:
            layer.bias.zero_()
        encoder[0].weight.copy_(torch.cat([directions, -directions]))
        for layer in encoder[1:]:
            layer.weight.copy_(_carry(layer))
        identity = torch.eye(_LATENT, device=deviation.device)
        first = torch.cat([identity, -identity])
        self.latent.weight.zero_()
        self.latent.weight[:_LATENT] = first.T / deviation
        self.latent.bias[_LATENT:] = -(1 + variance / _WORTH).log()
        decoder[0].weight.copy_(first * deviation.T)
        for layer in decoder[1:-1]:
            layer.weight.copy_(_carry(layer))
        decoder[-1].weight.copy_(torch.cat([directions, -directions]).T)

    @torch.enable_grad()
    def _descend(self, sketches: Tensor, steps: int, generator: torch.Generator) -> None:
        optimizer = torch.optim.Adam(self.parameters(), lr=_LEARNING_RATE)
        for _ in range(steps):
            x = _GAIN * sketches[torch.randint(0, len(sketches), (_BATCH,), generator=generator).to(sketches.device)]
            mean, log_variance = self._encode(x)
            noise = torch.randn(mean.shape, generator=generator).to(mean.device)
            reconstruction = self.decoder(mean + noise * (log_variance / 2).exp())
            divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(dim=1).mean()
            loss = (reconstruction - x).square().sum(dim=1).mean() / SKETCH + _KL_WEIGHT * divergence
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.latent(self.encoder(x)).chunk(2, dim=1)
        return mean, log_variance.clamp(-10, 10)


def in_units(folded: Tensor, lengths: Tensor, scale: Tensor) -> Tensor:
    """Sketches in units of ``scale``: folded updates (N, 256) float64 and their norms (N,) to (N, 256) float32."""
    scale = scale.double().clamp_min(torch.finfo(torch.float32).tiny)
    factors = geometry.clip_factors(lengths, _FAR * scale) / scale
    return (folded * factors[:, None]).to(torch.float32)


def _linear_layers(layers: nn.Module) -> list[nn.Linear]:
    return [layer for layer in layers.modules() if isinstance(layer, nn.Linear)]


def _carry(layer: nn.Linear) -> Tensor:
    """Weights that carry as many numbers as fit, as positive and negative parts, from one layer of ReLUs to the next.

    ReLU's input is the number itself, so it is put together from its two parts and taken apart again.
    """
    part = torch.eye(layer.out_features // 2, layer.in_features // 2, device=layer.weight.device)
    return torch.cat([torch.cat([part, -part], dim=1), torch.cat([-part, part], dim=1)])


def _dense(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [_linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers)


def _linear(width_in: int, width_out: int) -> nn.Linear:
    """A dense layer of zeros: PyTorch's own initialisation draws from the global generator."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, width_in, width_out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
