"""Every registered id with its data in place; and attacks that send what no honest client would."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

import optigrad_env  # noqa: F401  (importing registers)
from fl_core.attacks import AdversaryView, Attack, base, register_attack

# What an id looks for in the data directory; the last ones need nothing that is not here.
FILES = {
    "OptiGrad/MNIST-v0": "MNIST/raw",
    "OptiGrad/FashionMNIST-v0": "FashionMNIST/raw",
    "OptiGrad/CIFAR10-v0": "cifar-10-batches-py",
    "OptiGrad/AlzheimerMRI-v0": "alzheimer_mri",
    "OptiGrad/ChestXray-v0": "chest_xray",
    "OptiGrad/ImageFolder-v0": None,
    "OptiGrad/Digits-v0": None,
    "OptiGrad/Softmax-v0": None,
    "OptiGrad/Quadratic-v0": None,
}


@pytest.fixture(scope="session")
def folder_of_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits as anybody's folder of images: ``train/CLASS/*.png``."""
    folder = tmp_path_factory.mktemp("digits")
    images, labels = load_digits(return_X_y=True)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / "train" / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((16 * image.clip(0, 15)).astype(np.uint8).reshape(8, 8)).save(path)
    return folder


@pytest.fixture(params=sorted(name for name in gym.registry if name.startswith("OptiGrad/")))
def env_id(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, folder_of_digits: Path) -> str:
    """A registered id that ``gym.make`` can make; skipped where its files are not there."""
    name: str = request.param
    if name.startswith("OptiGrad/ImageFolder"):
        monkeypatch.setenv("OPTIGRAD_DATA", str(folder_of_digits))
    elif (files := FILES[name.replace("Masked", "")]) is not None:
        directory = os.environ.get("OPTIGRAD_DATA")
        if directory is None or not (Path(directory) / files).exists():
            pytest.skip(f"{name} needs {files} in $OPTIGRAD_DATA, which is {directory or 'not set'}")
    return name


@dataclass(frozen=True)
class _SendsValue(Attack):
    value: float = float("nan")

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        sent = own.clone()
        sent[:, 3] = self.value
        return sent


class _SendsTooMuch(Attack):
    def __call__(self, updates: Tensor, malicious: Tensor, generator: torch.Generator) -> Sequence[Tensor]:  # type: ignore[override]
        return [torch.cat([row, row[:1]]) if bad else row for row, bad in zip(updates, malicious, strict=True)]


class _BreaksEverybody(Attack):
    def __call__(self, updates: Tensor, malicious: Tensor, generator: torch.Generator) -> Sequence[Tensor]:  # type: ignore[override]
        return [row[:-1] for row in updates]


@pytest.fixture
def broken_senders(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, object]]:
    """Scenario options of each kind of broken message, by name."""
    monkeypatch.setattr(base._ATTACKS, "_factories", dict(base._ATTACKS._factories))
    register_attack("test_value")(_SendsValue)
    register_attack("test_too_much")(_SendsTooMuch)
    register_attack("test_breaks_everybody")(_BreaksEverybody)
    return {
        "nan": {"attack": "test_value"},
        "infinity": {"attack": "test_value", "attack_options": {"value": float("inf")}},
        "minus infinity": {"attack": "test_value", "attack_options": {"value": float("-inf")}},
        "wrong shape": {"attack": "test_too_much"},
        "everybody": {"attack": "test_breaks_everybody"},
    }
