"""What an aggregation rule is, and the registry of rules."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import Any, ClassVar

import torch
from torch import Tensor

from fl_core.aggregation.view import ServerView
from fl_core.randomness import Purpose, Streams
from fl_core.registry import Registry

_RULES: Registry["Rule"] = Registry("aggregation rule")
_STEPS: Registry["PreAggregation"] = Registry("pre-aggregation")
register_rule = _RULES.register
register_preaggregation = _STEPS.register


def rule_names() -> list[str]:
    """Names of the rules; ``make_rule`` also takes any of them behind pre-aggregations, such as ``nnm+krum``."""
    return sorted(_RULES)


def preaggregation_names() -> list[str]:
    """Names that may stand before a rule's, each with a ``+``."""
    return sorted(_STEPS)


def rule_factory(name: str) -> Callable[..., Any]:
    """What is registered under the name of a rule or of a pre-aggregation, usually a class.

    Raises:
        ValueError: Unknown name.
    """
    return _STEPS[name] if name in _STEPS else _RULES[name]


def make_rule(name: str, **options: Any) -> "Rule":
    """Builds an aggregation rule.

    Args:
        name: Registered name, or pre-aggregations and a rule: ``clipping+nnm+krum`` clips, mixes, then chooses.
        **options: Parameters. ``num_byzantine`` goes to every part that takes it, any other to the one that does.

    Raises:
        ValueError: Unknown name (the message lists what there is), a parameter that nobody takes, or one that several
            parts take.
    """
    factories = _parts(name)
    if len(factories) == 1:
        return _RULES.make(name, **options)
    *given, last = _distribute(name, factories, options)
    *steps, rule_name = name.split("+")
    rule = _RULES.make(rule_name, **last)
    for step, own in zip(reversed(steps), reversed(given), strict=True):
        rule = Composed(_STEPS.make(step, **own), rule)
    return rule


def takes_num_byzantine(name: str) -> bool:
    """Whether the rule, or a part of a composed one, must be told how many attackers to expect."""
    return any("num_byzantine" in inspect.signature(part).parameters for part in _parts(name))


def _parts(name: str) -> list[Callable[..., Any]]:
    """Factories of the pre-aggregations and the rule of a name, in order."""
    *steps, rule = name.split("+")
    if rule in _STEPS:
        raise ValueError(f"{rule!r} in {name!r} is a pre-aggregation: put a rule behind it, such as '{rule}+median'")
    return [*(_STEPS[step] for step in steps), _RULES[rule]]


def _distribute(name: str, factories: Sequence[Callable[..., Any]], options: dict[str, Any]) -> list[dict[str, Any]]:
    """The options of each part of a composed rule."""
    own: list[dict[str, Any]] = [{} for _ in factories]
    for option, value in options.items():
        takers = [i for i, part in enumerate(factories) if option in inspect.signature(part).parameters]
        if not takers:
            taken = sorted({known for part in factories for known in inspect.signature(part).parameters})
            raise ValueError(f"no part of {name!r} takes {option!r}; taken are: {', '.join(taken) or 'none'}")
        if len(takers) > 1 and option != "num_byzantine":
            names = [name.split("+")[i] for i in takers]
            raise ValueError(
                f"{option!r} is ambiguous in {name!r}: {' and '.join(names)} take it; build the parts with Composed"
            )
        for i in takers:
            own[i][option] = value
    return own


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
        by_client: The rule remembers clients, so its rows must stay theirs from round to round.
        needs_truth: The rule must be told who is honest (``ReferenceRule``): no part of another rule.
    """

    needs_root: ClassVar[bool] = False
    by_client: ClassVar[bool] = False
    needs_truth: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """Name for messages."""
        return type(self).__name__

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
            require_reference(view, self.label)
        result = fall_back(view) if bool(view.rejected.all()) else self.aggregate(view)
        if result.weights is None or len(view.accepted) == len(view.updates):
            return result
        weights = result.weights.new_zeros(len(view.updates))
        weights[~view.rejected] = result.weights
        return Aggregate(result.update, weights, result.root_weight)


@dataclass(frozen=True, eq=False)
class Mixed:
    """What a pre-aggregation makes of the accepted updates (A, P).

    Attributes:
        updates: (M, P), for the next part to see.
        mixing: (M, A), the share of each client in each row, rows of sum 1; ``None`` where row i is client i's.
    """

    updates: Tensor
    mixing: Tensor | None


class PreAggregation(ABC):
    """A function of the server view whose result a rule aggregates. It never edits the updates.

    Attributes:
        keeps_clients: Row i of what it makes still stands for client i; not so for buckets.
    """

    keeps_clients: ClassVar[bool] = True

    @abstractmethod
    def mix(self, view: ServerView) -> Mixed:
        """Mixes or shortens ``view.accepted`` (A, P), A at least 1."""


@dataclass(frozen=True)
class Composed(Rule):
    """A rule behind a pre-aggregation; the rule may be a composed one itself.

    Its weights are told in terms of the clients, where the inner rule has weights: a client's share in each mixed row
    times that row's weight. A shortened update counts as its sender's.

    Attributes:
        step: The pre-aggregation.
        rule: What follows.
    """

    step: PreAggregation
    rule: Rule

    def __post_init__(self) -> None:
        if not isinstance(self.step, PreAggregation) or not isinstance(self.rule, Rule):
            raise ValueError(f"Composed takes a pre-aggregation and a rule, got {self.step!r} and {self.rule!r}")
        if self.rule.needs_truth:
            raise ValueError(f"{self.rule.label} needs the truth, which no server view holds; put another rule there")
        if self.rule.by_client and not self.step.keeps_clients:
            raise ValueError(
                f"{self.rule.label} remembers clients, and {type(self.step).__name__} mixes them anew in every round: "
                "put a pre-aggregation before it whose rows stay clients, such as nnm, clipping or arc"
            )
        # Known only now, not by class.
        object.__setattr__(self, "needs_root", self.rule.needs_root)
        object.__setattr__(self, "by_client", self.rule.by_client)

    @property
    def label(self) -> str:
        """See ``Rule.label``."""
        return f"{type(self.step).__name__}+{self.rule.label}"

    def reset(self) -> None:
        """See ``Rule.reset``."""
        self.rule.reset()

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        mixed = self.step.mix(view)
        rows = len(mixed.updates)
        result = self.rule(_view_of(view, mixed, of_clients=self.step.keeps_clients))
        if result.weights is None:
            return result
        weights = result.weights[~view.rejected] if self.step.keeps_clients else result.weights[:rows]
        if mixed.mixing is not None:
            weights = weights @ mixed.mixing.to(weights)
        return Aggregate(result.update, weights, result.root_weight)


def _view_of(view: ServerView, mixed: Mixed, *, of_clients: bool) -> ServerView:
    """The view of the next part. Rejected clients stay in it, rejected: the next part's f counts them as found."""
    rejected = len(view.updates) - len(view.accepted)
    if not of_clients:
        nobody = mixed.updates.new_full((rejected, mixed.updates.shape[1]), nan)
        return replace(view, updates=torch.cat([mixed.updates, nobody]) if rejected else mixed.updates, clients=None)
    if not rejected:
        return replace(view, updates=mixed.updates)
    updates = torch.full_like(view.updates, nan)
    updates[~view.rejected] = mixed.updates
    return replace(view, updates=updates)


def require_reference(view: ServerView, rule: str) -> Tensor:
    """The view's reference update.

    Raises:
        ValueError: It has none.
    """
    if view.reference is None:
        raise ValueError(f"{rule} needs root data: give ServerView a reference update (reference=...)")
    return view.reference


def fall_back(view: ServerView) -> Aggregate:
    """The reference update alone; no update at all for a server without root data.

    What a rule returns where it trusts nobody: ``weights`` are over the accepted rows, as those of ``Rule.aggregate``.
    """
    weights = view.updates.new_zeros(len(view.accepted))
    if view.reference is None:
        return Aggregate(view.updates.new_zeros(view.updates.shape[1]), weights)
    return Aggregate(view.reference.clone(), weights, root_weight=1.0)  # the caller may write into what it gets


def check_remembered(rule: str, remembered: int, updates: Tensor) -> None:
    """Raises a ValueError, if a rule that remembers a model of so many parameters gets updates (N, P) of another."""
    if remembered != updates.shape[1]:
        raise ValueError(
            f"{rule} remembers a model of {remembered} parameters and got updates of {updates.shape[1]}; call reset() "
            "between federations"
        )


def round_generator(seed: int, view: ServerView) -> torch.Generator:
    """The random stream of a rule in one round: a function of the rule's seed and the round number."""
    return Streams(seed).torch(Purpose.RULE, view.round)


def plain_mean(updates: Tensor) -> Tensor:
    """Mean over the rows, (A, P) to (P,); finite wherever the updates are, which a sum of them need not be."""
    mean = updates.mean(dim=0)
    return mean if bool(mean.isfinite().all()) else (updates / len(updates)).sum(dim=0)


def weighted_mean(updates: Tensor, weights: Tensor) -> Tensor:
    """``Σ wᵢ Δᵢ``: (A, P), (A,) to (P,), where the updates are."""
    return weights.to(updates) @ updates
