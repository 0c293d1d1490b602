"""Attacks on the training data: the update is honest work on poisoned data."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fl_core.attacks.adversary import LocalData
from fl_core.attacks.base import ColludableAttack, register_attack
from fl_core.evaluation import IMAGES_AT_ONCE


@register_attack("label_flip")
@dataclass(frozen=True)
class LabelFlip(ColludableAttack):
    """Static label flipping: trains on labels that are turned around.

    Formula: ``y → C − 1 − y``.
    Source: Fang et al. 2020, arXiv 1911.11815, section 4.1.
    Checked against: every class by hand; only malicious clients, only from the onset, in a federation.

    Knows nothing of the other clients.
    """

    def poison(self, data: LocalData) -> tuple[Tensor, Tensor]:
        """See ``Attack.poison``."""
        return data.images, data.num_classes - 1 - data.labels


@register_attack("dynamic_label_flip")
@dataclass(frozen=True)
class DynamicLabelFlip(ColludableAttack):
    """Dynamic label flipping: trains each sample on the class that the model finds least likely for it.

    Formula: ``y → argmin f(x)`` over the logits f of the global model that the round began with.
    Source: Shejwalkar et al. 2022, arXiv 2108.10241 (there by a surrogate model that the adversary trains).
    Checked against: the classes of a model that is known; in a federation, against its own logits.

    Knows the global model, as every client does, and nothing of the other clients. With local BatchNorm the model has
    that of the first malicious client of the round, for the samples of all. The label that a bad model finds least
    likely may be the true one; it is left as it is.
    """

    def poison(self, data: LocalData) -> tuple[Tensor, Tensor]:
        """See ``Attack.poison``."""
        pieces = data.images.flatten(0, 2).split(IMAGES_AT_ONCE)
        least = torch.cat([data.logits(piece).argmin(dim=1) for piece in pieces])
        return data.images, least.view_as(data.labels).to(data.labels)


@register_attack("targeted_label_flip")
@dataclass(frozen=True)
class TargetedLabelFlip(ColludableAttack):
    """Targeted label flipping: trains one class as if it were another.

    Formula: ``y → target`` where ``y = source``, else ``y``.
    Source: Tolpegin et al. 2020, arXiv 2007.08432.
    Checked against: every class by hand; it raises the share of source samples taken for the target.

    Knows nothing of the other clients. Its success is the share of the source's samples that the global model takes
    for the target. By default the second class is to be taken for the first: in a set of two, a finding for none.

    Attributes:
        source: Class whose samples are mislabelled.
        target: Class that they are given.
    """

    source: int = 1
    target: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("source", "target"):
            if getattr(self, field) < 0:
                raise ValueError(f"targeted_label_flip: {field} must be a class, 0 or more, got {getattr(self, field)}")
        if self.source == self.target:
            raise ValueError(f"targeted_label_flip: source and target must be two classes, got {self.source} for both")

    def poison(self, data: LocalData) -> tuple[Tensor, Tensor]:
        """See ``Attack.poison``; raises ValueError if the data have no such class."""
        for field in ("source", "target"):
            if getattr(self, field) >= data.num_classes:
                raise ValueError(
                    f"targeted_label_flip: {field} must be one of the {data.num_classes} classes, 0 to "
                    f"{data.num_classes - 1}, got {getattr(self, field)}"
                )
        return data.images, self._flipped(data.labels)

    def triggered(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Attack.triggered``: the source's samples, wanted as the target."""
        chosen = labels == self.source
        return images[chosen], self._flipped(labels[chosen])

    def _flipped(self, labels: Tensor) -> Tensor:
        return labels.masked_fill(labels == self.source, self.target)
