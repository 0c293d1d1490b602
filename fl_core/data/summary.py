"""What a data set is like before anybody learns from it: sizes, balance, groups, trivial baselines, a partition."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import pairwise_distances_argmin
from torch import Tensor
from torch.nn import functional as F

from fl_core.data.dataset import Dataset

# Baselines are taken on images of at most this many pixels square: more costs time and changes little.
BASELINE_SIZE = 32
_IMAGES_AT_ONCE = 1000


def class_counts(dataset: Dataset, samples: Tensor) -> NDArray[np.int64]:
    """(C,) how many of some samples are of each class."""
    return torch.bincount(dataset.labels[samples], minlength=dataset.num_classes).numpy()


def majority_accuracy(dataset: Dataset) -> float:
    """Test accuracy of always answering with the train side's most frequent class."""
    favourite = class_counts(dataset, dataset.train).argmax()
    return float(class_counts(dataset, dataset.test)[favourite] / len(dataset.test))


def nearest_neighbour_accuracy(dataset: Dataset, train: Tensor | None = None, test: Tensor | None = None) -> float:
    """Test accuracy of the label of the nearest training image, by Euclidean distance of pixels.

    Args:
        dataset: The set.
        train: Indices to learn from, by default the set's train side.
        test: Indices to test with, by default the set's test side.
    """
    train, test = dataset.train if train is None else train, dataset.test if test is None else test
    nearest = pairwise_distances_argmin(_rows(dataset, test), _rows(dataset, train))
    return float((dataset.labels[train].numpy()[nearest] == dataset.labels[test].numpy()).mean())


def split_ignoring_groups(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Train and test sides of the same sizes as the set's, drawn by sample: what leaks, to be compared with."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(dataset.labels)))
    return order[: len(dataset.train)], order[len(dataset.train) :]


def partition_table(dataset: Dataset, shards: Sequence[Tensor]) -> NDArray[np.int64]:
    """(N, C) samples of each class at each client."""
    return np.stack([class_counts(dataset, shard) for shard in shards])


def plot_partition(table: NDArray[np.int64], classes: Sequence[str], title: str, path: Path) -> None:
    """Stacked bars, clients × classes, as a PNG.

    Raises:
        ValueError: The picture cannot be written there.
    """
    figure = Figure(figsize=(8, 0.6 + 0.32 * len(table)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    left = np.zeros(len(table))
    for c, name in enumerate(classes):
        axes.barh(range(len(table)), table[:, c], left=left, label=name, color=colormaps["tab20"](c % 20))
        left += table[:, c]
    axes.set(title=title, xlabel="samples", ylabel="client", yticks=range(len(table)))
    axes.invert_yaxis()
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot write the picture {path}: {error}") from error


def _rows(dataset: Dataset, samples: Tensor) -> NDArray[np.float32]:
    # Piece by piece: of large images the whole side in floating point would be four times the set.
    pieces = [_small(dataset.pixels[piece].to(torch.float32)) for piece in samples.split(_IMAGES_AT_ONCE)]
    rows: NDArray[np.float32] = torch.cat(pieces).flatten(1).numpy()
    return rows


def _small(images: Tensor) -> Tensor:
    if max(images.shape[2:]) <= BASELINE_SIZE:
        return images
    return F.interpolate(images, size=(BASELINE_SIZE, BASELINE_SIZE), mode="area")
