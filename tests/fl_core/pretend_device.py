"""A device that does not exist, for tests of what must run on a GPU where there is none.

Its tensors are tensors of the CPU that say they are elsewhere. As on a GPU, an operation between them and the CPU's is
an error (but for numbers, and indices, which PyTorch moves), nothing can be read without a copy to the host, and every
such copy is counted: on a GPU each would wait until all that was begun is done. Unlike fake tensors they have values.
"""

import collections
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend


class _Module(_DummyBackendModule):
    """What PyTorch asks of a device for as long as the process lives, in other tests too: it draws nothing."""

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        pass


_setup_privateuseone_for_python_backend("pretend", backend_module=_Module())

DEVICE = torch.device("pretend:0")
aten = torch.ops.aten
_INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
# Operations whose answer, or the shape of it, the host must know.
_READS = {
    aten._local_scalar_dense.default,
    aten.item.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.bincount.default,
}


# Operations that change the shape of their argument itself.
_RESHAPES = {aten.squeeze_.dim, aten.squeeze_.default, aten.squeeze_.dims, aten.unsqueeze_.default, aten.t_.default}


class _Elsewhere(Tensor):
    """A CPU tensor that says it is on the pretend device."""

    @staticmethod
    def __new__(cls, held: Tensor) -> "_Elsewhere":
        return Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} outside of `pretending()`")


class _Pretending(TorchDispatchMode):
    """Runs operations on the pretend device; ``reads`` counts the copies to the host, by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        elsewhere = any(isinstance(value, _Elsewhere) for value in tensors)
        wanted = kwargs.get("device")
        to_host = elsewhere and wanted is not None and torch.device(wanted).type == "cpu"
        if wanted is not None and torch.device(wanted).type == DEVICE.type:
            kwargs["device"], elsewhere = torch.device("cpu"), True
        if not elsewhere:
            return function(*args, **kwargs)
        if function not in (aten._to_copy.default, aten.copy_.default):
            self._check(function, args, tensors)
        if function in _READS or to_host:
            self.reads[str(function)] += 1
        given = tree_map(lambda value: value.held if isinstance(value, _Elsewhere) else value, (args, kwargs))
        result = function(*given[0], **given[1])
        if function in _RESHAPES:
            with no_dispatch():  # the outside takes the new shape too
                function(*args, **kwargs)
        if to_host or function in (aten._local_scalar_dense.default, aten.equal.default):
            return result
        return _wrapped(function, args, given[0], result)

    def _check(self, function, args, tensors: list[Tensor]) -> None:
        allowed = {id(value) for value in tree_flatten(args[1])[0]} if function in _INDEXING else set()
        for value in tensors:
            if not isinstance(value, _Elsewhere) and value.ndim and id(value) not in allowed:
                raise RuntimeError(f"{function}: expected all tensors to be on {DEVICE}, but found one on the CPU")


def _wrapped(function, args, given, result: Any) -> Any:
    """Results as tensors of the device; what was written in place is the argument itself."""
    same = {id(held): value for held, value in zip(given, args, strict=True) if isinstance(value, _Elsewhere)}
    if function.__name__.split(".")[0].endswith("_") and id(result) in same:
        return same[id(result)]
    return tree_map(
        lambda value: (
            (same[id(value)] if id(value) in same else _Elsewhere(value)) if isinstance(value, Tensor) else value
        ),
        result,
    )


@contextmanager
def pretending() -> Iterator[_Pretending]:
    """While active, ``torch.device("pretend")`` exists.

    A tensor that wraps another cannot be one of inference mode, so that is ``no_grad`` here.
    """
    with mock.patch("torch.inference_mode", torch.no_grad), _Pretending() as mode:
        yield mode
