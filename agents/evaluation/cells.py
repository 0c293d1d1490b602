"""A cell of the grid: every rule on the same federation, under the same attack, from the same seed."""

import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agents.evaluation.figures_of_merit import relative_figures
from agents.evaluation.grid import Cell, Grid
from agents.evaluation.runs import Arrays, run_rule


@dataclass(frozen=True)
class Failure:
    """A rule that could not be run in a cell.

    Attributes:
        cell: The cell.
        rule: Label; ``None`` if the whole cell failed.
        error: Type and message, one line.
        trace: Where it happened.
    """

    cell: Cell
    rule: str | None
    error: str
    trace: str


@dataclass(frozen=True, eq=False)
class CellResult:
    """What came out of a cell.

    Attributes:
        cell: The cell.
        rows: A row of results.csv for each rule that could be run.
        timings: A row of timings.csv for each.
        curves: Arrays by name for the report: ``RULE/accuracy`` at ``curve_rounds``, ``RULE/weights`` (rounds, N;
            NaN in a round in which a rule judges nobody), ``malicious`` (N,), ``corrupted`` (rounds, N) and
            ``features`` (rounds, N, 6).
        failures: Rules that could not.
    """

    cell: Cell
    rows: list[dict[str, Any]]
    timings: list[dict[str, Any]]
    curves: Arrays
    failures: list[Failure]


def run_cell(grid: Grid, cell: Cell, known: Mapping[str, float] | None = None) -> CellResult:
    """All rules in one scenario from one seed: same data, attackers, initial model and batches for each.

    Args:
        grid: What the cell is of.
        cell: The cell.
        known: Test accuracy by label of what was run before, references included; it is not run again.
    """
    rows: dict[str, dict[str, Any]] = {}
    timings, failures = [], []
    curves: Arrays = {}
    known = known or {}
    for contestant in grid.contestants(cell.env_id):
        if contestant.label in known:
            continue
        try:
            row, timing, recorded = run_rule(grid, contestant, cell)
        except Exception as error:  # a user's rule may raise anything; the others go on
            failures.append(failure(cell, contestant.label, error))
            continue
        rows[contestant.label] = row
        timings.append(timing)
        curves |= recorded
    relative_figures(rows, curves, known)
    return CellResult(cell, list(rows.values()), timings, curves, failures)


def failure(cell: Cell, rule: str | None, error: BaseException) -> Failure:
    """A failure as a record."""
    message = f"{type(error).__name__}: {error}".splitlines()[0]
    return Failure(cell, rule, message, "".join(traceback.format_exception(error)))
