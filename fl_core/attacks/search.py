"""Black-box searches of attacks that are made against something: bounded in what they ask, never worse than a start."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# What is maximised. Tuples compare in order: a feasible point beats an infeasible one, whatever its damage.
Score = tuple[float, ...]

_GOLDEN = (5**0.5 - 1) / 2


def line_search(damage: Callable[[float], float], largest: float, evaluations: int) -> float:
    """The most damaging strength in (0, largest], of those that were tried.

    Half of the evaluations go to the powers of ½ times ``largest``, because a rule's tolerance may lie at any scale;
    the others go by golden section to between the two neighbours of the best of them. Of equals the smaller is taken,
    the one that hides better.

    Args:
        damage: Asked ``evaluations`` times.
        largest: Upper end of the search.
        evaluations: At least 1.
    """
    grid = [largest * 0.5**i for i in reversed(range((evaluations + 1) // 2))]
    tried = {strength: damage(strength) for strength in grid}
    best = _best(tried)
    low, high = best / 2, min(2 * best, largest)
    left, right = _inner(low, high)
    for strength in (left, right)[: evaluations - len(grid)]:
        tried[strength] = damage(strength)
    for _ in range(evaluations - len(grid) - 2):
        if tried[left] >= tried[right]:
            high, right = right, left
            left, _ = _inner(low, high)
            tried[left] = damage(left)
        else:
            low, left = left, right
            _, right = _inner(low, high)
            tried[right] = damage(right)
    return _best(tried)


def _inner(low: float, high: float) -> tuple[float, float]:
    """The two points that divide an interval by the golden ratio."""
    return high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)


def _best(tried: dict[float, float]) -> float:
    return min(tried, key=lambda strength: (-tried[strength], strength))


@dataclass
class _Best:
    point: Tensor
    score: Score


def evolve(
    score: Callable[[Tensor], Score],
    starts: Sequence[Tensor],
    step: float,
    evaluations: int,
    generator: torch.Generator,
    project: Callable[[Tensor], Tensor] = lambda point: point,
) -> Tensor:
    """The best point of an evolution strategy with one parent and one child.

    The step follows the 1/5 success rule (Rechenberg 1973): longer after a success, shorter after four failures.

    Args:
        score: What to maximise; asked ``evaluations`` times.
        starts: Points (k,) float64, at least one; as many as the budget lets are tried first, in order.
        step: Standard deviation of the first step, in the points' own units.
        evaluations: At least 1.
        generator: Source of the steps.
        project: Brings a point back to where it may lie.
    """
    tried = [_Best(start, score(start)) for start in map(project, starts[:evaluations])]
    best = max(tried, key=lambda one: one.score)
    for _ in range(evaluations - len(tried)):
        noise = torch.randn(best.point.shape, generator=generator, dtype=best.point.dtype)
        child = project(best.point + step * noise.to(best.point))
        child_score = score(child)
        if child_score > best.score:
            best, step = _Best(child, child_score), 1.5 * step
        else:
            step *= 1.5**-0.25
    return best.point
