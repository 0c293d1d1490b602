"""What a training run says: to a person, to a batch system, or nothing."""

import json
from collections.abc import Mapping
from math import isfinite
from typing import Any

from stable_baselines3.common.logger import KVWriter
from tqdm import tqdm

LOG_FORMATS = ("text", "json")


class Console(KVWriter):
    """Lines on standard output; as a writer of SB3's log it prints curves too, in the format for batch systems.

    Args:
        log_format: ``"text"``, or ``"json"``: an object a line, with the kind of line in ``event``.
        quiet: Say nothing at all.
    """

    def __init__(self, log_format: str = "text", *, quiet: bool = False) -> None:
        self._json, self._quiet = log_format == "json", quiet
        self.shows_bars = not self._json and not quiet

    def say(self, event: str, text: str, **fields: Any) -> None:
        """One line: the text for people, or the event with its fields for programs."""
        if self._json:
            self._print_json({"event": event, **fields})
        elif not self._quiet:
            tqdm.write(text)  # beside a progress bar, not into it

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Curves at a time step, from SB3's logger."""
        if self._json:
            self._print_json({"event": "curves", "timesteps": step, **key_values})

    def close(self) -> None:
        """Nothing to close."""

    def _print_json(self, fields: Mapping[str, Any]) -> None:
        if not self._quiet:
            print(json.dumps({name: _plain(value) for name, value in fields.items()}), flush=True)


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return value if isfinite(value) else None  # JSON has neither NaN nor infinity
    return value if isinstance(value, int | bool | str | list | dict | type(None)) else str(value)
