"""Data sets, their partition among clients, and the splits that keep train, root, validation and test apart."""

from fl_core.data import digits, image_folder, published, synthetic  # noqa: F401  (importing registers)
from fl_core.data.dataset import Dataset, dataset_names, load_dataset, register_dataset
from fl_core.data.label_skew import label_skew
from fl_core.data.partition import (
    by_group,
    dirichlet,
    iid,
    make_partition,
    partition_names,
    partition_options,
    quantity_skew,
    register_partition,
    shards,
)
from fl_core.data.splits import Splits, make_splits

__all__ = [
    "Dataset",
    "Splits",
    "by_group",
    "dataset_names",
    "dirichlet",
    "iid",
    "label_skew",
    "load_dataset",
    "make_partition",
    "make_splits",
    "partition_names",
    "partition_options",
    "quantity_skew",
    "register_dataset",
    "register_partition",
    "shards",
]
