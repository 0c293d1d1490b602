"""The native engine: the ``Engine`` protocol over the C++ library."""

import ctypes

import torch
from torch import Tensor, nn

from fl_core.models.parameters import ParameterLayout
from fl_core.training.native.architecture import read_architecture
from fl_core.training.native.library import NetworkStructure, call, require
from fl_core.training.objective import Objective
from fl_core.training.stacked import StackedEngine


class NativeEngine:
    """Trains one client at a time on each thread, every tensor of it in the cache.

    Runs float32 on the CPU, for networks of the ``small_cnn`` family, on ``torch.get_num_threads()`` threads; a
    client's result does not depend on their number. What it cannot do goes to the stacked engine: other dtypes, other
    devices, losses other than cross-entropy, and calls in which a gradient is wanted (gradients enabled and an
    argument that requires one).

    Raises:
        ValueError: The library is not built, or the network is not of the family.
    """

    name = "native"

    def __init__(self, network: nn.Module, layout: ParameterLayout) -> None:
        self._architecture = read_architecture(network)
        require()
        self._layout = layout
        self._structures: dict[tuple[int, int], NetworkStructure] = {}
        self._stacked = StackedEngine(network, layout)

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
        """See ``Engine.train``.

        Raises:
            ValueError: Shapes do not fit each other or the network, or a label is out of range.
        """
        if not _is_native(shared, local, images) or objective.loss != "cross_entropy":
            return self._stacked.train(shared, local, images, labels, objective=objective, learning_rate=learning_rate)
        clients = len(local) if local.ndim else 0
        _check("shared", shared, (self._layout.num_shared,))
        _check("local", local, (None, self._layout.num_local))
        _check("images", images, (clients, None, None, None, None, None))
        _check("labels", labels, tuple(images.shape[:3]))
        if labels.dtype != torch.int64 or labels.device.type != "cpu":
            raise ValueError(f"labels must be int64 on the CPU, got {labels.dtype} on {labels.device}")
        network = self._network(images)
        shared, local, images, labels = (t.detach().contiguous() for t in (shared, local, images, labels))
        updates, new_local = shared.new_empty(clients, len(shared)), torch.empty_like(local)
        _, steps, batch = labels.shape
        call(
            "optigrad_train",
            *(ctypes.byref(network), *map(Tensor.data_ptr, (shared, local, images, labels)), clients, steps, batch),
            *(learning_rate, objective.mu, torch.get_num_threads(), updates.data_ptr(), new_local.data_ptr()),
        )
        return updates, new_local

    def logits(self, shared: Tensor, local: Tensor, images: Tensor) -> Tensor:
        """See ``Engine.logits``.

        Raises:
            ValueError: Shapes do not fit each other or the network.
        """
        if not _is_native(shared, local, images):
            return self._stacked.logits(shared, local, images)
        self._check_models(shared, local, images)
        logits = shared.new_empty(shared.shape[0], images.shape[0], self._architecture.classes)
        self._evaluate("optigrad_logits", shared, local, images, logits)
        return logits

    def reestimate(self, shared: Tensor, local: Tensor, images: Tensor) -> Tensor:
        """See ``Engine.reestimate``.

        Raises:
            ValueError: Shapes do not fit each other or the network, or there is no image.
        """
        if not _is_native(shared, local, images):
            return self._stacked.reestimate(shared, local, images)
        self._check_models(shared, local, images)
        if not len(images):
            raise ValueError("statistics need at least one image, got none")
        new_local = torch.empty_like(local, memory_format=torch.contiguous_format)
        self._evaluate("optigrad_reestimate", shared, local, images, new_local)
        return new_local

    def _evaluate(self, function: str, shared: Tensor, local: Tensor, images: Tensor, result: Tensor) -> None:
        network = self._network(images)
        models = [tensor.detach().contiguous() for tensor in (shared, local, images)]
        pointers = [tensor.data_ptr() for tensor in models]
        counts = shared.shape[0], images.shape[0], torch.get_num_threads()
        call(function, ctypes.byref(network), *pointers, *counts, result.data_ptr())

    def _check_models(self, shared: Tensor, local: Tensor, images: Tensor) -> None:
        _check("shared", shared, (None, self._layout.num_shared))
        _check("local", local, (shared.shape[0], self._layout.num_local))
        _check("images", images, (None, None, None, None), empty=0)

    def _network(self, images: Tensor) -> NetworkStructure:
        """The structure for images of this size; made once, because filling it costs as much as a small kernel."""
        channels, height, width = images.shape[-3:]
        known = self._architecture
        features = known.channels[1] * (height // 4) * (width // 4)
        if channels != known.image_channels or features != known.features:
            raise ValueError(
                f"images are {channels}x{height}x{width}; the network takes {known.image_channels} channels and a size "
                f"that leaves {known.features} features after two poolings, here {features}"
            )
        if (height, width) not in self._structures:
            self._structures[height, width] = known.structure(self._layout, height, width)
        return self._structures[height, width]


def _is_native(*tensors: Tensor) -> bool:
    wants_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    on_cpu = all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
    return on_cpu and not wants_gradient


def _check(name: str, tensor: Tensor, shape: tuple[int | None, ...], empty: int | None = None) -> None:
    """Raises a ValueError unless a tensor has this shape; None is any length but zero, save on the axis ``empty``."""
    fits = tensor.ndim == len(shape) and all(
        have == want if want is not None else have > 0 or axis == empty
        for axis, (have, want) in enumerate(zip(tensor.shape, shape, strict=True))
    )
    if not fits:
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise ValueError(f"{name} must be of shape ({wanted}), none of them zero, got {tuple(tensor.shape)}")
