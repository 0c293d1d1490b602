"""Order statistics of every coordinate at once: sorting networks whose wires are the clients.

``torch.sort`` sorts each of P short columns by itself and remembers where every value came from. Here a comparator
orders two *clients* at every coordinate, two vector instructions on contiguous memory; and a network that only has to
deliver the middle values drops the comparators that these do not depend on.
"""

from collections.abc import Callable, Iterator
from enum import IntEnum
from functools import cache

import torch
from torch import Tensor

# Elements of a chunk, 4 MiB in float32: a quarter of it takes twice as long for the calls, and more leaves the cache.
_CHUNK = 2**20
# Columns of a chunk below which calling a comparator costs more than running it, and with how many clients that is so.
_NARROWEST = 2048
_MOST_CLIENTS = _CHUNK // _NARROWEST


class _Need(IntEnum):
    """What is asked of a wire: nothing, its share of the sum over all such wires, or its own value."""

    NOTHING = 0
    SUM = 1
    VALUE = 2


@cache
def comparators(n: int) -> tuple[tuple[int, int], ...]:
    """Batcher's odd-even merge sort for any n (Knuth, TAOCP 3, algorithm 5.2.2M): pairs (low, high) in order."""
    pairs = []
    p = 1
    while p < n:
        k = p
        while k >= 1:
            for start in range(k % p, n - k, 2 * k):
                for low in range(start, min(start + k, n - k)):
                    if low // (2 * p) == (low + k) // (2 * p):
                        pairs.append((low, low + k))
            k //= 2
        p *= 2
    return tuple(pairs)


@cache
def _middle_network(n: int, trim: int) -> tuple[tuple[int, int, bool, bool], ...]:
    """What is left of the network for the sum of the sorted values ``trim`` to ``n − trim``.

    Read backwards: a comparator between two wires that nobody reads is dropped, and so is one between two wires that
    are only added up, as ordering them does not change the sum.

    Returns:
        (low, high, whether the low output is read, whether the high one is).
    """
    need = [_Need.SUM if trim <= wire < n - trim else _Need.NOTHING for wire in range(n)]
    kept = []
    for low, high in reversed(comparators(n)):
        if need[low] == need[high] != _Need.VALUE:
            continue
        kept.append((low, high, need[low] != _Need.NOTHING, need[high] != _Need.NOTHING))
        need[low] = need[high] = _Need.VALUE
    return tuple(reversed(kept))


def trimmed_mean(updates: Tensor, trim: int) -> Tensor:
    """Mean over clients of each coordinate, without the ``trim`` largest and smallest: (n, P) to (P,)."""
    return _without_overflow(_trimmed_mean, updates, trim)


def _without_overflow(mean: Callable[[Tensor, int], Tensor], updates: Tensor, count: int) -> Tensor:
    """A mean of some of the values of each coordinate; of finite ones it is finite, which their sum need not be."""
    result = mean(updates, count)
    if bool(result.isfinite().all()):
        return result
    n = len(updates)
    return n * mean(updates / n, count)


def _trimmed_mean(updates: Tensor, trim: int) -> Tensor:
    n = len(updates)
    if trim == 0:
        return updates.mean(dim=0)
    result = torch.empty_like(updates[0])
    if not _by_network(updates):
        for columns, ordered in sorted_chunks(updates):
            result[columns] = ordered[trim : n - trim].mean(dim=0)
        return result
    for columns, rows in _chunks(updates):
        for low, high, low_is_read, high_is_read in _middle_network(n, trim):
            if low_is_read and high_is_read:
                _order(rows, low, high)
            elif low_is_read:
                torch.minimum(rows[low], rows[high], out=rows[low])
            else:
                torch.maximum(rows[low], rows[high], out=rows[high])
        total = rows[trim]
        for row in rows[trim + 1 : n - trim]:
            total.add_(row)
        torch.div(total, n - 2 * trim, out=result[columns])
    return result


def mean_around_median(updates: Tensor, keep: int) -> Tensor:
    """Mean of the ``keep`` values of each coordinate that are nearest to its median: (n, P) to (P,)."""
    return _without_overflow(_mean_around_median, updates, keep)


def _mean_around_median(updates: Tensor, keep: int) -> Tensor:
    n = len(updates)
    if keep == n:
        return updates.mean(dim=0)
    result = torch.empty_like(updates[0])
    for columns, ordered in sorted_chunks(updates):
        middle = ordered[(n - 1) // 2 : n // 2 + 1].mean(dim=0)
        # The nearest values are a window of the order. It moves up as long as the value that it leaves is farther off
        # than the one that it gains, which is true up to some place and false from there on.
        moves = middle - ordered[: n - keep] > ordered[keep:] - middle
        window = moves.sum(dim=0) + torch.arange(keep, device=updates.device)[:, None]
        result[columns] = ordered.gather(0, window).mean(dim=0)
    return result


def sorted_chunks(updates: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of columns, each sorted over the clients: (columns, (n, c)), a fresh tensor each."""
    n, size = updates.shape
    if not _by_network(updates):
        for start in range(0, size, _NARROWEST):
            yield slice(start, start + _NARROWEST), updates[:, start : start + _NARROWEST].sort(dim=0).values
        return
    for columns, rows in _chunks(updates):
        for low, high in comparators(n):
            _order(rows, low, high)
        yield columns, torch.stack(rows[:n])


def _by_network(updates: Tensor) -> bool:
    """Whether comparators pay: for a CPU's cache and not too many clients. A GPU sorts columns by itself."""
    return len(updates) <= _MOST_CLIENTS and updates.device.type == "cpu"


def _order(rows: list[Tensor], low: int, high: int) -> None:
    """Puts the smaller values of two rows into ``low``, the larger into ``high``; the last row is there to spare."""
    torch.minimum(rows[low], rows[high], out=rows[-1])
    torch.maximum(rows[low], rows[high], out=rows[high])
    rows[low], rows[-1] = rows[-1], rows[low]


def _chunks(updates: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    """Chunks of columns as lists of n rows to work on and one to spare; the memory is the same for all."""
    n, size = updates.shape
    width = min(_CHUNK // n, size)
    memory = updates.new_empty(n + 1, width)
    for start in range(0, size, width):
        columns = slice(start, min(start + width, size))
        chunk = memory[:, : columns.stop - start]
        chunk[:n] = updates[:, columns]
        yield columns, list(chunk.unbind())
