import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from fl_core.data import dataset_names, load_dataset


def test_a_data_set_is_loaded_once_a_process():
    assert load_dataset("digits") is load_dataset("digits")


def test_an_unknown_data_set_lists_the_names():
    with pytest.raises(ValueError, match=f"unknown data set 'diggits'; there are: {', '.join(dataset_names())}"):
        load_dataset("diggits")


def test_digits_are_the_published_set_standardised_by_the_train_side():
    digits = load_dataset("digits")
    pixels, labels = load_digits(return_X_y=True)
    assert digits.image_shape == (1, 8, 8)
    assert np.array_equal(digits.labels.numpy(), labels)
    side = pixels[digits.train.numpy()]
    expected = (pixels - side.mean()) / side.std(ddof=1)
    np.testing.assert_allclose(digits.images(torch.arange(1797)).flatten(1).numpy(), expected, atol=1e-5)


def test_train_and_test_are_disjoint_cover_the_set_and_hold_the_same_classes():
    digits = load_dataset("digits")
    assert sorted(torch.cat([digits.train, digits.test]).tolist()) == list(range(1797))
    assert len(digits.test) == 450
    shares = torch.stack([torch.bincount(digits.labels[side]) / len(side) for side in (digits.train, digits.test)])
    assert (shares[0] - shares[1]).abs().max() < 2 / 450
