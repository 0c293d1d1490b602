"""What an attack is, and the registry of attacks."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fl_core.registry import Registry

_ATTACKS: Registry["Attack"] = Registry("attack")
register_attack = _ATTACKS.register


def attack_names() -> list[str]:
    """Names that ``make_attack`` accepts, ``"none"`` included."""
    return sorted(_ATTACKS)


def make_attack(name: str, **options: Any) -> "Attack":
    """Builds an attack.

    Args:
        name: Registered name.
        **options: The attack's parameters.

    Raises:
        ValueError: Unknown name (the message lists what there is), or a parameter that the attack does not take.
    """
    return _ATTACKS.make(name, **options)


@dataclass(frozen=True)
class Attack:
    """Base of all attacks, and the one that does nothing.

    An attack may poison the labels that malicious clients train on (``poison_labels``), corrupt what they send
    (``corrupt``), or both. It is a pure function of its arguments: it never edits them, and draws from ``generator``
    alone.
    """

    def poison_labels(self, labels: Tensor, num_classes: int) -> Tensor:
        """Labels that malicious clients train on; int64 of any shape to the same shape."""
        return labels

    def corrupt(self, own: Tensor, honest: Tensor, generator: torch.Generator) -> Tensor:
        """What the malicious clients send instead of what they trained.

        Args:
            own: (f, P) float32, their own updates, f at least 1.
            honest: (N − f, P) float32, the honest clients' updates: the omniscient adversary, the strong assumption.
            generator: Source of randomness.

        Returns:
            (f, P).
        """
        return own

    def __call__(self, updates: Tensor, malicious: Tensor, generator: torch.Generator) -> Tensor:
        """Replaces the malicious rows.

        Args:
            updates: (N, P) float32; not modified.
            malicious: (N,) bool, with at least one honest client.
            generator: Source of randomness.

        Returns:
            (N, P) float32, a new tensor.

        Raises:
            ValueError: No client is honest.
        """
        sent = updates.clone()
        if not malicious.any():
            return sent
        if malicious.all():
            raise ValueError(f"all {len(malicious)} clients are malicious; at least one must be honest")
        sent[malicious] = self.corrupt(updates[malicious], updates[~malicious], generator)
        return sent


@dataclass(frozen=True)
class ColludableAttack(Attack):
    """An attack in an independent and a colluding form.

    Attributes:
        colluding: The malicious clients agree first: each starts from their common mean instead of its own update.
    """

    colluding: bool = False

    def __call__(self, updates: Tensor, malicious: Tensor, generator: torch.Generator) -> Tensor:
        """See ``Attack.__call__``."""
        if self.colluding and malicious.any():
            updates = torch.where(malicious[:, None], updates[malicious].mean(dim=0), updates)
        return super().__call__(updates, malicious, generator)


def check_finite(attack: str, field: str, value: float) -> None:
    """Raises a ValueError that names the attack and the field, if a strength is NaN or infinite."""
    if not math.isfinite(value):
        raise ValueError(f"{attack}: {field} must be a finite number, got {value}")


register_attack("none")(Attack)
