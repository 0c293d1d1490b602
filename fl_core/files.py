"""Files that are there in full or not at all."""

import csv
import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import IO, Any

# Not on Windows.
fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that it is there in full or as it was before."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def lock(path: Path) -> IO[bytes]:
    """Locks a file, made if it is not there, until it is closed or the process ends.

    Where the system has no such locks (Windows) nobody is kept away.

    Raises:
        BlockingIOError: Another process has it.
    """
    file = path.open("wb")
    if fcntl is None:
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows of equal columns, at least one, with a header, atomically; makes the directory."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically; numbers that JSON does not have (NaN, infinity) become null."""
    write_atomically(path, to_json(content))


def to_json(content: Mapping[str, Any]) -> bytes:
    """What ``write_json`` writes; raises TypeError for a value that JSON does not have."""
    return (json.dumps(_plain(content), indent=2, allow_nan=False) + "\n").encode()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
