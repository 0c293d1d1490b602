"""Attacks: functions of honest updates (or labels) that malicious clients apply before they send."""

from fl_core.attacks import (  # noqa: F401  (importing registers)
    adaptive,
    agr_agnostic,
    backdoor,
    colluding,
    data,
    free_rider,
    mimic,
    optimised,
    poisonedfl,
    policy_aware,
    schedule,
    simple,
)
from fl_core.attacks.adversary import RULE_NEEDED, AdversaryView, Knowledge, LocalData
from fl_core.attacks.base import Attack, attack_factory, attack_names, make_attack, register_attack

__all__ = [
    "RULE_NEEDED",
    "AdversaryView",
    "Attack",
    "Knowledge",
    "LocalData",
    "attack_factory",
    "attack_names",
    "make_attack",
    "register_attack",
]
