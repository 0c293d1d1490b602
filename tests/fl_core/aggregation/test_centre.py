"""Centres of the updates, by hand and by their optimality conditions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.aggregation import ServerView, make_rule

quick = settings(max_examples=40)


def draw(n: int, size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, size))


def view(updates) -> ServerView:
    return ServerView(torch.as_tensor(np.asarray(updates), dtype=torch.float32))


def test_the_geometric_median_of_a_triangle_sees_its_sides_under_120_degrees():
    corners = np.array([[0.0, 0.0], [4.0, 0.0], [1.0, 3.0]])
    point = make_rule("geometric_median")(view(corners)).update.numpy()
    units = (corners - point) / np.linalg.norm(corners - point, axis=1, keepdims=True)
    assert np.degrees(np.arccos([units[0] @ units[1], units[1] @ units[2], units[2] @ units[0]])) == pytest.approx(
        [120, 120, 120], abs=0.01
    )


@quick
@given(n=st.integers(3, 15), size=st.integers(2, 20), seed=st.integers(0, 2**31))
def test_unit_vectors_to_the_geometric_median_cancel_or_it_is_an_update(n, size, seed):
    updates = draw(n, size, seed)
    result = make_rule("geometric_median")(view(updates))
    point = result.weights.double().numpy() @ updates
    distances = np.linalg.norm(updates - point, axis=1)
    if distances.min() > 1e-3:
        assert np.linalg.norm(((updates - point) / distances[:, None]).mean(axis=0)) < 1e-4
    else:  # the pull of all others is no stronger than that of the update itself
        others = np.delete(updates, distances.argmin(), axis=0) - updates[distances.argmin()]
        assert np.linalg.norm((others / np.linalg.norm(others, axis=1, keepdims=True)).sum(axis=0)) < 1 + 1e-2


def test_the_geometric_median_is_the_majoritys_point_whatever_the_others_send():
    updates = np.concatenate([np.ones((5, 3)), 1e30 * draw(4, 3, 0)])
    np.testing.assert_allclose(make_rule("geometric_median")(view(updates)).update, 1, atol=1e-4)


def test_a_huge_minority_moves_the_geometric_median_no_farther_than_the_honest_spread():
    honest = draw(6, 10, 1)
    found = make_rule("geometric_median")(view(np.concatenate([1e30 * draw(4, 10, 0), honest]))).update.numpy()
    assert np.linalg.norm(found - honest.mean(axis=0)) < 5 * np.linalg.norm(honest - honest.mean(axis=0), axis=1).max()


@quick
@given(n=st.integers(3, 12), size=st.integers(1, 10), steps=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_rfa_is_weiszfelds_step_from_the_mean(n, size, steps, seed):
    updates = draw(n, size, seed)
    point = updates.mean(axis=0)
    for _ in range(steps):
        weights = 1 / np.maximum(np.linalg.norm(updates - point, axis=1), 1e-6)
        point = weights @ updates / weights.sum()
    result = make_rule("rfa", iterations=steps)(view(updates))
    np.testing.assert_allclose(result.update, point, atol=2e-5)


def test_centered_clipping_by_hand_over_two_rounds():
    rule = make_rule("centered_clipping", radius=2.0)
    assert rule(view([[1.0], [5.0], [-9.0]])).update.item() == pytest.approx((1 + 2 - 2) / 3)
    # From 1/3: differences 2/3, 3 2/3 and -9 1/3 are cut to 2/3, 2 and -2.
    assert rule(view([[1.0], [4.0], [-9.0]])).update.item() == pytest.approx(1 / 3 + (2 / 3) / 3)
    rule.reset()
    assert rule(view([[1.0], [5.0], [-9.0]])).update.item() == pytest.approx(1 / 3)


def test_an_attacker_moves_centered_clipping_by_no_more_than_a_radius_over_n():
    honest = draw(9, 20, 0)
    for radius in (0.5, 3.0):
        quiet = make_rule("centered_clipping", radius=radius)(view(np.concatenate([np.zeros((1, 20)), honest])))
        loud = make_rule("centered_clipping", radius=radius)(view(np.concatenate([np.full((1, 20), 1e30), honest])))
        assert float((quiet.update - loud.update).norm()) == pytest.approx(radius / 10, rel=1e-3)


def test_centered_clipping_converges_to_the_mean_when_nothing_is_cut():
    updates = draw(5, 4, 0)
    result = make_rule("centered_clipping", radius=100.0, iterations=3)(view(updates))
    np.testing.assert_allclose(result.update, updates.mean(axis=0), atol=1e-6)


def test_centered_clipping_refuses_updates_of_another_federation():
    rule = make_rule("centered_clipping")
    rule(view(draw(3, 4, 0)))
    with pytest.raises(ValueError, match=r"remembers a model of 4 parameters and got updates of 5; call reset"):
        rule(view(draw(3, 5, 0)))


def test_norm_bounding_by_hand():
    updates = [[3.0, 4.0], [0.0, 1.0], [0.0, -20.0]]
    result = make_rule("norm_bounding", bound=2.0)(view(updates))
    torch.testing.assert_close(result.update, torch.tensor([1.2, 0.6]) / 3)
    torch.testing.assert_close(make_rule("norm_bounding")(view(updates)).update, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(result.weights, torch.full((3,), 1 / 3))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("geometric_median", {"smoothing": 0.0}),
        ("geometric_median", {"tolerance": -1.0}),
        ("rfa", {"iterations": 0}),
        ("centered_clipping", {"radius": float("inf")}),
        ("centered_clipping", {"iterations": -1}),
        ("norm_bounding", {"bound": float("nan")}),
    ],
)
def test_a_parameter_that_makes_no_sense_is_named_with_its_value(name, options):
    ((field, value),) = options.items()
    with pytest.raises(ValueError, match=f"{field} must be above 0 and finite, got {value}"):
        make_rule(name, **options)
