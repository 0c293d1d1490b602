"""Our rules against ByzFL's, byzpy's and Flower's, on 300 attacked rounds each, where they implement the same formula.

An oracle is a check, not a truth. Where a library departs from the paper the test says so: it asks the library for what
corresponds to our rule (a neighbour more, another number of attackers), or asserts that the two differ.
"""

import contextlib
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_core.aggregation import PreAggregation, ServerView, make_rule
from fl_core.aggregation.base import round_generator
from fl_core.aggregation.preaggregation import AdaptiveRobustClipping, Bucketing, Clipping, NearestNeighbourMixing

Case = tuple[Tensor, int]


def ours(name: str, updates: Tensor, reference: Tensor | None = None, **options) -> Tensor:
    return make_rule(name, **options)(ServerView(updates.clone(), reference=reference)).update


def mixed(step: PreAggregation, updates: Tensor) -> Tensor:
    return step.mix(ServerView(updates.clone())).updates


def compare(cases: list[Case], one: Callable[[Tensor, int], Tensor], other: Callable[[Tensor, int], object]) -> None:
    """To 1e-5. The other side gets a copy, as some libraries write into what they are given."""
    assert cases
    for updates, f in cases:
        expected = torch.as_tensor(np.asarray(other(updates.clone(), f)), dtype=torch.float32)
        torch.testing.assert_close(one(updates, f), expected, atol=1e-5, rtol=1e-5)


def differ(cases: list[Case], one: Callable[[Tensor, int], Tensor], other: Callable[[Tensor, int], object]) -> int:
    """Number of cases in which the two results differ by more than rounding."""
    return sum(
        not np.allclose(one(updates, f), np.asarray(other(updates.clone(), f)), atol=1e-3, rtol=1e-3)
        for updates, f in cases
    )


def rows(updates: Tensor) -> list[Tensor]:
    """byzpy wants a list of torch tensors; numpy arrays fail in its torch backend."""
    return list(updates)


def layers(updates: Tensor) -> list[tuple[list[np.ndarray], int]]:
    """Flower's form: a list of layers and a number of examples for each client."""
    return [([row[:3], row[3:]], 7) for row in updates.numpy()]


def joined(result: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(result)


# Coordinate-wise


def test_fedavg(byzfl, flower, attacked):
    compare(attacked, lambda x, f: ours("fedavg", x), lambda x, f: byzfl.Average()(x))
    compare(attacked, lambda x, f: ours("fedavg", x), lambda x, f: joined(flower.aggregate(layers(x))))


def test_median(byzfl, byzpy, flower, attacked):
    compare(attacked, lambda x, f: ours("median", x), lambda x, f: byzfl.Median()(x))
    compare(attacked, lambda x, f: ours("median", x), lambda x, f: joined(flower.aggregate_median(layers(x))))
    odd = [(x[: len(x) - 1 + len(x) % 2], f) for x, f in attacked]
    compare(odd, lambda x, f: ours("median", x), lambda x, f: byzpy["CoordinateWiseMedian"]().aggregate(rows(x)))


def test_byzpys_median_of_an_even_number_of_clients_is_the_lower_of_the_two_middle_values(byzpy, attacked):
    even = [(x[: len(x) - len(x) % 2], f) for x, f in attacked]
    theirs = byzpy["CoordinateWiseMedian"]()
    assert differ(even, lambda x, f: ours("median", x), lambda x, f: theirs.aggregate(rows(x))) > len(even) / 2
    compare(even, lambda x, f: x.sort(dim=0).values[len(x) // 2 - 1], lambda x, f: theirs.aggregate(rows(x)))


def test_trimmed_mean(byzfl, byzpy, flower, attacked):
    def mine(x: Tensor, f: int) -> Tensor:
        return ours("trimmed_mean", x, num_byzantine=f)

    compare(attacked, mine, lambda x, f: byzfl.TrMean(f)(x))
    compare(attacked, mine, lambda x, f: byzpy["CoordinateWiseTrimmedMean"](f).aggregate(rows(x)))
    # Half a client more than f, as Flower rounds the share down and f / n · n may lie below f.
    compare(attacked, mine, lambda x, f: joined(flower.aggregate_trimmed_avg(layers(x), (f + 0.5) / len(x))))


def test_mean_around_median(byzfl, byzpy, attacked):
    tied, coordinates = 0, 0
    for updates, f in attacked:
        odd = updates[: len(updates) - 1 + len(updates) % 2]  # see byzpy's median
        for x, theirs in (
            (updates, byzfl.Meamed(f)(updates.clone())),
            (odd, byzpy["MeanOfMedians"](f).aggregate(rows(odd.clone()))),
        ):
            clear = _has_clear_neighbours(x, f)
            mine = ours("mean_around_median", x, num_byzantine=f)
            torch.testing.assert_close(mine[clear], theirs[clear], atol=1e-5, rtol=1e-5)
            tied, coordinates = tied + int((~clear).sum()), coordinates + len(clear)
    assert tied < 0.05 * coordinates  # colluding attackers send the same values


def _has_clear_neighbours(updates: Tensor, f: int) -> Tensor:
    """(P,) whether the value that just counts is nearer to the median than the one that just does not."""
    distances = (updates - updates.quantile(0.5, dim=0)).abs().sort(dim=0).values
    last = len(updates) - f
    return distances[last] - distances[last - 1] > 1e-6 if f else torch.ones(updates.shape[1], dtype=torch.bool)


# Distances


def test_krum(byzfl, byzpy, flower, attacked):
    def mine(x: Tensor, f: int) -> Tensor:
        return ours("krum", x, num_byzantine=f)

    compare(attacked, mine, lambda x, f: joined(flower.aggregate_krum(layers(x), f, to_keep=0)))
    # ByzFL and byzpy take n − f − 1 neighbours, the paper n − f − 2: theirs of f + 1 is ours of f.
    compare(attacked, mine, lambda x, f: byzfl.Krum(f + 1)(x))
    compare(attacked, mine, lambda x, f: byzpy["Krum"](f + 1).aggregate(rows(x)))


def test_krum_of_the_same_f_has_a_neighbour_too_many_elsewhere(byzfl, byzpy, attacked):
    for theirs in (lambda x, f: byzfl.Krum(f)(x), lambda x, f: byzpy["Krum"](f).aggregate(rows(x))):
        assert differ(attacked, lambda x, f: ours("krum", x, num_byzantine=f), theirs) > 10


def test_multi_krum(byzfl, byzpy, flower, attacked):
    compare(
        attacked,
        lambda x, f: ours("multi_krum", x, num_byzantine=f),
        lambda x, f: joined(flower.aggregate_krum(layers(x), f, to_keep=len(x) - f)),
    )

    def mine(x: Tensor, f: int) -> Tensor:
        return ours("multi_krum", x, num_byzantine=f, selected=len(x) - f - 1)

    compare(attacked, mine, lambda x, f: byzfl.MultiKrum(f + 1)(x))
    compare(attacked, mine, lambda x, f: byzpy["MultiKrum"](f + 1, len(x) - f - 1).aggregate(rows(x)))


def test_bulyan(flower, attacked):
    # Three times as many clients, so that n >= 4f + 3. From f = 3 on the last step has two neighbours: with a single
    # one two updates always tie, which Flower decides by their order and we by their distance to the others.
    wide = [(torch.cat([x, 0.9 * x.flip(1) + 0.1, 0.5 * x]), 3) for x, f in attacked]
    compare(
        wide,
        lambda x, f: ours("bulyan", x, num_byzantine=f),
        lambda x, f: joined(flower.aggregate_bulyan(layers(x), f, flower.aggregate_krum, to_keep=0)),
    )


def test_monna(byzfl, byzpy, attacked):
    def mine(x: Tensor, f: int) -> Tensor:  # the pivot is the server's own update
        return ours("monna", x[1:], reference=x[0], num_byzantine=f)

    compare(attacked, mine, lambda x, f: byzfl.MoNNA(f, idx=0)(x))
    compare(attacked, mine, lambda x, f: byzpy["MoNNA"](f, reference_index=0).aggregate(rows(x)))


def test_mda(byzfl, byzpy, attacked):
    unique = [(x[:9], min(f, 3)) for x, f in attacked if f and _has_one_smallest_subset(x[:9], min(f, 3))]
    assert len(unique) > 60  # one coordinate, or attackers who are all far away, leave many subsets of equal diameter
    compare(unique, lambda x, f: ours("mda", x, num_byzantine=f), lambda x, f: byzfl.MDA(f)(x))
    compare(
        unique,
        lambda x, f: ours("mda", x, num_byzantine=f),
        lambda x, f: byzpy["MinimumDiameterAveraging"](f).aggregate(rows(x)),
    )


def _has_one_smallest_subset(updates: Tensor, f: int) -> bool:
    distances = torch.cdist(updates.double(), updates.double())
    subsets = [list(subset) for subset in combinations(range(len(updates)), len(updates) - f)]
    diameters = sorted(float(distances[subset][:, subset].max()) for subset in subsets)
    return len(diameters) == 1 or diameters[1] > diameters[0] * (1 + 1e-5)


# Centres


def test_rfa(byzfl, byzpy, attacked):
    # ByzFL starts from 0, the paper's experiments and we from the mean: there the two are the same.
    centred = [(x - x.mean(dim=0), f) for x, f in attacked]
    compare(
        centred,
        lambda x, f: ours("rfa", x, smoothing=0.1),
        lambda x, f: byzfl.GeometricMedian(nu=0.1, T=3)(x - x.mean(dim=0)),
    )
    compare(
        attacked,
        lambda x, f: ours("rfa", x),
        lambda x, f: byzpy["GeometricMedian"](tol=1e-30, max_iter=3, eps=1e-6, init="mean").aggregate(rows(x.double())),
    )


def test_geometric_median(byzpy, attacked):
    def sum_of_distances(x: Tensor, point: Tensor) -> float:
        return float((x.double() - point.double()).norm(dim=1).sum())

    theirs = byzpy["GeometricMedian"](tol=1e-12, max_iter=5000, eps=1e-6, init="mean")
    for updates, _ in attacked:
        one, other = ours("geometric_median", updates), theirs.aggregate(rows(updates.double()))
        assert sum_of_distances(updates, one) <= sum_of_distances(updates, other) * (1 + 1e-6)
        if updates.shape[1] > 1:  # on a line and with an even number every point between the middle two is as good
            torch.testing.assert_close(one.double(), other, atol=2e-4, rtol=1e-4)


def test_byzfls_geometric_median_has_not_converged(byzfl, attacked):
    def mine(x: Tensor, f: int) -> Tensor:
        return ours("geometric_median", x)

    assert differ(attacked, mine, lambda x, f: byzfl.GeometricMedian()(x)) > len(attacked) / 2


def test_centered_clipping_over_three_rounds(byzfl, byzpy, attacked):
    for updates, _ in attacked:
        mine, theirs = make_rule("centered_clipping", radius=3.0, iterations=2), byzfl.CenteredClipping(L=2, tau=3.0)
        for step in range(3):
            moved = updates + step
            torch.testing.assert_close(mine(ServerView(moved)).update, theirs(moved.clone()), atol=1e-5, rtol=1e-5)
    compare(
        attacked,
        lambda x, f: ours("centered_clipping", x, radius=2.0, iterations=5),
        lambda x, f: byzpy["CenteredClipping"](c_tau=2.0, M=5, init="zero").aggregate(rows(x)),
    )


def test_norm_bounding(byzfl, attacked):
    compare(
        attacked,
        lambda x, f: ours("norm_bounding", x, bound=4.0),
        lambda x, f: byzfl.Average()(byzfl.Clipping(c=4.0)(x)),
    )


# Before a rule


def test_nnm(byzfl, byzpy, attacked):
    def mine(x: Tensor, f: int) -> Tensor:
        return mixed(NearestNeighbourMixing(f), x)

    # Identical updates of colluding attackers are equally near: which of them count makes no difference.
    compare(attacked, mine, lambda x, f: byzfl.NNM(f)(x))
    compare(
        attacked,
        mine,
        lambda x, f: torch.stack(byzpy["NearestNeighborMixing"](f).pre_aggregate(rows(x.double()))),
    )


def test_nnm_before_a_rule(byzfl, attacked):
    compare(
        attacked,
        lambda x, f: ours("nnm+trimmed_mean", x, num_byzantine=f),
        lambda x, f: byzfl.TrMean(f)(byzfl.NNM(f)(x)),
    )


def test_clipping(byzfl, byzpy, attacked):
    compare(attacked, lambda x, f: mixed(Clipping(3.0), x), lambda x, f: byzfl.Clipping(c=3.0)(x))
    compare(
        attacked,
        lambda x, f: mixed(Clipping(3.0), x),
        lambda x, f: torch.stack(byzpy["Clipping"](3.0).pre_aggregate(rows(x))),
    )


def test_arc(byzfl, byzpy, attacked):
    def mine(x: Tensor, f: int) -> Tensor:
        return mixed(AdaptiveRobustClipping(f), x)

    compare(attacked, mine, lambda x, f: byzfl.ARC(f)(x))
    compare(attacked, mine, lambda x, f: torch.stack(byzpy["ARC"](f).pre_aggregate(rows(x))))


def test_byzfls_arc_loses_a_clipped_update_to_rounding(byzfl):
    n, f = 242, 33  # 2 · 33 / 242 · 209 is 57, and 56.99… in floating point
    updates = torch.arange(1.0, n + 1)[:, None].repeat(1, 2)
    mine, theirs = mixed(AdaptiveRobustClipping(f), updates), byzfl.ARC(f)(updates.clone())
    assert mine.max() < theirs.max()


@pytest.mark.parametrize("name", ["Clipping", "ARC"])
def test_byzfl_edits_what_it_clips_and_we_do_not(byzfl, name):
    updates = 10 * torch.ones(5, 3) * torch.arange(1.0, 6)[:, None]
    theirs, before = updates.clone(), updates.clone()
    (byzfl.Clipping(c=1.0) if name == "Clipping" else byzfl.ARC(f=1))(theirs)
    assert not torch.equal(theirs, before)
    (Clipping(1.0) if name == "Clipping" else AdaptiveRobustClipping(1)).mix(ServerView(updates))
    assert torch.equal(updates, before)


def test_bucketing_with_the_same_order(byzpy, attacked):
    def theirs(x: Tensor, f: int) -> Tensor:
        order = torch.randperm(len(x), generator=round_generator(0, ServerView(x)))
        return torch.stack(byzpy["Bucketing"](3, perm=order.tolist()).pre_aggregate(rows(x)))

    compare(attacked, lambda x, f: mixed(Bucketing(bucket=3), x), theirs)


def test_byzfls_caf_depends_on_a_random_start_and_ours_does_not(byzfl):
    generator = np.random.default_rng(0)
    updates = torch.from_numpy(generator.standard_normal((9, 20)).astype(np.float32))
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng())
        torch.manual_seed(0)
        theirs = [byzfl.CAF(f=2)(updates) for _ in range(5)]
    assert any(not torch.allclose(theirs[0], other, atol=1e-4) for other in theirs[1:])
    assert len({tuple(ours("caf", updates, num_byzantine=2).tolist()) for _ in range(5)}) == 1
