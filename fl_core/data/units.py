"""What a partition deals out: whole groups (a patient's images, a subject's slices), or single samples."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Shards = list[Integers]


@dataclass(frozen=True, eq=False)
class Units:
    """Groups, or single samples.

    Attributes:
        labels: (U,) int64, most frequent class of each unit.
        sizes: (U,) int64, samples of each unit.
        of_sample: (S,) int64, the unit of each sample.
    """

    labels: Integers
    sizes: Integers
    of_sample: Integers

    def __len__(self) -> int:
        return len(self.labels)

    def shards(self, owner: Integers, num_clients: int) -> Shards:
        """Samples of each client, when client ``owner[u]`` has unit u."""
        clients = owner[self.of_sample]
        order = np.argsort(clients, kind="stable")
        return np.split(order, np.searchsorted(clients[order], np.arange(1, num_clients)))

    def smallest_shard(self, owner: Integers, num_clients: int) -> int:
        """Number of samples of the client that has fewest."""
        return int(np.bincount(owner, weights=self.sizes, minlength=num_clients).min())


def units_of(labels: Integers, groups: Integers | None) -> Units:
    """Groups as units, in the order of their numbers; or every sample as a unit of its own."""
    if groups is None:
        return Units(labels, np.ones(len(labels), dtype=np.int64), np.arange(len(labels)))
    _, of_sample = np.unique(groups, return_inverse=True)
    counts = np.zeros((of_sample.max(initial=-1) + 1, labels.max(initial=0) + 1), dtype=np.int64)
    np.add.at(counts, (of_sample, labels), 1)
    return Units(counts.argmax(axis=1), counts.sum(axis=1), of_sample)
