"""Clients that have not trained, and hide it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_core.attacks.adversary import AdversaryView
from fl_core.attacks.base import Attack, register_attack
from fl_core.registry import check_known

KINDS = ("stale", "noise")


@register_attack("free_rider")
@dataclass(frozen=True)
class FreeRider(Attack):
    """Sends what looks like an update without having trained.

    Formula: ``g + noise · ‖g‖/√P · ξ`` ("stale") or ``noise · ‖g‖/√P · ξ`` ("noise"), for the global model's last
        change g and ξ standard normal, of each client's own.
    Source: "stale": Lin et al. 2019, arXiv 1911.12560 (delta weights); "noise": Fraboni et al. 2021, arXiv 2006.11901
        (disguised free-rider).
    Checked against: the parts by hand; in a federation, the change that it replays.

    Knows what is broadcast and nothing of the other clients. A free rider has no update of its own to measure by, so
    the noise is measured by the last change; before the first there is none, and it sends zeros. Fraboni et al. let
    the noise fade with the rounds; here it fades as the model's changes do.

    Attributes:
        kind: "stale" replays the last change, "noise" sends nothing but the disguise.
        noise: Length of the noise, relative to the last change.
    """

    kind: str = "stale"
    noise: float = 0.1

    def __post_init__(self) -> None:
        check_known("kind of free_rider", [self.kind], KINDS)
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"free_rider: noise must be 0 or more and finite, got {self.noise}")

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.corrupt``; raises ValueError for an adversary without a last change."""
        change = adversary.known_change("free_rider").to(own)
        noise = torch.randn(own.shape, generator=adversary.generator).to(own) / math.sqrt(own.shape[1])
        disguise: Tensor = self.noise * change.norm() * noise
        return change + disguise if self.kind == "stale" else disguise
