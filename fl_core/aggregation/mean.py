"""The plain mean."""

from fl_core.aggregation.base import Aggregate, Rule, register_rule
from fl_core.aggregation.view import ServerView


@register_rule("fedavg")
class FedAvg(Rule):
    """Mean of the updates (McMahan et al. 2017, arXiv 1602.05629), every client counting alike."""

    def aggregate(self, view: ServerView) -> Aggregate:
        """See ``Rule.aggregate``."""
        updates = view.accepted
        return Aggregate(updates.mean(dim=0), updates.new_full((len(updates),), 1 / len(updates)))
