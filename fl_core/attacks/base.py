"""What an attack is, and the registry of attacks."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fl_core.attacks.adversary import AdversaryView, Knowledge, LocalData
from fl_core.registry import Registry

_ATTACKS: Registry["Attack"] = Registry("attack")
register_attack = _ATTACKS.register


def attack_names() -> list[str]:
    """Names that ``make_attack`` accepts, ``"none"`` included."""
    return sorted(_ATTACKS)


def attack_factory(name: str) -> Callable[..., "Attack"]:
    """What is registered under a name, usually a class; raises ValueError for an unknown one."""
    return _ATTACKS[name]


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
    """Base of all attacks.

    An attack may poison the data that malicious clients train on (``poison``), corrupt what they send (``corrupt``), or
    both. It never edits its arguments, and draws from the adversary's generator alone. Most attacks are pure functions;
    one that remembers earlier rounds keeps its memory in an attribute that ``reset`` empties.

    Attributes:
        knows: Threat model: what the adversary must know.
    """

    knows: ClassVar[Knowledge] = Knowledge.NOTHING

    def reset(self) -> None:
        """Forgets earlier rounds; called when an episode begins."""

    def active(self, round_: int) -> bool:
        """Whether the malicious clients attack in a round (from 0); in others they are honest.

        The federation asks, and neither poisons nor corrupts in a round without attack.
        """
        return True

    @property
    def poisons(self) -> bool:
        """Whether the attack touches the training data at all."""
        return type(self).poison is not Attack.poison

    def poison(self, data: LocalData) -> tuple[Tensor, Tensor]:
        """Images and labels, shaped as in ``data``, that the malicious clients train on instead of their own."""
        return data.images, data.labels

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """What the malicious clients send instead of what they trained.

        Args:
            own: (f, P) float32, their own updates, f at least 1.
            honest: (N − f, P) float32, the honest clients' updates. Only an attack whose ``knows`` says so reads them.
            adversary: What else the adversary has, its randomness first.

        Returns:
            (f, P).
        """
        return own

    def triggered(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor] | None:
        """What a backdoor is for: the inputs that it should make the global model misjudge.

        Args:
            images: (V, C, H, W) float32, standardised.
            labels: (V,) int64, the truth.

        Returns:
            Images (V', C, H, W) and the labels (V',) that the adversary wants for them; ``None`` for an attack without
            a target.
        """
        return None

    def __call__(self, updates: Tensor, malicious: Tensor, adversary: AdversaryView) -> Tensor:
        """Replaces the malicious rows.

        Args:
            updates: (N, P) float32; not modified.
            malicious: (N,) bool on the CPU, with at least one honest client.
            adversary: What the adversary has in this round.

        Returns:
            (N, P) float32, a new tensor.

        Raises:
            ValueError: No client is honest, or the attack must know something that the adversary does not.
        """
        sent = updates.clone()
        if not malicious.any():
            return sent
        if malicious.all():
            raise ValueError(f"all {len(malicious)} clients are malicious; at least one must be honest")
        adversary = replace(adversary, malicious=malicious)
        sent[malicious] = self.corrupt(updates[malicious], updates[~malicious], adversary)
        return sent


@register_attack("none")
@dataclass(frozen=True)
class NoAttack(Attack):
    """Does nothing, in any round: clients who were drawn as malicious are honest under it.

    Formula: ``Δ``, the client's own update.
    Source: ours.
    Checked against: what is sent is what was trained, bit by bit.
    """

    def active(self, round_: int) -> bool:
        """See ``Attack.active``: never."""
        return False


@dataclass(frozen=True)
class ColludableAttack(Attack):
    """An attack in an independent and a colluding form.

    Attributes:
        colluding: The malicious clients agree first: each starts from their common mean instead of its own update.
        jitter: Length of the noise that each malicious client adds to what it sends, relative to the length of that:
            so that equal rows are not what gives colluding clients away.
    """

    colluding: bool = False
    jitter: float = 0.0

    def __post_init__(self) -> None:
        check_jitter(type(self).__name__, self.jitter)

    def __call__(self, updates: Tensor, malicious: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.__call__``."""
        if self.colluding and malicious.any():
            updates = torch.where(malicious[:, None].to(updates.device), updates[malicious].mean(dim=0), updates)
        sent = super().__call__(updates, malicious, adversary)
        sent[malicious] = jittered(sent[malicious], self.jitter, adversary.generator)
        return sent


def jittered(rows: Tensor, jitter: float, generator: torch.Generator) -> Tensor:
    """Adds isotropic noise of expected length ``jitter`` times its own to each row (f, P)."""
    return disguise(rows, jitter, generator)(rows)


def disguise(like: Tensor, jitter: float, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Draws the noise that ``jittered`` would add to rows (f, P) once, for attacks that try several: what adds it."""
    if jitter == 0:
        return lambda rows: rows
    noise = jitter * torch.randn(like.shape, generator=generator).to(like) / math.sqrt(like.shape[1])
    return lambda rows: rows + rows.norm(dim=1, keepdim=True) * noise


def check_jitter(attack: str, jitter: float) -> None:
    """Raises a ValueError that names the attack, if the jitter is not a finite number of 0 or more."""
    if not 0 <= jitter < math.inf:
        raise ValueError(f"{attack}: jitter must be 0 or more and finite, got {jitter}")


def check_finite(attack: str, field: str, value: float) -> None:
    """Raises a ValueError that names the attack and the field, if a strength is NaN, infinite or no number at all.

    YAML takes ``1e9`` for text: it wants ``1.0e+9``.
    """
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{attack}: {field} must be a finite number, got {value!r}")


def check_remembered(attack: str, remembered: torch.Size | None, seen: torch.Size) -> None:
    """Raises a ValueError that names the attack, if its memory is of updates of another shape."""
    if remembered is not None and remembered != seen:
        raise ValueError(
            f"{attack} remembers updates of shape {tuple(remembered)} and now sees {tuple(seen)}: "
            "call reset() before another federation"
        )


def check_rounds(attack: str, field: str, value: int, least: int = 0) -> None:
    """Raises a ValueError that names the attack and the field, if a number of rounds is below the least."""
    if value < least:
        raise ValueError(f"{attack}: {field} must be a number of rounds, {least} or more, got {value}")
