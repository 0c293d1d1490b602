"""SignGuard, LASA and AlignIns: each against its definition, written out in numpy, and what it is for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.cluster import MeanShift, estimate_bandwidth

from fl_core.aggregation import ServerView, make_rule
from fl_core.aggregation.base import round_generator

quick = settings(max_examples=30)
cases = given(st.integers(3, 12), st.integers(4, 60), st.integers(0, 2**31))


def draw(n: int, size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, size)) * rng.uniform(0.2, 3, (n, 1)) + 0.3).astype(np.float32)


def weights_of(rule, updates: np.ndarray, model: np.ndarray | None = None) -> np.ndarray:
    model = None if model is None else torch.from_numpy(model)
    return rule(ServerView(torch.from_numpy(updates), model)).weights.numpy()


def z_scores(values: np.ndarray) -> np.ndarray:
    spread = values.std()
    return np.abs(values - np.median(values)) / (spread if spread > 0 else 1.0)


def clipped(updates: np.ndarray, norm: float) -> np.ndarray:
    lengths = np.linalg.norm(updates.astype(np.float64), axis=1, keepdims=True)
    return updates * np.minimum(1.0, norm / lengths)


@quick
@given(st.integers(5, 12), st.integers(40, 300), st.integers(0, 2**31))
def test_signguard_is_its_formula(n, size, seed):
    updates = draw(n, size, seed)
    view = ServerView(torch.from_numpy(updates))
    result = make_rule("signguard")(view)

    count = max(round(0.1 * size), 1)
    signs = np.sign(updates[:, torch.randperm(size, generator=round_generator(0, view))[:count].numpy()])
    shares = np.stack([(signs == s).mean(axis=1) for s in (1, 0, -1)], axis=1)
    bandwidth = estimate_bandwidth(shares, quantile=0.5)
    if bandwidth == 0:
        return
    clusters = MeanShift(bandwidth=bandwidth * (1 + 1e-9) + 1e-12, cluster_all=False).fit(shares)
    labels = clusters.labels_
    to_centres = np.sort(np.linalg.norm(shares[:, None] - clusters.cluster_centers_, axis=2), axis=1)
    # Shares are whole numbers of few coordinates: half way between two centres, rounding decides.
    assume(to_centres.shape[1] == 1 or (to_centres[:, 1] - to_centres[:, 0]).min() > 1e-9)
    lengths = np.linalg.norm(updates.astype(np.float64), axis=1)
    sizes = np.array([(labels == label).sum() for label in range(labels.max() + 1)])
    largest = np.flatnonzero(sizes == sizes.max())
    cluster = min(largest, key=lambda label: lengths[labels == label].mean())
    kept = (labels == cluster) & (lengths >= 0.1 * np.median(lengths)) & (lengths <= 3 * np.median(lengths))
    assert kept.any()
    np.testing.assert_allclose(result.weights.numpy(), kept / kept.sum(), atol=1e-6)
    np.testing.assert_allclose(result.update, clipped(updates, np.median(lengths))[kept].mean(axis=0), atol=1e-5)


def test_signguard_drops_what_is_too_long_too_short_or_of_other_signs():
    updates = np.abs(draw(10, 400, 0))
    updates /= np.linalg.norm(updates, axis=1, keepdims=True)
    updates[0] *= 10
    updates[1] *= 0.01
    updates[2] *= -1
    assert (weights_of(make_rule("signguard"), updates) > 0).tolist() == [False] * 3 + [True] * 7


def test_signguard_takes_other_coordinates_with_another_seed_or_in_another_round():
    updates = torch.from_numpy(draw(12, 50, 3))
    seen = {
        tuple(make_rule("signguard", seed=seed)(ServerView(updates, round=number)).weights.tolist())
        for seed in range(4)
        for number in range(4)
    }
    assert len(seen) > 1


def lasa_by_hand(updates: np.ndarray, layers: list[int], sparsity: float, norm_radius: float, sign_radius: float):
    lengths = np.linalg.norm(updates.astype(np.float64), axis=1)
    rows = clipped(updates, float(np.median(lengths)))
    drop = int(sparsity * updates.shape[1] + 1e-9)
    for row in rows:
        row[np.argsort(np.abs(row))[:drop]] = 0
    pieces, shares = [], np.zeros(len(updates))
    for layer in np.split(rows, np.cumsum(layers)[:-1], axis=1):
        norms = np.linalg.norm(layer, axis=1)
        nonzero = np.maximum((layer != 0).sum(axis=1), 1)
        positive = 0.5 * (1 + np.sign(layer).sum(axis=1) / nonzero * (1 - sparsity))
        kept = (z_scores(norms) <= norm_radius + 1e-8) & (z_scores(positive) <= sign_radius + 1e-8)
        kept = kept if kept.any() else np.ones(len(updates), dtype=bool)
        pieces.append(layer[kept].mean(axis=0))
        shares += layer.shape[1] / updates.shape[1] * kept / kept.sum()
    return np.concatenate(pieces), shares


@quick
@given(st.integers(3, 12), st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(0, 2**31))
def test_lasa_is_its_formula_layer_by_layer(n, layers, seed):
    updates = draw(n, sum(layers), seed)
    result = make_rule("lasa")(ServerView(torch.from_numpy(updates), layers=tuple(layers)))
    expected, shares = lasa_by_hand(updates, layers, 0.3, 2.0, 1.0)
    np.testing.assert_allclose(result.update, expected, atol=1e-5)
    np.testing.assert_allclose(result.weights.numpy(), shares, atol=1e-6)


def test_lasa_without_layers_takes_the_update_for_one():
    updates = torch.from_numpy(draw(8, 30, 1))
    one, other = make_rule("lasa")(ServerView(updates)), make_rule("lasa")(ServerView(updates, layers=(30,)))
    assert torch.equal(one.update, other.update)


def test_lasa_drops_one_bad_layer_of_a_client_and_keeps_its_other():
    updates = draw(9, 40, 5)
    updates[4, :20] = np.abs(updates[4, :20]) * -20
    rule = make_rule("lasa", norm_radius=1.5, sign_radius=10)
    weights = rule(ServerView(torch.from_numpy(updates), layers=(20, 20))).weights
    together = weights_of(make_rule("lasa", norm_radius=10, sign_radius=10), updates)
    assert 0 < weights[4] < together[4]


def test_lasa_goes_by_the_layers_of_a_federations_network(federation):
    view = federation().local_round().view
    assert len(view.layers) > 1
    assert sum(view.layers) == view.updates.shape[1]
    assert not torch.equal(make_rule("lasa")(view).update, make_rule("lasa")(replace(view, layers=())).update)


@quick
@cases
def test_alignins_is_its_formula(n, size, seed):
    updates, model = draw(n, size, seed), draw(1, size, seed + 1)[0]
    result = make_rule("alignins")(ServerView(torch.from_numpy(updates), torch.from_numpy(model)))
    exact = updates.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1)
    direction = exact @ model / lengths / np.linalg.norm(model.astype(np.float64))
    principal = np.sign(np.sign(updates).sum(axis=0))
    keep = size - int(0.7 * size + 1e-9)
    aligned = np.array(
        [(np.sign(row[top]) == principal[top]).mean() for row in updates for top in [np.argsort(-np.abs(row))[:keep]]]
    )
    kept = (z_scores(direction) <= 1 + 1e-8) & (z_scores(aligned) <= 1 + 1e-8)
    if not kept.any():
        assert result.weights.sum() == 0
        return
    np.testing.assert_allclose(result.weights.numpy(), kept / kept.sum(), atol=1e-6)
    np.testing.assert_allclose(result.update, clipped(updates, np.median(lengths[kept]))[kept].mean(axis=0), atol=1e-5)


def test_alignins_drops_who_moves_against_the_model_and_who_has_other_signs():
    model = np.abs(draw(1, 200, 0))[0]
    updates = 0.1 * draw(12, 200, 1) + model
    updates[3] = -updates[3]
    weights = weights_of(make_rule("alignins"), updates, model)
    assert weights[3] == 0
    assert weights.max() > 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("signguard", {"share": 0.0}, "share must be a share"),
        ("signguard", {"low": 1.5}, "0 <= low < 1 < high, got low=1.5"),
        ("lasa", {"sparsity": 1.0}, "sparsity must be a share"),
        ("alignins", {"direction_radius": 0.0}, "direction_radius must be greater than 0, got 0.0"),
    ],
)
def test_impossible_settings_are_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        make_rule(name, **options)
