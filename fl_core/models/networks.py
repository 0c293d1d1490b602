"""The networks that clients train. Each is an ``nn.Sequential``, which is what the stacked engine can read."""

from collections.abc import Sequence

import torch
from torch import nn

from fl_core.registry import Registry

_NETWORKS: Registry[nn.Sequential] = Registry("network")


def network_names() -> list[str]:
    """Names that ``make_network`` accepts."""
    return sorted(_NETWORKS)


def make_network(name: str, image_shape: tuple[int, int, int], num_classes: int, seed: int = 0) -> nn.Sequential:
    """Builds a network with weights drawn from ``seed`` alone.

    PyTorch's layers draw their initial weights from the global generator; it is forked here, so the caller's random
    state is left as it was.

    Args:
        name: Registered name.
        image_shape: (C, H, W).
        num_classes: Width of the output.
        seed: Seed of the initial weights.

    Raises:
        ValueError: Unknown name, or images too small for the network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _NETWORKS.make(name, image_shape=image_shape, num_classes=num_classes)


@_NETWORKS.register("small_cnn")
def small_cnn(
    image_shape: tuple[int, int, int], num_classes: int, channels: Sequence[int] = (8, 16), hidden: int | None = None
) -> nn.Sequential:
    """Blocks of convolution 3x3, BatchNorm, ReLU, max-pool 2x2; then one or two dense layers.

    With the defaults and 8x8 grey images it has 1,922 parameters, 48 of them BatchNorm's.
    """
    in_channels, height, width = image_shape
    scale = 2 ** len(channels)
    if min(height, width) < scale:
        raise ValueError(f"small_cnn halves the image {len(channels)} times: {height}x{width} is too small")
    layers: list[nn.Module] = []
    for out_channels in channels:
        layers += [
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        in_channels = out_channels
    features = in_channels * (height // scale) * (width // scale)
    layers.append(nn.Flatten())
    if hidden is not None:
        layers += [nn.Linear(features, hidden), nn.ReLU()]
        features = hidden
    return nn.Sequential(*layers, nn.Linear(features, num_classes))
