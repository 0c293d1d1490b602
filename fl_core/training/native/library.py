"""The shared library: where it lies, what it takes, and its errors as Python's.

It is called through ctypes, which lets go of the interpreter's lock for the duration of a call.
"""

import ctypes
import hashlib
import os
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

_ABI_VERSION = 4  # kAbiVersion in src/engine.cpp
_BLOCKS = 2
_TENSORS = 16
_HOW_TO_BUILD = (
    "install a C++ compiler (GCC or Clang) and run `pip install -e .` (or `python setup.py build_ext --inplace`) "
    "again, or use engine='auto'"
)
_ERRORS: dict[int, type[Exception]] = {1: ValueError, 2: MemoryError}


class TensorPlace(ctypes.Structure):
    """``TensorPlace`` of src/network.hpp: where a tensor lies in a flat vector. Holder: 0 none, 1 shared, 2 local."""

    _fields_ = (("offset", ctypes.c_int64), ("holder", ctypes.c_int32), ("padding", ctypes.c_int32))


class NetworkStructure(ctypes.Structure):
    """``Network`` of src/network.hpp."""

    _fields_ = (
        ("image_channels", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("channels", ctypes.c_int64 * _BLOCKS),
        ("hidden", ctypes.c_int64),
        ("classes", ctypes.c_int64),
        ("epsilon", ctypes.c_double * _BLOCKS),
        ("momentum", ctypes.c_double * _BLOCKS),
        ("num_shared", ctypes.c_int64),
        ("num_local", ctypes.c_int64),
        ("tensors", TensorPlace * _TENSORS),
    )


def is_built() -> bool:
    """Whether the library is there and fits this version of the package.

    Raises:
        ValueError: OPTIGRAD_LIBRARY names one that does not.
    """
    return not why_not()


def why_not() -> str:
    """Why the library cannot be used, or nothing.

    Raises:
        ValueError: OPTIGRAD_LIBRARY names one that cannot.
    """
    _, reason = _load()
    if reason and (chosen := os.environ.get("OPTIGRAD_LIBRARY")):
        raise ValueError(f"OPTIGRAD_LIBRARY={chosen} cannot be used: {reason}; unset it, or name a library that can")
    return reason


def instruction_set() -> str:
    """Name of the kernels that the next call will use: avx512, avx2 or portable.

    Raises:
        ValueError: Not built, or OPTIGRAD_ISA names kernels that this processor cannot run.
    """
    name = ctypes.c_char_p()
    call("optigrad_selected", ctypes.byref(name))
    return (name.value or b"").decode()


def supported_instruction_sets() -> list[str]:
    """Names that OPTIGRAD_ISA may have on this processor, best first.

    Raises:
        ValueError: Not built.
    """
    names: bytes = require().optigrad_supported()
    return names.decode().split()


def checksum() -> str:
    """SHA-256 of the library's file: two builds can round otherwise.

    Raises:
        ValueError: Not built.
    """
    require()
    path = _path()
    assert path is not None
    return hashlib.sha256(path.read_bytes()).hexdigest()


def call(function: str, *arguments: object) -> None:
    """Calls a function that returns a status.

    Raises:
        ValueError: Not built, or the arguments are wrong.
        MemoryError: A workspace could not be allocated.
        RuntimeError: Anything else, such as a thread that could not be started.
    """
    library = require()
    status: int = getattr(library, function)(*arguments)
    if status:
        raise _ERRORS.get(status, RuntimeError)(library.optigrad_last_error().decode())


def require() -> ctypes.CDLL:
    """The library.

    Raises:
        ValueError: Not built.
    """
    library, _ = _load()
    if library is None:
        raise ValueError(f"there is no native engine: {why_not()}; {_HOW_TO_BUILD}")
    return library


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or why there is none."""
    path = _path()
    if path is None:
        return None, "it has not been built"
    try:
        library = ctypes.CDLL(str(path))
        library.optigrad_abi_version.argtypes = ()
        version = library.optigrad_abi_version()
    except (OSError, AttributeError) as error:  # built for another machine, or against another standard library
        return None, f"{path} cannot be loaded ({error})"
    if version != _ABI_VERSION:
        return None, f"{path} was built by another version of this package (interface {version}, not {_ABI_VERSION})"
    _declare(library)
    return library, ""


def _path() -> Path | None:
    """OPTIGRAD_LIBRARY, which the sanitizer build sets, or the extension beside this file."""
    if chosen := os.environ.get("OPTIGRAD_LIBRARY"):
        return Path(chosen)
    places = (Path(__file__).with_name(f"_kernels{suffix}") for suffix in EXTENSION_SUFFIXES)
    return next((path for path in places if path.exists()), None)


def _declare(library: ctypes.CDLL) -> None:
    network, pointer = ctypes.POINTER(NetworkStructure), ctypes.c_void_p
    count, number, threads = ctypes.c_int64, ctypes.c_double, ctypes.c_int
    models = (network, pointer, pointer, pointer)  # network, shared, local, images
    library.optigrad_train.argtypes = (
        *(*models, pointer, count, count, count),  # labels; clients, steps, batch
        *(number, number, threads, pointer, pointer),  # rate, mu; updates, new local
    )
    library.optigrad_logits.argtypes = (*models, count, count, threads, pointer)
    library.optigrad_reestimate.argtypes = (*models, count, count, threads, pointer)
    library.optigrad_gram.argtypes = (pointer, count, count, pointer, threads, pointer)
    library.optigrad_selected.argtypes = (ctypes.POINTER(ctypes.c_char_p),)
    library.optigrad_supported.argtypes = library.optigrad_last_error.argtypes = ()
    library.optigrad_supported.restype = library.optigrad_last_error.restype = ctypes.c_char_p
