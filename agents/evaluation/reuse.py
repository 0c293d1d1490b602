"""Cells of a results directory for another grid: with fewer seeds, say, of a run that was stopped."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.evaluation.files import (
    AXES,
    CURVES,
    MANIFEST,
    RESULTS,
    TIMINGS,
    CellKey,
    ResultsError,
    cell_key,
    curves_name,
    key_of,
    table_lines,
    whole_rows,
)
from agents.evaluation.grid import Cell
from fl_core.files import write_atomically, write_json


def reusable(source: Path, target: Path, grid: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest that ``target`` gets if a grid's cells are copied from ``source``; nothing is written.

    Args:
        source: Directory with the results of a grid that differs in its axes at most: rules, policies, attacks, seeds,
            and circumstances may be more or fewer.
        target: Another directory.
        grid: ``Grid.to_json()`` of what is to be there.

    Raises:
        ResultsError: There are no results, or they were measured otherwise; the message says which setting differs.
    """
    if source.resolve() == target.resolve():
        raise ResultsError(f"cannot reuse the results in {source} for themselves; give another --out")
    manifest = _manifest(source)
    there, wanted = manifest["grid"], json.loads(json.dumps(grid))
    differing = [name for name in [*wanted, *(set(there) - set(wanted))] if not _agree(name, there, wanted)]
    if differing:
        told = "; ".join(f"{name} was {there.get(name)!r}, is {wanted.get(name)!r}" for name in differing)
        raise ResultsError(f"the results in {source} cannot be reused, they were measured otherwise ({told})")
    return {**manifest, "grid": wanted}


def reuse_cells(
    source: Path, target: Path, manifest: Mapping[str, Any], expected: Mapping[Cell, Sequence[str]]
) -> None:
    """Copies what a grid needs from another results directory, which stays as it is.

    Args:
        source: See ``reusable``.
        target: Directory that holds no results yet. The manifest comes last.
        manifest: What ``reusable`` returned.
        expected: Labels of the rows that each of the grid's cells has.
    """
    labels: dict[CellKey, set[str]] = {cell_key(cell): set(names) for cell, names in expected.items()}
    for name in (RESULTS, TIMINGS):
        columns, rows, _ = whole_rows(source / name)
        wanted_rows = [row for row in rows if row["rule"] in labels.get(key_of(row), ())]
        header = dict(zip(columns, columns, strict=True))
        write_atomically(target / name, table_lines([header, *wanted_rows], columns))
    for cell in expected:
        curves = source / CURVES / curves_name(cell)
        if curves.exists():
            (target / CURVES).mkdir(exist_ok=True)
            shutil.copyfile(curves, target / CURVES / curves_name(cell))
    write_json(target / MANIFEST, manifest)


def _manifest(source: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((source / MANIFEST).read_text())
        manifest["grid"]["policies"].items()
        for name in (RESULTS, TIMINGS):
            (source / name).stat()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"there are no results in {source} to reuse: {error!r}") from error
    return manifest


def _agree(name: str, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    if name in AXES:
        return True
    if name == "policies":  # of the same name the same weights
        return all(wanted[name].get(policy, checksum) == checksum for policy, checksum in there[name].items())
    return bool(there.get(name) == wanted.get(name))
