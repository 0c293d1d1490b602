"""Each rule against its definition, written out in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import trim_mean

from fl_core.aggregation import ServerView, make_rule
from fl_core.aggregation.gram import squared_distances

quick = settings(max_examples=40)
cases = given(st.integers(3, 15), st.integers(1, 30), st.integers(0, 2**31))


def draw(n: int, size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, size)).astype(np.float32)


def aggregate(name: str, updates: np.ndarray, reference: np.ndarray | None = None, **options):
    root = None if reference is None else torch.from_numpy(reference)
    return make_rule(name, **options)(ServerView(torch.from_numpy(updates), reference=root))


@quick
@cases
def test_fedavg_is_the_plain_mean(n, size, seed):
    updates = draw(n, size, seed)
    result = aggregate("fedavg", updates)
    np.testing.assert_allclose(result.update.numpy(), updates.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(result.weights.numpy(), 1 / n, rtol=1e-6)


@quick
@cases
def test_median_is_numpys_median_for_odd_and_even_numbers_of_clients(n, size, seed):
    updates = draw(n, size, seed)
    result = aggregate("median", updates)
    np.testing.assert_allclose(result.update.numpy(), np.median(updates, axis=0), atol=1e-6)
    assert result.weights is None


@quick
@cases
def test_trimmed_mean_is_scipys_for_every_f_that_the_bound_allows(n, size, seed):
    updates = draw(n, size, seed)
    for f in range((n - 1) // 2 + 1):
        expected = trim_mean(updates.astype(np.float64), (f + 0.5) / n, axis=0)
        np.testing.assert_allclose(aggregate("trimmed_mean", updates, num_byzantine=f).update, expected, atol=1e-5)


def krum_by_brute_force(updates: np.ndarray, f: int) -> int:
    n, scores = len(updates), []
    for i in range(n):
        distances = sorted(
            sum((float(a) - float(b)) ** 2 for a, b in zip(updates[i], updates[j], strict=True))
            for j in range(n)
            if j != i
        )
        scores.append(sum(distances[: n - f - 2]))
    return int(np.argmin(scores))


@quick
@given(st.integers(4, 15), st.integers(1, 30), st.integers(0, 2**31))
def test_krum_picks_the_update_closest_to_its_neighbours(n, size, seed):
    updates = draw(n, size, seed)
    for f in range((n - 3) // 2 + 1):
        chosen = krum_by_brute_force(updates, f)
        result = aggregate("krum", updates, num_byzantine=f)
        assert np.array_equal(result.update.numpy(), updates[chosen])
        assert result.weights.tolist() == [float(i == chosen) for i in range(n)]


def test_krum_does_not_pick_from_a_colluding_minority_that_is_perfectly_tight():
    updates = draw(11, 50, 0)
    updates[:4] = 10.0  # f = 4 of 11; each has only 3 twins but needs n - f - 2 = 5 neighbours
    chosen = aggregate("krum", updates, num_byzantine=4).weights.argmax()
    assert chosen >= 4


def test_squared_distances_do_not_cancel_far_from_the_origin():
    updates = draw(6, 40, 0).astype(np.float64)
    exact = ((updates[:, None] - updates[None]) ** 2).sum(axis=-1)
    np.testing.assert_allclose(squared_distances(torch.from_numpy(updates + 1e5)).numpy(), exact, rtol=1e-6, atol=1e-9)


@quick
@cases
def test_fltrust_is_equations_2_to_4(n, size, seed):
    updates, reference = draw(n, size, seed), draw(1, size, seed + 1)[0]
    trust, scaled = [], []
    for row in updates.astype(np.float64):
        g0 = reference.astype(np.float64)
        trust.append(max(0.0, row @ g0 / np.sqrt((row @ row) * (g0 @ g0))))
        scaled.append(row * np.sqrt(g0 @ g0) / np.sqrt(row @ row))
    result = aggregate("fltrust", updates, reference)
    if sum(trust) > 1e-6:
        expected = sum(t * g for t, g in zip(trust, scaled, strict=True)) / sum(trust)
        np.testing.assert_allclose(result.update.numpy(), expected, atol=1e-3, rtol=1e-3)
        np.testing.assert_allclose(result.weights.numpy(), np.array(trust) / sum(trust), atol=1e-3)
        assert result.root_weight == 0


def test_fltrust_falls_back_to_the_reference_when_nobody_points_its_way():
    reference = draw(1, 20, 0)[0]
    result = aggregate("fltrust", -np.outer([1, 2, 3], reference).astype(np.float32), reference)
    assert np.array_equal(result.update.numpy(), reference)
    assert (result.weights.tolist(), result.root_weight) == ([0, 0, 0], 1)


def test_fltrust_falls_back_to_the_reference_when_some_are_rejected_and_the_rest_points_elsewhere():
    reference = draw(1, 20, 0)[0]
    updates = -np.outer([1, 2, 3], reference).astype(np.float32)
    updates[1, 4] = np.nan
    result = aggregate("fltrust", updates, reference)
    assert np.array_equal(result.update.numpy(), reference)
    assert (result.weights.tolist(), result.root_weight) == ([0, 0, 0], 1)


def test_fltrust_cannot_be_longer_than_the_reference():
    reference = draw(1, 20, 0)[0]
    update = aggregate("fltrust", 1000 * (reference + draw(8, 20, 1)), reference).update
    assert np.linalg.norm(update) <= np.linalg.norm(reference) * (1 + 1e-5)


def test_root_only_ignores_the_clients():
    reference = draw(1, 20, 0)[0]
    result = aggregate("root_only", draw(5, 20, 1), reference)
    assert np.array_equal(result.update.numpy(), reference)
    assert (result.weights.tolist(), result.root_weight) == ([0] * 5, 1)


@pytest.mark.parametrize(
    ("name", "n", "most", "bound"), [("krum", 10, 3, "n >= 2f + 3"), ("trimmed_mean", 10, 4, r"n >= 2f \+ 1")]
)
def test_a_number_of_byzantine_clients_out_of_bounds_quotes_the_bound(name, n, most, bound):
    updates = draw(n, 5, 0)
    assert aggregate(name, updates, num_byzantine=most).update.shape == (5,)
    for f in (most + 1, -1):
        with pytest.raises(ValueError, match=f"{name} needs {bound.replace('f + 3', r'f . 3')}; got n={n}, f=.*{f}"):
            aggregate(name, updates, num_byzantine=f)


def test_krum_needs_three_updates_and_quotes_its_bound():
    with pytest.raises(ValueError, match=r"krum needs n >= 2f \+ 3, so at least 3 finite updates; got n=2"):
        aggregate("krum", draw(2, 5, 0))


def test_without_a_number_30_percent_are_assumed_as_far_as_the_bound_allows():
    updates = draw(20, 8, 0)
    for name in ("krum", "trimmed_mean"):
        expected = aggregate(name, updates, num_byzantine=6).update
        assert torch.equal(aggregate(name, updates).update, expected)
    few = draw(4, 8, 0)
    assert torch.equal(aggregate("krum", few).update, aggregate("krum", few, num_byzantine=0).update)


def test_krum_falls_back_to_the_reference_when_fewer_than_three_clients_sent_something_finite():
    reference = draw(1, 20, 0)[0]
    updates = draw(5, 20, 1)
    updates[:3, 0] = np.nan
    result = aggregate("krum", updates, reference)
    assert np.array_equal(result.update.numpy(), reference)
    assert (result.weights.tolist(), result.root_weight) == ([0, 0, 0, 0, 0], 1)


@pytest.mark.parametrize("name", ["fedavg", "trimmed_mean", "mean_around_median"])
def test_a_mean_of_finite_updates_is_finite(name):
    largest = torch.finfo(torch.float32).max
    updates = torch.full((10, 40), 0.9 * largest)
    updates[:2] = 0.1
    result = make_rule(name, **({} if name == "fedavg" else {"num_byzantine": 1}))(ServerView(updates)).update
    assert bool(result.isfinite().all())
    assert float(result.min()) > 0.5 * largest
