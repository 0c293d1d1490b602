"""The networks that clients train. All but ResNet are an ``nn.Sequential``, which the stacked engine can read."""

import inspect
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fl_core.data.vision import import_torchvision
from fl_core.registry import Registry, check_known

_NETWORKS: Registry[nn.Module] = Registry("network")
register_network = _NETWORKS.register

ImageShape = tuple[int, int, int]


def network_names() -> list[str]:
    """Names that ``make_network`` accepts."""
    return sorted(_NETWORKS)


def make_network(name: str, image_shape: ImageShape, num_classes: int, seed: int = 0, **options: Any) -> nn.Module:
    """Builds a network with weights drawn from ``seed`` alone.

    PyTorch's layers draw their initial weights from the global generator; it is forked here, so the caller's random
    state is left as it was.

    Args:
        name: Registered name.
        image_shape: (C, H, W).
        num_classes: Width of the output.
        seed: Seed of the initial weights.
        **options: What the network takes, such as ``channels=(16, 32), hidden=64, norm="group"``.

    Raises:
        ValueError: Unknown name or option, or images too small for the network.
    """
    known = [key for key in inspect.signature(_NETWORKS[name]).parameters if key not in ("image_shape", "num_classes")]
    check_known(f"option of network {name!r}", options, known)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the caller's GPUs too
        return _NETWORKS.make(name, image_shape=image_shape, num_classes=num_classes, **options)


@register_network("mlp")
def mlp(
    image_shape: ImageShape, num_classes: int, hidden: Sequence[int] = (200, 200), norm: str = "batch"
) -> nn.Sequential:
    """Dense layers with normalisation and ReLU; the two of 200 are "2NN" of McMahan et al. 2017 (arXiv 1602.05629)."""
    _check_widths("hidden", hidden)
    _norm(norm, 1, nn.BatchNorm1d)  # an unknown one is an error without hidden layers too
    channels, height, width = image_shape
    features = channels * height * width
    layers: list[nn.Module] = [nn.Flatten()]
    for width_out in hidden:
        layers += [nn.Linear(features, width_out), *_norm(norm, width_out, nn.BatchNorm1d), nn.ReLU()]
        features = width_out
    return nn.Sequential(*layers, nn.Linear(features, num_classes))


@register_network("small_cnn")
def small_cnn(
    image_shape: ImageShape,
    num_classes: int,
    channels: Sequence[int] = (8, 16),
    hidden: int | None = None,
    norm: str = "batch",
) -> nn.Sequential:
    """Blocks of convolution 3x3, normalisation, ReLU, max-pool 2x2; then one or two dense layers.

    With the defaults and 8x8 grey images it has 1,922 parameters, 48 of them BatchNorm's.
    """
    _check_widths("channels", channels)
    _check_widths("hidden", [] if hidden is None else [hidden])
    in_channels, height, width = image_shape
    scale = 2 ** len(channels)
    if min(height, width) < scale:
        raise ValueError(f"small_cnn halves the image {len(channels)} times: {height}x{width} is too small")
    layers: list[nn.Module] = []
    for out_channels in channels:
        layers += [
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=norm == "none"),
            *_norm(norm, out_channels, nn.BatchNorm2d),
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


@register_network("lenet")
def lenet(image_shape: ImageShape, num_classes: int, norm: str = "batch") -> nn.Sequential:
    """LeNet-5 (LeCun et al. 1998): two convolutions 5x5, three dense layers; ReLU and max-pooling as is usual today."""
    in_channels, height, width = image_shape
    if min(height, width) < 16:
        raise ValueError(f"lenet needs images of at least 16x16, got {height}x{width}")
    layers: list[nn.Module] = []
    for out_channels, padding in ((6, 2), (16, 0)):
        layers += [
            nn.Conv2d(in_channels, out_channels, 5, padding=padding),
            *_norm(norm, out_channels, nn.BatchNorm2d),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        in_channels = out_channels
    features = in_channels * ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2)
    layers.append(nn.Flatten())
    for width_out in (120, 84):
        layers += [nn.Linear(features, width_out), nn.ReLU()]
        features = width_out
    return nn.Sequential(*layers, nn.Linear(features, num_classes))


@register_network("resnet18")
def resnet18(
    image_shape: ImageShape, num_classes: int, norm: str = "batch", weights: str | Path | None = None
) -> nn.Module:
    """torchvision's ResNet-18 (He et al. 2016, arXiv 1512.03385), 11.2M parameters.

    Images of at most 64 pixels get the CIFAR stem: one convolution 3x3 of stride 1, no pooling.

    Args:
        image_shape: (C, H, W).
        num_classes: Width of the output.
        norm: ``batch``, ``group`` or ``none``.
        weights: File with a state dict for torchvision's ResNet-18, such as the one trained on ImageNet. Layers of
            another shape (the classifier; the first convolution, where the stem differs) keep their random weights.
    """
    try:
        models = import_torchvision().models
    except ImportError as error:
        raise ValueError("network 'resnet18' needs torchvision: pip install 'optigradtrust[vision]'") from error
    channels, height, width = image_shape

    def norm_layer(width_out: int) -> nn.Module:
        return (_norm(norm, width_out, nn.BatchNorm2d) or [nn.Identity()])[0]

    network: Any = models.resnet18(num_classes=num_classes, norm_layer=norm_layer)
    if max(height, width) <= 64:
        network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    elif channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    if weights is not None:
        _load_matching(network, Path(weights))
    assert isinstance(network, nn.Module)
    return network


def _load_matching(network: nn.Module, path: Path) -> None:
    try:
        # weights_only: a state dict is data, and loading it runs no code.
        given = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"weights {path} cannot be read: {error}") from error
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"weights {path} is no file of torch.save(network.state_dict(), ...)") from error
    if not (isinstance(given, Mapping) and all(isinstance(value, Tensor) for value in given.values())):
        raise ValueError(f"weights {path} holds no state dict, a mapping from names to tensors")
    own = network.state_dict()
    matching = {name: value for name, value in given.items() if name in own and value.shape == own[name].shape}
    if not matching:
        raise ValueError(f"weights {path}: none of its {len(given)} tensors fits ResNet-18")
    network.load_state_dict({**own, **matching})


def _check_widths(name: str, widths: Sequence[int]) -> None:
    if any(width < 1 for width in widths):
        raise ValueError(f"{name}: a layer must be at least 1 wide, got {', '.join(map(str, widths))}")


def _norm(norm: str, width: int, batchnorm: Callable[[int], nn.Module]) -> list[nn.Module]:
    """The normalisation layer after ``width`` channels: none, or one of ``batch`` and ``group``."""
    kinds: dict[str, list[Callable[[int], nn.Module]]] = {"batch": [batchnorm], "group": [_group_norm], "none": []}
    check_known("norm", [norm], kinds)
    return [make(width) for make in kinds[norm]]


def _group_norm(width: int) -> nn.GroupNorm:
    """GroupNorm (Wu & He 2018, arXiv 1803.08494) with the most groups, up to 8, that divide the channels."""
    return nn.GroupNorm(max(groups for groups in range(1, 9) if width % groups == 0), width)
