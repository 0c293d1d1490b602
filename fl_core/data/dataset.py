"""A labelled image set in memory, and the registry of sets."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_core.data.location import Source, data_directory
from fl_core.registry import Registry

Moments = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled image set with a fixed border between train and test.

    Attributes:
        name: Registered name.
        pixels: (S, C, H, W) uint8, as stored; shared by all federations of a process, so never written to.
        labels: (S,) int64 in [0, num_classes).
        classes: Names of the classes.
        train: (S_train,) int64, indices that clients, root and validation data are drawn from.
        test: (S_test,) int64, indices for reported figures only.
        groups: (S,) int64, which samples belong together (one patient's, one subject's); ``None`` if each stands for
            itself. A group never straddles two clients, nor the border between train and test.

    Raises:
        ValueError: The parts do not fit together, a class has fewer than two samples, or a group straddles the border.
    """

    name: str
    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    train: Tensor
    test: Tensor
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.dtype != torch.uint8:
            raise ValueError(
                f"data set {self.name!r}: pixels must be (S, C, H, W) uint8, got {tuple(self.pixels.shape)} "
                f"{self.pixels.dtype}"
            )
        samples = len(self.pixels)
        if not samples or self.labels.dtype != torch.int64:
            raise ValueError(
                f"data set {self.name!r}: needs images and int64 labels, got {samples}, {self.labels.dtype}"
            )
        if self.labels.shape != (samples,) or (self.groups is not None and self.groups.shape != (samples,)):
            raise ValueError(f"data set {self.name!r}: {samples} images need as many labels and groups")
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= self.num_classes:
            raise ValueError(
                f"data set {self.name!r}: labels must lie in [0, {self.num_classes}), "
                f"got {int(self.labels.min())} to {int(self.labels.max())}"
            )
        sides = torch.cat([self.train, self.test])
        if not (len(self.train) and len(self.test)) or int(sides.min()) < 0 or int(sides.max()) >= samples:
            raise ValueError(f"data set {self.name!r}: train and test must be indices of some of its {samples} images")
        if len(sides.unique()) < len(sides):
            raise ValueError(f"data set {self.name!r}: an image stands in train and test, or twice in one of them")
        for name, count in zip(self.classes, torch.bincount(self.labels, minlength=self.num_classes), strict=True):
            if count < 2:
                raise too_few_images(self.name, name, int(count))
        if self.groups is not None:
            straddling = np.intersect1d(self.groups[self.train], self.groups[self.test])
            if len(straddling):
                raise ValueError(
                    f"data set {self.name!r}: group {straddling[0]} stands on both sides of the border between train "
                    "and test; a test on people who were trained on measures memory"
                )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    @cached_property
    def moments(self) -> Moments:
        """Mean and standard deviation of each channel over the train side, both (C, 1, 1) float32, in pixel values."""
        values = torch.arange(256, dtype=torch.float64)
        means, deviations = [], []
        for channel in range(self.pixels.shape[1]):
            # Exact and without a floating-point copy of the set: uint8 has 256 values.
            counts = torch.bincount(self.pixels[self.train, channel].flatten(), minlength=256).double()
            mean = (counts @ values) / counts.sum()
            means.append(mean)
            deviations.append(((counts @ (values - mean).square()) / (counts.sum() - 1)).sqrt())
        mean, deviation = torch.stack(means), torch.stack(deviations)
        return mean.float().view(-1, 1, 1), torch.where(deviation > 0, deviation, 1.0).float().view(-1, 1, 1)

    def images(self, indices: Tensor) -> Tensor:
        """Images standardised with the train side's moments.

        Args:
            indices: int64 of any shape.

        Returns:
            (*indices.shape, C, H, W) float32.
        """
        mean, deviation = self.moments
        # Row by row: indexing goes pixel by pixel, at several times the cost.
        pixels = self.pixels.index_select(0, indices.flatten()).view(*indices.shape, *self.image_shape)
        return pixels.to(torch.float32).sub_(mean).div_(deviation)

    def to(self, device: torch.device) -> "Dataset":
        """The set with pixels and labels on a device; indices and groups stay on the CPU. Itself if they are there."""
        return self if self.pixels.device == device else _on(self, device)

    def groups_of(self, indices: Tensor) -> NDArray[np.int64] | None:
        """The groups of some samples, or ``None`` where there are none."""
        return None if self.groups is None else self.groups[indices].numpy()


@cache
def _on(dataset: Dataset, device: torch.device) -> Dataset:
    moved = replace(dataset, pixels=dataset.pixels.to(device), labels=dataset.labels.to(device))
    mean, deviation = dataset.moments
    vars(moved)["moments"] = mean.to(device), deviation.to(device)
    return moved


def too_few_images(dataset: str, name: str, count: int) -> ValueError:
    """The error for a class that cannot be both learned and tested."""
    return ValueError(
        f"data set {dataset!r}: class {name!r} has {count} image{'s' if count != 1 else ''}; a class needs at least "
        "two, one to learn from and one to test with"
    )


_DATASETS: Registry[Dataset] = Registry("data set")
register_dataset = _DATASETS.register


def dataset_names() -> list[str]:
    """Names that ``load_dataset`` accepts."""
    return sorted(_DATASETS)


def load_dataset(name: str, data_dir: str | Path | None = None, *, download: bool = False, **options: Any) -> Dataset:
    """Loads a data set; the second call in a process returns the same object, so the pixels are in memory once.

    Args:
        name: Registered name.
        data_dir: Where its files are: by default ``$OPTIGRAD_DATA``, else the user's cache directory. For
            ``image_folder`` the folder itself.
        download: Fetch missing files, for sets that have a public address.
        **options: What the set takes, such as ``image_size=32`` for folders of images.

    Raises:
        ValueError: Unknown name or option, or a file that is missing or damaged; the message names the file.
    """
    wrong = [f"{key}={value!r}" for key, value in options.items() if not isinstance(value, Hashable)]
    if wrong:
        raise ValueError(f"data set {name!r}: options must be plain values, got {', '.join(wrong)}")
    return _load(name, Source(data_directory(data_dir), download), tuple(sorted(options.items())))


@cache
def _load(name: str, source: Source, options: tuple[tuple[str, Any], ...]) -> Dataset:
    return _DATASETS.make(name, source=source, **dict(options))
