"""Who may see which sample: clients, root data (reference and utility half), validation, test."""

from collections.abc import Sequence
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


@dataclass(frozen=True)
class Root:
    """Which root data the server owns in an episode, in place of the federation's own.

    Attributes:
        size: Number of samples; ``None`` is the federation's own number.
        bias: Share in [0, 1) that is of one class; the rest is balanced over the classes. 0 is balanced altogether,
            ``None`` as the federation's own.
        draw: Number of the draw, 0 or more; with size and bias it says which samples, and which class is the favoured.
    """

    size: int | None = None
    bias: float | None = None
    draw: int = 0

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 4:
            raise ValueError(f"root_size must be at least 4 (two samples in each half), got {self.size}")
        if self.bias is not None and not 0.0 <= self.bias < 1.0:
            raise ValueError(f"root_bias must lie in [0, 1), got {self.bias}")
        if self.draw < 0:
            raise ValueError(f"root_draw must be 0 or more, got {self.draw}")


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
    wanted = (*_halves(root), (validation, _HELD_GROUPS))
    (reference, utility, held), clients = _deal(dataset, dataset.train, generator, wanted)
    if not len(clients) or len(reference) + len(utility) + len(held) < root + validation:
        units = units_of(dataset.labels[dataset.train].cpu().numpy(), dataset.groups_of(dataset.train))
        raise ValueError(
            f"root={root} and validation={validation} leave no sample for the clients: "
            f"data set {dataset.name!r} has {len(dataset.train)} train samples"
            + (f" in {len(units)} groups" if dataset.groups is not None else "")
        )
    return Splits(clients, reference, utility, held, dataset.test)


def redraw_root(dataset: Dataset, splits: Splits, generator: np.random.Generator, root: Root) -> Splits:
    """Other root data: drawn anew from what is neither validation nor test data; the clients get the rest.

    Validation and test data stay as they are, so figures of one federation's episodes can be compared.

    Args:
        dataset: Source.
        splits: The federation's own splits.
        generator: Source of the draw.
        root: Size, by default the size that it has in ``splits``, and bias, by default none. Where the favoured class
            has not as many samples, both halves get the same share of what it has.

    Raises:
        ValueError: Nothing would be left for the clients.
    """
    size = root.size or len(splits.reference) + len(splits.utility)
    pool = dataset.train[~torch.isin(dataset.train, splits.validation)]
    if dataset.groups is not None:  # a group that gave validation images gives no others
        pool = pool[~torch.isin(dataset.groups[pool], dataset.groups[splits.validation])]
    (reference, utility), clients = _deal(dataset, pool, generator, _halves(size), root.bias or 0.0)
    if not len(clients) or len(reference) + len(utility) < size:
        raise ValueError(
            f"root_size={size} leaves no sample for the clients: data set {dataset.name!r} has {len(pool)} train "
            "samples beside the validation data"
        )
    return Splits(clients, reference, utility, splits.validation, splits.test)


def _halves(root: int) -> tuple[tuple[int, float], tuple[int, float]]:
    """Size and share of the groups of reference and utility half."""
    return (root // 2, _ROOT_GROUPS / 2), (root - root // 2, _ROOT_GROUPS / 2)


def _deal(
    dataset: Dataset,
    pool: Tensor,
    generator: np.random.Generator,
    wanted: Sequence[tuple[int, float]],
    bias: float = 0.0,
) -> tuple[list[Tensor], Tensor]:
    """Deals a pool of samples out: parts of the wanted sizes, each from a share of the groups, and all the rest."""
    samples = pool.numpy()
    units = units_of(dataset.labels[pool].cpu().numpy(), dataset.groups_of(pool))
    queue = interleave_classes(units.labels, generator)
    if bias:
        favoured = int(generator.choice(np.unique(units.labels)))
        mean = len(samples) / len(units)
        count = sum(max(ceil(size / mean), min(size, ceil(share * len(units)))) for size, share in wanted)
        queue = favour_class(queue, units.labels, favoured, _within_reach(bias, units.labels, favoured, count))
    parts = []
    for size, share in wanted:
        count = _units_needed(units.sizes[queue], size, ceil(share * len(units)))
        taken, queue = queue[:count], queue[count:]
        parts.append(samples[_spread(units.of_sample, taken, size, generator)])
    *dealt, rest = (torch.from_numpy(np.sort(part)) for part in (*parts, samples[np.isin(units.of_sample, queue)]))
    return dealt, rest


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


def split_in_halves(
    labels: NDArray[np.int64], generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two random halves, half of every class in each; sizes, and numbers of a class, differ by 1 at most."""
    order = generator.permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    return by_class[::2], by_class[1::2]


def _within_reach(bias: float, labels: NDArray[np.int64], favoured: int, count: int) -> float:
    """The bias, or the largest at which the favoured class, but for its last member, suffices for ``count`` units."""
    classes, members = np.unique(labels, return_counts=True)
    most = (int(members[classes == favoured][0]) - 1) / count
    return max(min(bias, (most * len(classes) - 1) / max(len(classes) - 1, 1)), 0.0)


def favour_class(queue: NDArray[np.int64], labels: NDArray[np.int64], favoured: int, bias: float) -> NDArray[np.int64]:
    """Brings members of one class forward: a share ``bias`` of every prefix is of them, the rest in the old order.

    The class's last member keeps its place, at the end. Where the class has no more to give, the old order goes on.
    """
    if not bias:
        return queue
    extra = queue[labels[queue] == favoured][-2::-1]
    both = np.concatenate([extra, queue])
    place = np.concatenate([(np.arange(len(extra)) + 0.5) / bias, (np.arange(len(queue)) + 0.5) / (1 - bias)])
    merged = both[np.argsort(place, kind="stable")]
    _, first = np.unique(merged, return_index=True)
    return merged[np.sort(first)]


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
