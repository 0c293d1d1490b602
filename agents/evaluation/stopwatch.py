"""What a rule costs: seconds of a round, of the server's part of it, of its features, and memory."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, cast

from fl_core.fingerprint import Fingerprint, Fingerprinter

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MIB = 2**20


class Stopwatch:
    """Times the rounds of one run.

    Figures are medians over the rounds: the first round of a federation that looks at features trains its autoencoder,
    once, which ``first_round_seconds`` shows.
    """

    def __init__(self) -> None:
        self._rounds: list[float] = []
        self._server: list[float] = []
        self._features: list[float] = []
        self._round_features = 0.0
        self._serving = False
        self._peak: float | None = None

    @contextmanager
    def round(self) -> Iterator[None]:
        """Around training and aggregation of a round."""
        self._round_features, started = 0.0, time.perf_counter()
        yield
        self._rounds.append(time.perf_counter() - started)
        self._features.append(self._round_features)

    @contextmanager
    def round_goes_on(self) -> Iterator[None]:
        """Around a later part of the same round."""
        started = time.perf_counter()
        yield
        self._rounds[-1] += time.perf_counter() - started

    @contextmanager
    def server(self, *, last: bool) -> Iterator[None]:
        """Around the rule; in the last round its peak memory is measured as well."""
        before = reset_peak() if last else None
        self._serving, started = True, time.perf_counter()
        yield
        self._serving = False
        self._server.append(time.perf_counter() - started)
        peak = resident("VmHWM") if before is not None else None
        if before is not None and peak is not None:
            self._peak = max(peak - before, 0) / _MIB

    def around(self, fingerprinter: Fingerprinter) -> Fingerprinter:
        """The fingerprinter, with its time taken."""
        return cast(Fingerprinter, _TimedFingerprinter(fingerprinter, self))

    def add_features(self, seconds: float) -> None:
        """Adds time that went into features; those that an attack computes before the rule is asked do not count."""
        if self._serving:
            self._round_features += seconds

    def figures(self) -> dict[str, float | None]:
        """Columns of timings.csv."""
        return {
            "seconds_per_round": median(self._rounds),
            "server_seconds": median(self._server),
            "feature_seconds": median(self._features),
            "first_round_seconds": self._rounds[0],
            "peak_memory_mib": self._peak,
        }


class _TimedFingerprinter:
    """Stands in for a fingerprinter: the same answers, and a note of how long they took."""

    def __init__(self, inner: Fingerprinter, watch: Stopwatch) -> None:
        self._inner, self._watch = inner, watch

    def __call__(self, *arguments: Any, **named: Any) -> Fingerprint:
        started = time.perf_counter()
        fingerprint = self._inner(*arguments, **named)
        self._watch.add_features(time.perf_counter() - started)
        return fingerprint

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_inner":  # while it is copied or unpickled there is nothing inside yet
            raise AttributeError(name)
        return getattr(self._inner, name)


def reset_peak() -> int | None:
    """Sets the kernel's high-water mark of this process back to now; resident bytes, or ``None`` where it has none."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return None
    return resident("VmRSS")


def resident(field: str) -> int | None:
    """Bytes of this process, ``"VmRSS"`` now or ``"VmHWM"`` at most; ``None`` where the system does not tell."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
