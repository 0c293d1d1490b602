"""Attacks that send what no honest client would, registered for one test only."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fl_core.attacks import Attack, base, register_attack


@dataclass(frozen=True)
class _SendsValue(Attack):
    value: float = float("nan")

    def corrupt(self, own: Tensor, honest: Tensor, generator: torch.Generator) -> Tensor:
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
