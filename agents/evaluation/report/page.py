"""One self-contained page: no network, light and dark, on paper too."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from agents.evaluation.report.tables import Table, to_html

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --muted: #5d6673; --line: #d9dde2; --card: #f6f7f9;
  --accent: #b8324a; --warn: #8a5a00; --warn-paper: #fff6e0; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e8eaed; --muted: #a3abb6; --line: #343a42;
  --card: #1c2026; --accent: #f0798c; --warn: #f3c969; --warn-paper: #2c2515; } }
* { box-sizing: border-box; }
body { background: var(--paper); color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif;
  margin: 0 auto; max-width: 80rem; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.9rem; letter-spacing: -.02em; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; letter-spacing: -.01em; margin: 2.8rem 0 .6rem; }
.lead { color: var(--muted); font-size: 1.05rem; margin: 0 0 1.2rem; max-width: 62rem; }
.chips { display: flex; flex-wrap: wrap; gap: .4rem; list-style: none; margin: 0; padding: 0; }
.chips li { background: var(--card); border: 1px solid var(--line); border-radius: 1rem; font-size: .85rem;
  padding: .1rem .7rem; }
.chips li.seen { border-color: var(--accent); color: var(--accent); }
.warning { background: var(--warn-paper); border-left: 3px solid var(--warn); color: var(--warn); margin: 1rem 0;
  padding: .6rem 1rem; }
figure { break-inside: avoid; margin: 1rem 0 1.6rem; }
figcaption { color: var(--muted); font-size: .9rem; margin-bottom: .5rem; max-width: 62rem; }
figure svg { display: block; height: auto; max-width: 100%; width: var(--width); }
.plots { column-gap: 1.5rem; display: flex; flex-wrap: wrap; }
.plots section { flex: 0 1 var(--width); min-width: 0; }
.reading { color: var(--muted); font-size: .9rem; max-width: 62rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; min-width: min(100%, 36rem); }
thead th { border-bottom: 1.5px solid var(--ink); padding: 0; vertical-align: bottom; }
thead button { background: none; border: 0; color: inherit; cursor: pointer; font: inherit; font-size: .82rem;
  font-weight: 600; line-height: 1.25; padding: .4rem .6rem; text-align: right; width: 100%; }
thead th:first-child button { text-align: left; }
thead button::after { color: var(--muted); content: "\\2002"; padding-left: .25em; }
thead th[aria-sort="ascending"] button::after { content: "\\2191"; }
thead th[aria-sort="descending"] button::after { content: "\\2193"; }
thead button:focus-visible { outline: 2px solid var(--accent); }
tbody th, tbody td { border-bottom: 1px solid var(--line); padding: .4rem .6rem; text-align: right; vertical-align: top;
  white-space: nowrap; }
tbody th { font-weight: 500; text-align: left; }
tbody tr:hover { background: var(--card); }
tbody tr.policy th, tbody tr.policy td { font-weight: 650; }
tbody tr.policy th { color: var(--accent); }
tbody tr.reference, tbody tr.control { color: var(--muted); }
tbody tr.control th { font-style: italic; }
td small { color: var(--muted); display: block; font-size: .74rem; font-weight: 400; }
td small.note { margin-left: auto; max-width: 7rem; min-width: 5.5rem; white-space: normal; }
dl { display: grid; gap: .25rem 1.2rem; grid-template-columns: max-content 1fr; margin: 0; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
code, pre { background: var(--card); border-radius: .25rem; font: .85em/1.5 ui-monospace, monospace;
  padding: .1em .3em; }
pre { overflow-x: auto; padding: .6rem .8rem; white-space: pre-wrap; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; } }
@media print { body { font-size: 10px; max-width: none; padding: 0; } .scroll { overflow: visible; }
  tbody th, tbody td, thead th { padding: .12rem .25rem; } thead th, td small { font-size: 8px; line-height: 1.2; }
  /* A button is not painted where a head is repeated on the next page, its text is. */
  thead th { font-weight: 600; text-align: right; } thead th:first-child { text-align: left; }
  thead button { display: contents; } thead button::after { content: none; }
  h2, figcaption { break-after: avoid; } h2 { margin-top: 1.4rem; } figure { margin: .6rem 0 1rem; }
  figure.table { break-inside: auto; } thead, tr, dd { break-inside: avoid; } pre { font-size: 7px; line-height: 1.25; }
  .plots section { break-inside: avoid; flex-basis: calc(.66 * var(--width)); }
  figure svg { width: calc(.66 * var(--width)); }
  @page { margin: 1.2cm; size: A4 landscape; } }
"""

# A click sorts by a column, another one the other way round; missing figures stay last.
_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const key = row => column ? parseFloat(row.cells[column].dataset.value) : row.cells[0].textContent;
    const order = (a, b) => {
      const x = key(a), y = key(b);
      if (column && (isNaN(x) || isNaN(y))) return isNaN(x) - isNaN(y);
      return (x < y ? -1 : x > y) * (ascending ? 1 : -1);
    };
    body.append(...[...body.rows].sort(order));
  }));
}
"""


_READING = """<p class="reading">Percentage points of test accuracy, mean over the last three rounds; in brackets
95 % bootstrap intervals over seeds, which are drawn once for all scenarios because every scenario shares them. IQM is
the mean of the middle half of all runs. Regret is the oracle's accuracy minus the rule's in the same scenario from the
same seed: lower is better, and below 0 is better than the plain mean of the honest clients, which gives the root data
no weight. The normalised score is 0 for training on root data alone and 1 for the oracle. Oracles are told who is
honest. Every model is scored with the server's BatchNorm, trained on the reference half of the root data.</p>"""


@dataclass(frozen=True)
class Drawing:
    """A plot on the page.

    Attributes:
        name: File name without ending.
        title: Heading.
        caption: What it shows and how to read it.
        svg: The drawing, ready to stand in a page.
        width: Of the drawing, in CSS pixels.
    """

    name: str
    title: str
    caption: str
    svg: str
    width: int


@dataclass(frozen=True)
class Page:
    """What stands on the page, from top to bottom.

    Attributes:
        lead: The finding, in a sentence or two.
        attacks: Attack to what is known of it: ``held out``, ``seen by ...``, ...
        warnings: What a reader must know before the figures.
        tables: Tables, the headline first.
        drawings: Plots.
        failures: Rules that could not be run: cell and error.
        facts: Where the figures come from.
    """

    lead: str
    attacks: Mapping[str, str]
    warnings: Sequence[str]
    tables: Sequence[Table]
    drawings: Sequence[Drawing]
    failures: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]


def to_page(page: Page) -> str:
    """The page as HTML."""
    parts = [
        "<h1>OptiGradTrust benchmark</h1>",
        f'<p class="lead">{html.escape(page.lead)}</p>',
        *(f'<p class="warning">{html.escape(warning)}</p>' for warning in page.warnings),
        _attacks(page.attacks),
        "<h2>Results</h2>",
        _READING,
        *map(to_html, page.tables),
        f'<div class="plots">{"".join(map(_drawing, page.drawings))}</div>',
        _failures(page.failures),
        "<h2>Where these figures come from</h2>",
        _facts(page.facts),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,"><title>OptiGradTrust benchmark</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(filter(None, parts)) + f"\n<script>{_SCRIPT}</script>"
        "\n</body></html>\n"
    )


def _attacks(attacks: Mapping[str, str]) -> str:
    if not attacks:
        return ""
    chips = "".join(
        f'<li class="{"held-out" if status == "held out" else "seen"}">{html.escape(name)} · {html.escape(status)}</li>'
        for name, status in attacks.items()
    )
    return f'<ul class="chips" aria-label="attacks">{chips}</ul>'


def _drawing(drawing: Drawing) -> str:
    return (
        f'<section style="--width: {drawing.width}px"><h2>{html.escape(drawing.title)}</h2>'
        f'<figure id="plot-{drawing.name}">'
        f"<figcaption>{html.escape(drawing.caption)}</figcaption>{drawing.svg}</figure></section>"
    )


def _failures(failures: Sequence[Mapping[str, Any]]) -> str:
    if not failures:
        return ""
    lines = "".join(
        f"<dt>{html.escape(str(one['rule'] or 'all rules'))}</dt>"
        f"<dd>{html.escape(_cell(one['cell']))}: <code>{html.escape(one['error'])}</code></dd>"
        for one in failures
    )
    return f"<h2>What failed</h2><dl>{lines}</dl>"


def _cell(cell: Mapping[str, Any]) -> str:
    return ", ".join(str(value) for value in cell.values())


def _facts(facts: Mapping[str, Any]) -> str:
    lines = "".join(f"<dt>{html.escape(name)}</dt><dd>{_fact(value)}</dd>" for name, value in facts.items())
    return f"<dl>{lines}</dl>"


def _fact(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        return f"<pre>{html.escape(_as_yaml(value))}</pre>" if value else "none"
    return f"<code>{html.escape(str(value))}</code>" if value is not None else "not known"


def _as_yaml(value: Any) -> str:
    """Nested facts for people: a list of plain values is one line."""
    plain = json.loads(json.dumps(value, default=str))
    text: str = yaml.safe_dump(plain, allow_unicode=True, default_flow_style=None, sort_keys=False, width=110)
    return text.strip()
