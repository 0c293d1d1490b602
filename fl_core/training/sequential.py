"""The reference engine: one client after the other, plain PyTorch, any network."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fl_core.models.parameters import ParameterLayout
from fl_core.training.objective import Objective

_STATISTICS = ("running_mean", "running_var")


class SequentialEngine:
    """Trains the clients in a Python loop. Slow, short, and what the other engines are tested against.

    Raises:
        ValueError: A network with dropout.
    """

    name = "sequential"

    def __init__(self, network: nn.Module, layout: ParameterLayout) -> None:
        for name, module in network.named_modules():
            # Dropout by itself, and attention and recurrent layers that drop on the way.
            p = module.p if isinstance(module, _DropoutNd) else getattr(module, "dropout", 0)
            if isinstance(p, int | float) and p > 0:
                raise ValueError(
                    f"layer {name!r} is {module}: what it drops comes from torch's global generator, so equal seeds "
                    "would not give equal rounds; leave it out, or set p=0"
                )
        self._network = copy.deepcopy(network)
        self._layout = layout
        # Counters, which a layout leaves out and training moves: a client begins with the network's, not with those
        # of the client before.
        buffers = dict(copy.deepcopy(network).named_buffers())
        self._counters = {name: value for name, value in buffers.items() if not value.is_floating_point()}

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
        trained = [
            self._train_client(shared, client_local, x, y, objective, learning_rate)
            for client_local, x, y in zip(local, images, labels, strict=True)
        ]
        return torch.stack([row for row, _ in trained]) - shared, torch.stack([row for _, row in trained])

    def _train_client(
        self, shared: Tensor, local: Tensor, images: Tensor, labels: Tensor, objective: Objective, learning_rate: float
    ) -> tuple[Tensor, Tensor]:
        network = self._converted(shared).train()
        start = {name: value[0] for name, value in self._layout.unpack(shared[None], local[None]).items()}
        network.load_state_dict({**self._counters, **start}, strict=False)
        anchored = [e.name for e in self._layout.shared if e.trainable]
        optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate)
        for x, y in zip(images, labels, strict=True):
            optimizer.zero_grad()
            (objective.total_loss(self._outputs(x), y) / len(y)).backward()
            for name in anchored:
                # The gradient of the proximal term in closed form, mu·(w − w_global), rather than through autograd.
                weight = network.get_parameter(name)
                if weight.grad is None:  # the forward pass does not use it
                    weight.grad = torch.zeros_like(weight)
                weight.grad.add_(weight.detach() - start[name], alpha=objective.mu)
            optimizer.step()
        return self._layout.initial(network)

    def _converted(self, like: Tensor) -> nn.Module:
        """The network with the dtype and on the device of a tensor."""
        if not torch.is_inference_mode_enabled():
            return self._network.to(like)
        with torch.inference_mode(mode=False):  # parameters that were made in inference mode could not be trained later
            return self._network.to(like)

    def _outputs(self, x: Tensor) -> Tensor:
        """What the network makes of a training batch."""
        outputs: Tensor = self._network(x)
        return outputs

    def logits(self, shared: Tensor, local: Tensor, images: Tensor) -> Tensor:
        """See ``Engine.logits``."""
        network = self._converted(shared).eval()
        models = self._layout.unpack(shared, local)
        for name, module in network.named_modules():
            if isinstance(module, _BatchNorm) and module.track_running_stats:
                # A hostile update may have pushed a shared running variance below zero.
                models[f"{name}.running_var"] = models[f"{name}.running_var"].clamp_min(0)
        outputs = []
        for m in range(len(shared)):
            row = {name: value[m] for name, value in models.items()}
            with _gradient_through_statistics(network, row) as tensors:
                outputs.append(functional_call(network, tensors, (images,)))
        return torch.stack(outputs)

    def reestimate(self, shared: Tensor, local: Tensor, images: Tensor) -> Tensor:
        """See ``Engine.reestimate``."""
        network = self._converted(shared).train()
        models = self._layout.unpack(shared, local)
        rows = []
        for m in range(len(shared)):
            # functional_call hands the very tensors of this dict to the modules, which write statistics into them; what
            # they write has no gradient, so the statistics are taken from the modules' inputs.
            row = {name: value[m].clone() for name, value in models.items()}
            row |= {entry.name: row[entry.name].detach() for entry in self._layout.entries if not entry.trainable}
            with _input_statistics(network) as statistics:
                functional_call(network, row, (images,))
            tensors = {name: value[None] for name, value in (row | statistics).items()}
            rows.append(self._layout.pack(tensors)[1][0])
        return torch.stack(rows)


@contextmanager
def _gradient_through_statistics(network: nn.Module, row: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Tensors for a pass with running statistics; while active, statistics that want a gradient get one.

    PyTorch's BatchNorm refuses such statistics. It is given detached ones, and its output is replaced by the same
    numbers, spelled out.
    """

    def spelled_out(name: str) -> Callable[[_BatchNorm, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(module: _BatchNorm, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            shape = [1, -1] + [1] * (inputs[0].ndim - 2)
            mean, variance = (row[f"{name}.{key}"].view(shape) for key in ("running_mean", "running_var"))
            normalised = (inputs[0] - mean) * torch.rsqrt(variance + module.eps)
            if not module.affine:
                return normalised
            return normalised * row[f"{name}.weight"].view(shape) + row[f"{name}.bias"].view(shape)

        return hook

    wanted = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and row[f"{name}.running_mean"].requires_grad
    ]
    detached = {f"{name}.{key}": row[f"{name}.{key}"].detach() for name, _ in wanted for key in _STATISTICS}
    handles = [module.register_forward_hook(spelled_out(name)) for name, module in wanted]
    try:
        yield row | detached
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _input_statistics(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """While active, a dict that each BatchNorm's input fills with running statistics as momentum 1 would leave them."""
    statistics: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            channels_first = inputs[0].transpose(0, 1).flatten(1)
            variance, mean = torch.var_mean(channels_first, dim=1)
            statistics.update({f"{name}.running_mean": mean, f"{name}.running_var": variance})

        return hook

    handles = [
        module.register_forward_pre_hook(keep(name))
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    try:
        yield statistics
    finally:
        for handle in handles:
            handle.remove()
