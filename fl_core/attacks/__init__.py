"""Attacks: functions of honest updates (or labels) that malicious clients apply before they send."""

from fl_core.attacks import (  # noqa: F401  (importing registers)
    agr_agnostic,
    colluding,
    data,
    free_rider,
    mimic,
    poisonedfl,
    schedule,
    simple,
)
from fl_core.attacks.adversary import AdversaryView, Knowledge, LocalData
from fl_core.attacks.base import Attack, attack_names, make_attack, register_attack

__all__ = ["AdversaryView", "Attack", "Knowledge", "LocalData", "attack_names", "make_attack", "register_attack"]
