"""The fingerprint's sums in the native library: the same figures as by PyTorch, without its cost of a call.

With ten clients and two thousand parameters a fingerprint is a chain of operations that each take less time than
PyTorch takes to begin one. What is here is what their definitions in ``geometry``, ``autoencoder`` and ``shapley`` come
to; those run where ``serves`` says no: where the library is not built, and on other devices.
"""

import ctypes
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from fl_core.training.native import library

_SKETCH = 256  # kSketch in src/fingerprint.hpp


class _DenseLayer(ctypes.Structure):
    """``DenseLayer`` of src/fingerprint.hpp."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("relu", ctypes.c_int64),
    )


class _Autoencoder(ctypes.Structure):
    """``Autoencoder`` of src/fingerprint.hpp."""

    _fields_ = (
        ("layers", ctypes.POINTER(_DenseLayer)),
        ("num_layers", ctypes.c_int64),
        ("widest", ctypes.c_int64),
        ("gain", ctypes.c_float),
    )


def serves(*tensors: Tensor) -> bool:
    """Whether the library is there and takes these tensors: contiguous float32 on the CPU, none empty, no gradient."""
    plain = all(
        tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.numel() > 0
        for tensor in tensors
    )
    return plain and library.is_built() and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))


def norms(updates: Tensor) -> Tensor:
    """``geometry.norms``: (N, P) to (N,) float64."""
    _declare()
    lengths = updates.new_empty(len(updates), dtype=torch.float64)
    library.call("optigrad_norms", updates.data_ptr(), *updates.shape, torch.get_num_threads(), lengths.data_ptr())
    return lengths


def measure(updates: Tensor, reference: Tensor, signs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``geometry.measure``, in the order of the fields of ``Geometry``.

    Args:
        updates: (N, P) float32.
        reference: (P,) float32.
        signs: (P,) or longer, float32 of ±1.
    """
    _declare()
    clients, size = updates.shape
    _check("updates", updates, (clients, size), torch.float32)
    _check("reference", reference, (size,), torch.float32)
    _check("signs", signs[:size], (size,), torch.float32)
    # The reference is measured like one more client, in the last place; of that only its norm is used.
    figures = updates.new_empty(4, clients + 1, dtype=torch.float64)
    folded = updates.new_empty(clients + 1, _SKETCH, dtype=torch.float64)
    library.call(
        "optigrad_geometry",
        *(updates.data_ptr(), reference.data_ptr(), signs.data_ptr(), clients, size, torch.get_num_threads()),
        *(figures.data_ptr(), folded.data_ptr()),
    )
    lengths, root, peer, share = figures[:, :clients].unbind()
    return lengths, root, peer, share, folded[:clients], figures[0, clients:]


def reconstruction_errors(layers: Sequence[tuple[nn.Linear, int, bool]], gain: float, sketches: Tensor) -> Tensor:
    """``‖x − network(x)‖² / ‖x‖²`` of x = gain · sketch: (N, D) to (N,) float32; 0 for a sketch of zeros.

    Args:
        layers: Dense layers in order, how many of their outputs count, and whether a ReLU follows.
        gain: What a sketch is multiplied by first.
        sketches: (N, D) float32.
    """
    _declare()
    _check("sketches", sketches, (len(sketches), layers[0][0].in_features), torch.float32)
    chain = (_DenseLayer * len(layers))(
        *(
            _DenseLayer(layer.weight.data_ptr(), layer.bias.data_ptr(), layer.in_features, outputs, relu)
            for layer, outputs, relu in layers
        )
    )
    network = _Autoencoder(chain, len(layers), max(outputs for _, outputs, _ in layers), gain)
    errors = sketches.new_empty(len(sketches))
    library.call(
        "optigrad_reconstruction_errors",
        *(ctypes.byref(network), sketches.data_ptr(), len(sketches), torch.get_num_threads(), errors.data_ptr()),
    )
    return errors


def probes(shared: Tensor, updates: Tensor, clip: Tensor) -> Tensor:
    """The models that ``SurrogateShapley`` evaluates: (P,), (N, P), and (N,) float64 to (N + 2, P) float32."""
    _declare()
    clients, size = updates.shape
    _check("shared", shared, (size,), torch.float32)
    _check("updates", updates, (clients, size), torch.float32)
    _check("clip", clip, (clients,), torch.float64)
    models = updates.new_empty(clients + 2, size)
    library.call(
        "optigrad_probes",
        *(shared.data_ptr(), updates.data_ptr(), clip.data_ptr(), clients, size, models.data_ptr()),
    )
    return models


def surrogate_shapley(logits: Tensor, labels: Tensor, cap: float, weights: Sequence[float]) -> Tensor:
    """``SurrogateShapley`` from its probes' logits: (N,) float64.

    Args:
        logits: (N + 2, V, C) float32 of the models of nobody, of everybody and of each client alone.
        labels: (V,) int64 on the CPU.
        cap: Largest loss that one sample may count.
        weights: The four of ``_QuadraticWeights``.
    """
    _declare()
    models, samples, classes = logits.shape
    _check("logits", logits, (models, samples, classes), torch.float32)
    _check("labels", labels, (samples,), torch.int64)
    shapley = logits.new_empty(models - 2, dtype=torch.float64)
    library.call(
        "optigrad_surrogate",
        *(logits.data_ptr(), labels.data_ptr(), models - 2, samples, classes, cap),
        *((ctypes.c_double * 4)(*weights), shapley.data_ptr()),
    )
    return shapley


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """What is read by its address has to be what the library takes it for."""
    if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(
            f"{name} must be contiguous {dtype} of shape {shape} on the CPU, got {tensor.dtype} of shape "
            f"{tuple(tensor.shape)} and strides {tensor.stride()} on {tensor.device}"
        )


def _declare() -> None:
    _declare_in(library.require())


@cache
def _declare_in(kernels: ctypes.CDLL) -> None:
    """Once for each library that is loaded: undeclared, a pointer would be passed as half of itself."""
    pointer, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    kernels.optigrad_norms.argtypes = (pointer, count, count, ctypes.c_int, pointer)
    kernels.optigrad_geometry.argtypes = (*(pointer,) * 3, count, count, ctypes.c_int, pointer, pointer)
    kernels.optigrad_reconstruction_errors.argtypes = (
        *(ctypes.POINTER(_Autoencoder), pointer, count, ctypes.c_int, pointer),
    )
    kernels.optigrad_probes.argtypes = (*(pointer,) * 3, count, count, pointer)
    kernels.optigrad_surrogate.argtypes = (*(pointer,) * 2, *(count,) * 3, number, *(pointer,) * 2)
