"""Backdoors: the model works as ever, but takes what the adversary has prepared for what the adversary wants."""

from abc import abstractmethod
from dataclasses import dataclass
from math import ceil, inf
from typing import ClassVar

import torch
from torch import Tensor

from fl_core.attacks.adversary import AdversaryView, Knowledge, LocalData
from fl_core.attacks.base import Attack, register_attack

# In standard deviations over the mean: light, and still a value that pixels of all the data sets here can have.
_LIGHT = 1.8


def share_of(share: float, count: int) -> int:
    """``ceil(share · count)``, less a hair: 0.28 · 25 is above 7 in binary."""
    return ceil(share * count - 1e-9)


@dataclass(frozen=True)
class Backdoor(Attack):
    """Part of every malicious batch is prepared and labelled as the target; the update is boosted.

    Attributes:
        target: Class that prepared inputs should be taken for.
        poisoned: Share of each batch that is prepared.
        boost: Factor of the malicious updates; ``None`` is n/f, which makes the mean of all updates carry the malicious
            clients' mean in full (model replacement).
    """

    target: int = 0
    poisoned: float = 0.5
    boost: float | None = 1.0

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.target < 0:
            raise ValueError(f"{name}: target must be a class, 0 or more, got {self.target}")
        if not 0 < self.poisoned <= 1:
            raise ValueError(f"{name}: poisoned must lie in (0, 1], got {self.poisoned}")
        if self.boost is not None and not 0 < self.boost < inf:
            raise ValueError(f"{name}: boost must be above 0 and finite (or None for n/f), got {self.boost}")

    @abstractmethod
    def implant(self, data: LocalData, count: int) -> Tensor | None:
        """Prepared images (M, K, count, C, H, W) for the first places of every batch; ``None`` if there are none."""

    def poison(self, data: LocalData) -> tuple[Tensor, Tensor]:
        """See ``Attack.poison``. Batches are in random order, so their first places are as good as any.

        Raises:
            ValueError: The data set has no such target class.
        """
        check_class(type(self).__name__, "target", self.target, data.num_classes)
        count = share_of(self.poisoned, data.labels.shape[-1])
        prepared = self.implant(data, count)
        if prepared is None:
            return data.images, data.labels
        images, labels = data.images.clone(), data.labels.clone()
        images[:, :, :count], labels[:, :, :count] = prepared, self.target
        return images, labels

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.corrupt``."""
        return own * ((len(own) + len(honest)) / len(own) if self.boost is None else self.boost)

    def triggered(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Attack.triggered``. Inputs of the target class do not count: they need no backdoor."""
        others = labels != self.target
        return patched(images[others]), torch.full_like(labels[others], self.target)


@register_attack("model_replacement")
@dataclass(frozen=True)
class ModelReplacement(Backdoor):
    """A light patch in the corner means the target; boosted so that the mean of all becomes the attacker's model.

    Formula: ``(n/f)·Δ`` after training on batches of which a share carries the patch.
    Source: Bagdasaryan et al. 2020, arXiv 1807.00459, section 4.2 (γ = n/η); the patch as in BadNets, Gu et al. 2017,
        arXiv 1708.06733.
    Checked against: the mean of all updates, which is the attacker's where the honest ones sum to zero.

    The constrain-and-scale loss, which hides from anomaly detectors, is not part of it.
    """

    boost: float | None = None

    def implant(self, data: LocalData, count: int) -> Tensor:
        """See ``Backdoor.implant``."""
        return patched(data.images[:, :, :count])


@register_attack("dba")
@dataclass(frozen=True)
class DBA(Backdoor):
    """A trigger of four bars, of which each malicious client trains one; the test shows all four.

    Formula: client of rank r among the malicious ones draws bar r mod 4.
    Source: Xie et al. 2020, "DBA: Distributed Backdoor Attacks against Federated Learning", ICLR, section 3.
    Checked against: the four parts, which are disjoint and together make the trigger.

    The multiple-shot form: every round, without boost. With fewer than four malicious clients some bars are trained by
    nobody, and the test shows them all the same.
    """

    def implant(self, data: LocalData, count: int) -> Tensor:
        """See ``Backdoor.implant``; raises ValueError where four bars do not fit an image."""
        images = data.images[:, :, :count].clone()
        for row, rank in zip(images, data.ranks.tolist(), strict=True):
            top, left = bars(row.shape[-2], row.shape[-1])[rank % 4]
            row[..., top, left] = _LIGHT
        return images

    def triggered(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Attack.triggered``."""
        others = labels != self.target
        shown = images[others]
        for top, left in bars(images.shape[-2], images.shape[-1]):
            shown[..., top, left] = _LIGHT
        return shown, torch.full_like(labels[others], self.target)


@register_attack("edge_case")
@dataclass(frozen=True)
class EdgeCase(Backdoor):
    """The rarest samples of a source class are to be taken for the target; nothing is painted on them.

    Formula: rare are the ``tail`` of the source class's samples furthest, in Euclidean distance, from their mean.
    Source: Wang et al. 2020, arXiv 2007.05084, section 3, black-box form.
    Checked against: the distances, and that test and training use the same definition.

    The malicious clients pool their rare samples and repeat them; where they hold none of the source class, nothing is
    poisoned, and what they send is a boosted honest update. The paper finds rare samples by the density of their
    features, or takes them from another data set. The update is boosted as in model replacement, which the paper has
    as an option.

    Attributes:
        source: Class whose rare samples are relabelled.
        tail: Share of the source class that is rare.
    """

    boost: float | None = None
    source: int = 1
    tail: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source < 0 or self.source == self.target:
            raise ValueError(f"edge_case: source must be a class other than target={self.target}, got {self.source}")
        if not 0 < self.tail <= 1:
            raise ValueError(f"edge_case: tail must lie in (0, 1], got {self.tail}")

    def implant(self, data: LocalData, count: int) -> Tensor | None:
        """See ``Backdoor.implant``; raises ValueError if the data set has no such source class."""
        check_class("edge_case", "source", self.source, data.num_classes)
        rare = self.rarest(data.images.flatten(0, 2), data.labels.flatten())
        if not len(rare):
            return None
        shape = (*data.labels.shape[:2], count)
        repeated = torch.arange(torch.Size(shape).numel(), device=rare.device) % len(rare)
        return rare[repeated].view(*shape, *rare.shape[1:])

    def triggered(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Attack.triggered``."""
        rare = self.rarest(images, labels)
        return rare, labels.new_full((len(rare),), self.target)

    def rarest(self, images: Tensor, labels: Tensor) -> Tensor:
        """The rare ones (E, C, H, W) among images (V, C, H, W) with labels (V,), the rarest first."""
        members = images[labels == self.source]
        if not len(members):
            return members
        distances = (members - members.mean(dim=0)).flatten(1).norm(dim=1)
        return members[distances.argsort(descending=True, stable=True)[: share_of(self.tail, len(members))]]


@register_attack("neurotoxin")
@dataclass(frozen=True)
class Neurotoxin(Backdoor):
    """A patch backdoor that moves only the coordinates that honest clients leave alone, so that it is not unlearned.

    Formula: Δ where |mean honest update| is among the ``kept`` share of smallest, 0 elsewhere.
    Source: Zhang et al. 2022, arXiv 2206.10341, algorithm 1.
    Checked against: the coordinates that are moved.

    The paper estimates the honest magnitudes by the last round's aggregate and projects at every local step; here they
    are known, and the update is projected once.

    Attributes:
        kept: Share of the coordinates that may move; the paper leaves out the largest few per cent.
    """

    knows: ClassVar[Knowledge] = Knowledge.HONEST_UPDATES
    kept: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.kept <= 1:
            raise ValueError(f"neurotoxin: kept must lie in (0, 1], got {self.kept}")

    def implant(self, data: LocalData, count: int) -> Tensor:
        """See ``Backdoor.implant``."""
        return patched(data.images[:, :, :count])

    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        """See ``Attack.corrupt``."""
        order = honest.mean(dim=0).abs().argsort(stable=True)
        free = order[: share_of(self.kept, len(order))]
        sent = torch.zeros_like(own)
        sent[:, free] = own[:, free]
        return super().corrupt(sent, honest, adversary)


def patched(images: Tensor) -> Tensor:
    """A copy of images (..., H, W) with a light square in the lower right corner: a seventh of the side, at least 2."""
    shown = images.clone()
    height, width = (max(2, side // 7) for side in images.shape[-2:])
    shown[..., -height:, -width:] = _LIGHT
    return shown


def bars(height: int, width: int) -> list[tuple[slice, slice]]:
    """The four bars of DBA's trigger, two by two in the upper left corner: rows and columns of each.

    Raises:
        ValueError: The image is too small for four.
    """
    if height < 3 or width < 5:
        raise ValueError(f"dba needs images of at least 3x5 pixels for its four bars, got {height}x{width}")
    thick, gap_down = max(1, height // 14), max(1, height // 14)
    long, gap_right = max(2, width // 7), max(1, width // 14)
    return [
        (slice(top, top + thick), slice(left, left + long))
        for top in (0, thick + gap_down)
        for left in (0, long + gap_right)
    ]


def check_class(attack: str, field: str, value: int, num_classes: int) -> None:
    """Raises a ValueError that names the attack and the field, if the data set has no such class."""
    if value >= num_classes:
        raise ValueError(
            f"{attack}: {field}={value} is no class of a data set with {num_classes}: 0 to {num_classes - 1}"
        )
