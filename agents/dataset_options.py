"""What a command line says of a data set, and what the environment's id says beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym


def parse_dataset_options(given: Sequence[str]) -> dict[str, int | float | str] | None:
    """``("image_size=64", r"group_pattern=^(\\d+)_")`` as a mapping; ``None`` if nothing is given.

    Raises:
        ValueError: One that is no NAME=VALUE, or a name that is given twice.
    """
    options: dict[str, int | float | str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ValueError(f"dataset-options are NAME=VALUE, such as image_size=64; got {text!r}")
        if name in options:
            raise ValueError(f"dataset-options: {name} is given twice")
        options[name] = _number_or_text(value)
    return options or None


def with_those_of_the_id(env_id: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an environment, whose data set keeps the options of the id that are not given otherwise."""
    given, registered = kwargs.get("dataset_options"), gym.registry[env_id].kwargs.get("dataset_options", {})
    try:
        return {**kwargs, "dataset_options": {**registered, **dict(given or {})}} if given or registered else {**kwargs}
    except (TypeError, ValueError):  # no mapping, which the environment refuses in its own words
        return {**kwargs}


def _number_or_text(value: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
