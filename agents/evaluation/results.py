"""A results directory that survives anything: what is in it, when it may be continued, and how a cell gets into it.

``results.csv`` and ``timings.csv`` grow by a batch of rows a cell, ``curves/`` by a file, each on the disk before the
next cell is asked for. A cell counts as finished when all of its rows are in both tables; its curves may have been left
behind, when the tables were copied. Of an unfinished cell that has its references, rules that have been run are not run
again. When the grid is done, the tables are put into the grid's order; until then they are in the order in which cells
ended.
"""

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from agents.evaluation.cells import CellResult, Failure
from agents.evaluation.contestants import REFERENCES
from agents.evaluation.figures_of_merit import COLUMNS, TIMING_COLUMNS
from agents.evaluation.files import (
    AXES,
    CURVES,
    FAILURES,
    LOCK,
    MANIFEST,
    MARKDOWN,
    PAGE,
    PLOTS,
    RESULTS,
    SUMMARY,
    TABLES,
    TIMINGS,
    CellKey,
    ResultsError,
    Table,
    cell_key,
    curves_name,
    differences,
    key_of,
    read_curves,
    whole_rows,
)
from agents.evaluation.grid import Cell
from agents.evaluation.reuse import reusable, reuse_cells, rows_to_reuse
from fl_core.files import lock, write_atomically, write_json


class ResultsDirectory:
    """Where a grid's results are. Use it in a ``with`` statement: nobody else may write to it meanwhile.

    Args:
        path: The directory; made if it is not there.
        grid: ``Grid.to_json()``.
        expected: Labels of the rows that each cell of the grid has, in the order of the grid.
        held_out: By attack whether it is held out in this grid; rows that are there are brought to it, because a policy
            that is added may have seen it.
        overwrite: Delete the results that are there.
        reuse: Other results directories, whose cells of this grid are taken over if there are no rows here yet.

    Attributes:
        assembled: Whether cells were taken over just now.

    Raises:
        ResultsError: It holds results of another grid (the message says which setting differs; more rules, policies,
            attacks, seeds and other circumstances are no other grid), or of nobody knows which, or another process is
            writing to it.
    """

    def __init__(
        self,
        path: Path,
        grid: Mapping[str, Any],
        expected: Mapping[Cell, Sequence[str]],
        held_out: Mapping[str, bool] | None = None,
        *,
        overwrite: bool = False,
        reuse: Sequence[Path] = (),
    ) -> None:
        self.path, self._expected = path, expected
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResultsError(f"cannot make the results directory {path}: {error.strerror}") from error
        self._lock = _locked(path)
        try:
            self.assembled = False
            fresh = bool(reuse) and (overwrite or not _has_rows(path / RESULTS))
            # Before anything is deleted: what cannot be reused is an error that costs nothing.
            taken = (reusable(reuse, path, grid), rows_to_reuse(reuse, expected)) if fresh else None
            if overwrite:
                _clear(path)
            if taken is not None:
                reuse_cells(reuse, path, *taken, expected)
                self.assembled = True
            manifest = self._check(grid)
            begins = not (path / RESULTS).exists()
            if begins and manifest is not None:  # first: killed in between, tables without it would be nobody's
                write_json(path / MANIFEST, manifest)
            self._results, self._timings = Table(path / RESULTS, COLUMNS), Table(path / TIMINGS, TIMING_COLUMNS)
            if not begins and manifest is not None:  # last: tables that cannot be read stay of the grid they are of
                write_json(path / MANIFEST, manifest)
            self._drop_unfinished()
            self._mark(held_out or {})
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

    def count(self) -> int:
        """Number of rows that are there."""
        return len(self._results.rows)

    def known(self) -> dict[Cell, dict[str, float]]:
        """Of unfinished cells the test accuracy by label of the rules that need not be run again."""
        return self._known

    def add(self, result: CellResult) -> None:
        """Puts a cell on the disk, or what it lacked; rows that are there stay.

        Raises:
            ResultsError: It cannot be written; the cells before it are intact.
        """
        there = self._known.pop(result.cell, {})
        curves = self.curves_of(result.cell)
        try:
            if not there or curves.exists():  # those of a part of the rules would be no help
                arrays = dict(result.curves)
                if there:
                    before = read_curves(curves)
                    arrays = {} if before is None else {**arrays, **before}
                if arrays:
                    buffer = io.BytesIO()
                    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
                    curves.parent.mkdir(exist_ok=True)
                    write_atomically(curves, buffer.getvalue())
                else:  # damaged: as if it had been left behind
                    curves.unlink(missing_ok=True)
        except OSError as error:
            raise ResultsError(f"{self.path / CURVES} cannot be written: {error.strerror}") from error
        self._timings.append([row for row in result.timings if row["rule"] not in there])
        self._results.append([row for row in result.rows if row["rule"] not in there])  # last: now the cell is finished

    def curves_of(self, cell: Cell) -> Path:
        """File of a cell's curves."""
        return self.path / CURVES / curves_name(cell)

    def finish(self, failures: Sequence[Failure]) -> None:
        """Puts the tables into the grid's order, and the failures beside them."""
        self._results, self._timings = Table(self.path / RESULTS, COLUMNS), Table(self.path / TIMINGS, TIMING_COLUMNS)
        place = {cell_key(cell): i for i, cell in enumerate(self._expected)}
        rank = {(cell_key(cell), label): i for cell, labels in self._expected.items() for i, label in enumerate(labels)}

        def order(row: Mapping[str, str]) -> tuple[int, int]:
            key = key_of(row)
            return place[key], rank[key, row["rule"]]

        for table in (self._results, self._timings):
            table.rewrite(sorted(table.rows, key=order))
        self.note(failures)

    def note(self, failures: Sequence[Failure]) -> None:
        """Puts the failures of a run beside the tables, in place of those of the run before."""
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
        changed = [name for name in [*new, *(set(old) - set(new))] if differences(name, old, new)]
        if changed and all(_only_more(name, old, new) for name in changed):  # what is there stays what it is
            return {**there, "grid": grid}
        if changed:
            told = "; ".join(found for name in changed for found in differences(name, old, new))
            raise ResultsError(
                f"{self.path} holds results of another grid ({told}); give another --out, or --overwrite to "
                "replace them"
            )
        return None

    def _drop_unfinished(self) -> None:
        """Takes out rows that the other table has not, that are there twice, or of a cell without its references."""
        found: dict[CellKey, tuple[list[str], list[str]]] = {}
        accuracy: dict[CellKey, dict[str, float]] = {}
        for i, table in enumerate((self._results, self._timings)):
            for row in table.rows:
                found.setdefault(key_of(row), ([], []))[i].append(row["rule"])
                if table is self._results:
                    accuracy.setdefault(key_of(row), {})[row["rule"]] = float(row["test_accuracy"])
        self._finished: set[Cell] = set()
        self._known: dict[Cell, dict[str, float]] = {}
        keep: set[tuple[CellKey, str]] = set()
        for cell, labels in self._expected.items():
            key = cell_key(cell)
            results, timings = found.get(key, ([], []))
            whole = set(results) & set(timings) & set(labels)
            once = max(len(results) - len(set(results)), len(timings) - len(set(timings))) == 0
            if not once or not whole.issuperset(REFERENCES):
                continue
            keep |= {(key, label) for label in whole}
            if len(whole) == len(labels):
                self._finished.add(cell)
            else:
                self._known[cell] = {label: accuracy[key][label] for label in whole}
        for table in (self._results, self._timings):
            table.rewrite([row for row in table.rows if (key_of(row), row["rule"]) in keep])

    def _mark(self, held_out: Mapping[str, bool]) -> None:
        """Brings the column ``held_out`` to this grid's."""
        rows = [{**row, "held_out": str(held_out.get(row["attack"], row["held_out"]))} for row in self._results.rows]
        self._results.rewrite(rows)


def _has_rows(path: Path) -> bool:
    """Whether a table is there, and is more than its header."""
    return path.exists() and bool(whole_rows(path)[1])


def _only_more(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a setting of the grid has everything that it had before, and more."""
    if name not in old or name not in new:
        return False
    if name == "policies":
        return bool(old[name].items() <= new[name].items())
    return name in AXES and set(old[name]) <= set(new[name])


def _locked(path: Path) -> IO[bytes]:
    try:
        return lock(path / LOCK)
    except BlockingIOError as error:
        raise ResultsError(f"{path} is being written to by another evaluate.py; wait, or give another --out") from error
    except OSError as error:
        raise ResultsError(f"cannot write to the results directory {path}: {error.strerror}") from error


def _clear(path: Path) -> None:
    """Deletes old results and their report; nothing else that may be in the directory."""
    for name in (RESULTS, TIMINGS, FAILURES, MANIFEST, PAGE, SUMMARY, MARKDOWN):
        (path / name).unlink(missing_ok=True)
    for name in (CURVES, TABLES, PLOTS):
        if (path / name).is_dir():
            shutil.rmtree(path / name)
