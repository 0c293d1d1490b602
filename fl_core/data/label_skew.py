"""Partition by main classes: the "label skew" of arXiv 2507.23638."""

import numpy as np
from numpy.typing import NDArray

from fl_core.data.partition import accept, checked_units, register_partition
from fl_core.data.units import Integers, Shards


@register_partition("label_skew")
def label_skew(
    labels: Integers, num_clients: int, generator: np.random.Generator, *, groups: Integers | None = None, q: float
) -> Shards:
    """Each client has a main class: a share q of its samples is of that class, the rest of the others.

    The "label skew 70 % and 90 %" of arXiv 2507.23638, section 4.1. Classes become main classes in proportion to
    their size, each of at least one client; with fewer clients than classes a client has several. A client is as large
    as its share of its main class allows. Where one class holds more than half of the units, the rest of it finds no
    room elsewhere and stays with its own clients, whose share is then above q.

    Args:
        labels: See ``Partition``.
        num_clients: See ``Partition``.
        generator: See ``Partition``.
        groups: See ``Partition``.
        q: Share in [0, 1].

    Raises:
        ValueError: q outside [0, 1], or too few units for a client to get two samples.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"q must be a share in [0, 1], got {q}")
    units = checked_units(labels, num_clients, groups)
    owns = _main_classes(units.labels, num_clients, generator)
    counts = np.bincount(units.labels, minlength=owns.shape[1])
    targets = owns @ (counts / np.maximum(owns.sum(axis=0), 1))
    room = _whole(targets, len(units))
    owner = np.full(len(units), -1, dtype=np.int64)
    left: list[Integers] = []
    for c in np.argsort(-counts, kind="stable"):  # largest first: it has the fewest places outside its own clients
        members = generator.permutation(np.flatnonzero(units.labels == c))
        own = np.flatnonzero(owns[:, c])
        kept = _whole(np.full(len(own), q * len(members) / len(own)), round(q * len(members))) if len(own) else own
        owner[members[: kept.sum()]] = np.repeat(own, kept)
        room[own] -= kept
        left.append(members[kept.sum() :])
    for members in left:
        for unit in members:
            others = np.where(owns[:, units.labels[unit]], -np.inf, room / np.maximum(targets, 1e-9))
            chosen = int(others.argmax()) if others.max() > 0 else int((room / np.maximum(targets, 1e-9)).argmax())
            owner[unit] = chosen
            room[chosen] -= 1
    _exchange(units.labels, owner, owns, np.concatenate(left))
    return accept(units, owner, num_clients, f"q={q}")


def _main_classes(labels: Integers, num_clients: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """(N, C) bool: which classes are a client's main ones."""
    counts = np.bincount(labels)
    present = generator.permutation(np.flatnonzero(counts))
    owns = np.zeros((num_clients, len(counts)), dtype=np.bool_)
    if num_clients < len(present):
        load = np.zeros(num_clients, dtype=np.int64)
        for c in sorted(present, key=lambda c: -counts[c]):
            owns[load.argmin(), c] = True
            load[load.argmin()] += counts[c]
        return owns
    clients = np.ones(len(present), dtype=np.int64)
    for _ in range(num_clients - len(present)):
        clients[(counts[present] / clients).argmax()] += 1
    owns[generator.permutation(num_clients), np.repeat(present, clients)] = True
    return owns


def _exchange(labels: Integers, owner: Integers, owns: NDArray[np.bool_], moved: Integers) -> None:
    """Exchanges units that found room with their own class's clients only against units placed before them."""
    for unit in moved[owns[owner[moved], labels[moved]]]:
        home = owner[unit]
        fits = ~owns[owner[moved], labels[unit]] & ~owns[home, labels[moved]]
        if fits.any():
            other = moved[fits.argmax()]
            owner[unit], owner[other] = owner[other], home


def _whole(shares: NDArray[np.float64], total: int) -> Integers:
    """Whole numbers that add up to ``total`` and are nearest to ``shares`` scaled to it (largest remainder)."""
    exact = shares * (total / shares.sum()) if shares.sum() > 0 else np.full(len(shares), total / len(shares))
    whole: Integers = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: total - whole.sum()]] += 1
    return whole
