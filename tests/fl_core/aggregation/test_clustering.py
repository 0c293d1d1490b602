"""FLAME and RFLBAT: what they keep, by other means and in cases that can be read off."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sklearn.decomposition import PCA

from fl_core.aggregation import ServerView, clustering, make_rule
from fl_core.aggregation.clustering import principal_plane
from fl_core.aggregation.gram import squared_distances

quick = settings(max_examples=30)


def around(centre: list[float], n: int, spread: float, seed: int, size: int = 60) -> torch.Tensor:
    """Updates (n, size) around a centre whose first coordinates are given and whose others are 0."""
    rows = spread * torch.randn(n, size, generator=torch.Generator().manual_seed(seed))
    rows[:, : len(centre)] += torch.tensor(centre)
    return rows


def smallest_majority(models: np.ndarray) -> np.ndarray:
    """The smallest single-linkage component, by cosine distance, with more than half of the models."""
    units = models / np.linalg.norm(models, axis=1, keepdims=True)
    distances = np.clip(1 - units @ units.T, 0, None)
    np.fill_diagonal(distances, 0)
    tree = linkage(squareform(distances, checks=False), "single")
    for height in tree[:, 2]:
        labels = fcluster(tree, height, "distance")
        sizes = np.bincount(labels)
        if sizes.max() > len(models) // 2:
            return labels == sizes.argmax()
    raise AssertionError("the root holds everybody")


@quick
@given(n=st.integers(3, 20), seed=st.integers(0, 2**31))
def test_flame_keeps_the_smallest_single_linkage_component_with_a_majority_of_the_models(n, seed):
    rng = np.random.default_rng(seed)
    updates, model = rng.standard_normal((n, 30)).astype(np.float32), rng.standard_normal(30).astype(np.float32)
    result = make_rule("flame")(ServerView(torch.from_numpy(updates), torch.from_numpy(model)))
    kept = smallest_majority(model.astype(np.float64) + updates)
    np.testing.assert_allclose(result.weights.numpy(), kept / kept.sum(), atol=1e-6)


def test_flame_drops_two_far_off_opposing_rows_and_clips_to_the_median_norm_of_all():
    honest = around([3.0, 0.0], 7, 0.1, 0)
    honest[2] *= 5
    updates = torch.cat([honest, around([-30.0, 0.0], 1, 0.1, 1), around([0.0, -30.0], 1, 0.1, 2)])
    result = make_rule("flame", noise=0.0)(ServerView(updates))
    assert result.weights[7:].tolist() == [0, 0]
    lengths = updates.norm(dim=1)
    limit = lengths.median()
    clipped = updates * (limit / lengths).clamp_max(1)[:, None]
    torch.testing.assert_close(result.update, result.weights @ clipped)


def test_flames_noise_has_the_scale_it_should_and_comes_from_the_seed_and_the_round():
    updates = around([1.0], 6, 0.1, 0, size=20_000)
    without = make_rule("flame", noise=0.0)(ServerView(updates)).update
    noise = make_rule("flame", noise=0.01)(ServerView(updates)).update - without
    assert float(noise.std()) == pytest.approx(0.01 * float(updates.norm(dim=1).median()), rel=0.1)
    again = make_rule("flame", noise=0.01)(ServerView(updates)).update - without
    assert torch.equal(again, noise)
    for other in (ServerView(updates, round=1),):
        assert not torch.equal(make_rule("flame", noise=0.01)(other).update - without, noise)
    assert not torch.equal(make_rule("flame", noise=0.01, seed=1)(ServerView(updates)).update - without, noise)


@quick
@given(n=st.integers(3, 15), seed=st.integers(0, 2**31))
def test_the_plane_is_that_of_scikit_learns_principal_components(n, seed):
    rows = np.random.default_rng(seed).standard_normal((n, 25)).astype(np.float32)
    plane = principal_plane(squared_distances(torch.from_numpy(rows))).numpy()
    expected = PCA(2).fit_transform(rows.astype(np.float64))
    np.testing.assert_allclose(np.abs(plane), np.abs(expected), atol=1e-4)


def test_rflbat_drops_a_single_outlier_and_averages_the_others():
    updates = torch.cat([around([1.0], 9, 0.3, 0), around([500.0], 1, 0.3, 1)])
    result = make_rule("rflbat")(ServerView(updates))
    assert result.weights[9] == 0
    assert (result.weights[:9] > 0).sum() >= 5


def test_rflbat_keeps_the_cluster_whose_members_resemble_each_other_least():
    honest, sybils = around([2.0, 0.0], 7, 1.0, 0), around([-20.0, 30.0], 4, 0.01, 1)
    result = make_rule("rflbat")(ServerView(torch.cat([honest, sybils])))
    assert (result.weights[:7] > 0).any()
    assert result.weights[7:].tolist() == [0, 0, 0, 0]


def test_rflbat_is_the_mean_when_there_is_one_cluster_and_nobody_far_out():
    updates = around([1.0, 1.0], 12, 0.5, 3)
    weights = make_rule("rflbat")(ServerView(updates)).weights
    torch.testing.assert_close(weights, torch.full((12,), 1 / 12))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("flame", {"noise": -0.1}, "noise must be 0 or more"),
        ("rflbat", {"draws": 0}, "draws must be at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        make_rule(name, **options)


def test_to_rflbat_a_zero_update_is_as_unlike_others_as_an_orthogonal_one(monkeypatch):
    honest = torch.tensor([[3.0, 1.0], [-3.0, 1.0], [1.0, -3.0], [-1.0, -3.0], [0.5, 3.0]])  # mean cosine below 0
    updates = torch.cat([honest, torch.zeros(3, 2)])
    labels = torch.tensor([0] * 5 + [1] * 3)
    monkeypatch.setattr(clustering, "gap_clusters", lambda *_: 2)
    monkeypatch.setattr(clustering, "k_means", lambda points, k: (labels[None], None))
    rule = make_rule("rflbat")
    chosen = rule._most_diverse(ServerView(updates), torch.zeros(8, 2), torch.arange(8))
    assert chosen.tolist() == [True] * 5 + [False] * 3
