"""Rules that lean on the server's root data."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_core.aggregation.base import (
    Aggregate,
    Rule,
    fall_back,
    make_rule,
    register_rule,
    require_reference,
    takes_num_byzantine,
    weighted_mean,
)
from fl_core.aggregation.selection import mean_of
from fl_core.aggregation.view import ServerView
from fl_core.fingerprint.geometry import norms, root_cosine


@register_rule("fltrust")
class FLTrust(Rule):
    """Updates scaled to the reference's norm, weighted by the ReLU of their cosine to it.

    Formula: ``Σ τᵢ·(‖r‖/‖Δᵢ‖)·Δᵢ / Σ τᵢ`` with ``τᵢ = max(cos(Δᵢ, r), 0)`` and the reference r.
    Source: Cao et al. 2021, arXiv 2012.13995, equations 2-4.
    Checked against: the formula written out in numpy.

    Where no client points the reference's way at all, the paper's mean is 0/0; the reference is used.
    """

    needs_root: ClassVar[bool] = True

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        reference = require_reference(view, "fltrust")
        trust = root_cosine(view.accepted, reference).clamp_min(0)
        if trust.sum() <= 0:
            return fall_back(view)
        weights = trust / trust.sum()
        lengths = norms(view.accepted)
        scale = norms(reference[None])[0] / torch.where(lengths > 0, lengths, 1.0)
        update = weighted_mean(view.accepted.double(), weights * scale)
        return Aggregate(update.to(reference.dtype), weights.to(reference.dtype))


@register_rule("root_only")
class RootOnly(Rule):
    """Trains on root data alone and ignores the clients: the floor that any defence with root data must beat.

    Formula: ``r``, the reference update.
    Source: ours.
    Checked against: the reference itself.
    """

    needs_root: ClassVar[bool] = True

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        require_reference(view, "root_only")
        return fall_back(view)


@register_rule("best_of_k")
@dataclass(frozen=True)
class BestOfK(Rule):
    """In each round, of several rules' aggregates the one whose model has the least loss on root data.

    Formula: argmin over the rules' aggregates a of the loss of w + a on the utility half.
    Source: ours.
    Checked against: the property that none of the rules has a smaller loss in the round.

    Of equal losses the first rule's is taken. Every rule sees every round, so those with a memory keep it up to date.

    Attributes:
        rules: Names of rules, with their defaults.
        num_byzantine: For those of them that must be told; ``None`` assumes 30 % of the clients.
    """

    needs_root: ClassVar[bool] = True
    rules: tuple[str, ...] = ("fedavg", "median", "trimmed_mean", "fltrust")
    num_byzantine: int | None = None
    _made: tuple[Rule, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.rules or not isinstance(self.rules, tuple):
            raise ValueError(f"best_of_k: rules must be a tuple of names of at least one rule, got {self.rules!r}")
        if "best_of_k" in self.rules:
            raise ValueError("best_of_k: rules cannot contain best_of_k itself")
        object.__setattr__(self, "_made", tuple(self._make(name) for name in self.rules))
        object.__setattr__(self, "by_client", any(rule.by_client for rule in self._made))  # known only now

    def _make(self, name: str) -> Rule:
        told = {"num_byzantine": self.num_byzantine} if takes_num_byzantine(name) else {}
        rule = make_rule(name, **told)
        if rule.needs_truth:
            raise ValueError(f"best_of_k: {name} needs the truth, which no server view holds")
        return rule

    def reset(self) -> None:
        """See ``Rule.reset``."""
        for rule in self._made:
            rule.reset()

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        results = [rule.aggregate(view) for rule in self._made]
        losses = view.root_losses(torch.stack([result.update for result in results]))
        return results[int(losses.argmin())]


@register_rule("fedgreed")
class FedGreed(Rule):
    """Averages the clients with the least loss on root data, one after the other, until the loss of the mean rises.

    Formula: clients ordered by the loss of ``w + Δᵢ``; mean of the first j, with j the last before that mean's loss
        rises.
    Source: Kritharakis et al. 2025, "FedGreed: A Byzantine-Robust Loss-Based Aggregation Method for Federated
        Learning", arXiv 2508.18060, algorithm 1.
    Checked against: the algorithm one loss at a time; the property that the best single client is no better.

    All losses of singles are taken at once, and then all losses of means.
    """

    needs_root: ClassVar[bool] = True

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        order = view.root_losses(view.accepted).cpu().argsort(stable=True)
        counts = torch.arange(1, len(order) + 1)[:, None]
        # Divided first: a sum of huge finite rows is not finite, their mean is.
        means = (view.accepted[order] / len(order)).cumsum_(dim=0).mul_((len(order) / counts).to(view.accepted.device))
        chosen = order[: _last_before_rise(view.root_losses(means).cpu())]
        return mean_of(view, F.one_hot(chosen, len(order)).sum(dim=0).bool())


def _last_before_rise(losses: Tensor) -> int:
    """How many of the losses (n,) come before the first that is larger than the one before it."""
    rises = (losses.diff() > 0).nonzero()
    return int(rises[0]) + 1 if len(rises) else len(losses)
