from pathlib import Path

import numpy as np
import pytest
import torch

from fl_core.data import load_dataset
from fl_core.data.location import Source
from fl_core.data.synthetic import gaussian_clusters


def made(**options):
    return gaussian_clusters(Source(Path()), **options)


def test_gaussian_clusters_need_no_files_and_are_the_same_every_time():
    assert torch.equal(made().pixels, load_dataset("gaussian_clusters").pixels)
    assert made().image_shape == (1, 8, 8)
    assert made(classes=3, side=5, samples=40).image_shape == (1, 5, 5)


def test_the_classes_are_balanced_on_both_sides_of_the_border():
    clusters = made()
    for side in (clusters.train, clusters.test):
        counts = torch.bincount(clusters.labels[side], minlength=10)
        assert counts.max() - counts.min() <= 1
    assert len(clusters.test) == 450


@pytest.mark.parametrize("stride", [2, 5, 10])
def test_a_sample_of_the_test_side_at_equal_distances_meets_every_class(stride):
    large = made(samples=10_000)
    counts = torch.bincount(large.labels[large.test[::stride]], minlength=10)
    assert counts.min() > 0.5 * 250 / stride


def test_noise_has_unit_variance_in_every_pixel_and_the_means_have_that_of_the_separation():
    clusters = made(samples=4000, separation=0.4)
    values = (clusters.pixels.double().flatten(1).numpy() - 128) / 32
    labels = clusters.labels.numpy()
    means = np.stack([values[labels == c].mean(axis=0) for c in range(10)])
    np.testing.assert_allclose((values - means[labels]).std(), 1, atol=0.02)
    np.testing.assert_allclose(means.std(), 0.4, atol=0.03)


def test_separation_decides_how_many_samples_lie_nearest_to_their_own_mean():
    def accuracy(separation: float) -> float:
        clusters = made(separation=separation)
        values, labels = clusters.pixels.double().flatten(1), clusters.labels
        train, test = clusters.train, clusters.test
        means = torch.stack([values[train][labels[train] == c].mean(dim=0) for c in range(10)])
        return (torch.cdist(values[test], means).argmin(dim=1) == labels[test]).double().mean().item()

    shares = [accuracy(separation) for separation in (0.0, 0.2, 0.4, 1.0)]
    assert shares == sorted(shares)
    assert shares[0] < 0.2
    assert 0.8 < shares[2] < 0.98
    assert shares[3] > 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 1}, "classes=1"),
        ({"side": 0}, "side=0"),
        ({"samples": 39}, "samples=39"),
        ({"separation": -1.0}, "got -1.0"),
        ({"separation": float("nan")}, "got nan"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)
