"""Which of a network's tensors are shared with the server and which stay local; flat vectors and back.

Read from the modules, not from names: with ``local_batchnorm`` (FedBN, Li et al. 2021, arXiv 2102.07623) the affine
parameters *and* the running statistics of every BatchNorm layer stay local. Without it every floating-point tensor
of the network is shared, running statistics included.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class Entry:
    """One tensor of the network.

    Attributes:
        name: Name in the module's state dict.
        shape: Shape of the tensor.
        trainable: A parameter; otherwise a running statistic.
        shared: Part of what is sent; otherwise local.
    """

    name: str
    shape: torch.Size
    trainable: bool
    shared: bool

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.shape.numel()


class ParameterLayout:
    """The order of a network's tensors in two flat vectors: ``shared`` (P,) and ``local`` (L,).

    Args:
        network: The network to read.
        local_batchnorm: BatchNorm stays local (FedBN); otherwise everything floating-point is shared.

    Raises:
        ValueError: A parameter that is frozen, or that two layers have in common: the engines would train it.
    """

    def __init__(self, network: nn.Module, *, local_batchnorm: bool) -> None:
        _check_parameters(network)
        self.local_batchnorm = local_batchnorm
        self.entries = tuple(_entries(network, local_batchnorm))

    @cached_property
    def shared(self) -> tuple[Entry, ...]:
        """Entries of the shared vector, in order."""
        return tuple(entry for entry in self.entries if entry.shared)

    @cached_property
    def local(self) -> tuple[Entry, ...]:
        """Entries of the local vector, in order."""
        return tuple(entry for entry in self.entries if not entry.shared)

    @cached_property
    def num_shared(self) -> int:
        """P."""
        return sum(entry.size for entry in self.shared)

    @cached_property
    def num_local(self) -> int:
        """L."""
        return sum(entry.size for entry in self.local)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the shared vector's parameters, in order; their sum is P."""
        return tuple(entry.size for entry in self.shared)

    def initial(self, network: nn.Module) -> tuple[Tensor, Tensor]:
        """The network's present values as vectors: shared (P,) and local (L,)."""
        state = {name: value.detach().unsqueeze(0) for name, value in network.state_dict().items()}
        shared, local = self.pack(state)
        return shared[0], local[0]

    def unpack(self, shared: Tensor, local: Tensor) -> dict[str, Tensor]:
        """Cuts matrices into tensors.

        Args:
            shared: (M, P), one row a model.
            local: (M, L).

        Returns:
            For each entry's name a view of shape (M, *entry.shape).
        """
        return {**_cut(shared, self.shared), **_cut(local, self.local)}

    def pack(self, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The inverse of ``unpack``: tensors (M, *shape) to shared (M, P) and local (M, L)."""
        return _join(tensors, self.shared), _join(tensors, self.local)


def layers_in_order(network: nn.Sequential) -> list[tuple[str, nn.Module]]:
    """The layers of a sequence by name, as often as it runs them: ``named_children`` tells one that is used twice once.

    Raises:
        ValueError: They are not all that it does: a subclass has a forward pass of its own, or a layer has hooks (as
            ``spectral_norm`` sets them). Or one that is used twice has parameters or buffers: they have one name in a
            layout.
    """
    _check_runs_its_layers(network)
    seen: dict[int, str] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        first = seen.setdefault(id(module), name) if own else name
        if first != name:
            raise ValueError(
                f"layers {first!r} and {name!r} of the network are one {type(module).__name__}, whose parameters both "
                "use; only engine='sequential' runs that"
            )
    return list(zip(network._modules, network, strict=True))


def _check_runs_its_layers(network: nn.Sequential) -> None:
    if type(network).forward is not nn.Sequential.forward:
        raise ValueError(
            f"{type(network).__name__} is an nn.Sequential with a forward pass of its own; only engine='sequential' "
            "runs that"
        )
    for name, module in network.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        if any(hooks) or "forward" in vars(module):
            at = f"layer {name!r} of the network" if name else "the network"
            raise ValueError(
                f"{at}, a {type(module).__name__}, has hooks or a replaced forward pass; only engine='sequential' runs "
                "that"
            )


def _check_parameters(network: nn.Module) -> None:
    names: dict[int, str] = {}
    for module_name, module in network.named_modules():  # a layer that is used twice has one name, and is none of these
        for own, parameter in module.named_parameters(prefix=module_name, recurse=False):
            first = names.setdefault(id(parameter), own)
            if first != own:
                raise ValueError(f"{first} and {own} of the network are one tensor: a model has each parameter once")
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    if frozen:
        raise ValueError(
            f"{len(frozen)} parameters of the network are frozen, the first is {frozen[0]}: they would be trained and "
            "sent as the others are; make a network of the trainable layers, and feed it what the frozen ones put out"
        )


def _entries(network: nn.Module, local_batchnorm: bool) -> Iterator[Entry]:
    for module_name, module in network.named_modules():
        shared = not (local_batchnorm and isinstance(module, _BatchNorm))
        prefix = f"{module_name}." if module_name else ""
        for name, parameter in module.named_parameters(recurse=False):
            yield Entry(prefix + name, parameter.shape, trainable=True, shared=shared)
        for name, buffer in module.named_buffers(recurse=False):
            # One that is not saved with the model is no part of it, but a constant.
            if buffer.is_floating_point() and name not in module._non_persistent_buffers_set:
                yield Entry(prefix + name, buffer.shape, trainable=False, shared=shared)


def _cut(matrix: Tensor, entries: tuple[Entry, ...]) -> dict[str, Tensor]:
    pieces = matrix.split([entry.size for entry in entries], dim=1)
    return {e.name: piece.unflatten(1, e.shape) for e, piece in zip(entries, pieces, strict=True)}


def _join(tensors: dict[str, Tensor], entries: tuple[Entry, ...]) -> Tensor:
    if not entries:
        anything = next(iter(tensors.values()))
        return anything.new_zeros(len(anything), 0)
    return torch.cat([tensors[entry.name].flatten(1) for entry in entries], dim=1)
