"""PoisonedFL: malicious updates that agree over the rounds, from nothing but the global model's changes."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fl_core.attacks.adversary import AdversaryView
from fl_core.attacks.base import (
    Attack,
    check_finite,
    check_jitter,
    check_remembered,
    check_rounds,
    jittered,
    register_attack,
)


@dataclass
class _Memory:
    """What lasts from round to round.

    Attributes:
        signs: (P,) s, of ±1.
        sent: (P,) the last malicious update.
        factor: c, the present scaling factor.
        drift: (P,) the global model's change since the last test.
        rounds: Rounds that the drift is made of.
    """

    signs: Tensor | None = None
    sent: Tensor | None = None
    factor: float | None = None
    drift: Tensor | None = None
    rounds: int = 0

    def clear(self) -> None:
        """Forgets all of it."""
        self.signs, self.sent, self.factor, self.drift, self.rounds = None, None, None, None, 0


@register_attack("poisonedfl")
@dataclass(frozen=True)
class PoisonedFL(Attack):
    """All malicious clients push the model in one random direction, in every round the same.

    Formula: ``c·‖g‖·v ⊙ s`` with fixed random signs s, the global model's last change g, the last malicious update k
        and v ∝ |g − ‖g‖/‖k‖·k| of length 1. Every ``window`` rounds: c ← decay·c, unless the signs of the change
        since are s more often than chance has them (one-sided binomial test) or c would fall below ``smallest``.
    Source: Xie et al. 2025, arXiv 2404.15611.
    Checked against: the authors' code, read and written anew; their critical values of the test at four sizes.

    Knows what is broadcast and nothing of the other clients. Where they have not changed the model yet (the first
    round) the malicious clients send zeros, as the authors' do. Deviations: the critical value is computed for any P
    instead of tabulated for four; coordinates that have not moved are left out of the test; the authors test every 50
    of 6,000 rounds, which would be never in a federation of twenty. Rounds in which no malicious client takes part, or
    a schedule keeps them honest, count for nothing: the change of the round before is in no test then.

    Attributes:
        factor: c at first.
        decay: What c is multiplied by where the attack has had no effect.
        smallest: c does not fall below.
        window: Rounds between two tests.
        significance: Level of the test.
        jitter: Length of the noise that each malicious client adds, relative to the length of what it sends.
    """

    factor: float = 8.0
    decay: float = 0.7
    smallest: float = 0.5
    window: int = 5
    significance: float = 0.01
    jitter: float = 0.0
    _memory: _Memory = field(default_factory=_Memory, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_finite("poisonedfl", "factor", self.factor)
        check_finite("poisonedfl", "smallest", self.smallest)
        check_rounds("poisonedfl", "window", self.window, least=1)
        check_jitter("poisonedfl", self.jitter)
        for name in ("decay", "significance"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"poisonedfl: {name} must lie in (0, 1], got {getattr(self, name)}")

    def reset(self) -> None:
        """See ``Attack.reset``."""
        self._memory.clear()

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.corrupt``.

        Raises:
            ValueError: The adversary has no last change, or the memory is another federation's (``reset``).
        """
        change, memory = adversary.known_change("poisonedfl").to(own), self._memory
        check_remembered("poisonedfl", None if memory.signs is None else memory.signs.shape, change.shape)
        if memory.signs is None or memory.sent is None or memory.factor is None:
            signs = torch.randint(2, change.shape, generator=adversary.generator).to(change) * 2 - 1
            memory.signs, memory.sent, memory.factor = signs, torch.zeros_like(change), self.factor
        else:
            memory.factor = self._tested(change, memory.signs, memory.factor)
        memory.sent = memory.factor * change.norm() * _magnitudes(change, memory.sent) * memory.signs
        return jittered(memory.sent.expand_as(own), self.jitter, adversary.generator)

    def _tested(self, change: Tensor, signs: Tensor, factor: float) -> float:
        """The scaling factor after one more change (P,), tested at the end of a window."""
        memory = self._memory
        memory.drift = change if memory.drift is None else memory.drift + change
        memory.rounds += 1
        if memory.rounds < self.window:
            return factor
        moved = int(memory.drift.count_nonzero())
        aligned = int((memory.drift * signs > 0).sum())
        memory.drift, memory.rounds = None, 0
        # A model that has not moved at all has not moved the adversary's way.
        effective = moved > 0 and binomial_tail(aligned, moved) <= self.significance
        return factor if effective or self.decay * factor < self.smallest else self.decay * factor


def _magnitudes(change: Tensor, sent: Tensor) -> Tensor:
    """v (P,): what the others have changed, by the part of the change that is not the last malicious update's."""
    length = sent.norm()
    rest: Tensor = (change - sent * (change.norm() / torch.where(length > 0, length, 1.0))).abs()
    size = rest.norm()
    return rest / torch.where(size > 0, size, 1.0)


def binomial_tail(successes: int, trials: int) -> float:
    """Probability of more than ``successes`` heads in ``trials`` tosses of a fair coin.

    A sum over the terms up to 20 standard deviations above what is expected; the rest is below 10⁻⁸⁷.
    """
    last = min(trials, max(successes, trials // 2) + 10 * math.isqrt(trials) + 10)
    heads = torch.arange(successes + 1, last + 1, dtype=torch.float64)
    logarithms = math.lgamma(trials + 1) - torch.lgamma(heads + 1) - torch.lgamma(trials - heads + 1)
    return min(float((logarithms - trials * math.log(2)).exp().sum()), 1.0)
