"""Rules that choose by distance, by hand and by brute force."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.aggregation import Aggregate, ServerView, gram, make_rule
from fl_core.aggregation.gram import distances_to, relative_gram, squared_distances
from fl_core.aggregation.sorting import mean_around_median
from fl_core.training.native import library

quick = settings(max_examples=40)
seeds = st.integers(0, 2**31)


def draw(n: int, size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, size)).astype(np.float32)


def aggregate(name: str, updates, reference=None, **options) -> Aggregate:
    root = None if reference is None else torch.as_tensor(reference, dtype=torch.float32)
    return make_rule(name, **options)(ServerView(torch.as_tensor(updates, dtype=torch.float32), reference=root))


@quick
@given(n=st.integers(1, 12), size=st.integers(1, 9000), seed=seeds)
def test_distances_are_symmetric_and_exact_to_ten_digits(n, size, seed):
    updates = draw(n, size, seed).astype(np.float64)
    exact = ((updates[:, None] - updates[None]) ** 2).sum(axis=-1)
    found = squared_distances(torch.from_numpy(updates).float())
    assert torch.equal(found, found.T)
    np.testing.assert_allclose(found, exact, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(distances_to(torch.from_numpy(updates), torch.from_numpy(updates[0])) ** 2, exact[0])


def test_an_attacker_who_sends_1e30_does_not_blur_the_distances_of_the_others():
    updates = draw(9, 5000, 0)
    exact = squared_distances(torch.from_numpy(updates[4:]))
    updates[:4] = 1e30 * draw(4, 5000, 1)
    torch.testing.assert_close(squared_distances(torch.from_numpy(updates))[4:, 4:], exact, rtol=1e-10, atol=1e-10)


def test_native_and_torch_products_are_the_same_for_every_instruction_set_and_number_of_threads(monkeypatch):
    if not library.is_built():
        pytest.skip("the native library is not built")
    for n, size in ((2, 1), (3, 511), (5, 513), (16, 4096), (17, 9001)):
        updates = torch.from_numpy(draw(n, size, n)) + 100
        expected = gram._plain(updates, 1).tril()
        for name in library.supported_instruction_sets():
            monkeypatch.setenv("OPTIGRAD_ISA", name)
            monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
            one = gram._native(updates, 1).tril()
            torch.testing.assert_close(one, expected, rtol=1e-12, atol=1e-9)
            monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
            assert torch.equal(gram._native(updates, 1).tril(), one)


def test_without_the_native_library_distances_are_the_same(monkeypatch):
    updates = torch.from_numpy(draw(7, 5000, 0))
    with_library = squared_distances(updates)
    monkeypatch.setattr(library, "is_built", lambda: False)
    torch.testing.assert_close(squared_distances(updates), with_library, rtol=1e-12, atol=1e-9)


def test_rows_that_are_not_contiguous_are_understood():
    updates = torch.from_numpy(draw(40, 9, 0)).T
    torch.testing.assert_close(squared_distances(updates), squared_distances(updates.contiguous()))


def test_inner_products_are_relative_to_one_of_the_updates():
    updates = torch.from_numpy(draw(6, 30, 0))
    products = relative_gram(updates)
    centre = int(products.diagonal().argmin())
    assert products[centre].abs().max() == 0
    relative = updates.double() - updates[centre].double()
    torch.testing.assert_close(products, relative @ relative.T)


def test_multi_krum_by_hand():
    updates = [[0.0], [1.0], [3.0], [7.0], [100.0]]
    # f = 1: two nearest others each: 1 + 9, 1 + 4, 4 + 9, 16 + 36, 93² + 97².
    assert aggregate("krum", updates, num_byzantine=1).update.item() == 1
    result = aggregate("multi_krum", updates, num_byzantine=1)
    assert result.update.item() == pytest.approx(11 / 4)
    assert result.weights.tolist() == [0.25, 0.25, 0.25, 0.25, 0]
    assert aggregate("multi_krum", updates, num_byzantine=1, selected=2).update.item() == 0.5
    assert aggregate("multi_krum", updates, num_byzantine=1, selected=1).update.item() == 1
    assert aggregate("multi_krum", updates, num_byzantine=1, selected=50).update.item() == pytest.approx(11 / 4)


def test_multi_krum_without_attackers_is_the_mean():
    updates = draw(8, 5, 0)
    result = aggregate("multi_krum", updates, num_byzantine=0)
    np.testing.assert_allclose(result.update, updates.mean(axis=0), atol=1e-6)


def bulyan_by_brute_force(updates: np.ndarray, f: int) -> np.ndarray:
    left, chosen = list(range(len(updates))), []
    while len(chosen) < len(updates) - 2 * f:
        scores = {}
        for i in left:
            distances = sorted(float(((updates[i].astype(float) - updates[j]) ** 2).sum()) for j in left if j != i)
            neighbours = max(len(left) - f - 2, 1)
            scores[i] = (round(sum(distances[:neighbours]), 9), sum(distances))
        best = min(left, key=scores.__getitem__)
        chosen.append(best)
        left.remove(best)
    return mean_around_median(torch.from_numpy(updates[sorted(chosen)]), len(updates) - 4 * f).numpy()


@quick
@given(n=st.integers(7, 17), size=st.integers(2, 10), seed=seeds)
def test_bulyan_is_krum_again_and_again_then_the_mean_around_the_median(n, size, seed):
    updates = draw(n, size, seed)
    for f in range(1, (n - 3) // 4 + 1):
        expected = bulyan_by_brute_force(updates, f)
        np.testing.assert_allclose(aggregate("bulyan", updates, num_byzantine=f).update, expected, atol=1e-5)


def test_bulyan_drops_a_value_that_hides_in_one_coordinate():
    updates = draw(11, 400, 0)
    updates[:2, 7] = 15.0  # within the length of an honest update: Krum may well choose it
    assert abs(aggregate("bulyan", updates, num_byzantine=2).update[7]) < 2


def test_monna_by_hand():
    updates, reference = [[0.0], [1.0], [2.0], [50.0]], [1.2]
    result = aggregate("monna", updates, reference, num_byzantine=1)
    assert result.update.item() == pytest.approx(4.2 / 4)
    assert result.weights.tolist() == [0.25, 0.25, 0.25, 0]
    assert result.root_weight == 0.25
    assert aggregate("monna", updates, reference, num_byzantine=2).update.item() == pytest.approx(4.2 / 3 - 0.0)


def diameter(updates: np.ndarray, subset) -> float:
    return max((float(((updates[i] - updates[j]) ** 2).sum()) for i, j in combinations(subset, 2)), default=0.0)


@quick
@given(n=st.integers(1, 11), size=st.integers(1, 4), seed=seeds)
def test_mda_finds_the_smallest_diameter_of_all_subsets(n, size, seed):
    updates = draw(n, size, seed).astype(np.float64)
    for f in range((n - 1) // 2 + 1):
        subsets = list(combinations(range(n), n - f))
        smallest = min(diameter(updates, subset) for subset in subsets)
        tied = [s for s in subsets if diameter(updates, s) <= smallest * (1 + 1e-9)]
        closest = min(tied, key=lambda s: ((updates[list(s)][:, None] - updates[list(s)]) ** 2).sum())
        result = aggregate("mda", updates, num_byzantine=f)
        assert tuple(result.weights.nonzero().flatten().tolist()) == closest
        np.testing.assert_allclose(result.update, updates[list(closest)].mean(axis=0), atol=1e-5)


def test_mda_with_many_clients_still_leaves_out_exactly_the_attackers():
    updates = draw(60, 30, 0)
    updates[:20] += 5
    weights = aggregate("mda", updates, num_byzantine=20).weights
    assert (weights[:20] == 0).all()
    assert (weights[20:] > 0).all()


@quick
@given(n=st.integers(3, 9), size=st.integers(1, 3), seed=seeds)
def test_mda_takes_the_densest_of_the_smallest_subsets_where_distances_tie(n, size, seed):
    updates = np.random.default_rng(seed).integers(0, 3, (n, size)).astype(np.float32)
    f = (n - 1) // 2
    subsets = list(combinations(range(n), n - f))
    spread = {s: ((updates[list(s)][:, None] - updates[list(s)]) ** 2).sum() for s in subsets}
    smallest = min(diameter(updates, s) for s in subsets)
    densest = min(spread[s] for s in subsets if diameter(updates, s) == smallest)
    taken = tuple(aggregate("mda", updates, num_byzantine=f).weights.nonzero().flatten().tolist())
    assert (diameter(updates, taken), spread[taken]) == (smallest, densest)


def test_mda_assumes_no_more_attackers_than_it_can_search_for():
    updates = draw(70, 3, 0)
    assumed, given_ = aggregate("mda", updates), aggregate("mda", updates, num_byzantine=20)
    assert torch.equal(assumed.update, given_.update)
    with pytest.raises(ValueError, match=r"mda needs n >= 2f \+ 1, f <= 20; got n=70, f=num_byzantine=21"):
        aggregate("mda", updates, num_byzantine=21)


@pytest.mark.parametrize(
    ("name", "n", "most", "bound"),
    [
        ("multi_krum", 10, 3, r"n >= 2f \+ 3"),
        ("bulyan", 14, 2, r"n >= 4f \+ 3"),
        ("monna", 9, 4, "n >= 2f"),
        ("mda", 10, 4, r"n >= 2f \+ 1, f <= 20"),
    ],
)
def test_a_number_of_byzantine_clients_out_of_bounds_quotes_the_bound(name, n, most, bound):
    updates, reference = draw(n, 5, 0), draw(1, 5, 1)[0]
    assert aggregate(name, updates, reference, num_byzantine=most).update.isfinite().all()
    for f in (most + 1, -1):
        with pytest.raises(ValueError, match=f"{name} needs {bound}; got n={n}, f=num_byzantine={f}"):
            aggregate(name, updates, reference, num_byzantine=f)


@pytest.mark.parametrize("name", ["krum", "multi_krum", "bulyan"])
def test_fewer_than_three_clients_are_refused_and_fewer_than_three_honest_ones_fall_back(name):
    with pytest.raises(ValueError, match=rf"{name} needs n >= .*so at least 3 finite updates; got n=2"):
        aggregate(name, draw(2, 5, 0))
    updates = draw(5, 5, 0)
    updates[:3, 0] = np.nan
    result = aggregate(name, updates, draw(1, 5, 1)[0])
    assert (result.weights.tolist(), result.root_weight) == ([0] * 5, 1)


def test_selected_must_be_a_number_of_updates():
    with pytest.raises(ValueError, match="selected must be at least 1, or None for n - f; got 0"):
        make_rule("multi_krum", selected=0)
