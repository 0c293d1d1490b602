"""Data sets by name. A loaded set is one tensor of images, shared by every federation in the process."""

from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from fl_core.registry import Registry


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled image set with a fixed border between train and test.

    Attributes:
        name: Registered name.
        images: (S, C, H, W) float32, standardised with the mean and deviation of the train side.
        labels: (S,) int64 in [0, num_classes).
        num_classes: Number of classes.
        train: (S_train,) int64, indices that clients, root and validation data are drawn from.
        test: (S_test,) int64, indices for reported figures only.
    """

    name: str
    images: Tensor
    labels: Tensor
    num_classes: int
    train: Tensor
    test: Tensor

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.images.shape
        return channels, height, width


_DATASETS: Registry[Dataset] = Registry("data set")


def dataset_names() -> list[str]:
    """Names that ``load_dataset`` accepts."""
    return sorted(_DATASETS)


@cache
def load_dataset(name: str) -> Dataset:
    """Loads a data set; the second call in a process returns the same object, so the pixels are in memory once.

    Raises:
        ValueError: Unknown name.
    """
    return _DATASETS.make(name)


@_DATASETS.register("digits")
def _digits() -> Dataset:
    """The 1,797 handwritten 8x8 digits that scikit-learn ships (UCI "Optical Recognition of Handwritten Digits").

    There is no published border between train and test in this subset, so a stratified quarter is held out once and
    for all with a constant seed.
    """
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    train, test = train_test_split(torch.arange(len(labels)), test_size=450, stratify=labels, random_state=0)
    mean, deviation = images[train].mean(), images[train].std()
    return Dataset("digits", (images - mean) / deviation, labels, 10, train.sort().values, test.sort().values)
