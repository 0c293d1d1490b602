"""Reference lines that know the truth: not defences, and never given a view that could tell them."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from fl_core.aggregation.base import Aggregate, Rule, fall_back, register_rule, weighted_mean
from fl_core.aggregation.trust import TrustRule, TrustWeighting
from fl_core.aggregation.view import ServerView


class ReferenceRule(Rule):
    """A rule that must be told who is honest. The benchmark does so with ``told``; a server could not."""

    needs_truth: ClassVar[bool] = True

    @abstractmethod
    def told(self, malicious: Tensor) -> Rule:
        """The rule for a federation whose malicious clients are known.

        Args:
            malicious: (N,) bool by client number, as ``Federation.malicious`` is; not by row of a view, as
                ``Round.malicious`` is where only some take part.
        """

    def aggregate(self, view: ServerView) -> Aggregate:
        """Always raises: the view does not say who is malicious."""
        name = type(self).__name__
        raise ValueError(f"{name} needs the truth, which no server view holds: call {name}().told(malicious)(view)")


def _honest_rows(honest: Tensor, view: ServerView) -> Tensor:
    """Of the accepted rows (A,) which are honest, as numbers like the updates'."""
    clients = view.accepted_clients
    if len(clients) and int(clients.max()) >= len(honest):
        raise ValueError(
            f"the view has client {int(clients.max())}, and told() was given {len(honest)} clients: give it "
            "Federation.malicious, which has all of them"
        )
    return honest[clients].to(view.updates)


@dataclass(frozen=True, eq=False)
class _HonestMean(Rule):
    honest: Tensor

    def aggregate(self, view: ServerView) -> Aggregate:
        honest = _honest_rows(self.honest, view)
        if not honest.any():
            return fall_back(view)
        weights = honest / honest.sum()
        return Aggregate(weighted_mean(view.accepted, weights), weights)


@dataclass(frozen=True, eq=False)
class _AnchoredHonestMean(TrustRule):
    needs_root: ClassVar[bool] = False  # the weighting says so, in words that do not name a private class
    reads_fingerprint: ClassVar[bool] = False
    honest: Tensor
    weighting: TrustWeighting

    def trust(self, view: ServerView) -> Tensor:
        return _honest_rows(self.honest, view)


@register_rule("oracle")
class Oracle(ReferenceRule):
    """Mean of the honest clients' updates: the upper reference among rules without root data.

    Formula: mean of Δᵢ over the honest i.
    Source: ours.
    Checked against: the mean written out.
    """

    def told(self, malicious: Tensor) -> Rule:
        """See ``ReferenceRule.told``."""
        return _HonestMean(~malicious)


@register_rule("anchored_oracle")
@dataclass(frozen=True)
class AnchoredOracle(ReferenceRule):
    """The honest clients *and* the root data, unclipped: the plain oracle gives the root data no weight.

    Formula: mean of Δᵢ over the honest i and of the reference update.
    Source: ours.
    Checked against: the mean written out.

    Attributes:
        weighting: How the root data takes part; by default as one more client.
    """

    needs_root: ClassVar[bool] = True
    weighting: TrustWeighting = field(default_factory=lambda: TrustWeighting(update_clip="none"))

    def told(self, malicious: Tensor) -> Rule:
        """See ``ReferenceRule.told``."""
        return _AnchoredHonestMean(~malicious, self.weighting)
