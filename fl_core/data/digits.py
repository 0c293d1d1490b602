"""The set that needs no files."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fl_core.data.dataset import Dataset, register_dataset
from fl_core.data.location import Source


@register_dataset("digits")
def digits(source: Source) -> Dataset:
    """The 1,797 handwritten 8x8 digits that scikit-learn ships (UCI "Optical Recognition of Handwritten Digits").

    There is no published border between train and test in this subset, so a stratified quarter is held out once and
    for all with a constant seed. Pixel values are 0 to 16.
    """
    bunch = load_digits()
    pixels = torch.tensor(bunch.images, dtype=torch.uint8).unsqueeze(1)
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    train, test = train_test_split(torch.arange(len(labels)), test_size=450, stratify=labels, random_state=0)
    names = tuple(str(digit) for digit in range(10))
    return Dataset("digits", pixels, labels, names, train.sort().values, test.sort().values)
