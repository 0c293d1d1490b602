"""Cells of results directories for another grid: with fewer seeds, say, or of runs that shared the work."""

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.evaluation.figures_of_merit import COLUMNS, TIMING_COLUMNS
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
    differences,
    key_of,
    read_curves,
    table_lines,
    whole_rows,
)
from agents.evaluation.grid import Cell
from fl_core.files import write_atomically, write_json

# What is the same wherever a run is repeated.
_EQUAL = ("test_accuracy", "test_loss")


def reusable(sources: Sequence[Path], target: Path, grid: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest that ``target`` gets if a grid's cells are copied from ``sources``; nothing is written.

    Who ran the cells is ``earlier`` there. Its ``provenance`` is still to come: that of who puts them together.

    Args:
        sources: Directories, at least one, with the results of grids that differ in their axes at most: rules,
            policies, attacks, seeds, and circumstances may be more or fewer.
        target: Another directory.
        grid: ``Grid.to_json()`` of what is to be there.

    Raises:
        ResultsError: There are no results, or they were measured otherwise; the message says which setting differs.
    """
    wanted = json.loads(json.dumps(grid))
    runs: list[dict[str, Any]] = []
    for source in sources:
        manifest = _agreeing(source, target, wanted)
        runs += [*manifest.get("earlier", []), *([manifest["provenance"]] if manifest.get("provenance") else [])]
    # Directories that were themselves put together may share runs; each is told once.
    earlier = [run for place, run in enumerate(runs) if run not in runs[:place]]
    return {"grid": wanted, **({"earlier": earlier} if earlier else {})}


def _agreeing(source: Path, target: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """A directory's manifest, if it can be reused."""
    if source.resolve() == target.resolve():
        raise ResultsError(f"cannot reuse the results in {source} for themselves; give another --out")
    manifest = _manifest(source)
    there = manifest["grid"]
    differing = [name for name in [*wanted, *(set(there) - set(wanted))] if not _agree(name, there, wanted)]
    if differing:
        told = "; ".join(found for name in differing for found in differences(name, there, wanted))
        raise ResultsError(f"the results in {source} cannot be reused, they were measured otherwise ({told})")
    return manifest


def rows_to_reuse(
    sources: Sequence[Path], expected: Mapping[Cell, Sequence[str]]
) -> dict[str, list[Mapping[str, str]]]:
    """By table the rows that a grid needs from several results directories; nothing is written.

    Args:
        sources: See ``reusable``. A row that several have is the first's; one that stands twice in a directory is left
            out with the rest of its cell.
        expected: Labels of the rows that each of the grid's cells has.

    Raises:
        ResultsError: A table has other columns than this version writes. Or two directories have another accuracy or
            loss in the same row: they are of two machines or two versions, and regret to the oracle of the one is none
            to that of the other.
    """
    labels: dict[CellKey, set[str]] = {cell_key(cell): set(names) for cell, names in expected.items()}
    tables: dict[str, list[Mapping[str, str]]] = {}
    for name, wanted in ((RESULTS, COLUMNS), (TIMINGS, TIMING_COLUMNS)):
        found: dict[tuple[CellKey, str], tuple[Path, Mapping[str, str]]] = {}
        for source in sources:
            columns, rows, _ = whole_rows(source / name)
            if columns != list(wanted):
                raise ResultsError(f"{source / name} has other columns than this version writes: {', '.join(columns)}")
            count = Counter((key_of(row), row["rule"]) for row in rows)
            damaged = {key for (key, _), times in count.items() if times > 1}
            for row in rows:
                key = key_of(row)
                if row["rule"] in labels.get(key, ()) and key not in damaged:
                    _check_equal(found.setdefault((key, row["rule"]), (source, row)), (source, row))
        tables[name] = [row for _, row in found.values()]
    return tables


def _check_equal(one: tuple[Path, Mapping[str, str]], other: tuple[Path, Mapping[str, str]]) -> None:
    """Raises a ResultsError, if two directories' rows of the same run have other figures."""
    row = other[1]
    for name in _EQUAL:
        if one[1].get(name) != row.get(name):
            raise ResultsError(
                f"{one[0]} and {other[0]} cannot be reused together: under {row['attack']}, seed {row['seed']}, "
                f"{row['rule']} has {name} {one[1][name]} in the one and {row[name]} in the other; measure one of them "
                "again"
            )


def reuse_cells(
    sources: Sequence[Path],
    target: Path,
    manifest: Mapping[str, Any],
    tables: Mapping[str, Sequence[Mapping[str, str]]],
    cells: Iterable[Cell],
) -> None:
    """Copies what a grid needs from other results directories, which stay as they are.

    Args:
        sources: See ``reusable``.
        target: Directory that holds no results yet. Its results.csv comes last: killed before, it still holds none, and
            the same command copies again.
        manifest: What ``reusable`` returned.
        tables: What ``rows_to_reuse`` returned.
        cells: The grid's.
    """
    _write_table(target / TIMINGS, tables[TIMINGS], TIMING_COLUMNS)
    rules: dict[CellKey, list[str]] = {}
    for row in tables[RESULTS]:
        rules.setdefault(key_of(row), []).append(row["rule"])
    for cell in cells:
        curves = _curves([source / CURVES / curves_name(cell) for source in sources], rules.get(cell_key(cell), ()))
        if curves is not None:
            (target / CURVES).mkdir(exist_ok=True)
            write_atomically(target / CURVES / curves_name(cell), curves)
    write_json(target / MANIFEST, manifest)
    _write_table(target / RESULTS, tables[RESULTS], COLUMNS)


def _write_table(path: Path, rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> None:
    header = dict(zip(columns, columns, strict=True))
    write_atomically(path, table_lines([header, *rows], columns))


def _curves(paths: Sequence[Path], rules: Sequence[str]) -> bytes | None:
    """All arrays of several files in one, the first's where they share a name; ``None`` unless every rule has its own.

    The curves of a part of the rules would be no help.
    """
    arrays: dict[str, Any] = {}
    for path in reversed(paths):
        arrays |= read_curves(path) or {}
    if not rules or not {f"{rule}/accuracy" for rule in rules} <= set(arrays):
        return None
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


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
    return not differences(name, there, wanted)
