"""A benchmark from grid to report."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.evaluation.cells import CellResult, Failure
from agents.evaluation.detection import THRESHOLD
from agents.evaluation.execution import run_grid
from agents.evaluation.files import FEDERATIONS, MANIFEST
from agents.evaluation.grid import Cell, Grid
from agents.evaluation.provenance import data_checksums, policies, provenance
from agents.evaluation.report import write_report
from agents.evaluation.report.writing import Report
from agents.evaluation.results import ResultsDirectory
from fl_core.files import write_json

# What a report says of a run before the last one.
_RUN = ("command", "revision", "versions", "python", "machine", "processor", "engines")


@dataclass(frozen=True)
class Benchmark:
    """A grid, and where its results go.

    Attributes:
        grid: What is compared on what.
        out: Results directory; one that holds a part of this grid is continued.
        command: The command line, for the report.
        overwrite: Delete what is there.
        reuse: Results directories whose cells are taken over where there are none yet.
        shown_cell: Cell whose trust the report shows.
    """

    grid: Grid
    out: Path
    command: str
    overwrite: bool = False
    reuse: tuple[Path, ...] = ()
    shown_cell: str | None = None

    def open(self) -> ResultsDirectory:
        """The results directory, locked; see there for what it refuses."""
        expected = {cell: [one.label for one in self.grid.contestants(cell.env_id)] for cell in self.grid.cells()}
        held_out = {cell.attack: self.grid.is_held_out(cell.attack) for cell in expected}
        directory = ResultsDirectory(
            self.out, self._identity(), expected, held_out, overwrite=self.overwrite, reuse=self.reuse
        )
        if directory.assembled:  # who ran what stands in ``earlier``
            manifest = json.loads((self.out / MANIFEST).read_text())
            facts = {**self._facts(0), "assembled_from": [str(path) for path in self.reuse]}
            write_json(self.out / MANIFEST, {**manifest, "provenance": facts})
        return directory

    def run(
        self,
        directory: ResultsDirectory,
        *,
        workers: int = 1,
        ray: str | None = None,
        on_cell: Callable[[CellResult], object] = lambda _: None,
    ) -> list[Failure]:
        """Runs the cells that are missing; each is on the disk before ``on_cell`` hears of it.

        Returns:
            What failed. When no cell is missing any more the tables are in the grid's order.

        Raises:
            ResultsError: A cell could not be written; those before it are intact.
        """
        missing: list[Cell] = directory.missing()
        if missing:
            self._record(directory.count())
        failures: list[Failure] = []
        try:
            for result in run_grid(self.grid, missing, workers=workers, ray=ray, known=dict(directory.known())):
                directory.add(result)
                failures += result.failures
                on_cell(result)
        except BaseException:
            if failures:
                with suppress(OSError):  # the error that broke the run off is the one to tell
                    directory.note(failures)
            raise
        directory.finish(failures)
        return failures

    def report(self) -> Report:
        """Writes the report from what is on the disk, with the provenance of its last cells and of the runs before."""
        manifest = json.loads((self.out / MANIFEST).read_text())
        facts = manifest.get("provenance") or self._facts(0)
        # Cells that were reused may be of a larger grid: who ran them, and how, is theirs; what is shown is this one.
        present = self._facts(0)
        facts = {**facts, **{name: present[name] for name in ("seeds", "policies", "grid") if name in present}}
        if manifest.get("earlier"):  # runs that gave a part of the cells
            facts["earlier"] = [{name: run.get(name) for name in _RUN} for run in manifest["earlier"]]
        labels = dict.fromkeys(name.rpartition(" on ")[0] for name in policies(self.grid))
        return write_report(self.out, facts, list(labels), cell=self.shown_cell)

    def _record(self, done: int) -> None:
        """Writes revision, versions and command into the manifest before the first cell, so that a kill loses none.

        What they were for the ``done`` rows that are there goes to ``earlier``; a run that added none is forgotten.
        """
        manifest = json.loads((self.out / MANIFEST).read_text())
        facts, earlier = manifest.get("provenance"), manifest.get("earlier", [])
        if facts is not None and facts.get("rows_before") != done:
            earlier = [*earlier, facts]
        content = {"grid": self._identity(), "provenance": self._facts(done), "earlier": earlier}
        write_json(self.out / MANIFEST, content)

    def _identity(self) -> dict[str, Any]:
        measured = {"data_checksums": data_checksums(self.grid), "detection_threshold": THRESHOLD}
        federations = {env_id: self.grid.federation_settings(env_id) for env_id in dict.fromkeys(self.grid.env_ids)}
        return {**self.grid.to_json(), **measured, FEDERATIONS: federations}

    def _facts(self, done: int) -> dict[str, Any]:
        return {
            **provenance(self.grid, self.command),
            "rows_before": done,
            "data": data_checksums(self.grid),
            "grid": self.grid.to_json(),
        }
