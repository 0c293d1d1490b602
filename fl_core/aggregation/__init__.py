"""Aggregation rules: a server view to one update."""

from fl_core.aggregation import (  # noqa: F401  (importing registers)
    clustering,
    contrastive,
    coordinate,
    distance,
    history,
    learned,
    mean,
    reference,
    root,
    statistics,
    synthetic,
    trust,
)
from fl_core.aggregation.base import Aggregate, Rule, make_rule, register_rule, rule_names, takes_num_byzantine
from fl_core.aggregation.reference import ReferenceRule
from fl_core.aggregation.trust import GivenTrust, TrustRule, TrustWeighting
from fl_core.aggregation.view import ServerView, receive

__all__ = [
    "Aggregate",
    "GivenTrust",
    "ReferenceRule",
    "Rule",
    "ServerView",
    "TrustRule",
    "TrustWeighting",
    "make_rule",
    "receive",
    "register_rule",
    "rule_names",
    "takes_num_byzantine",
]
