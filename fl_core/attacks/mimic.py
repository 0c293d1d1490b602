"""Mimic: an omniscient attack that only repeats what an honest client says, and remembers which."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fl_core.attacks.adversary import AdversaryView, Knowledge
from fl_core.attacks.base import check_remembered, check_rounds, register_attack
from fl_core.attacks.colluding import CommonVectorAttack
from fl_core.fingerprint.geometry import unit_vector


@dataclass
class _Memory:
    """What was seen so far.

    Attributes:
        rounds: How often the attack was made.
        mean: (P,) running mean of the honest updates.
        direction: (P,) z.
        target: Whom to copy: a client, not a place, because not all take part in every round.
    """

    rounds: int = 0
    mean: Tensor | None = None
    direction: Tensor | None = None
    target: int | None = None

    def clear(self) -> None:
        """Forgets all of it."""
        self.rounds, self.mean, self.direction, self.target = 0, None, None, None


@register_attack("mimic")
@dataclass(frozen=True)
class Mimic(CommonVectorAttack):
    """All malicious clients copy the honest client that stands furthest out in the direction of largest variance.

    Formula: ``Δᵢ*`` with i* = argmax z·Δᵢ; in each of the first rounds a step of power iteration,
        z ← t/(t + 1)·z + 1/(t + 1)·ẑ, ẑ ∝ Σ (Δᵢ − μ)(Δᵢ − μ)ᵀz, then scaled to length 1; μ is the mean over the rounds.
    Source: Karimireddy et al. 2022, arXiv 2006.09365, appendix (with Oja's rule).
    Checked against: the covariance's first eigenvector; byzfl.Mimic and byzpy's MimicAttack for the client chosen.

    Where clients are alike it does nothing: it aims at heterogeneity, where it doubles one kind of data and has the
    rest taken for outliers. After ``warmup`` rounds with an attack the client stays the same; in a round without it the
    one furthest out of those that take part is copied. Rounds in which a schedule keeps the malicious clients honest
    are not seen.

    Attributes:
        warmup: Rounds of power iteration. The authors' runs have thousands of rounds, a federation's here tens.
    """

    knows: ClassVar[Knowledge] = Knowledge.HONEST_UPDATES
    warmup: int = 5
    _memory: _Memory = field(default_factory=_Memory, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rounds("mimic", "warmup", self.warmup, least=1)

    def reset(self) -> None:
        """See ``Attack.reset``."""
        self._memory.clear()

    def vector(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``CommonVectorAttack.vector``; raises ValueError for another federation's updates without a ``reset``."""
        memory, clients = self._memory, adversary.honest_clients(own, honest)
        check_remembered("mimic", None if memory.mean is None else memory.mean.shape, honest.shape[1:])
        if memory.rounds < self.warmup:
            self._observe(honest, adversary.generator)
            memory.target = clients[self._furthest(honest)]
        memory.rounds += 1
        return honest[clients.index(memory.target) if memory.target in clients else self._furthest(honest)]

    def _observe(self, honest: Tensor, generator: torch.Generator) -> None:
        """A step of power iteration."""
        memory, mean = self._memory, honest.mean(dim=0)
        if memory.mean is None or memory.direction is None:
            memory.mean = mean
            memory.direction = unit_vector(torch.randn(mean.shape, generator=generator).to(mean))
        else:
            memory.mean = memory.mean.lerp(mean, 1 / (memory.rounds + 1))
        turned = unit_vector(_times_covariance(honest, memory.mean, memory.direction))
        if turned.any():  # else the honest clients agree, and no direction is better than another
            # Weight 1 in the first round: what was drawn is only where the iteration starts.
            memory.direction = unit_vector(memory.direction.lerp(turned, 1 / (memory.rounds + 1)))

    def _furthest(self, honest: Tensor) -> int:
        """Place of the honest update that lies furthest out in the remembered direction."""
        assert self._memory.direction is not None
        return int((honest @ self._memory.direction).argmax())


def _times_covariance(rows: Tensor, mean: Tensor, vector: Tensor) -> Tensor:
    """``Σ (xᵢ − μ)(xᵢ − μ)ᵀ v``: (H, P), (P,), (P,) to (P,), without a copy of the rows."""
    products = rows @ vector - mean @ vector
    return products @ rows - products.sum() * mean
