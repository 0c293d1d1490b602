"""Aggregation rules: a server view to one update."""

from fl_core.aggregation import (  # noqa: F401  (importing registers)
    centre,
    clustering,
    contrastive,
    coordinate,
    diameter,
    distance,
    history,
    learned,
    mean,
    preaggregation,
    reference,
    root,
    spectral,
    statistics,
    synthetic,
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
    rule_factory,
    rule_names,
    takes_num_byzantine,
)
from fl_core.aggregation.reference import ReferenceRule
from fl_core.aggregation.similarity import SimilarityMemory
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
    "SimilarityMemory",
    "TrustRule",
    "TrustWeighting",
    "make_rule",
    "preaggregation_names",
    "receive",
    "register_preaggregation",
    "register_rule",
    "rule_factory",
    "rule_names",
    "takes_num_byzantine",
]
