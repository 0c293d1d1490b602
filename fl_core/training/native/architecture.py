"""Reads a network of the ``small_cnn`` family: what the C++ side must know of it, or why it cannot run it."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from fl_core.models.parameters import ParameterLayout, layers_in_order
from fl_core.training.native.library import NetworkStructure, TensorPlace

KNOWN = (
    "an nn.Sequential of two blocks Conv2d (3x3, stride 1, padding 1) - BatchNorm2d - ReLU - MaxPool2d(2), then "
    "Flatten and Linear or Linear - ReLU - Linear; images of 1 or 3 channels, 1 to 64 channels in a block, "
    "1 to 1000 classes"
)
_MAX_CHANNELS, _MAX_CLASSES = 64, 1000
_BLOCK = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d)
_HEADS = ((nn.Flatten, nn.Linear), (nn.Flatten, nn.Linear, nn.ReLU, nn.Linear))
_CONVOLUTION = ("weight", "bias")
_BATCHNORM = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Architecture:
    """Sizes and tensor names of a network of this family.

    Attributes:
        names: Of the tensors in the order of ``Network::tensors``; None for one that the network does not have.
    """

    image_channels: int
    channels: tuple[int, int]
    features: int
    hidden: int
    classes: int
    epsilon: tuple[float, float]
    momentum: tuple[float, float]
    names: tuple[str | None, ...]

    def structure(self, layout: ParameterLayout, height: int, width: int) -> NetworkStructure:
        """What the C++ side takes, for images of (height, width)."""
        places = _places(layout)
        structure = NetworkStructure(
            image_channels=self.image_channels,
            height=height,
            width=width,
            channels=self.channels,
            hidden=self.hidden,
            classes=self.classes,
            epsilon=self.epsilon,
            momentum=self.momentum,
            num_shared=layout.num_shared,
            num_local=layout.num_local,
        )
        for i, name in enumerate(self.names):
            structure.tensors[i] = places[name] if name else TensorPlace()
        return structure


def read_architecture(network: nn.Module) -> Architecture:
    """Reads the layers.

    Raises:
        ValueError: The network is not of the family; the message says what is.
    """
    layers = list(_layers(network, ""))
    kinds = tuple(type(module) for _, module in layers)
    if not any(kinds == 2 * _BLOCK + head for head in _HEADS):
        raise _refusal(" - ".join(kind.__name__ for kind in kinds))
    for name, module in layers:
        if not _is_plain(module):
            raise _refusal(f"{module} at {name!r}")
    return _describe(layers)


def _describe(layers: list[tuple[str, nn.Module]]) -> Architecture:
    convolutions = [module for _, module in layers if isinstance(module, nn.Conv2d)]
    batchnorms = [module for _, module in layers if isinstance(module, nn.BatchNorm2d)]
    dense = [(name, module) for name, module in layers if isinstance(module, nn.Linear)]
    channels = convolutions[0].out_channels, convolutions[1].out_channels
    if convolutions[0].in_channels not in (1, 3) or max(channels) > _MAX_CHANNELS:
        raise _refusal(f"convolutions from {convolutions[0].in_channels} to {channels[0]} to {channels[1]} channels")
    if not 1 <= dense[-1][1].out_features <= _MAX_CLASSES:
        raise _refusal(f"{dense[-1][1].out_features} classes")
    names: list[str | None] = []
    for name, module in layers:
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            keys = _CONVOLUTION if isinstance(module, nn.Conv2d) else _BATCHNORM
            names += [_named(name, module, key) for key in keys]
    if len(dense) == 1:
        names += [None, None]
    names += [_named(name, module, key) for name, module in dense for key in ("weight", "bias")]
    return Architecture(
        image_channels=convolutions[0].in_channels,
        channels=channels,
        features=dense[0][1].in_features,
        hidden=dense[0][1].out_features if len(dense) == 2 else 0,
        classes=dense[-1][1].out_features,
        epsilon=(batchnorms[0].eps, batchnorms[1].eps),
        momentum=(_momentum(batchnorms[0]), _momentum(batchnorms[1])),
        names=tuple(names),
    )


def _layers(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    if not isinstance(module, nn.Sequential):
        yield name, module
        return
    for key, child in layers_in_order(module):
        yield from _layers(child, f"{name}.{key}" if name else key)


def _is_plain(module: nn.Module) -> bool:
    """Whether the options of a layer are those that the kernels are written for."""
    if isinstance(module, nn.Conv2d):
        return (
            module.kernel_size == (3, 3)
            and module.stride == (1, 1)
            and module.dilation == (1, 1)
            and module.padding in ((1, 1), "same")
            and module.padding_mode == "zeros"
            and module.groups == 1
        )
    if isinstance(module, nn.BatchNorm2d):
        return module.affine and module.track_running_stats and module.momentum is not None
    if isinstance(module, nn.MaxPool2d):
        options = (_pair(module.kernel_size), _pair(module.stride), _pair(module.padding), _pair(module.dilation))
        return options == ((2, 2), (2, 2), (0, 0), (1, 1)) and not (module.ceil_mode or module.return_indices)
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    return True


def _momentum(batchnorm: nn.BatchNorm2d) -> float:
    assert batchnorm.momentum is not None  # ``_is_plain`` has looked
    return batchnorm.momentum


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _named(name: str, module: nn.Module, key: str) -> str | None:
    return None if getattr(module, key) is None else f"{name}.{key}"


def _places(layout: ParameterLayout) -> dict[str, TensorPlace]:
    places = {}
    for holder, entries in ((1, layout.shared), (2, layout.local)):
        offset = 0
        for entry in entries:
            places[entry.name] = TensorPlace(offset=offset, holder=holder)
            offset += entry.size
    return places


def _refusal(found: str) -> ValueError:
    return ValueError(f"the native engine runs {KNOWN}; got {found}. Use engine='stacked' or 'sequential'.")
