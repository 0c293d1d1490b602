"""Data sets, their partition among clients, and the splits that keep train, root, validation and test apart."""

from fl_core.data.datasets import Dataset, dataset_names, load_dataset
from fl_core.data.partition import dirichlet, iid
from fl_core.data.splits import Splits, make_splits

__all__ = ["Dataset", "Splits", "dataset_names", "dirichlet", "iid", "load_dataset", "make_splits"]
