"""The stacked engine: the parameters of all clients in one tensor, no Python loop over clients.

M models of one architecture run as one network. Feature maps are stacked along the channels, (B, M·C, H, W), so a
convolution becomes a grouped one, BatchNorm one over M·C channels, and pooling and ReLU need no change; dense layers
are batched matrix products over (M, B, F). Feature maps are kept channels-last, where PyTorch's pooling is several
times faster on a CPU, and clients go through in blocks whose feature maps stay in the cache.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_core.models.parameters import ParameterLayout, layers_in_order
from fl_core.training.objective import Objective

# For 51 clients of 8x8 images, blocks of 6 and one stack of 51 were measured slower: more calls, or past the cache.
_BLOCK = 12
# On a GPU there is no such cache, and a call costs the same for many clients as for few: as many models as have so many
# pixels of images together (334 clients with batches of 32 28x28 images). Feature maps take tens of times the memory.
_PIXELS_ON_GPU = 2**23
# On the CPU, BatchNorm of channels-last maps adds the values of a channel one by one in float32: with more of them than
# this its variance is off by 1e-5 and more, a convolution's gradient by a hundred times as much.
_MOST_SUMMED = 2**14


@dataclass
class _Activation:
    """What flows between layers, for ``models`` stacked models.

    ``maps`` is (B, models·C, H, W), or (B, C, H, W) while all models still see the same input; ``vectors`` is
    (models, B, F). Exactly one of the two is set.
    """

    models: int
    maps: Tensor | None = None
    vectors: Tensor | None = None
    common: bool = False


class _Statistics(Enum):
    """How BatchNorm behaves in a pass."""

    TRAIN = auto()  # normalise by the batch, update the running statistics
    REESTIMATE = auto()  # normalise by the batch, replace the running statistics
    RUNNING = auto()  # normalise by the running statistics


@dataclass
class _Context:
    """Tensors of all layers and how BatchNorm behaves in this pass.

    Tensors of convolutions and BatchNorm have the models' axis merged into the channels, (M·C, ...), the form in which
    they are used; those of dense layers keep it, (M, ...).
    """

    tensors: dict[str, Tensor]
    statistics: _Statistics
    folded: frozenset[str] = frozenset()  # BatchNorm layers that are part of the convolution before them


_Layer = Callable[[nn.Module, str, _Activation, _Context], _Activation]


class StackedEngine:
    """Trains all clients at once.

    Needs an ``nn.Sequential`` (nested ones too) of Conv2d without groups, BatchNorm, GroupNorm, ReLU, MaxPool2d,
    Flatten and Linear. Add a function to ``_LAYERS`` to teach it another layer.

    Raises:
        ValueError: The network has another structure or another layer.
    """

    name = "stacked"

    def __init__(self, network: nn.Module, layout: ParameterLayout) -> None:
        layers = _sequence(network, "")
        _check_flattened_once(layers)
        self._layers = _pool_before_relu(layers)
        self._layout = layout
        self._merged = {
            f"{name}.{key}"
            for _, name, module in self._layers
            for key in module.state_dict()
            if isinstance(module, nn.Conv2d | nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm)
        }
        self._trainable = [entry.name for entry in layout.entries if entry.trainable]
        self._anchored = [entry.name for entry in layout.shared if entry.trainable]

    @torch.enable_grad()
    def train(
        self,
        shared: Tensor,
        local: Tensor,
        images: Tensor,
        labels: Tensor,
        *,
        objective: Objective,
        learning_rate: float,
    ) -> tuple[Tensor, Tensor]:
        """See ``Engine.train``."""
        blocks = _blocks(len(local), images[0, 0])
        trained = [
            self._train_block(shared, state, x, y, objective, learning_rate)
            for state, x, y in zip(local.chunk(blocks), images.chunk(blocks), labels.chunk(blocks), strict=True)
        ]
        return torch.cat([rows for rows, _ in trained]), torch.cat([rows for _, rows in trained])

    def _train_block(
        self, shared: Tensor, local: Tensor, images: Tensor, labels: Tensor, objective: Objective, learning_rate: float
    ) -> tuple[Tensor, Tensor]:
        models, steps, batch = labels.shape
        start = self._unpack(shared.expand(models, -1), local)
        tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in start.items()}
        weights = [tensors[name].requires_grad_() for name in self._trainable]
        anchored = [tensors[name] for name in self._anchored]
        origin = [start[name] for name in self._anchored]
        context = _Context(tensors, _Statistics.TRAIN)
        for step in range(steps):
            maps = images[:, step].transpose(0, 1).flatten(1, 2).contiguous(memory_format=torch.channels_last)
            outputs = self._forward(_Activation(models, maps=maps), context)
            # The sum over clients of each client's mean loss: no client's gradient touches another's weights.
            loss = objective.total_loss(outputs.flatten(0, 1), labels[:, step].flatten()) / batch
            gradients = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                if objective.mu:
                    pull = torch._foreach_sub(origin, anchored)
                    torch._foreach_add_(anchored, pull, alpha=learning_rate * objective.mu)
                torch._foreach_add_(weights, gradients, alpha=-learning_rate)
        trained, new_local = self._pack({name: value.detach() for name, value in tensors.items()}, models)
        return trained - shared, new_local

    def _unpack(self, shared: Tensor, local: Tensor) -> dict[str, Tensor]:
        tensors = self._layout.unpack(shared, local)
        return {name: value.flatten(0, 1) if name in self._merged else value for name, value in tensors.items()}

    def _pack(self, tensors: dict[str, Tensor], models: int) -> tuple[Tensor, Tensor]:
        return self._layout.pack(
            {name: v.unflatten(0, (models, -1)) if name in self._merged else v for name, v in tensors.items()}
        )

    def logits(self, shared: Tensor, local: Tensor, images: Tensor) -> Tensor:
        """See ``Engine.logits``."""
        return self._run(shared, local, images, _Statistics.RUNNING)[0]

    def reestimate(self, shared: Tensor, local: Tensor, images: Tensor) -> Tensor:
        """See ``Engine.reestimate``; differentiable in ``shared`` too."""
        return self._run(shared, local, images, _Statistics.REESTIMATE)[1]

    def _run(self, shared: Tensor, local: Tensor, images: Tensor, statistics: _Statistics) -> tuple[Tensor, Tensor]:
        images = _channels_last(images)
        blocks = _blocks(len(shared), images)
        outputs, states = [], []
        for rows, state in zip(shared.chunk(blocks), local.chunk(blocks), strict=True):
            context = _Context(self._unpack(rows, state), statistics)
            if statistics is _Statistics.RUNNING:
                context = self._fold(context)
            outputs.append(self._forward(_Activation(len(rows), maps=images, common=True), context))
            if statistics is _Statistics.REESTIMATE:
                states.append(self._pack(context.tensors, len(rows))[1])
        return torch.cat(outputs), torch.cat(states) if states else local

    def _fold(self, context: _Context) -> _Context:
        """Multiplies each BatchNorm with fixed statistics into the convolution before it."""
        tensors, folded = dict(context.tensors), set()
        for (_, conv, before), (_, name, module) in pairwise(self._layers):
            if isinstance(before, nn.Conv2d) and isinstance(module, nn.BatchNorm2d):
                scale, shift = _affine(
                    name, module, context, tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"]
                )
                bias = tensors.get(f"{conv}.bias")
                tensors[f"{conv}.weight"] = tensors[f"{conv}.weight"] * scale[:, None, None, None]
                tensors[f"{conv}.bias"] = shift if bias is None else shift + scale * bias
                folded.add(name)
        return _Context(tensors, context.statistics, frozenset(folded))

    def _forward(self, activation: _Activation, context: _Context) -> Tensor:
        for layer, name, module in self._layers:
            activation = layer(module, name, activation, context)
        assert activation.vectors is not None
        return activation.vectors


def _blocks(models: int, images: Tensor) -> int:
    """How many blocks to run models in that each have ``images`` (B, C, H, W) for input."""
    block = _BLOCK if images.device.type == "cpu" else max(_PIXELS_ON_GPU // max(images.numel(), 1), 1)
    return -(-models // block)


def _conv2d(module: nn.Module, name: str, x: _Activation, context: _Context) -> _Activation:
    assert isinstance(module, nn.Conv2d)
    assert x.maps is not None
    weight, bias = context.tensors[f"{name}.weight"], context.tensors.get(f"{name}.bias")
    groups = 1 if x.common else x.models
    maps = F.conv2d(x.maps, weight, bias, module.stride, module.padding, module.dilation, groups)
    return _Activation(x.models, maps=maps)


def _batchnorm1d(module: nn.Module, name: str, x: _Activation, context: _Context) -> _Activation:
    return _as_maps(_batchnorm, module, name, x, context)


def _as_maps(layer: _Layer, module: nn.Module, name: str, x: _Activation, context: _Context) -> _Activation:
    """Runs a layer of feature maps on vectors, as on maps of one pixel."""
    assert x.vectors is not None
    maps = x.vectors.transpose(0, 1).flatten(1)[:, :, None, None]
    result = layer(module, name, _Activation(x.models, maps=maps), context).maps
    assert result is not None
    return _Activation(x.models, vectors=result.view(len(maps), x.models, -1).transpose(0, 1))


def _groupnorm(module: nn.Module, name: str, x: _Activation, context: _Context) -> _Activation:
    assert isinstance(module, nn.GroupNorm)
    if x.vectors is not None:
        return _as_maps(_groupnorm, module, name, x, context)
    assert x.maps is not None
    maps = x.maps.repeat(1, x.models, 1, 1) if x.common else x.maps
    weight, bias = context.tensors[f"{name}.weight"], context.tensors[f"{name}.bias"]
    return _Activation(x.models, maps=F.group_norm(maps, x.models * module.num_groups, weight, bias, module.eps))


def _batchnorm(module: nn.Module, name: str, x: _Activation, context: _Context) -> _Activation:
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    assert x.maps is not None
    maps = x.maps.repeat(1, x.models, 1, 1) if x.common else x.maps
    mean, variance = context.tensors[f"{name}.running_mean"], context.tensors[f"{name}.running_var"]
    if context.statistics is _Statistics.TRAIN:
        momentum = module.momentum or 0.0
        return _Activation(x.models, maps=_normalised(name, module, context, maps, mean, variance, momentum))
    if name in context.folded:
        return x
    if context.statistics is _Statistics.REESTIMATE and not maps.requires_grad:
        # With momentum 1 the batch's statistics replace the running ones.
        mean, variance = torch.zeros_like(mean), torch.ones_like(variance)
        context.tensors[f"{name}.running_mean"], context.tensors[f"{name}.running_var"] = mean, variance
        return _Activation(x.models, maps=_normalised(name, module, context, maps, mean, variance, 1.0))
    # Spelled out, several times slower, where a gradient is wanted: F.batch_norm is not differentiable in the
    # statistics that it is given or takes.
    if context.statistics is _Statistics.REESTIMATE:
        unbiased, mean = torch.var_mean(maps, dim=(0, 2, 3))
        context.tensors[f"{name}.running_mean"], context.tensors[f"{name}.running_var"] = mean, unbiased
        count = maps.numel() / maps.shape[1]
        variance = unbiased * ((count - 1) / count)
    scale, shift = _affine(name, module, context, mean, variance)
    return _Activation(x.models, maps=torch.addcmul(shift[:, None, None], maps, scale[:, None, None]))


def _normalised(
    name: str,
    module: nn.BatchNorm1d | nn.BatchNorm2d,
    context: _Context,
    maps: Tensor,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
) -> Tensor:
    """Maps normalised by their own statistics, which are written into ``mean`` and ``variance`` with this momentum."""
    weight, bias = context.tensors[f"{name}.weight"], context.tensors[f"{name}.bias"]
    many = maps.device.type == "cpu" and maps.numel() > _MOST_SUMMED * maps.shape[1]
    result = F.batch_norm(maps.contiguous() if many else maps, mean, variance, weight, bias, True, momentum, module.eps)
    return result.contiguous(memory_format=torch.channels_last) if many else result


def _affine(
    name: str, module: nn.BatchNorm1d | nn.BatchNorm2d, context: _Context, mean: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor]:
    """BatchNorm with given statistics as ``scale · x + shift``, each (M·C,)."""
    # A hostile update may have pushed a shared running variance below zero.
    scale = context.tensors[f"{name}.weight"] * torch.rsqrt(variance.clamp_min(0) + module.eps)
    return scale, context.tensors[f"{name}.bias"] - mean * scale


def _channels_last(images: Tensor) -> Tensor:
    """Channels-last in a way that convolutions recognise.

    With one channel both layouts are the same memory, and PyTorch keeps the strides of the contiguous one, by which
    the convolution then chooses the layout of its output.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    _, channels, height, width = images.shape
    strides = (height * width * channels, 1, width * channels, channels)
    return images.as_strided(images.shape, strides)


def _relu(module: nn.Module, name: str, x: _Activation, context: _Context) -> _Activation:
    if x.maps is not None:
        return _Activation(x.models, maps=F.relu(x.maps), common=x.common)
    assert x.vectors is not None
    return _Activation(x.models, vectors=F.relu(x.vectors))


def _max_pool2d(module: nn.Module, name: str, x: _Activation, context: _Context) -> _Activation:
    assert x.maps is not None
    return _Activation(x.models, maps=module(x.maps), common=x.common)


def _flatten(module: nn.Module, name: str, x: _Activation, context: _Context) -> _Activation:
    if x.maps is None:  # vectors already
        return x
    if x.common:
        return _Activation(x.models, vectors=x.maps.flatten(1).expand(x.models, -1, -1))
    # Stacked channels (B, M·C, H, W) to a row of features for each model and sample, (M, B, C·H·W).
    return _Activation(x.models, vectors=x.maps.reshape(len(x.maps), x.models, -1).transpose(0, 1))


def _linear(module: nn.Module, name: str, x: _Activation, context: _Context) -> _Activation:
    assert isinstance(module, nn.Linear)
    assert x.vectors is not None
    weight = context.tensors[f"{name}.weight"].transpose(1, 2)
    if f"{name}.bias" not in context.tensors:
        return _Activation(x.models, vectors=torch.bmm(x.vectors, weight))
    bias = context.tensors[f"{name}.bias"].unsqueeze(1)
    return _Activation(x.models, vectors=torch.baddbmm(bias, x.vectors, weight))


_LAYERS: dict[type[nn.Module], _Layer] = {
    nn.Conv2d: _conv2d,
    nn.BatchNorm1d: _batchnorm1d,
    nn.BatchNorm2d: _batchnorm,
    nn.GroupNorm: _groupnorm,
    nn.ReLU: _relu,
    nn.MaxPool2d: _max_pool2d,
    nn.Flatten: _flatten,
    nn.Linear: _linear,
}


_OF_MAPS = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d)
_OF_VECTORS = (nn.Linear, nn.BatchNorm1d)

_NamedLayer = tuple[_Layer, str, nn.Module]


def _pool_before_relu(layers: list[_NamedLayer]) -> list[_NamedLayer]:
    """Swaps each ReLU with a max-pooling that follows: the same outputs and gradients, a quarter of ReLU's work."""
    layers = list(layers)
    for i in range(len(layers) - 1):
        if isinstance(layers[i][2], nn.ReLU) and isinstance(layers[i + 1][2], nn.MaxPool2d):
            layers[i], layers[i + 1] = layers[i + 1], layers[i]
    return layers


def _sequence(network: nn.Module, prefix: str) -> list[_NamedLayer]:
    if not isinstance(network, nn.Sequential):
        raise ValueError(
            f"the stacked engine runs an nn.Sequential of {', '.join(kind.__name__ for kind in _LAYERS)} with the "
            f"usual options (no groups, zero padding, affine BatchNorm with running statistics, Flatten from axis 1); "
            f"got {type(network).__name__}{f' at {prefix!r}' if prefix else ''}. Use engine='sequential'."
        )
    layers: list[_NamedLayer] = []
    for key, module in layers_in_order(network):
        name = f"{prefix}.{key}" if prefix else key
        layers += [(_LAYERS[type(module)], name, module)] if _is_supported(module) else _sequence(module, name)
    return layers


def _check_flattened_once(layers: list[_NamedLayer]) -> None:
    """Maps before the first Flatten, vectors after it; a dense layer of maps would act on each of their rows."""
    maps = True
    for _, name, module in layers:
        if isinstance(module, _OF_VECTORS if maps else _OF_MAPS):
            raise ValueError(
                f"the stacked engine runs {' and '.join(kind.__name__ for kind in _OF_MAPS)} before Flatten, "
                f"{' and '.join(kind.__name__ for kind in _OF_VECTORS)} after it; got {type(module).__name__} at "
                f"{name!r}. Use engine='sequential'."
            )
        maps = maps and not isinstance(module, nn.Flatten)
    if maps:
        raise ValueError("the stacked engine runs a network that ends in vectors, and this one has no Flatten")


def _is_supported(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d) and (module.groups > 1 or module.padding_mode != "zeros"):
        return False
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and not (
        module.affine and module.track_running_stats and module.momentum is not None
    ):
        return False
    if isinstance(module, nn.GroupNorm) and not module.affine:
        return False
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
        return False
    return type(module) in _LAYERS
