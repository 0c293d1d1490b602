"""The plain mean."""

from dataclasses import dataclass

from fl_core.aggregation.base import Aggregate, Rule, plain_mean, register_rule
from fl_core.aggregation.view import ServerView


@register_rule("fedavg")
@dataclass(frozen=True)
class FedAvg(Rule):
    """Mean of the updates, every client counting alike.

    Formula: ``mean Δᵢ``.
    Source: McMahan et al. 2017, arXiv 1602.05629.
    Checked against: byzfl.Average, Flower's aggregate with equal sample counts.

    The paper weighs by sample counts; clients report these themselves, and an attacker would lie.
    """

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        updates = view.accepted
        return Aggregate(plain_mean(updates), updates.new_full((len(updates),), 1 / len(updates)))
