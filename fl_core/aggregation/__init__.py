"""Aggregation rules: a server view to one update."""

from fl_core.aggregation import (  # noqa: F401  (importing registers)
    centre,
    coordinate,
    diameter,
    distance,
    mean,
    preaggregation,
    reference,
    root,
    spectral,
    trust,
)
from fl_core.aggregation.base import (
    Aggregate,
    Composed,
    Mixed,
    PreAggregation,
    Rule,
    make_rule,
    preaggregation_names,
    register_preaggregation,
    register_rule,
    rule_names,
    takes_num_byzantine,
)
from fl_core.aggregation.reference import ReferenceRule
from fl_core.aggregation.trust import GivenTrust, TrustRule, TrustWeighting
from fl_core.aggregation.view import ServerView, receive

__all__ = [
    "Aggregate",
    "Composed",
    "GivenTrust",
    "Mixed",
    "PreAggregation",
    "ReferenceRule",
    "Rule",
    "ServerView",
    "TrustRule",
    "TrustWeighting",
    "make_rule",
    "preaggregation_names",
    "receive",
    "register_preaggregation",
    "register_rule",
    "rule_names",
    "takes_num_byzantine",
]
