"""Mimic: an omniscient attack that only repeats what an honest client says, and remembers which."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fl_core.attacks.adversary import AdversaryView
from fl_core.attacks.base import check_remembered, check_rounds, register_attack
from fl_core.attacks.colluding import OmniscientAttack


@dataclass
class _Memory:
    """What was seen so far.

    Attributes:
        rounds: How often the attack was made.
        shape: (H, P) of the honest updates.
        mean: (P,) running mean of all of them.
        direction: (P,) z.
        target: Whom to copy, a place among the honest.
    """

    rounds: int = 0
    shape: torch.Size | None = None
    mean: Tensor | None = None
    direction: Tensor | None = None
    target: int = 0

    def clear(self) -> None:
        """Forgets all of it."""
        self.rounds, self.shape, self.mean, self.direction, self.target = 0, None, None, None, 0


@register_attack("mimic")
@dataclass(frozen=True)
class Mimic(OmniscientAttack):
    """All malicious clients copy the honest client that stands furthest out in the direction of largest variance.

    Formula: ``Δᵢ*`` with i* = argmax z·Δᵢ; in each of the first rounds a step of power iteration,
        z ← t/(t + 1)·z + 1/(t + 1)·ẑ, ẑ ∝ Σ (Δᵢ − μ)(Δᵢ − μ)ᵀz, then scaled to length 1; μ is the mean over the rounds.
    Source: Karimireddy et al. 2022, arXiv 2006.09365, appendix (with Oja's rule).
    Checked against: the covariance's first eigenvector; byzfl.Mimic and byzpy's MimicAttack for the client chosen.

    Where clients are alike it does nothing: it aims at heterogeneity, where it doubles one kind of data and has the
    rest taken for outliers. After ``warmup`` rounds with an attack the client stays the same. Rounds in which a
    schedule keeps the malicious clients honest are not seen.

    Attributes:
        warmup: Rounds of power iteration. The authors' runs have thousands of rounds, a federation's here tens.
    """

    warmup: int = 5
    _memory: _Memory = field(default_factory=_Memory, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rounds("mimic", "warmup", self.warmup, least=1)

    def reset(self) -> None:
        """See ``Attack.reset``."""
        self._memory.clear()

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.corrupt``; raises ValueError for another federation's updates without a ``reset``."""
        check_remembered("mimic", self._memory.shape, honest.shape)
        if self._memory.rounds < self.warmup:
            self._observe(honest, adversary.generator)
        self._memory.rounds += 1
        return super().corrupt(own, honest, adversary)

    def common(self, honest: Tensor, num_malicious: int) -> Tensor:
        """See ``OmniscientAttack.common``: the update of the client that the memory has chosen."""
        return honest[self._memory.target]

    def _observe(self, honest: Tensor, generator: torch.Generator) -> None:
        """A step of power iteration, and the choice of whom to copy."""
        memory, mean = self._memory, honest.mean(dim=0)
        if memory.mean is None or memory.direction is None:
            memory.shape, memory.mean = honest.shape, mean
            memory.direction = _unit(torch.randn(mean.shape, generator=generator).to(mean))
        else:
            memory.mean = memory.mean.lerp(mean, 1 / (memory.rounds + 1))
        turned = _unit(_times_covariance(honest, memory.mean, memory.direction))
        if turned.any():  # else the honest clients agree, and no direction is better than another
            # Weight 1 in the first round: what was drawn is only where the iteration starts.
            memory.direction = _unit(memory.direction.lerp(turned, 1 / (memory.rounds + 1)))
        memory.target = int((honest @ memory.direction).argmax())


def _times_covariance(rows: Tensor, mean: Tensor, vector: Tensor) -> Tensor:
    """``Σ (xᵢ − μ)(xᵢ − μ)ᵀ v``: (H, P), (P,), (P,) to (P,), without a copy of the rows."""
    products = rows @ vector - mean @ vector
    return products @ rows - products.sum() * mean


def _unit(vector: Tensor) -> Tensor:
    """The vector (P,) scaled to length 1; zeros stay zeros."""
    length = vector.norm()
    return vector / torch.where(length > 0, length, 1.0)
