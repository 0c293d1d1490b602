"""Reads a results directory and writes its report: made of what is on the disk, so it can be made again at any time."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.evaluation.files import FAILURES, MARKDOWN, PAGE, PLOTS, RESULTS, SUMMARY, TABLES, TIMINGS
from agents.evaluation.report.material import Material
from agents.evaluation.report.page import Page, to_page
from agents.evaluation.report.tables import Table, to_csv, to_latex, to_markdown
from agents.statistics import read_results
from fl_core.files import write_atomically, write_json


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        page: The page.
        table: The headline table.
        entries: Figures of every rule, as in summary.json.
    """

    page: Path
    table: Table
    entries: list[dict[str, Any]]


def write_report(
    directory: Path, facts: Mapping[str, Any], learned: Sequence[str], *, cell: str | None = None
) -> Report:
    """Writes report.html, summary.json, summary.md, ``plots/`` (PNG, SVG) and ``tables/`` (CSV, LaTeX).

    Tables and plots of an earlier report that this one does not have are taken away.

    Args:
        directory: Holds results.csv, and timings.csv and curves/ if they are to be shown.
        facts: Where the results come from, see ``provenance``; stated on the page.
        learned: Labels of the trained policies.
        cell: Name of the cell whose trust is shown; by default the worst one of the rule in focus.

    Raises:
        ValueError: There are no results, or no such cell.
    """
    rows = read_results(directory / RESULTS)
    timings = read_results(directory / TIMINGS) if (directory / TIMINGS).exists() else []
    material = Material(directory, rows, timings, facts, learned, cell)
    tables, drawings = list(material.tables()), list(material.drawings())
    failures = _failures(directory)
    page = Page(
        material.lead(),
        material.statuses,
        material.warnings(failures),
        tables,
        drawings,
        failures,
        facts,
    )
    for folder in (PLOTS, TABLES):
        (directory / folder).mkdir(exist_ok=True)
    for table in tables:
        write_atomically(directory / TABLES / f"{table.name}.csv", to_csv(table).encode())
        write_atomically(directory / TABLES / f"{table.name}.tex", to_latex(table).encode())
    _forget(directory / TABLES, {table.name for table in tables})
    _forget(directory / PLOTS, {drawing.name for drawing in drawings})
    write_json(directory / SUMMARY, {**facts, "attacks": material.statuses, "rules": material.entries})
    markdown = [to_markdown(tables[0]), *(f"\n{gap}\n" for gap in material.gaps())]
    write_atomically(directory / MARKDOWN, "".join(markdown).encode())
    write_atomically(directory / PAGE, to_page(page).encode())
    return Report(directory / PAGE, tables[0], material.entries)


def _forget(folder: Path, names: Collection[str]) -> None:
    """Takes away what an earlier report made and this one does not: nobody should read it for this one's."""
    for path in folder.iterdir():
        if path.stem not in names and path.suffix in (".csv", ".tex", ".png", ".svg"):
            path.unlink()


def _failures(directory: Path) -> list[Mapping[str, Any]]:
    path = directory / FAILURES
    return list(json.loads(path.read_text())["failures"]) if path.exists() else []
