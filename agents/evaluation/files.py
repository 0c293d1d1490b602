"""The files of a results directory: their names, their keys, and tables that grow by batches."""

import csv
import io
import os
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from agents.evaluation.figures_of_merit import KEY
from agents.evaluation.grid import Cell
from fl_core.files import write_atomically

RESULTS, TIMINGS, CURVES, FAILURES, MANIFEST, LOCK = (
    "results.csv",
    "timings.csv",
    "curves",
    "failures.json",
    "manifest.json",
    ".lock",
)
# What a report is made of.
PAGE, SUMMARY, MARKDOWN, TABLES, PLOTS = "report.html", "summary.json", "summary.md", "tables", "plots"
# What a grid may get more of while its results are continued.
AXES = ("rules", "attacks", "malicious_fractions", "heterogeneities", "seeds", "num_clients")
# In a manifest's grid, by environment what its federations are set to, defaults included.
FEDERATIONS = "federations"
CellKey = tuple[str, ...]


class ResultsError(ValueError):
    """A results directory that cannot be used, or that cannot take more."""


def differences(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """How two grids, as manifests have them, differ in a setting, in words; nothing if they do not."""
    if name != FEDERATIONS:
        return [] if old.get(name) == new.get(name) else [f"{name} was {old.get(name)!r}, is {new.get(name)!r}"]
    # What one of the versions did not write down, or did not know yet, is nothing that can differ.
    before, after = old.get(name, {}), new.get(name, {})
    return [
        f"{setting} of {env_id} was {before[env_id][setting]!r}, is {value!r}"
        for env_id in before
        for setting, value in after.get(env_id, {}).items()
        if setting in before[env_id] and before[env_id][setting] != value
    ]


class Table:
    """A CSV file that grows by batches: a batch is there in full, or it is cut off when the file is opened again.

    Args:
        path: The file; made if it is not there.
        columns: Its header.

    Raises:
        ResultsError: It has other columns.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self._columns = path, list(columns)
        if not path.exists():
            write_atomically(path, _line(self._columns))
        self.rows = self._read()

    def _read(self) -> list[dict[str, str]]:
        """All whole rows; a damaged tail is cut off with a warning, or the next row would be written into it."""
        header, rows, dropped = whole_rows(self.path)
        if header != self._columns:
            raise ResultsError(f"{self.path} has other columns than this version writes: {', '.join(header)}")
        if dropped:
            warnings.warn(f"{self.path}: {dropped} damaged row(s) dropped; their cells are run again", stacklevel=4)
            self._replace(rows)
        return rows

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Puts rows on the disk; ``None`` becomes an empty field.

        Raises:
            ResultsError: They cannot be written, for one because the disk is full. The table is as it was before.
        """
        content = self._lines(rows)
        with self.path.open("ab") as file:
            before = file.tell()
            try:
                _write_through(file, content)
            except OSError as error:
                with suppress(OSError):
                    os.ftruncate(file.fileno(), before)
                raise ResultsError(f"{self.path} cannot be written: {error.strerror}") from error

    def rewrite(self, rows: Sequence[dict[str, str]]) -> None:
        """Replaces all rows, in full or not at all."""
        if rows != self.rows:
            self._replace(rows)
            self.rows = list(rows)

    def _replace(self, rows: Sequence[Mapping[str, str]]) -> None:
        write_atomically(self.path, _line(self._columns) + self._lines(rows))

    def _lines(self, rows: Iterable[Mapping[str, Any]]) -> bytes:
        return table_lines(rows, self._columns)


def whole_rows(path: Path) -> tuple[list[str], list[dict[str, str]], int]:
    """A table's header, its rows, and how many of them were damaged and left out: the last, say, of a full disk.

    Raises:
        ResultsError: There is no header.
    """
    whole, _, tail = path.read_bytes().rpartition(b"\n")
    header, *lines = [*csv.reader(io.StringIO(whole.decode(errors="replace"), newline=""))] or [[]]
    if not header:
        raise ResultsError(f"{path} is empty, not even a header is left; remove it, or give --overwrite")
    rows = [dict(zip(header, line, strict=True)) for line in lines if len(line) == len(header)]
    return header, rows, len(lines) - len(rows) + bool(tail)


def cell_key(cell: Cell) -> CellKey:
    """What a cell is called in the tables' columns ``KEY`` but the first."""
    fields = asdict(cell)
    return tuple(str(fields[name]) for name in KEY[1:])


def curves_name(cell: Cell) -> str:
    """Name of the file of a cell's curves."""
    return f"{cell.name}.npz"


def read_curves(path: Path) -> dict[str, NDArray[Any]] | None:
    """All arrays of a file of curves; ``None`` if it is not there or damaged, by a copy that was broken off, say."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error):
        return None


def key_of(row: Mapping[str, str]) -> CellKey:
    """The same of a table's row."""
    return tuple(row[name] for name in KEY[1:])


def table_lines(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    """Rows as the lines of a table, without its header."""
    return b"".join(_line([row[name] for name in columns]) for row in rows)


def _line(fields: Sequence[Any]) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerow(fields)
    return buffer.getvalue().encode()


def _write_through(file: IO[bytes], content: bytes) -> None:
    """Writes past every cache, in one piece: no half batch waits in a buffer to be written later."""
    written = 0
    while written < len(content):
        written += os.write(file.fileno(), content[written:])
    os.fsync(file.fileno())
