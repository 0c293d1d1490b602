"""Principal directions, against singular value decompositions of the updates themselves."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.aggregation import ServerView, make_rule

quick = settings(max_examples=40)


def draw(n: int, size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, size))


def view(updates, **more) -> ServerView:
    return ServerView(torch.as_tensor(np.asarray(updates), dtype=torch.float32), **more)


@quick
@given(n=st.integers(3, 12), size=st.integers(2, 20), seed=st.integers(0, 2**31), data=st.data())
def test_dnc_drops_the_updates_with_the_largest_projections(n, size, seed, data):
    f = data.draw(st.integers(0, (n - 1) // 2))
    updates = draw(n, size, seed)
    centred = updates - updates.mean(axis=0)
    scores = (centred @ np.linalg.svd(centred)[2][0]) ** 2
    kept = np.sort(np.argsort(scores)[: n - f])
    weights = make_rule("dnc", num_byzantine=f)(view(updates)).weights
    assert weights.nonzero().flatten().tolist() == kept.tolist()


def test_dnc_looks_at_random_coordinates_and_at_others_each_round():
    updates = draw(9, 200, 0)
    updates[0, 3] += 100  # seen only by those who look at coordinate 3
    dropped = [
        float(make_rule("dnc", num_byzantine=1, coordinates=20)(view(updates, round=number)).weights[0]) == 0
        for number in range(40)
    ]
    assert 0 < sum(dropped) < 40
    assert float(make_rule("dnc", num_byzantine=1, coordinates=20, iterations=60)(view(updates)).weights[0]) == 0


def test_dnc_keeps_those_that_survive_every_iteration_and_somebody_in_any_case():
    updates = draw(10, 400, 0)
    weights = make_rule("dnc", num_byzantine=3, coordinates=5, iterations=2)(view(updates)).weights
    assert 4 <= (weights > 0).sum() <= 7
    many = make_rule("dnc", num_byzantine=4, coordinates=2, iterations=200)(view(updates)).weights
    assert (many > 0).any()


def caf_by_svd(updates: np.ndarray, f: int) -> np.ndarray:
    counts, best, smallest = np.ones(len(updates)), updates.mean(axis=0), np.inf
    while counts.sum() > len(updates) - 2 * f:
        mean = counts @ updates / counts.sum()
        centred = updates - mean
        _, singular, directions = np.linalg.svd(np.sqrt(counts / counts.sum())[:, None] * centred)
        if singular[0] ** 2 < smallest:
            best, smallest = mean, singular[0] ** 2
        along = (centred @ directions[0]) ** 2
        along[counts == 0] = 0
        counts = counts * (1 - along / along.max())
    return best


@quick
@given(n=st.integers(3, 12), size=st.integers(2, 20), seed=st.integers(0, 2**31), data=st.data())
def test_caf_is_its_loop_on_the_updates_themselves(n, size, seed, data):
    f = data.draw(st.integers(0, (n - 1) // 2))
    updates = draw(n, size, seed)
    updates[:f] += 3
    result = make_rule("caf", num_byzantine=f)(view(updates))
    np.testing.assert_allclose(result.update, caf_by_svd(updates, f), atol=1e-4)


@pytest.mark.parametrize("name", ["dnc", "caf"])
def test_colluding_attackers_far_from_the_others_get_no_weight(name):
    updates = draw(10, 50, 0)
    updates[:3] = updates[3:].mean(axis=0) + 20
    assert make_rule(name, num_byzantine=3)(view(updates)).weights[:3].sum() < 1e-3


@pytest.mark.parametrize("name", ["dnc", "caf"])
def test_without_attackers_it_is_the_mean(name):
    updates = draw(8, 5, 0)
    np.testing.assert_allclose(make_rule(name, num_byzantine=0)(view(updates)).update, updates.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("caf", {"num_byzantine": 4}, r"caf needs n >= 2f \+ 1; got n=8, f=num_byzantine=4"),
        ("dnc", {"num_byzantine": 8}, "dnc needs n > 1f; got n=8, f=num_byzantine=8"),
        ("dnc", {"num_byzantine": 6, "filter_share": 1.5}, "dnc needs n > 1.5f; got n=8, f=num_byzantine=6"),
        ("dnc", {"iterations": 0}, "iterations must be at least 1, got 0"),
        ("dnc", {"coordinates": 0}, "coordinates must be at least 1, got 0"),
        ("dnc", {"filter_share": 0.0}, "filter_share must be above 0 and finite, got 0.0"),
        ("dnc", {"filter_share": float("inf")}, "filter_share must be above 0 and finite, got inf"),
    ],
)
def test_parameters_out_of_bounds_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_rule(name, **options)(view(draw(8, 5, 0)))
