"""Spaces, and trust from actions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from optigrad_env.observation import action_space, observation_space, trust_of_action


def test_every_client_has_the_same_bounds() -> None:
    space = observation_space(3)
    for row in range(3):
        assert space.low[row].tolist() == [-3, -1, -1, -3, -1, -1]
        assert space.high[row].tolist() == [3, 1, 1, 3, 1, 1]


def test_the_edges_of_the_action_box_are_nearly_no_and_nearly_full_trust() -> None:
    edges = np.array([action_space(1).low[0], 0, action_space(1).high[0]], np.float32)
    assert trust_of_action(edges, 3).tolist() == pytest.approx([0.00669, 0.5, 0.99331], abs=1e-5)


@settings(derandomize=True, max_examples=60)
@given(arrays(np.float32, 5, elements=st.floats(-1, 1, width=32)))
def test_trust_lies_inside_zero_and_one_and_keeps_the_order_of_the_action(action: np.ndarray) -> None:
    trust = trust_of_action(action, 5).numpy()
    assert ((trust > 0) & (trust < 1)).all()
    assert (np.diff(trust[np.argsort(action)]) >= 0).all()
    np.testing.assert_allclose(trust, 1 / (1 + np.exp(-5 * action.astype(np.float64))), rtol=1e-5)


def test_the_action_is_not_edited() -> None:
    action = np.array([-4, 4], np.float32)
    trust_of_action(action, 2)
    assert action.tolist() == [-4, 4]
