"""Minimum-diameter averaging, exact."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, islice
from math import comb

import torch
from torch import Tensor

from fl_core.aggregation.base import Aggregate, Rule, register_rule, weighted_mean
from fl_core.aggregation.byzantine import Bound, assumed_byzantine
from fl_core.aggregation.gram import squared_distances
from fl_core.aggregation.view import ServerView

# The search branches on at most f clients to leave out: exponential at the worst, a tenth of a second for 60 random
# updates and f = 20.
MOST_BYZANTINE = 20
BOUND = Bound(f"n >= 2f + 1, f <= {MOST_BYZANTINE}", lambda n: min((n - 1) // 2, MOST_BYZANTINE))
# Covers of equal diameter that are looked at, and for each of them the ways of leaving out others with it.
_MOST_TIES = 1000

# For each client those that are too far from it.
_Conflicts = dict[int, set[int]]


@register_rule("mda")
@dataclass(frozen=True)
class MDA(Rule):
    """Mean of the n − f updates whose largest distance to each other is smallest; n >= 2f + 1, f <= 20.

    Formula: mean over ``argmin_{|S| = n − f} max_{i, j ∈ S} ‖Δᵢ − Δⱼ‖``.
    Source: Rousseeuw 1985; El Mhamdi et al. 2021, arXiv 2008.00742.
    Checked against: every subset in turn; byzfl.MDA and byzpy.MinimumDiameterAveraging where the subset is unique.

    Exact without listing all subsets: n − f updates lie within a diameter if and only if some f clients touch all pairs
    that are farther apart, a vertex cover, which is searched by branching on the client with the most such pairs.
    Several subsets can have the same diameter, where distances tie or fewer than f clients touch all pairs; of these
    the one with the smallest sum of squared distances is taken. With more than a thousand of them (covers, or ways to
    leave out others with one) not all are looked at, and the clients farthest from the rest are left out. Where the
    sums tie as well, the order of the clients decides.

    Attributes:
        num_byzantine: f; ``None`` assumes 30 % of the clients, at most 20.
    """

    num_byzantine: int | None = None

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``; raises ValueError for f above 20: the search is exponential in f."""
        f = assumed_byzantine(self.num_byzantine, view, "mda", BOUND)
        chosen = smallest_subset(squared_distances(view.accepted), f)
        weights = torch.zeros(len(view.accepted)).index_fill_(0, chosen, 1 / len(chosen))
        return Aggregate(weighted_mean(view.accepted, weights), weights)


def smallest_subset(distances: Tensor, f: int) -> Tensor:
    """Indices (n − f,) of the subset of smallest diameter of (n, n) squared distances."""
    candidates = torch.cat([distances.new_zeros(1), distances.triu(1).flatten()]).unique()
    low, high = 0, len(candidates) - 1  # the whole is within the largest
    while low < high:
        middle = (low + high) // 2
        if next(_covers(_conflicts(distances, candidates[middle]), f), None) is None:
            low = middle + 1
        else:
            high = middle
    covers = islice(_covers(_conflicts(distances, candidates[low]), f), _MOST_TIES)
    subsets = [_complement(distances, cover, f) for cover in covers]
    return min(subsets, key=lambda subset: float(distances[subset][:, subset].sum()))


def _conflicts(distances: Tensor, diameter: Tensor) -> _Conflicts:
    conflicts: _Conflicts = {}
    for i, j in (distances > diameter).nonzero().tolist():
        conflicts.setdefault(i, set()).add(j)
    return conflicts


def _covers(conflicts: _Conflicts, f: int) -> Iterator[frozenset[int]]:
    """Sets of at most f clients that touch every conflict; every minimal one is among them."""
    if not conflicts:
        yield frozenset()
        return
    worst = max(conflicts, key=lambda client: len(conflicts[client]))
    against = frozenset(conflicts[worst])
    pairs = sum(map(len, conflicts.values())) // 2
    if pairs > f * len(against):  # each client touches no more than the worst
        return
    for cover in _covers(_without(conflicts, frozenset([worst])), f - 1):
        yield cover | {worst}
    if len(against) <= f:
        for cover in _covers(_without(conflicts, against), f - len(against)):
            yield cover | against


def _without(conflicts: _Conflicts, gone: frozenset[int]) -> _Conflicts:
    left = {client: others - gone for client, others in conflicts.items() if client not in gone}
    return {client: others for client, others in left.items() if others}


def _complement(distances: Tensor, cover: frozenset[int], f: int) -> Tensor:
    """All but f clients: without the cover and those others that leave the smallest sum of distances."""
    kept = torch.tensor([client for client in range(len(distances)) if client not in cover])
    among, more = distances[kept][:, kept], f - len(cover)
    spread = among.sum(dim=1)
    if comb(len(kept), more) > _MOST_TIES:
        return kept[spread.sort(stable=True).indices[: len(kept) - more]].sort().values
    ways = torch.tensor(list(combinations(range(len(kept)), more)), dtype=torch.int64)  # (ways, more)
    saved = 2 * spread[ways].sum(dim=1) - among[ways[:, :, None], ways[:, None, :]].sum(dim=(1, 2))
    stay = torch.ones(len(kept), dtype=torch.bool).index_fill_(0, ways[saved.argmax()], False)
    return kept[stay]
