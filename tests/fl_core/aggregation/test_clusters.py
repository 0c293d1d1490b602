"""The small clusterings against scikit-learn's, and what a number of clusters should be."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans, MeanShift, estimate_bandwidth

from fl_core.aggregation.clusters import gap_clusters, k_means, mean_shift

quick = settings(max_examples=25)


def blobs(sizes: list[int], apart: float, seed: int, d: int = 2) -> tuple[torch.Tensor, np.ndarray]:
    """Points (n, d) in clusters of standard deviation 1 around points of a circle, and whose each is."""
    rng = np.random.default_rng(seed)
    whose = np.repeat(np.arange(len(sizes)), sizes)
    points = rng.standard_normal((len(whose), d))
    angle = 2 * np.pi * whose / len(sizes)
    points[:, :2] += apart * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return torch.from_numpy(points), whose


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one[:, None] == one[None], other[:, None] == other[None])


@quick
@given(n=st.integers(3, 40), d=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_mean_shift_finds_the_clusters_that_scikit_learn_finds(n, d, seed):
    points = np.random.default_rng(seed).standard_normal((n, d))
    bandwidth = estimate_bandwidth(points, quantile=0.5)
    if bandwidth < 1e-3:  # quantile · n is one neighbour, oneself
        return
    expected = MeanShift(bandwidth=bandwidth, cluster_all=False).fit_predict(points)
    assert np.array_equal(mean_shift(torch.from_numpy(points)).numpy(), expected)


@pytest.mark.parametrize("sizes", [[10], [6, 4], [5, 5], [26], [100], [30, 30], [40, 20]])
def test_mean_shift_of_equal_points_is_one_cluster_for_each_place(sizes):
    points = torch.repeat_interleave(
        torch.tensor([[0.2, 0.8], [0.8, 0.2]]).double()[: len(sizes)], torch.tensor(sizes), 0
    )
    labels = mean_shift(points, quantile=0.5)
    assert len(labels.unique()) == len(sizes)
    assert (labels >= 0).all()


@quick
@given(sizes=st.lists(st.integers(2, 8), min_size=1, max_size=4), seed=st.integers(0, 2**31))
def test_k_means_finds_clusters_that_are_far_apart(sizes, seed):
    points, whose = blobs(sizes, 30.0, seed)
    labels, within = k_means(points[None], len(sizes))
    assert same_partition(labels[0].numpy(), whose)
    expected = KMeans(len(sizes), n_init=5, random_state=0).fit(points.numpy()).inertia_
    assert float(within[0]) == pytest.approx(expected)


def test_k_means_of_several_sets_is_that_of_each():
    sets = torch.stack([blobs([5, 5], 3.0, seed)[0] for seed in range(6)])
    labels, within = k_means(sets, 3)
    for points, own, inside in zip(sets, labels, within, strict=True):
        alone, alone_within = k_means(points[None], 3)
        assert torch.equal(alone[0], own)
        assert float(alone_within[0]) == pytest.approx(float(inside))


def test_a_step_of_k_means_cannot_make_it_better():
    points, _ = blobs([12, 9], 2.0, 4)
    labels, within = k_means(points[None], 3)
    centres = torch.stack([points[labels[0] == c].mean(dim=0) for c in range(3)])
    distances = torch.cdist(points, centres)
    assert torch.equal(distances.argmin(dim=1), labels[0])
    assert float(distances.amin(dim=1).square().sum()) == pytest.approx(float(within[0]))


# Three alike are often one to it: two centres for three equal clusters are hardly better than one.
@pytest.mark.parametrize("sizes", [[20], [10, 8]])
def test_the_gap_statistic_counts_clusters_that_are_far_apart(sizes):
    found = [
        gap_clusters(blobs(sizes, 12.0, seed)[0], 6, 20, torch.Generator().manual_seed(seed)) for seed in range(20)
    ]
    assert sum(k == len(sizes) for k in found) >= 16


def test_equal_points_are_one_cluster():
    assert gap_clusters(torch.ones(7, 2).double(), 5, 20, torch.Generator().manual_seed(0)) == 1
