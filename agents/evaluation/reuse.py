"""Cells of results directories for another grid: with fewer seeds, say, or of runs that shared the work."""

import io
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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

_ACCURACY = "test_accuracy"


def reusable(sources: Sequence[Path], target: Path, grid: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest that ``target`` gets if a grid's cells are copied from ``sources``; nothing is written.

    Args:
        sources: Directories, at least one, with the results of grids that differ in their axes at most: rules,
            policies, attacks, seeds, and circumstances may be more or fewer.
        target: Another directory.
        grid: ``Grid.to_json()`` of what is to be there.

    Raises:
        ResultsError: There are no results, or they were measured otherwise; the message says which setting differs.
    """
    wanted = json.loads(json.dumps(grid))
    first, *others = (_agreeing(source, target, wanted) for source in sources)
    earlier = list(first.get("earlier", []))
    for other in others:
        earlier += [*other.get("earlier", []), *([other["provenance"]] if other.get("provenance") else [])]
    return {**first, "grid": wanted, **({"earlier": earlier} if earlier else {})}


def _agreeing(source: Path, target: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """A directory's manifest, if it can be reused."""
    if source.resolve() == target.resolve():
        raise ResultsError(f"cannot reuse the results in {source} for themselves; give another --out")
    manifest = _manifest(source)
    there = manifest["grid"]
    differing = [name for name in [*wanted, *(set(there) - set(wanted))] if not _agree(name, there, wanted)]
    if differing:
        told = "; ".join(f"{name} was {there.get(name)!r}, is {wanted.get(name)!r}" for name in differing)
        raise ResultsError(f"the results in {source} cannot be reused, they were measured otherwise ({told})")
    return manifest


def rows_to_reuse(
    sources: Sequence[Path], expected: Mapping[Cell, Sequence[str]]
) -> dict[str, tuple[list[str], list[dict[str, str]]]]:
    """By table the columns, and the rows that a grid needs from several results directories; nothing is written.

    Args:
        sources: See ``reusable``. A row that several have is the first's.
        expected: Labels of the rows that each of the grid's cells has.

    Raises:
        ResultsError: Two directories have another accuracy in the same row: they are of two machines or two versions,
            and regret to the oracle of the one is none to that of the other.
    """
    labels: dict[CellKey, set[str]] = {cell_key(cell): set(names) for cell, names in expected.items()}
    tables = {}
    for name in (RESULTS, TIMINGS):
        found: dict[tuple[CellKey, str], tuple[Path, dict[str, str]]] = {}
        for source in sources:
            columns, rows, _ = whole_rows(source / name)
            for row in rows:
                key = key_of(row)
                if row["rule"] in labels.get(key, ()):
                    owner, before = found.setdefault((key, row["rule"]), (source, row))
                    if before.get(_ACCURACY) != row.get(_ACCURACY):
                        raise ResultsError(
                            f"{owner} and {source} cannot be reused together: under {row['attack']}, seed "
                            f"{row['seed']}, {row['rule']} has {before[_ACCURACY]} in the one and {row[_ACCURACY]} in "
                            "the other; measure one of them again"
                        )
        tables[name] = (list(columns), [row for _, row in found.values()])
    return tables


def reuse_cells(
    sources: Sequence[Path],
    target: Path,
    manifest: Mapping[str, Any],
    tables: Mapping[str, tuple[Sequence[str], Sequence[Mapping[str, str]]]],
    cells: Iterable[Cell],
) -> None:
    """Copies what a grid needs from other results directories, which stay as they are.

    Args:
        sources: See ``reusable``.
        target: Directory that holds no results yet. The manifest comes last.
        manifest: What ``reusable`` returned.
        tables: What ``rows_to_reuse`` returned.
        cells: The grid's.
    """
    for name, (columns, rows) in tables.items():
        header = dict(zip(columns, columns, strict=True))
        write_atomically(target / name, table_lines([header, *rows], columns))
    for cell in cells:
        curves = [path for source in sources if (path := source / CURVES / curves_name(cell)).exists()]
        if curves:
            (target / CURVES).mkdir(exist_ok=True)
            _copy_curves(curves, target / CURVES / curves_name(cell))
    write_json(target / MANIFEST, manifest)


def _copy_curves(sources: Sequence[Path], target: Path) -> None:
    """One file of all arrays; of several with the same name the first's."""
    if len(sources) == 1:
        shutil.copyfile(sources[0], target)
        return
    arrays: dict[str, Any] = {}
    for source in reversed(sources):
        with np.load(source) as there:
            arrays.update(there)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(target, buffer.getvalue())


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
