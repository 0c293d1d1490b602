"""``name:option=value,option=value``, as attacks and policies are given on a command line."""

from typing import Any

import yaml


def parse_options(spec: str, name: str, given: str) -> dict[str, Any]:
    """The options after a name; values as YAML has them.

    Args:
        spec: All that was given, for messages.
        name: What stands before the colon.
        given: What stands after it.

    Raises:
        ValueError: An option without a value or given twice, or a value that cannot be read.
    """
    options: dict[str, Any] = {}
    for part in filter(None, _at_commas(given)):
        option, equals, value = part.partition("=")
        if not equals or not value:
            raise ValueError(f"{spec!r}: option {part!r} has no value; write {name}:{option}=VALUE")
        if option.strip() in options:
            raise ValueError(f"{spec!r}: option {option.strip()!r} is given twice")
        try:
            options[option.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{spec!r}: the value of option {part!r} cannot be read") from error
    return options


def _at_commas(text: str) -> list[str]:
    """Cut at the commas that are in no bracket: a value may be a list or a mapping."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
