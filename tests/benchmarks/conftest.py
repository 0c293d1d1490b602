import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from fl_core.attacks import base

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A program of benchmarks/ as a module; attacks that it registers are gone after the test."""

    monkeypatch.syspath_prepend(FOLDER)  # where Python looks first for what a program imports

    def load(name: str) -> ModuleType:
        monkeypatch.setattr(base._ATTACKS, "_factories", dict(base._ATTACKS._factories))
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load
