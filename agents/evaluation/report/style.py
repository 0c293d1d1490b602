"""What all plots have in common: colours, sizes, and a drawing that follows the page into the dark."""

import io
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agents.evaluation.summary import kind_of

# Stand-ins that the page replaces by its own colours; as files they are dark grey on white.
INK, GRID, MUTED = "#1b1f24", "#d9dde2", "#6b7280"
_THEMED = {INK: "var(--ink)", GRID: "var(--line)", MUTED: "var(--muted)"}
ACCENT = "#d1495b"
HONEST, MALICIOUS = "#2a78b8", "#d1495b"
# Told apart by people who see colours differently, on white and on black (after Okabe and Ito).
_PALETTE = (
    "#2a78b8",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#a6761d",
    "#7b61c9",
    "#8f9a1f",
    "#c25b12",
    "#4f8f8b",
)
_MARKS = "osD^vP*X<>"

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "figure.facecolor": "white",
    "savefig.dpi": 160,
    "svg.fonttype": "path",
}


def styled() -> AbstractContextManager[None]:
    """Within it, figures have the house style; matplotlib's own settings stay as they are."""
    return mpl.rc_context(_STYLE)


@dataclass(frozen=True)
class Look:
    """How a rule is drawn, the same in every plot.

    Attributes:
        color: Hexadecimal.
        linestyle: As matplotlib takes it.
        marker: Empty for none.
        zorder: What lies over what.
    """

    color: str
    linestyle: Any
    marker: str
    zorder: int

    def line(self, *, marks: bool = True) -> dict[str, Any]:
        """Arguments of ``Axes.plot``."""
        return {**vars(self), "marker": self.marker if marks else ""}


def looks_of(rules: Sequence[str], learned: Sequence[str]) -> dict[str, Look]:
    """The look of every rule: policies in the accent's colour, references grey and dashed, controls dotted."""
    chosen: dict[str, Look] = {}
    count: Counter[str] = Counter()
    for rule in rules:
        kind = kind_of(rule, learned)
        i = count["rule" if kind == "control" else kind]
        count["rule" if kind == "control" else kind] += 1
        if kind == "policy":
            chosen[rule] = Look(ACCENT, "-", _MARKS[i % len(_MARKS)], 4)
        elif kind == "reference":
            chosen[rule] = Look(MUTED, ("--", ":", "-.")[i % 3], "", 2)
        else:
            style = (0, (1, 1.2)) if kind == "control" else "-"
            chosen[rule] = Look(_PALETTE[i % len(_PALETTE)], style, _MARKS[i // len(_PALETTE) % len(_MARKS)], 3)
    return chosen


def legend_below(figure: Figure, axes: Axes, columns: int = 5) -> None:
    """One legend for all panels, below them."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))


def to_png(figure: Figure) -> bytes:
    """The figure on white."""
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def to_svg(figure: Figure, name: str) -> str:
    """The figure as a drawing without background; equal figures give equal files."""
    buffer = io.StringIO()
    with styled(), mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def inlined(svg: str, name: str, description: str) -> str:
    """A drawing as a part of a page: its ids are its own, and its greys are the page's."""
    drawing = svg[svg.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'\bid="', f'id="{name}-', drawing)
    drawing = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", drawing)
    for color, variable in _THEMED.items():
        drawing = drawing.replace(color, variable)
    drawing = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", drawing, count=1)
    drawing = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", drawing, count=1)
    return drawing.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)
