"""The one place that imports torchvision.

The torchvision wheel on the package registry is linked against a CUDA build of torch. Beside a CPU build its compiled
extension does not load, and ``import torchvision`` dies while it registers shape functions for operators that are
therefore missing ("operator torchvision::nms does not exist") — although data sets, transforms and models are pure
Python. ``import_torchvision`` lets exactly those registrations fail. On a matched install it changes nothing.
"""

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch


def import_torchvision() -> ModuleType:
    """Imports torchvision; without its compiled operators where they do not match the installed torch.

    Raises:
        ImportError: torchvision is not installed.
    """
    if "torchvision" in sys.modules:
        return sys.modules["torchvision"]
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    _forget_half_imported()
    with _tolerate_missing_operators(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to load image Python extension", category=UserWarning)
        return importlib.import_module("torchvision")


def _forget_half_imported() -> None:
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]


@contextmanager
def _tolerate_missing_operators() -> Iterator[None]:
    """While active, registering a fake kernel for an operator ``torchvision::*`` that does not exist is a no-op."""
    original = torch.library.register_fake

    @functools.wraps(original)
    def register_fake(op: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(op, str) and op.startswith("torchvision::") and not _operator_exists(op):
            return lambda function: function
        return original(op, *args, **kwargs)

    _set_register_fake(register_fake)
    try:
        yield
    finally:
        _set_register_fake(original)


def _operator_exists(name: str) -> bool:
    namespace, operator = name.split("::")
    return hasattr(getattr(torch.ops, namespace), operator)


def _set_register_fake(function: Callable[..., Any]) -> None:
    torch.library.register_fake = function
