"""How steady weights are is told of rules that give some, and of those that give none."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture
def stability(program: Callable[[str], ModuleType]) -> ModuleType:
    return program("trust_stability")


def test_a_change_is_told_in_units_of_the_mean_weight(stability: ModuleType) -> None:
    weights = np.array([[1.0, 3.0], [2.0, 2.0], [1.0, 3.0]])
    found = stability.figures(weights, np.zeros((3, 2), dtype=bool))
    assert found["change"] == pytest.approx(0.5)


@pytest.mark.parametrize("weight", [0.0, np.nan])
def test_without_a_client_that_has_weight_nothing_is_told_of_its_change(stability: ModuleType, weight: float) -> None:
    corrupted = np.array([[True, False]] * 6)
    found = stability.figures(np.full((6, 2), weight), corrupted)
    assert np.isnan([found["change"], found["rank_correlation"], found["honest_share_last"]]).all()
