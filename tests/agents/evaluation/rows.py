"""Rows of made-up results on the disk."""

import csv
from pathlib import Path
from typing import Any

from agents.evaluation.figures_of_merit import COLUMNS, TIMING_COLUMNS


def write_rows(directory: Path, rows: list[dict[str, Any]]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    timings = [{**row, "seconds_per_round": 0.01, "server_seconds": 0.001, "feature_seconds": 0.0} for row in rows]
    for name, columns, lines in (("results.csv", COLUMNS, rows), ("timings.csv", TIMING_COLUMNS, timings)):
        with (directory / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(lines)


def entry(entries: list[dict[str, Any]], rule: str) -> dict[str, Any]:
    """A rule's figures of all that a report has."""
    return next(one for one in entries if one["rule"] == rule)
