"""`python -m fl_core.data NAME`: what a data set is like, and how it would be cut."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from fl_core.data import Dataset, dataset_names, load_dataset, make_partition, partition_names, partition_options
from fl_core.data.summary import (
    class_counts,
    majority_accuracy,
    nearest_neighbour_accuracy,
    partition_table,
    plot_partition,
    split_ignoring_groups,
)
from fl_core.registry import check_known


@dataclass(frozen=True)
class Arguments:
    """Prints a data set's sizes, class balance, groups and trivial baselines; with --partition, who would get what."""

    name: Annotated[str, tyro.conf.Positional]
    """Data set; an unknown name lists those there are."""
    data_dir: Path | None = None
    """Where its files are; by default $OPTIGRAD_DATA, else the user's cache directory."""
    download: bool = False
    """Fetch missing files."""
    image_size: int | None = None
    """Resize to this many pixels square (folders of images only)."""
    group_pattern: str | None = None
    """Regular expression that finds a group in a file's name (image_folder only)."""
    baselines: bool = True
    """Compute the 1-nearest-neighbour baseline; up to half a minute for 60,000 images."""
    partition: str | None = None
    """Partition; an unknown name lists those there are."""
    clients: int = 10
    """Clients of the partition."""
    alpha: float | None = None
    """Concentration, for dirichlet and quantity_skew."""
    q: float | None = None
    """Share of the main class, for label_skew."""
    k: int | None = None
    """Pieces a client, for shards."""
    seed: int = 0
    """Seed of the partition."""
    plot: Path | None = None
    """Write a stacked-bar picture of clients × classes here."""


def main(arguments: Arguments) -> None:
    """Prints the tables."""
    check_known("data set", [arguments.name], dataset_names())
    partition = _partition(arguments)
    given = {"image_size": arguments.image_size, "group_pattern": arguments.group_pattern}
    options = {name: value for name, value in given.items() if value is not None}
    dataset = load_dataset(arguments.name, arguments.data_dir, download=arguments.download, **options)
    console = Console(width=None if sys.stdout.isatty() else 140)
    _describe(dataset, console, baselines=arguments.baselines)
    if partition is None:
        return
    labels, groups = dataset.labels[dataset.train].numpy(), dataset.groups_of(dataset.train)
    generator = np.random.default_rng(arguments.seed)
    shards = partition(labels, arguments.clients, generator, groups=groups)
    _show_partition(dataset, [dataset.train[torch.from_numpy(shard)] for shard in shards], arguments, console)


def _partition(arguments: Arguments) -> Any:
    given = {"alpha": arguments.alpha, "q": arguments.q, "k": arguments.k}
    options = {name: value for name, value in given.items() if value is not None}
    if arguments.partition is None:
        if options or arguments.plot is not None:
            raise ValueError(f"--alpha, --q, --k and --plot belong to a --partition: {', '.join(partition_names())}")
        return None
    check_known(f"option of partition {arguments.partition!r}", options, partition_options(arguments.partition))
    return make_partition(arguments.partition, **options)


def _describe(dataset: Dataset, console: Console, *, baselines: bool) -> None:
    channels, height, width = dataset.image_shape
    console.print(f"{dataset.name}: {len(dataset.labels)} images, {height}x{width}, {channels} channel(s)")
    table = Table("class", *_numbers("train", "share", "test", "share"))
    sides = [class_counts(dataset, side) for side in (dataset.train, dataset.test)]
    for c, name in enumerate(dataset.classes):
        table.add_row(name, *(cell for side in sides for cell in (f"{side[c]:,}", f"{side[c] / side.sum():.1%}")))
    table.add_section()
    table.add_row("all", *(cell for side in sides for cell in (f"{side.sum():,}", "")))
    console.print(table)
    if dataset.groups is not None:
        counts = [len(dataset.groups[side].unique()) for side in (dataset.train, dataset.test)]
        console.print(f"groups: {counts[0]:,} train, {counts[1]:,} test; none stands on both sides")
    console.print(f"majority class: {majority_accuracy(dataset):.1%} of the test side")
    if not baselines:
        return
    console.print(f"1-nearest-neighbour on pixels: {nearest_neighbour_accuracy(dataset):.1%} of the test side")
    if dataset.groups is not None:
        leaking = nearest_neighbour_accuracy(dataset, *split_ignoring_groups(dataset))
        console.print(f"the same, if the border were drawn through the groups: {leaking:.1%} (memory, not skill)")


def _show_partition(dataset: Dataset, shards: Sequence[Tensor], arguments: Arguments, console: Console) -> None:
    counts = partition_table(dataset, shards)
    groups = dataset.groups
    columns = [*dataset.classes, "samples", *(["groups"] if groups is not None else [])]
    table = Table("client", *_numbers(*columns))
    for i, (row, shard) in enumerate(zip(counts, shards, strict=True)):
        whole = [str(len(groups[shard].unique()))] if groups is not None else []
        table.add_row(str(i), *map(str, row), str(row.sum()), *whole)
    console.print(table)
    if arguments.plot is not None:
        title = f"{dataset.name}, {arguments.partition}, seed {arguments.seed}"
        plot_partition(counts, dataset.classes, title, arguments.plot)
        console.print(f"picture {arguments.plot}")


def _numbers(*names: str) -> list[Column]:
    return [Column(name, justify="right") for name in names]


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, prog="python -m fl_core.data"))
    except ValueError as problem:
        sys.exit(f"fl_core.data: {problem}")
