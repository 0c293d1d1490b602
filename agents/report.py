"""The benchmark's results as a table, a picture, and one self-contained page."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from agents.benchmark import ORACLES
from agents.statistics import Row, alphas_of, over_seeds
from fl_core.files import write_atomically

LEARNED, RULE, TRUTH = "#d1495b", "#2a78b8", "#9a9a9a"
Entry = Mapping[str, Any]


def headline(entries: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the headline table, percentage points, mean ± standard error over seeds."""
    alphas = list(entries[0]["regret_by_alpha"])
    header = [
        "rule",
        "accuracy, attacked",
        "regret",
        *(f"regret, α {alpha}" for alpha in alphas),
        "worst attack's regret",
        "accuracy, no attack",
        "ms a round",
    ]
    rows = [
        [
            entry["rule"],
            _show(entry["accuracy"]),
            _show(entry["regret"]),
            *(_show(entry["regret_by_alpha"][alpha]) for alpha in alphas),
            _number(entry["worst_regret"]),
            _show(entry["accuracy_no_attack"]),
            f"{1e3 * entry['seconds_per_round']:.0f}",
        ]
        for entry in entries
    ]
    return header, rows


def to_rich(entries: Sequence[Entry], title: str, learned: Sequence[str]) -> Table:
    """The headline table for a terminal; learned policies stand out."""
    header, rows = headline(entries)
    table = Table(title=title, caption="percentage points of test accuracy; regret to the oracle, lower is better")
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row, style="bold" if row[0] in learned else "dim" if row[0] in ORACLES else None)
    return table


def to_markdown(entries: Sequence[Entry]) -> str:
    """The headline table for a document."""
    header, rows = headline(entries)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def to_picture(rows: Sequence[Row], entries: Sequence[Entry], learned: Sequence[str]) -> bytes:
    """A PNG: regret of each rule under each attack and α (left), and accuracy without attack (right)."""
    rules = [entry["rule"] for entry in entries if entry["rule"] != "oracle"][::-1]
    alphas = alphas_of(rows)
    attacks = sorted({row["attack"] for row in rows if row["malicious_fraction"] > 0})
    figure = Figure(figsize=(4.2 * len(alphas) + 3.2, 0.42 * len(rules) + 2.2), layout="constrained")
    panels = figure.subplots(1, len(alphas) + 1, sharey=True)
    markers = "osD^vP*X<>"
    for axes, alpha in zip(panels, alphas, strict=False):
        for i, rule in enumerate(rules):
            chosen = [r for r in rows if r["rule"] == rule and r["alpha"] == alpha and r["malicious_fraction"] > 0]
            if not chosen:
                continue
            color = LEARNED if rule in learned else TRUTH if rule in ORACLES else RULE
            axes.barh(i, over_seeds(chosen, "regret", 100).mean, color=color, alpha=0.35)
            for attack, marker in zip(attacks, np.resize(list(markers), len(attacks)), strict=True):
                estimate = over_seeds([r for r in chosen if r["attack"] == attack], "regret", 100)
                axes.errorbar(
                    estimate.mean,
                    i,
                    xerr=estimate.standard_error,
                    marker=marker,
                    color=color,
                    markersize=4,
                    linewidth=1,
                )
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(title=f"regret to the oracle, α = {alpha}", xlabel="points of test accuracy (left is better)")
    for attack, marker in zip(attacks, np.resize(list(markers), len(attacks)), strict=True):
        panels[0].plot([], [], linestyle="", marker=marker, color="black", markersize=4, label=attack)
    if attacks:
        panels[0].legend(frameon=False, fontsize="small")
    for i, rule in enumerate(rules):
        quiet = [r for r in rows if r["rule"] == rule and not r["malicious_fraction"]]
        estimate = over_seeds(quiet, "test_accuracy", 100)
        panels[-1].errorbar(estimate.mean, i, xerr=estimate.standard_error, marker="o", color="black", markersize=4)
    panels[-1].set(title="accuracy without attack", xlabel="% of test data")
    panels[0].set_yticks(range(len(rules)), rules)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.3)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def write_page(path: Path, entries: Sequence[Entry], picture: bytes, facts: Mapping[str, str]) -> None:
    """One HTML file with the table, the picture and how both came about; needs no network."""
    header, rows = headline(entries)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    origin = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items())
    image = base64.b64encode(picture).decode()
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>OptiGradTrust benchmark</title>
<style>
  body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222; }}
  table {{ border-collapse: collapse; margin: 1rem 0; }}
  th, td {{ padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }}
  th:first-child, td:first-child {{ text-align: left; }}
  img {{ max-width: 100%; }}
  dt {{ font-weight: 600; }} dd {{ margin: 0 0 .5rem 1rem; overflow-wrap: anywhere; }}
</style>
<h1>OptiGradTrust benchmark</h1>
<p>Percentage points of test accuracy, mean ± standard error over seeds. Regret is the oracle's accuracy minus the
rule's in the same scenario from the same seed; lower is better, and below 0 is better than the plain mean of the honest
clients, which gives the root data no weight; every model is scored with the server's BatchNorm, trained on the
reference half of the root data. The oracles are told who is honest.</p>
<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>
<img alt="Regret of each rule under each attack" src="data:image/png;base64,{image}">
<dl>{origin}</dl>
</html>
"""
    write_atomically(path, page.encode())


def _show(estimate: Mapping[str, Any]) -> str:
    text = _number(estimate["mean"])
    return f"{text} ± {estimate['standard_error']:.1f}" if estimate["seeds"] > 1 else text


def _number(value: float) -> str:
    return "–" if isnan(value) else f"{value:.1f}"
