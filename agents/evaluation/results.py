"""A results directory that survives anything: what is in it, when it may be continued, and how a cell gets into it.

``results.csv`` and ``timings.csv`` grow by a batch of rows a cell, ``curves/`` by a file, each on the disk before the
next cell is asked for. A cell counts as finished when all of its rows are in both tables; its curves may have been left
behind, when the tables were copied. When the grid is done, the
tables are put into the grid's order; until then they are in the order in which cells ended.
"""

import csv
import fcntl
import io
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from agents.evaluation.cells import CellResult, Failure
from agents.evaluation.figures_of_merit import COLUMNS, KEY, TIMING_COLUMNS
from agents.evaluation.grid import Cell
from fl_core.files import write_atomically, write_json

RESULTS, TIMINGS, CURVES, FAILURES, MANIFEST, LOCK = (
    "results.csv",
    "timings.csv",
    "curves",
    "failures.json",
    "manifest.json",
    ".lock",
)
CellKey = tuple[str, ...]


class ResultsError(ValueError):
    """A results directory that cannot be used, or that cannot take more."""


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
        text = self.path.read_bytes()
        whole, _, tail = text.rpartition(b"\n")
        header, *lines = csv.reader(io.StringIO(whole.decode(errors="replace"), newline=""))
        if header != self._columns:
            raise ResultsError(f"{self.path} has other columns than this version writes: {', '.join(header)}")
        rows = [dict(zip(header, line, strict=True)) for line in lines if len(line) == len(header)]
        dropped = len(lines) - len(rows) + bool(tail)
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
        return b"".join(_line([row[name] for name in self._columns]) for row in rows)


class ResultsDirectory:
    """Where a grid's results are. Use it in a ``with`` statement: nobody else may write to it meanwhile.

    Args:
        path: The directory; made if it is not there.
        grid: ``Grid.to_json()``.
        expected: Labels of the rows that each cell of the grid has, in the order of the grid.
        overwrite: Delete the results that are there.

    Raises:
        ResultsError: It holds results of another grid (the message says which setting differs; more seeds are no other
            grid), or of nobody knows which, or another process is writing to it.
    """

    def __init__(
        self, path: Path, grid: Mapping[str, Any], expected: Mapping[Cell, Sequence[str]], *, overwrite: bool = False
    ) -> None:
        self.path, self._expected = path, expected
        path.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(path)
        try:
            if overwrite:
                _clear(path)
            manifest = self._check(grid)
            self._results, self._timings = Table(path / RESULTS, COLUMNS), Table(path / TIMINGS, TIMING_COLUMNS)
            if manifest is not None:
                write_json(path / MANIFEST, manifest)
            self._drop_unfinished()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> "ResultsDirectory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()

    def missing(self) -> list[Cell]:
        """Cells that are not finished, in the order of the grid."""
        return [cell for cell in self._expected if cell not in self._finished]

    def add(self, result: CellResult) -> None:
        """Puts a cell on the disk.

        Raises:
            ResultsError: It cannot be written; the cells before it are intact.
        """
        try:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **result.curves)  # type: ignore[arg-type]
            (self.path / CURVES).mkdir(exist_ok=True)
            write_atomically(self.curves_of(result.cell), buffer.getvalue())
        except OSError as error:
            raise ResultsError(f"{self.path / CURVES} cannot be written: {error.strerror}") from error
        self._timings.append(result.timings)
        self._results.append(result.rows)  # last: from here on the cell is finished

    def curves_of(self, cell: Cell) -> Path:
        """File of a cell's curves."""
        return self.path / CURVES / f"{cell.name}.npz"

    def finish(self, failures: Sequence[Failure]) -> None:
        """Puts the tables into the grid's order, and the failures beside them."""
        self._results, self._timings = Table(self.path / RESULTS, COLUMNS), Table(self.path / TIMINGS, TIMING_COLUMNS)
        place = {cell_key(cell): i for i, cell in enumerate(self._expected)}
        rank = {(cell_key(cell), label): i for cell, labels in self._expected.items() for i, label in enumerate(labels)}

        def order(row: Mapping[str, str]) -> tuple[int, int]:
            key = _key_of(row)
            return place[key], rank[key, row["rule"]]

        for table in (self._results, self._timings):
            table.rewrite(sorted(table.rows, key=order))
        if failures:
            write_json(self.path / FAILURES, {"failures": [asdict(failure) for failure in failures]})
        else:
            (self.path / FAILURES).unlink(missing_ok=True)

    def _check(self, grid: Mapping[str, Any]) -> dict[str, Any] | None:
        """The manifest to write, if it is another than the one that is there."""
        path = self.path / MANIFEST
        if not path.exists():
            if (self.path / RESULTS).exists():
                raise ResultsError(
                    f"{self.path} holds {RESULTS} but no {MANIFEST}, so nobody knows of which grid; give another "
                    "--out, or --overwrite to replace it"
                )
            return {"grid": grid}
        try:
            there = json.loads(path.read_text())
            old = there["grid"]
        except (ValueError, KeyError) as error:
            raise ResultsError(f"{path} is damaged: {error!r}; give --overwrite to start again") from error
        new = json.loads(json.dumps(grid))
        changed = [name for name in [*new, *(set(old) - set(new))] if old.get(name) != new.get(name)]
        if changed == ["seeds"] and set(old["seeds"]) <= set(new["seeds"]):  # what is there stays what it is
            return {**there, "grid": grid}
        if changed:
            differences = "; ".join(f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in changed)
            raise ResultsError(
                f"{self.path} holds results of another grid ({differences}); give another --out, or --overwrite to "
                "replace them"
            )
        return None

    def _drop_unfinished(self) -> None:
        """Takes out rows of cells that are not there in full; they are run again as whole cells."""
        found: dict[CellKey, tuple[list[str], list[str]]] = {}
        for i, table in enumerate((self._results, self._timings)):
            for row in table.rows:
                found.setdefault(_key_of(row), ([], []))[i].append(row["rule"])
        self._finished = {
            cell
            for cell, labels in self._expected.items()
            if all(sorted(rows) == sorted(labels) for rows in found.get(cell_key(cell), ([], [])))
        }
        keep = {cell_key(cell) for cell in self._finished}
        for table in (self._results, self._timings):
            table.rewrite([row for row in table.rows if _key_of(row) in keep])


def cell_key(cell: Cell) -> CellKey:
    """What a cell is called in the tables' columns ``KEY`` but the first."""
    fields = asdict(cell)
    return tuple(str(fields[name]) for name in KEY[1:])


def _key_of(row: Mapping[str, str]) -> CellKey:
    return tuple(row[name] for name in KEY[1:])


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


def _locked(path: Path) -> IO[bytes]:
    file = (path / LOCK).open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ResultsError(f"{path} is being written to by another evaluate.py; wait, or give another --out") from error
    return file


def _clear(path: Path) -> None:
    """Deletes old results; nothing else that may be in the directory."""
    for name in (RESULTS, TIMINGS, FAILURES, MANIFEST):
        (path / name).unlink(missing_ok=True)
    if (path / CURVES).is_dir():
        shutil.rmtree(path / CURVES)
