"""What an aggregation rule is, and the registry of rules."""

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fl_core.aggregation.view import ServerView
from fl_core.randomness import Purpose, Streams
from fl_core.registry import Registry

_RULES: Registry["Rule"] = Registry("aggregation rule")
register_rule = _RULES.register


def rule_names() -> list[str]:
    """Names that ``make_rule`` accepts."""
    return sorted(_RULES)


def make_rule(name: str, **options: Any) -> "Rule":
    """Builds an aggregation rule.

    Args:
        name: Registered name.
        **options: The rule's parameters.

    Raises:
        ValueError: Unknown name (the message lists what there is), or a parameter that the rule does not take.
    """
    return _RULES.make(name, **options)


def takes_num_byzantine(name: str) -> bool:
    """Whether the rule must be told how many attackers to expect."""
    return "num_byzantine" in inspect.signature(_RULES[name]).parameters


@dataclass(frozen=True, eq=False)
class Aggregate:
    """Result of a rule.

    Attributes:
        update: (P,) float32, to be added to the global model.
        weights: (N,) share of each client, or ``None`` where a rule has no such thing (median).
        root_weight: Share of the reference update; with ``weights`` it sums to 1.
    """

    update: Tensor
    weights: Tensor | None
    root_weight: float = 0.0


class Rule(ABC):
    """A function of the server view. Sample counts that clients report are ignored: an attacker would lie about them.

    Subclasses write ``aggregate`` for finite updates; calling the rule takes care of the rest: clients whose update is
    not finite get weight 0, and if nobody is left the reference update is used. A rule with a memory keeps it in an
    attribute that ``reset`` empties, by client (``view.accepted_clients``); one that draws has a ``seed`` and takes its
    numbers from ``round_generator``.

    Attributes:
        needs_root: The rule reads the reference update or the fingerprint.
    """

    needs_root: ClassVar[bool] = False

    def reset(self) -> None:  # noqa: B027  (most rules have no memory)
        """Forgets earlier rounds; for rules with a memory. Called before a federation's first round."""

    @abstractmethod
    def aggregate(self, view: ServerView) -> Aggregate:
        """Combines ``view.accepted`` (A, P), A at least 1; ``weights`` of the result are over these A rows."""

    def __call__(self, view: ServerView) -> Aggregate:
        """Applies the rule.

        Raises:
            ValueError: The rule needs root data that the view does not have, or too few clients are left for it.
        """
        if self.needs_root:
            require_reference(view, type(self).__name__)
        if bool(view.rejected.all()):
            return fall_back(view)
        result = self.aggregate(view)
        if result.weights is None or len(view.accepted) == len(view.updates):
            return result
        weights = result.weights.new_zeros(len(view.updates))
        weights[~view.rejected] = result.weights
        return Aggregate(result.update, weights, result.root_weight)


def require_reference(view: ServerView, rule: str) -> Tensor:
    """The view's reference update.

    Raises:
        ValueError: It has none.
    """
    if view.reference is None:
        raise ValueError(f"{rule} needs root data: give ServerView a reference update (reference=...)")
    return view.reference


def fall_back(view: ServerView) -> Aggregate:
    """The reference update alone; no update at all for a server without root data."""
    weights = view.updates.new_zeros(len(view.updates))
    if view.reference is None:
        return Aggregate(view.updates.new_zeros(view.updates.shape[1]), weights)
    return Aggregate(view.reference, weights, root_weight=1.0)


def round_generator(seed: int, view: ServerView) -> torch.Generator:
    """The random stream of a rule in one round: a function of the rule's seed and the round number."""
    return Streams(seed).torch(Purpose.RULE, view.round)


def weighted_mean(updates: Tensor, weights: Tensor) -> Tensor:
    """``Σ wᵢ Δᵢ``: (A, P), (A,) to (P,)."""
    return weights.to(updates.dtype) @ updates
