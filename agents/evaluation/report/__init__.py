"""The report of a results directory: one page, and every table and plot of it as files."""

from agents.evaluation.report.writing import write_report

__all__ = ["write_report"]
