"""The reward: named terms, weighted and summed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite

from torch import Tensor

from fl_core.registry import check_known, check_types


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one action led to; losses are on validation data.

    Attributes:
        loss_before: Loss of the global model that the round began with.
        loss: Loss of the model that the agent aggregated.
        honest_loss: Loss of the model made by the plain mean of the same round's honest updates.
        weights: (N,) share of each client in the aggregate.
        corrupted: (N,) bool on the CPU, whose update was an attack in this round.
    """

    loss_before: float
    loss: float
    honest_loss: float
    weights: Tensor
    corrupted: Tensor


def oracle_gap(outcome: Outcome) -> float:
    """How much better the agent's model is than the honest mean of the same updates, in nats.

    Dense and without carry-over from one round to the next, so a discount near 0 is right.
    """
    return outcome.honest_loss - outcome.loss


def progress(outcome: Outcome) -> float:
    """How much the validation loss fell in this round, in nats. Needs no truth."""
    return outcome.loss_before - outcome.loss


def malicious_mass(outcome: Outcome) -> float:
    """Minus the share of the aggregate that attacking clients got. Gamed by trusting a single client."""
    return -float(outcome.weights[outcome.corrupted].sum())


_TERMS: dict[str, Callable[[Outcome], float]] = {
    "oracle_gap": oracle_gap,
    "progress": progress,
    "malicious_mass": malicious_mass,
}


@dataclass(frozen=True)
class Reward:
    """A weighted sum of terms.

    Attributes:
        weights: Weight of each named term.
    """

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError(f"reward has no terms; there are: {', '.join(_TERMS)}")
        check_known("reward term", self.weights, _TERMS)
        check_types(self.weights, dict.fromkeys(self.weights, float), "reward: weight of ")
        if not all(map(isfinite, self.weights.values())):
            raise ValueError(f"reward: weights must be finite, got {dict(self.weights)}")

    def __call__(self, outcome: Outcome) -> tuple[float, dict[str, float]]:
        """The reward, and every term (weighted or not) by name."""
        terms = {name: term(outcome) for name, term in _TERMS.items()}
        return sum(weight * terms[name] for name, weight in self.weights.items()), terms


def make_reward(reward: str | Mapping[str, float]) -> Reward:
    """A reward from the name of one term, or from a mapping of names to weights.

    Raises:
        ValueError: Unknown term (the message lists what there is), or a weight that is no finite number.
    """
    check_types({"reward": reward}, {"reward": str | dict})
    return Reward({reward: 1.0} if isinstance(reward, str) else dict(reward))
