"""How the clients' share of a data set is cut: pure functions of labels, groups, number of clients and generator.

Every function returns one sorted int64 index array per client into ``labels``: each sample goes to exactly one client.
What is dealt out are *units*: whole groups (a patient's images, a subject's slices) where there are groups, single
samples otherwise; a unit counts as a sample of its most frequent class.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np

from fl_core.data.units import Integers, Shards, Units, units_of
from fl_core.registry import Registry, check_known

MAX_DRAWS = 1000
# Two samples: what BatchNorm needs.
MINIMUM = 2


class Partition(Protocol):
    """Cuts samples into shards."""

    def __call__(
        self, labels: Integers, num_clients: int, generator: np.random.Generator, *, groups: Integers | None = None
    ) -> Shards:
        """Partitions.

        Args:
            labels: (S,) int64.
            num_clients: N.
            generator: Source of randomness.
            groups: (S,) int64, samples that must stay together; ``None`` if each stands for itself.

        Raises:
            ValueError: There are fewer units than clients, or no acceptable partition was found.
        """
        ...


_PARTITIONS: Registry[Shards] = Registry("partition")
register_partition = _PARTITIONS.register


def partition_names() -> list[str]:
    """Names that ``make_partition`` accepts."""
    return sorted(_PARTITIONS)


def partition_options(name: str) -> list[str]:
    """The parameters of a partition, such as ``["alpha", "minimum"]``.

    Raises:
        ValueError: Unknown name.
    """
    return [parameter.name for parameter in _options(name)]


def make_partition(name: str, **options: Any) -> Partition:
    """A partition with its parameters set.

    Raises:
        ValueError: Unknown name, a parameter that it does not take, one that is missing, or one of another type.
    """
    check_known(f"option of partition {name!r}", options, partition_options(name))
    missing = [p.name for p in _options(name) if p.default is p.empty and p.name not in options]
    if missing:
        raise ValueError(f"partition {name!r} needs {', '.join(missing)}")
    _PARTITIONS.check_options(name, options)
    return partial(_PARTITIONS[name], **options)


def _options(name: str) -> list[inspect.Parameter]:
    given = inspect.signature(Partition.__call__).parameters
    return [p for p in inspect.signature(_PARTITIONS[name]).parameters.values() if p.name not in given]


@_PARTITIONS.register("iid")
def iid(
    labels: Integers, num_clients: int, generator: np.random.Generator, *, groups: Integers | None = None
) -> Shards:
    """Uniform partition: numbers of units differ by at most one."""
    units = checked_units(labels, num_clients, groups)
    owner = np.empty(len(units), dtype=np.int64)
    for client, part in enumerate(np.array_split(generator.permutation(len(units)), num_clients)):
        owner[part] = client
    return units.shards(owner, num_clients)


@_PARTITIONS.register("dirichlet")
def dirichlet(
    labels: Integers,
    num_clients: int,
    generator: np.random.Generator,
    *,
    groups: Integers | None = None,
    alpha: float = 0.5,
    minimum: int = MINIMUM,
) -> Shards:
    """Label-skewed partition: each class is divided among the clients by a Dirichlet(α) draw.

    The scheme of Yurochkin et al. 2019 (arXiv 1905.12022) and Li et al. 2022 (arXiv 2102.02079): for every class a
    vector of proportions is drawn over the clients. The whole draw is repeated until every client has ``minimum``
    samples.

    Args:
        labels: See ``Partition``.
        num_clients: See ``Partition``.
        generator: See ``Partition``.
        groups: See ``Partition``.
        alpha: Concentration, greater than 0; small is heterogeneous.
        minimum: Smallest shard accepted.

    Raises:
        ValueError: α ≤ 0, fewer units than clients, or no acceptable draw in ``MAX_DRAWS``.
    """
    _check_alpha(alpha)
    units = checked_units(labels, num_clients, groups, minimum)
    members = [np.flatnonzero(units.labels == c) for c in np.unique(units.labels)]
    counts = np.array([len(part) for part in members])

    def draw() -> Integers:
        proportions = generator.dirichlet(np.full(num_clients, alpha), size=len(members))
        cuts = np.rint(np.cumsum(proportions, axis=1) * counts[:, None]).astype(np.int64)
        sizes = np.diff(cuts, axis=1, prepend=0)
        owner = np.empty(len(units), dtype=np.int64)
        for part, size in zip(members, sizes, strict=True):
            owner[generator.permutation(part)] = np.repeat(np.arange(num_clients), size)
        return owner

    return _first_acceptable(draw, units, num_clients, minimum, alpha)


@_PARTITIONS.register("shards")
def shards(
    labels: Integers, num_clients: int, generator: np.random.Generator, *, groups: Integers | None = None, k: int = 2
) -> Shards:
    """Sorts by label, cuts into k·N pieces and gives each client k of them (McMahan et al. 2017, arXiv 1602.05629).

    Args:
        labels: See ``Partition``.
        num_clients: See ``Partition``.
        generator: See ``Partition``.
        groups: See ``Partition``.
        k: Pieces a client, at least 1.

    Raises:
        ValueError: k below 1, or fewer than k·N units.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    units = checked_units(labels, num_clients, groups)
    if k * num_clients > len(units):
        raise ValueError(f"shards of k={k} for {num_clients} clients are more pieces than the {len(units)} there are")
    shuffled = generator.permutation(len(units))
    by_label = shuffled[np.argsort(units.labels[shuffled], kind="stable")]
    owner = np.empty(len(units), dtype=np.int64)
    pieces = generator.permutation(np.repeat(np.arange(num_clients), k))
    for client, piece in zip(pieces, np.array_split(by_label, k * num_clients), strict=True):
        owner[piece] = client
    return accept(units, owner, num_clients, f"k={k}")


@_PARTITIONS.register("quantity_skew")
def quantity_skew(
    labels: Integers,
    num_clients: int,
    generator: np.random.Generator,
    *,
    groups: Integers | None = None,
    alpha: float = 0.5,
    minimum: int = MINIMUM,
) -> Shards:
    """Classes alike, sizes not: the shards' sizes are a Dirichlet(α) draw (Li et al. 2022, arXiv 2102.02079).

    Args:
        labels: See ``Partition``.
        num_clients: See ``Partition``.
        generator: See ``Partition``.
        groups: See ``Partition``.
        alpha: Concentration, greater than 0; small is unequal.
        minimum: Smallest shard accepted.

    Raises:
        ValueError: α ≤ 0, fewer units than clients, or no acceptable draw in ``MAX_DRAWS``.
    """
    _check_alpha(alpha)
    units = checked_units(labels, num_clients, groups, minimum)

    def draw() -> Integers:
        cuts = np.rint(np.cumsum(generator.dirichlet(np.full(num_clients, alpha))) * len(units)).astype(np.int64)
        owner = np.empty(len(units), dtype=np.int64)
        owner[generator.permutation(len(units))] = np.repeat(np.arange(num_clients), np.diff(cuts, prepend=0))
        return owner

    return _first_acceptable(draw, units, num_clients, minimum, alpha)


@_PARTITIONS.register("by_group")
def by_group(
    labels: Integers, num_clients: int, generator: np.random.Generator, *, groups: Integers | None = None
) -> Shards:
    """Whole groups in random order, each to the client that has fewest samples so far: shards of about equal size.

    Raises:
        ValueError: There are no groups, or fewer than clients.
    """
    if groups is None:
        raise ValueError("partition 'by_group' needs a data set with groups (patients, subjects); this one has none")
    units = checked_units(labels, num_clients, groups)
    owner = np.empty(len(units), dtype=np.int64)
    load = np.zeros(num_clients, dtype=np.int64)
    for unit in generator.permutation(len(units)):
        owner[unit] = load.argmin()
        load[owner[unit]] += units.sizes[unit]
    return accept(units, owner, num_clients, "by_group")


def checked_units(labels: Integers, num_clients: int, groups: Integers | None, minimum: int = 1) -> Units:
    """Units to deal out; a ValueError if there are too few of them."""
    if num_clients < 1:
        raise ValueError(f"num_clients must be at least 1, got {num_clients}")
    if minimum < 1:
        raise ValueError(f"minimum must be at least 1 sample a client, got {minimum}")
    units = units_of(labels, groups)
    if groups is not None and num_clients > len(units):
        raise ValueError(
            f"{num_clients} clients are more than the {len(units)} groups there are, and a group stays whole; take at "
            f"most {len(units)} clients"
        )
    if num_clients * minimum > len(labels):
        raise ValueError(
            f"{num_clients} clients of at least {minimum} samples need more than the {len(labels)} samples there are"
        )
    return units


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha must be greater than 0 and finite, got {alpha}")


class PartitionError(ValueError):
    """No draw of a random partition left every client the samples that it needs; another seed may."""


def _first_acceptable(
    draw: Callable[[], Integers], units: Units, num_clients: int, minimum: int, alpha: float
) -> Shards:
    for _ in range(MAX_DRAWS):
        owner = draw()
        if units.smallest_shard(owner, num_clients) >= minimum:
            return units.shards(owner, num_clients)
    raise PartitionError(
        f"alpha={alpha} left a client with fewer than {minimum} of {units.sizes.sum()} samples in each of {MAX_DRAWS} "
        f"draws for {num_clients} clients; take a larger alpha, fewer clients or more data"
    )


def accept(units: Units, owner: Integers, num_clients: int, setting: str) -> Shards:
    """The shards, if every client has two samples; else a ValueError that names the setting."""
    smallest = units.smallest_shard(owner, num_clients)
    if smallest < MINIMUM:
        raise ValueError(
            f"{setting} leaves a client with {smallest} of {units.sizes.sum()} samples, fewer than {MINIMUM}, for "
            f"{num_clients} clients; take fewer clients or more data"
        )
    return units.shards(owner, num_clients)
