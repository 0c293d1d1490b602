"""Attacks on the training data: the update is honest work on poisoned data."""

from dataclasses import dataclass

from torch import Tensor

from fl_core.attacks.adversary import LocalData
from fl_core.attacks.base import ColludableAttack, register_attack


@register_attack("label_flip")
@dataclass(frozen=True)
class LabelFlip(ColludableAttack):
    """Static label flipping: y → C − 1 − y while training (Fang et al. 2020, arXiv 1911.11815, section 4.1).

    Knows nothing of the other clients.
    """

    def poison(self, data: LocalData) -> tuple[Tensor, Tensor]:
        """See ``Attack.poison``."""
        return data.images, data.num_classes - 1 - data.labels
