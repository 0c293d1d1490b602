"""The benchmark behind evaluate.py: a grid of cells, run, kept, summarised and reported."""

from agents.evaluation.benchmark import Benchmark
from agents.evaluation.cells import CellResult, Failure, run_cell
from agents.evaluation.execution import run_grid
from agents.evaluation.files import ResultsError
from agents.evaluation.grid import Cell, Grid
from agents.evaluation.plugins import read_plugin
from agents.evaluation.report import write_report
from agents.evaluation.results import ResultsDirectory
from agents.evaluation.summary import summarise

__all__ = [
    "Benchmark",
    "Cell",
    "CellResult",
    "Failure",
    "Grid",
    "ResultsDirectory",
    "ResultsError",
    "read_plugin",
    "run_cell",
    "run_grid",
    "summarise",
    "write_report",
]
