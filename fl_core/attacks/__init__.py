"""Attacks: functions of honest updates (or labels) that malicious clients apply before they send."""

from fl_core.attacks import adaptive, backdoor, colluding, data, optimised, simple  # noqa: F401  (importing registers)
from fl_core.attacks.adversary import AdversaryView, Knowledge, LocalData
from fl_core.attacks.base import Attack, attack_names, make_attack, register_attack

__all__ = ["AdversaryView", "Attack", "Knowledge", "LocalData", "attack_names", "make_attack", "register_attack"]
