import pytest
import torch

from fl_core.attacks.search import evolve, line_search


@pytest.mark.parametrize("evaluations", range(1, 26))
def test_a_line_search_asks_as_often_as_it_may_and_takes_the_best_that_it_saw(evaluations):
    asked = []

    def damage(x: float) -> float:
        asked.append(x)
        return -abs(x - 3.3)

    found = line_search(damage, 50.0, evaluations)
    assert len(asked) == len(set(asked)) == evaluations
    assert all(0 < x <= 50.0 for x in asked)
    assert abs(found - 3.3) == min(abs(x - 3.3) for x in asked)


@pytest.mark.parametrize("peak", [0.15, 1.0, 7.7, 49.0])
def test_a_line_search_finds_a_peak_at_any_scale(peak):
    assert line_search(lambda x: -abs(x - peak), 50.0, 30) == pytest.approx(peak, rel=0.02)


def test_a_line_search_takes_the_largest_where_more_is_always_worse_and_the_smallest_of_equals():
    assert line_search(lambda x: x, 50.0, 20) == 50.0
    tried = []
    assert line_search(lambda x: tried.append(x) or 1.0, 50.0, 20) == min(tried)


@pytest.mark.parametrize("evaluations", [1, 2, 3, 40])
def test_evolution_asks_as_often_as_it_may_and_is_never_worse_than_a_start(evaluations):
    asked = []
    goal = torch.tensor([0.5, -0.2, 2.0], dtype=torch.float64)

    def score(point):
        asked.append(-float((point - goal).norm()))
        return (asked[-1],)

    starts = [torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)]
    best = evolve(score, starts, 0.5, evaluations, torch.Generator().manual_seed(0))
    assert len(asked) == evaluations
    assert -float((best - goal).norm()) == max(asked)
    if evaluations == 40:
        assert max(asked) > -0.5 * float((starts[0] - goal).norm())


def test_evolution_stays_where_points_may_lie_and_prefers_feasible_to_good():
    seen = []

    def score(point):  # infeasible right of 1; the further right the better
        seen.append(float(point))
        return (-max(float(point) - 1.0, 0.0), float(point))

    start = [torch.tensor([3.0], dtype=torch.float64)]
    best = evolve(score, start, 0.5, 200, torch.Generator().manual_seed(0), lambda point: point.clamp(0.0, 3.0))
    assert 0.95 < float(best) <= 1.0
    assert min(seen) >= 0.0
    assert max(seen) <= 3.0
