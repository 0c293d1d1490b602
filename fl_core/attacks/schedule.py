"""Attacks over time by a timetable: in some rounds another attack, in the others honest work."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fl_core.attacks.adversary import AdversaryView, Knowledge, LocalData
from fl_core.attacks.base import Attack, check_rounds, make_attack, register_attack


@dataclass(frozen=True)
class ScheduledAttack(Attack):
    """Another attack, in some of the rounds; it is asked for everything but when.

    Attributes:
        attack: Name of the other attack.
        options: Its parameters.
        inner: The other attack.
    """

    attack: str = "sign_flip"
    options: Mapping[str, Any] = field(default_factory=dict)
    inner: Attack = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.options, Mapping):
            raise ValueError(f"options of {self.attack!r} must be a mapping from names to values, got {self.options!r}")
        object.__setattr__(self, "options", dict(self.options))
        object.__setattr__(self, "inner", make_attack(self.attack, **self.options))

    @abstractmethod
    def on(self, round_: int) -> bool:
        """Whether the timetable has an attack in a round (from 0)."""

    @property
    def knows(self) -> Knowledge:  # type: ignore[override]
        """What the other attack must know."""
        return self.inner.knows

    @property
    def poisons(self) -> bool:
        """See ``Attack.poisons``."""
        return self.inner.poisons

    def reset(self) -> None:
        """See ``Attack.reset``."""
        self.inner.reset()

    def active(self, round_: int) -> bool:
        """See ``Attack.active``."""
        return self.on(round_) and self.inner.active(round_)

    def poison(self, data: LocalData) -> tuple[Tensor, Tensor]:
        """See ``Attack.poison``."""
        return self.inner.poison(data)

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.corrupt``."""
        return self.inner.corrupt(own, honest, adversary)

    def triggered(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor] | None:
        """See ``Attack.triggered``."""
        return self.inner.triggered(images, labels)

    def __call__(self, updates: Tensor, malicious: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.__call__``."""
        return self.inner(updates, malicious, adversary)


@register_attack("on_off")
@dataclass(frozen=True)
class OnOff(ScheduledAttack):
    """Honest for some rounds, then another attack for some, again and again.

    Formula: attacks in round t where t mod (k + m) ≥ k.
    Source: Sun et al. 2006, "A trust evaluation framework in distributed networks: vulnerability analysis and defense
        against attacks", INFOCOM (the on-off attack on trust).
    Checked against: the timetable by hand; a federation's rounds.

    Against rules that remember: trust is earned in the honest rounds, and a detector that averages over rounds sees
    less. Knows what the other attack must know.

    Attributes:
        attack: Name of the other attack.
        options: Its parameters.
        honest_rounds: k.
        attack_rounds: m.
    """

    honest_rounds: int = 3
    attack_rounds: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rounds("on_off", "honest_rounds", self.honest_rounds)
        check_rounds("on_off", "attack_rounds", self.attack_rounds, least=1)

    def on(self, round_: int) -> bool:
        """See ``ScheduledAttack.on``."""
        return round_ % (self.honest_rounds + self.attack_rounds) >= self.honest_rounds


@register_attack("late_onset")
@dataclass(frozen=True)
class LateOnset(ScheduledAttack):
    """Honest until a round, another attack from then on.

    Formula: attacks in round t where t ≥ onset.
    Source: ours.
    Checked against: the timetable by hand; a federation's rounds.

    By then the model is good, trust is earned, and a detector has seen the malicious clients at their best. A scenario
    has an onset too, which training draws from the first few rounds, and for the policies that ship up to this one.
    Knows what the other attack must know.

    Attributes:
        attack: Name of the other attack.
        options: Its parameters.
        onset: First round of the attack, from 0.
    """

    onset: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rounds("late_onset", "onset", self.onset)

    def on(self, round_: int) -> bool:
        """See ``ScheduledAttack.on``."""
        return round_ >= self.onset
