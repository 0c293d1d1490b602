"""Pictures of an episode: trust per client over the rounds, accuracy against the oracle, the six features."""

from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from fl_core.fingerprint import FEATURES, OBSERVATION_HIGH

HONEST, MALICIOUS, ORACLE = "#2a78b8", "#d1495b", "#6f6f6f"
_ABSENT, _INK, _FAINT = "#ececec", "#222222", "#d9d9d9"
_BAR = 24


@dataclass(frozen=True, eq=False)
class Frame:
    """What is shown of an episode after T of its rounds. NaN marks a client that was absent.

    Attributes:
        title: One line: round, attack.
        rounds: Length of the episode.
        onset: First round of the attack; ``None`` if there is none.
        malicious: (N,) bool.
        weights: (N,) share of each client in the last aggregate.
        root_weight: Share of the reference update.
        trust: (T, N), what the agent has answered.
        features: (T + 1, N, 6) observations, that of the waiting round last.
        accuracy: (T + 1,) validation accuracy of the global model at the start and after each round, in [0, 1].
        oracle: (T,) that of the honest clients' plain mean of the same round's updates.
    """

    title: str
    rounds: int
    onset: int | None
    malicious: NDArray[np.bool_]
    weights: NDArray[np.float64]
    root_weight: float
    trust: NDArray[np.float64]
    features: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    oracle: NDArray[np.float64]


def to_text(frame: Frame) -> str:
    """A bar a client, ``*`` for the malicious ones."""
    longest = max(float(frame.weights.max()), frame.root_weight, 1e-9)

    def line(name: str, mark: str, weight: float) -> str:
        return f"{name:>9} {mark} {'█' * round(_BAR * weight / longest):<{_BAR}} {weight:.3f}"

    rows = [
        line(f"client {i}", "*" if bad else " ", float(weight))
        for i, (weight, bad) in enumerate(zip(frame.weights, frame.malicious, strict=True))
    ]
    footer = f"validation accuracy {frame.accuracy[-1]:.3f}    * malicious"
    return "\n".join([frame.title, *rows, line("root", " ", frame.root_weight), footer])


def to_rgb(frame: Frame) -> NDArray[np.uint8]:
    """The episode so far as a picture, (640, 1120, 3) uint8: even sides, as video codecs ask for."""
    figure = Figure(figsize=(11.2, 6.4), dpi=100, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    figure.text(0.058, 0.953, frame.title, fontsize=14, weight="bold", color=_INK)
    _legend(figure)
    upper = figure.add_gridspec(1, 2, left=0.058, right=0.985, top=0.875, bottom=0.53, wspace=0.17, width_ratios=(3, 2))
    lower = figure.add_gridspec(1, 6, left=0.058, right=0.985, top=0.36, bottom=0.085, wspace=0.30)
    _draw_trust(figure.add_subplot(upper[0]), frame)
    _draw_accuracy(figure.add_subplot(upper[1]), frame)
    for column, feature in enumerate(FEATURES):
        _draw_feature(figure.add_subplot(lower[column]), frame, column, feature)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_trust(axes: Axes, frame: Frame) -> None:
    """A row a client, a column a round, dark for trusted; the malicious clients on top, in their colour."""
    clients = len(frame.malicious)
    order = np.argsort(~frame.malicious, kind="stable")
    cells = np.full((clients, frame.rounds), np.nan)
    cells[:, : len(frame.trust)] = frame.trust.T[order]
    axes.imshow(cells, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="none", extent=_extent(cells))
    for round_, was_there in enumerate(~np.isnan(frame.trust)):
        for absent in np.flatnonzero(~was_there[order]):
            axes.plot(round_ + 0.5, absent + 0.5, marker="x", markersize=4, color=_FAINT)
    for place, client in enumerate(map(int, order)):
        colour = MALICIOUS if frame.malicious[client] else HONEST
        axes.axhspan(place + 0.06, place + 0.94, xmax=0.008, color=colour, linewidth=0)
        if clients <= 24:
            axes.text(-0.012 * frame.rounds, place + 0.5, str(client), color=colour, ha="right", va="center", size=8)
    _mark_onset(axes, frame)
    axes.set_yticks([])
    axes.set_ylim(clients, 0)
    axes.set_xlim(-0.008 * frame.rounds, frame.rounds)
    axes.set_ylabel("client", labelpad=18)
    _title(axes, "trust the agent gave (white 0, black 1)")
    _round_axis(axes)


def _draw_accuracy(axes: Axes, frame: Frame) -> None:
    rounds = np.arange(len(frame.accuracy))
    axes.plot(rounds[1:], frame.oracle, color=ORACLE, linewidth=1.6, linestyle=(0, (4, 2)))
    axes.plot(rounds, frame.accuracy, color=_INK, linewidth=2)
    axes.plot(rounds[-1:], frame.accuracy[-1:], color=_INK, marker="o", markersize=5)
    shown = f"{100 * frame.accuracy[-1]:.1f} %"
    if len(frame.oracle):
        shown += f", oracle {100 * frame.oracle[-1]:.1f} %"
    axes.set_xlim(0, 1.02 * frame.rounds)
    axes.set_ylim(0, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    axes.grid(axis="y", color=_FAINT, linewidth=0.6)
    _mark_onset(axes, frame)
    _title(axes, f"validation accuracy: {shown}")
    _round_axis(axes)


def _draw_feature(axes: Axes, frame: Frame, column: int, feature: str) -> None:
    """A line a client."""
    values = frame.features[:, :, column]
    strength = max(0.12, min(0.85, 8 / values.shape[1]))
    for malicious, colour in ((False, HONEST), (True, MALICIOUS)):
        chosen = values[:, frame.malicious == malicious]
        # A client that comes and goes has gaps; dots keep a single round visible.
        axes.plot(chosen, color=colour, alpha=strength, linewidth=1.1, marker=".", markersize=2.5)
    # Symmetric around 0, and never so close that noise looks like a signal.
    bound = OBSERVATION_HIGH[column]
    largest = min(max(1.1 * np.nanmax(np.abs(values), initial=0), bound / 4), bound)
    axes.set_ylim(-1.06 * largest, 1.06 * largest)
    axes.set_yticks([-largest, 0, largest], [f"{-largest:.2g}", "0", f"{largest:.2g}"])
    axes.set_xlim(-0.02 * frame.rounds, 1.02 * frame.rounds)
    axes.axhline(0, color=_FAINT, linewidth=0.8, zorder=0)
    _mark_onset(axes, frame)
    _title(axes, feature.replace("_", " "))
    _round_axis(axes, ticks=3)


def _legend(figure: Figure) -> None:
    handles = [
        Line2D([], [], color=HONEST, linewidth=6, label="honest client"),
        Line2D([], [], color=MALICIOUS, linewidth=6, label="malicious client"),
        Line2D([], [], color=_INK, linewidth=2, label="agent's model"),
        Line2D(
            [], [], color=ORACLE, linewidth=1.6, linestyle=(0, (4, 2)), label="oracle: honest mean of the same updates"
        ),
    ]
    figure.legend(
        handles=handles,
        loc="upper right",
        bbox_to_anchor=(0.99, 0.462),
        ncols=4,
        frameon=False,
        fontsize=8.5,
        handlelength=1.6,
        columnspacing=1.4,
    )


def _mark_onset(axes: Axes, frame: Frame) -> None:
    if frame.onset:
        axes.axvline(frame.onset, color=MALICIOUS, linewidth=1, linestyle=":")


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=9.5, loc="left", color=_INK)


def _round_axis(axes: Axes, ticks: int = 6) -> None:
    axes.set_xlabel("round", fontsize=8.5, labelpad=2)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(ticks, integer=True))
    axes.tick_params(labelsize=8, color=_FAINT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)


def _extent(cells: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Left, right, bottom, top of cells that are one wide and one high, the first row on top."""
    return 0, cells.shape[1], cells.shape[0], 0
