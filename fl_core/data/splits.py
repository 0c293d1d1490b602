"""Who may see which sample: clients, root data (reference and utility half), validation, test."""

from dataclasses import dataclass, fields
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_core.data.dataset import Dataset
from fl_core.data.units import units_of

# Shares of the groups (patients, subjects) that root and validation data may be drawn from, unless more are needed.
# Groups cannot be cut, so drawing every sample from another one would leave the clients none: several images of one
# group are taken instead.
_ROOT_GROUPS = 0.1
_HELD_GROUPS = 0.1


@dataclass(frozen=True, eq=False)
class Splits:
    """Disjoint index sets into a data set's images. Of grouped data no group stands in two of them.

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
    Groups stay whole: images of a group that the server draws from, but does not take, are nobody's. A class's last
    group stays with the clients.

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
    train = dataset.train.numpy()
    units = units_of(dataset.labels[dataset.train].numpy(), dataset.groups_of(dataset.train))
    queue = interleave_classes(units.labels, generator)
    parts = []
    for size, share in (
        (root // 2, _ROOT_GROUPS / 2),
        (root - root // 2, _ROOT_GROUPS / 2),
        (validation, _HELD_GROUPS),
    ):
        count = _units_needed(units.sizes[queue], size, ceil(share * len(units)))
        taken, queue = queue[:count], queue[count:]
        parts.append(train[_spread(units.of_sample, taken, size, generator)])
    clients = train[np.isin(units.of_sample, queue)]
    if not len(clients) or sum(map(len, parts)) < root + validation:
        raise ValueError(
            f"root={root} and validation={validation} leave no sample for the clients: "
            f"data set {dataset.name!r} has {len(train)} train samples"
            + (f" in {len(units)} groups" if dataset.groups is not None else "")
        )
    reference, utility, held = (torch.from_numpy(np.sort(part)) for part in parts)
    return Splits(torch.from_numpy(np.sort(clients)), reference, utility, held, dataset.test)


def interleave_classes(labels: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """A random order in which every prefix is as balanced over the classes as the labels allow.

    The last member of each class comes at the end: whoever takes a prefix leaves some of every class.
    """
    order = generator.permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)
    for c in np.unique(labels):
        members = order[labels[order] == c]
        rank[members] = np.arange(len(members))
        rank[members[-1]] = len(labels)
    tie_break = np.empty(len(labels), dtype=np.int64)
    tie_break[order] = np.arange(len(labels))
    return np.lexsort((tie_break, rank))


def _units_needed(sizes: NDArray[np.int64], samples: int, affordable: int) -> int:
    """How many units of a queue to take for a number of samples: as many as are affordable, or as are needed."""
    needed = int(np.searchsorted(np.cumsum(sizes), samples)) + 1
    return min(max(needed, min(samples, affordable)), len(sizes))


def _spread(
    of_sample: NDArray[np.int64], units: NDArray[np.int64], samples: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """``samples`` samples of some units, as evenly over the units as their sizes allow."""
    place = np.full(of_sample.max() + 1, -1, dtype=np.int64)
    place[units] = np.arange(len(units))
    candidates = generator.permutation(np.flatnonzero(place[of_sample] >= 0))
    candidates = candidates[np.argsort(place[of_sample[candidates]], kind="stable")]
    where = place[of_sample[candidates]]
    rank = np.arange(len(where)) - np.searchsorted(where, where)
    return candidates[np.lexsort((where, rank))][:samples]
