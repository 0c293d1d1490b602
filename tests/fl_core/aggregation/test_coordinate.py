"""Coordinate-wise rules by hand, and the sorting networks under them."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.aggregation import ServerView, make_rule, sorting


def aggregate(name: str, updates, **options) -> torch.Tensor:
    return make_rule(name, **options)(ServerView(torch.as_tensor(updates, dtype=torch.float32))).update


@pytest.mark.parametrize("n", range(1, 13))
def test_the_network_sorts_every_sequence_of_zeros_and_ones(n):
    """So it sorts everything: the zero-one principle (Knuth, TAOCP 3, theorem 5.3.4Z)."""
    columns = torch.tensor(list(product([0.0, 1.0], repeat=n))).T
    (_, ordered), *more = sorting.sorted_chunks(columns)
    assert not more
    assert torch.equal(ordered, columns.sort(dim=0).values)


@pytest.mark.parametrize("most", [sorting._MOST_CLIENTS, 1])
@settings(max_examples=40)
@given(n=st.integers(1, 70), size=st.integers(1, 40), seed=st.integers(0, 2**31), data=st.data())
def test_network_and_sort_give_the_same_trimmed_mean(most, n, size, seed, data):
    trim = data.draw(st.integers(0, (n - 1) // 2))
    updates = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, size)))
    expected = np.sort(updates.numpy(), axis=0)[trim : n - trim].mean(axis=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "_MOST_CLIENTS", most)
        np.testing.assert_allclose(sorting.trimmed_mean(updates, trim), expected, atol=1e-12)


@pytest.mark.parametrize("most", [sorting._MOST_CLIENTS, 1])
def test_columns_are_the_same_in_chunks(most, monkeypatch, normal):
    updates = normal(9, 1000)
    whole = sorting.trimmed_mean(updates, 2), sorting.mean_around_median(updates, 6)
    monkeypatch.setattr(sorting, "_CHUNK", 9 * 64)
    monkeypatch.setattr(sorting, "_NARROWEST", 7)
    monkeypatch.setattr(sorting, "_MOST_CLIENTS", most)
    for one, other in zip(
        whole, (sorting.trimmed_mean(updates, 2), sorting.mean_around_median(updates, 6)), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_the_network_for_the_median_of_fifty_clients_has_a_sixth_less_comparators():
    assert len(sorting._middle_network(50, 24)) < 5 / 6 * len(sorting.comparators(50))


def test_mean_around_median_by_hand():
    updates = [[0.0], [1.0], [2.0], [9.0], [100.0]]
    for f, expected in ((0, 22.4), (1, 3.0), (2, 1.0)):
        assert aggregate("mean_around_median", updates, num_byzantine=f).item() == pytest.approx(expected)


@settings(max_examples=60)
@given(n=st.integers(1, 12), size=st.integers(1, 8), twins=st.booleans(), seed=st.integers(0, 2**31), data=st.data())
def test_mean_around_median_takes_the_nearest_values(n, size, twins, seed, data):
    f = data.draw(st.integers(0, (n - 1) // 2))
    updates = np.random.default_rng(seed).standard_normal((n, size))
    if twins:  # colluding attackers: many values at the same distance
        updates[: n // 2] = updates[0] - 1
    nearest = np.argsort(abs(updates - np.median(updates, axis=0)), axis=0, kind="stable")[: n - f]
    expected = np.take_along_axis(updates, nearest, axis=0).mean(axis=0)
    np.testing.assert_allclose(aggregate("mean_around_median", updates, num_byzantine=f), expected, atol=1e-5)


def test_sign_majority_by_hand():
    updates = [[1.0, -2.0, 0.0], [3.0, -1.0, 5.0], [-2.0, -3.0, -5.0], [-1.0, 1.0, -1.0]]
    assert aggregate("sign_majority", updates, step=0.5).tolist() == [0.0, -0.5, -0.5]
    # Mean lengths of a coordinate: 1, 3, 10/3 and 1, so their median is 2.
    assert aggregate("sign_majority", updates).tolist() == [0.0, -2.0, -2.0]


def test_a_minority_cannot_turn_a_sign_that_the_others_agree_on(normal):
    updates = normal(9, 50).abs()
    updates[:4] *= -1e6
    assert (aggregate("sign_majority", updates) > 0).all()


def test_a_step_that_is_no_length_is_refused():
    with pytest.raises(ValueError, match="step must be above 0 and finite, or None; got 0"):
        make_rule("sign_majority", step=0)


@pytest.mark.parametrize("name", ["trimmed_mean", "mean_around_median"])
def test_without_attackers_it_is_the_mean_and_the_bound_is_quoted(name, normal):
    updates = normal(8, 5)
    assert torch.equal(aggregate(name, updates, num_byzantine=0), updates.mean(dim=0))
    assert aggregate(name, updates, num_byzantine=3).isfinite().all()
    with pytest.raises(ValueError, match=rf"{name} needs n >= 2f \+ 1; got n=8, f=num_byzantine=4"):
        aggregate(name, updates, num_byzantine=4)
