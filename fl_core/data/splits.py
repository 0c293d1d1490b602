"""Who may see which sample: clients, root data (reference and utility half), validation, test."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_core.data.datasets import Dataset


@dataclass(frozen=True, eq=False)
class Splits:
    """Disjoint index sets into a data set's images.

    Attributes:
        clients: Samples to be partitioned among the clients.
        reference: Server's own samples that the reference update is trained on.
        utility: Server's own samples that the Shapley value is measured with.
        validation: For reward and model selection while an agent is trained; not there when a policy is deployed.
        test: For reported figures only.
    """

    clients: Tensor
    reference: Tensor
    utility: Tensor
    validation: Tensor
    test: Tensor

    def __post_init__(self) -> None:
        parts = torch.cat([getattr(self, field.name) for field in fields(self)])
        if len(parts.unique()) != len(parts):
            raise ValueError("the splits overlap: a sample stands in two of clients, reference, utility, ..., test")


def make_splits(dataset: Dataset, generator: np.random.Generator, *, root: int = 100, validation: int = 200) -> Splits:
    """Draws root and validation data from the train side, each balanced over the classes; the rest is the clients'.

    The test side is the data set's own and never moves. ``root`` samples fall into two halves, reference and utility.

    Args:
        dataset: Source.
        generator: Source of the draw.
        root: Number of samples the server owns, at least 4.
        validation: Number of samples for reward and selection.

    Raises:
        ValueError: ``root`` or ``validation`` is too small, or nothing would be left for the clients.
    """
    if root < 4:
        raise ValueError(f"root must be at least 4 (two samples in each half), got {root}")
    if validation < 1:
        raise ValueError(f"validation must be at least 1, got {validation}")
    if root + validation >= len(dataset.train):
        raise ValueError(
            f"root={root} and validation={validation} leave no sample for the clients: "
            f"data set {dataset.name!r} has {len(dataset.train)} train samples"
        )
    train = dataset.train.numpy()
    order = train[interleave_classes(dataset.labels[dataset.train].numpy(), generator)]
    half = root // 2
    reference, utility, held, rest = np.split(order, [half, root, root + validation])

    def indices(part: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(np.sort(part))

    return Splits(indices(rest), indices(reference), indices(utility), indices(held), dataset.test)


def interleave_classes(labels: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """A random order in which every prefix is as balanced over the classes as the labels allow."""
    order = generator.permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)
    for c in np.unique(labels):
        members = order[labels[order] == c]
        rank[members] = np.arange(len(members))
    tie_break = np.empty(len(labels), dtype=np.int64)
    tie_break[order] = np.arange(len(labels))
    return np.lexsort((tie_break, rank))
