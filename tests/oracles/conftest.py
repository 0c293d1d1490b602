"""Other people's libraries, and the updates to compare on.

``make setup-dev`` installs them (the extra ``oracles`` of pyproject.toml). Without them these tests are skipped,
and say so; in continuous integration (``CI`` is set) a missing one is an error.
"""

import importlib
import os
import warnings
from types import ModuleType

import numpy as np
import pytest
import torch

from fl_core.data.vision import import_torchvision

# Random cases that every rule is compared on, all kinds of attack in turn.
CASES = 300


def _library(name: str, *modules: str) -> list[ModuleType]:
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    import_torchvision()  # ByzFL imports it, and a CPU build of torch needs our tolerant import
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return [importlib.import_module(module) for module in modules]
        except ImportError as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"{name} is not installed ({error}): `make setup-dev` installs it")


@pytest.fixture(scope="session")
def byzfl() -> ModuleType:
    """https://github.com/LPD-EPFL/byzfl."""
    return _library("ByzFL", "byzfl")[0]


@pytest.fixture(scope="session")
def byzpy() -> dict[str, type]:
    """https://github.com/Byzpy/byzpy: its aggregators, pre-aggregators and attacks by class name."""
    modules = _library(
        "byzpy",
        "byzpy.aggregators.coordinate_wise",
        "byzpy.aggregators.geometric_wise",
        "byzpy.aggregators.norm_wise",
        "byzpy.pre_aggregators",
        "byzpy.attacks",
    )
    return {name: value for module in modules for name, value in vars(module).items() if isinstance(value, type)}


@pytest.fixture(scope="session")
def flower() -> ModuleType:
    """Flower's aggregation functions, https://github.com/adap/flower."""
    return _library("Flower", "flwr.server.strategy.aggregate")[0]


_ATTACKS = {
    "none": lambda honest, f, draw: honest.mean(axis=0) + draw.standard_normal((f, honest.shape[1])),
    "noise": lambda honest, f, draw: 20 * draw.standard_normal((f, honest.shape[1])),
    "sign flip": lambda honest, f, draw: -honest[draw.integers(len(honest), size=f)],
    "scaling": lambda honest, f, draw: 10 * honest[draw.integers(len(honest), size=f)],
    "a little": lambda honest, f, draw: np.tile(honest.mean(axis=0) - 1.5 * honest.std(axis=0), (f, 1)),
    "inner product": lambda honest, f, draw: np.tile(-2 * honest.mean(axis=0), (f, 1)),
}


@pytest.fixture(scope="session")
def attacked() -> list[tuple[torch.Tensor, int]]:
    """``CASES`` pairs of updates (n, P) float32 and f: 5 to 16 clients, f of them attackers, at most (n − 3) / 2."""
    cases = []
    for seed in range(CASES):
        draw = np.random.default_rng(seed)
        n, size = int(draw.integers(5, 17)), int(draw.integers(1, 60))
        f = int(draw.integers(0, (n - 3) // 2 + 1))
        honest = draw.standard_normal((n - f, size)) + 0.5 * draw.standard_normal(size)
        attack = list(_ATTACKS.values())[seed % len(_ATTACKS)]
        updates = draw.permutation(np.concatenate([attack(honest, f, draw), honest]))
        cases.append((torch.from_numpy(updates.astype(np.float32)), f))
    return cases
