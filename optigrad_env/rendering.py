"""Pictures of a round: trust per client, truth marked."""

from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

HONEST, MALICIOUS, ROOT = "#2a78b8", "#d1495b", "#8a8a8a"
_BAR = 24


@dataclass(frozen=True, eq=False)
class Frame:
    """What is shown.

    Attributes:
        title: One line: id, round, attack.
        weights: (N,) shares of the clients in the aggregate.
        root_weight: Share of the reference update.
        malicious: (N,) bool.
        accuracy: Validation accuracy of the global model after each round so far, in [0, 1].
    """

    title: str
    weights: NDArray[np.float64]
    root_weight: float
    malicious: NDArray[np.bool_]
    accuracy: list[float]


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
    """The same as a picture, (H, W, 3) uint8, with accuracy over rounds."""
    figure = Figure(figsize=(8, 3.6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    bars, curve = figure.subplots(1, 2, width_ratios=(3, 2))
    clients = len(frame.weights)
    colors = [MALICIOUS if bad else HONEST for bad in frame.malicious]
    bars.bar(range(clients), frame.weights, color=colors)
    bars.bar([clients], [frame.root_weight], color=ROOT)
    if clients <= 20:
        bars.set_xticks(range(clients + 1), [*map(str, range(clients)), "root"])
    for color, label in ((HONEST, "honest"), (MALICIOUS, "malicious"), (ROOT, "root data")):
        bars.bar([0], [0], color=color, label=label)
    bars.set(title=frame.title, xlabel="client", ylabel="weight in the aggregate")
    bars.legend(frameon=False, fontsize="small")
    curve.plot(range(len(frame.accuracy)), frame.accuracy, color=HONEST, marker=".")
    curve.set(title="validation accuracy", xlabel="round", ylim=(0, 1))
    curve.xaxis.get_major_locator().set_params(integer=True)
    for axes in (bars, curve):
        axes.spines[["top", "right"]].set_visible(False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
