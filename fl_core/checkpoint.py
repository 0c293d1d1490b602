"""A federation in the middle of an episode as data, and back: what goes on from there is the same, bit for bit.

A state holds what has come about since ``reset``, and the scenario and entropy that ``reset`` needs to make the rest
again: no images, no partition, no autoencoder. It is made of plain values, tensors and the attack (for its memory), so
``pickle`` and ``torch.save`` take it.
"""

import copy
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fl_core.config import settings_of
from fl_core.federation import Federation, Round
from fl_core.scenario import Scenario

# Where a data set lies does not change what is in it.
_IGNORED = ("data_dir", "download")


def state_of(federation: Federation, round_: Round) -> dict[str, Any]:
    """The state of a federation between ``local_round`` and ``apply``.

    Args:
        federation: After ``reset``.
        round_: What its last ``local_round`` gave.
    """
    return {
        "settings": _settings(federation),
        "scenario": {field.name: getattr(federation.scenario, field.name) for field in fields(Scenario)},
        "entropy": federation.entropy,
        "round": federation.round,
        "shared": federation.shared.clone(),
        "local": federation.local.clone(),
        "last_change": federation._last_change.clone(),
        "attack": copy.deepcopy(federation.attack),
        "generators": {
            "batches": [generator.get_state() for generator in federation._batch_generators],
            "attack": federation._attack_generator.get_state(),
            "participation": copy.deepcopy(federation._participation_generator.bit_generator.state),
        },
        "calibration": federation.fingerprinter.calibration(),
        "updates": round_.view.updates.clone(),
        "reference": None if round_.view.reference is None else round_.view.reference.clone(),
        "attacking": round_.attacking,
        "participants": round_.participants.clone(),
    }


def restore(federation: Federation, state: dict[str, Any]) -> Round:
    """Brings a federation of the same configuration into a state; returns the round that waits for ``apply``.

    Raises:
        ValueError: The state is of a federation with another configuration; the message says what differs.
    """
    check_same("a federation", state["settings"], _settings(federation))
    federation.reset(Scenario(**copy.deepcopy(state["scenario"])), state["entropy"])
    federation.round = state["round"]
    federation.shared, federation.local = state["shared"].clone(), state["local"].clone()
    federation._last_change = state["last_change"].clone()
    federation.attack = copy.deepcopy(state["attack"])
    generators = state["generators"]
    for generator, numbers in zip(federation._batch_generators, generators["batches"], strict=True):
        generator.set_state(numbers)
    federation._attack_generator.set_state(generators["attack"])
    federation._participation_generator.bit_generator.state = generators["participation"]
    federation.fingerprinter.calibrate(*state["calibration"])
    federation.participants = state["participants"].clone()
    view = federation.server_view(state["reference"], state["updates"].clone())
    malicious = federation.malicious[federation.participants]
    return Round(view, malicious, state["attacking"], federation.participants)


def check_same(what: str, settings: dict[str, Any], own: dict[str, Any]) -> None:
    """Raises a ValueError that says what differs, if a state's settings are not one's own."""
    differences = [
        f"{name} was {settings.get(name)!r}, is {own.get(name)!r}"
        for name in sorted(own.keys() | settings.keys())
        if own.get(name) != settings.get(name)
    ]
    if differences:
        raise ValueError(f"the state is of {what} with other settings: {'; '.join(differences)}")


def check_state(state: Any, *parts: str) -> None:
    """Raises a ValueError, if a state has not these parts, as ``state_dict`` of the same environment returned them."""
    if not isinstance(state, Mapping) or any(part not in state for part in parts):
        got = f"one of {', '.join(map(str, state))}" if isinstance(state, Mapping) and state else repr(state)
        raise ValueError(
            f"expected a state of {', '.join(parts)}, what state_dict() of an environment with the same wrappers "
            f"returned, in this version; got {got}"
        )


def _settings(federation: Federation) -> dict[str, Any]:
    """With the engine that ``auto`` stands for: another one would go on with other bits."""
    settings = {name: value for name, value in settings_of(federation.config).items() if name not in _IGNORED}
    return {**settings, "engine": federation.engine.name}
