"""Each geometric feature against the double loop that its definition is."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.fingerprint import geometry

quick = settings(deadline=None, max_examples=30)
cases = given(st.integers(1, 8), st.integers(1, 25), st.floats(1e-3, 1e3), st.integers(0, 2**31))


def draw(n: int, size: int, scale: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Updates (n, size) and a reference (size,), both with some zeros."""
    rng = np.random.default_rng(seed)
    rows = scale * rng.standard_normal((n + 1, size)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.2] = 0
    return rows[:-1], rows[-1]


def length(a) -> float:
    return math.sqrt(sum(float(x) ** 2 for x in a))


def cosine(a, b) -> float:
    product = length(a) * length(b)
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True)) / product if product else 0.0


@quick
@cases
def test_norm_is_the_euclidean_length(n, size, scale, seed):
    updates, _ = draw(n, size, scale, seed)
    np.testing.assert_allclose(geometry.norms(torch.from_numpy(updates)), [length(row) for row in updates], rtol=1e-6)


@quick
@cases
def test_root_cosine_is_the_cosine_to_the_reference(n, size, scale, seed):
    updates, reference = draw(n, size, scale, seed)
    expected = [cosine(row, reference) for row in updates]
    result = geometry.root_cosine(torch.from_numpy(updates), torch.from_numpy(reference))
    np.testing.assert_allclose(result, expected, atol=1e-6)


@quick
@cases
def test_peer_cosine_is_the_mean_cosine_to_the_others(n, size, scale, seed):
    updates, _ = draw(n, size, scale, seed)
    expected = [sum(cosine(updates[i], updates[j]) for j in range(n) if j != i) / max(n - 1, 1) for i in range(n)]
    np.testing.assert_allclose(geometry.peer_cosine(torch.from_numpy(updates)), expected, atol=1e-6)


@quick
@cases
def test_sign_agreement_counts_the_coordinates_where_the_reference_is_not_zero(n, size, scale, seed):
    updates, reference = draw(n, size, scale, seed)
    counted = [k for k in range(size) if reference[k] != 0]
    expected = [
        sum(np.sign(row[k]) == np.sign(reference[k]) for k in counted) / len(counted) if counted else 0.5
        for row in updates
    ]
    result = geometry.sign_agreement(torch.from_numpy(updates), torch.from_numpy(reference))
    np.testing.assert_allclose(result, expected, atol=1e-12)


def test_a_reference_of_zeros_agrees_with_nobody_and_disagrees_with_nobody(normal):
    assert geometry.sign_agreement(normal(3, 5), torch.zeros(5)).tolist() == [0.5, 0.5, 0.5]
    assert geometry.root_cosine(normal(3, 5), torch.zeros(5)).tolist() == [0, 0, 0]


def test_a_zero_update_has_no_direction_and_no_length(normal):
    updates = normal(3, 5)
    updates[1] = 0
    assert geometry.norms(updates)[1] == 0
    assert geometry.root_cosine(updates, normal(5, seed=1))[1] == 0
    assert geometry.peer_cosine(updates)[1] == 0
    assert geometry.peer_cosine(updates)[0].item() == pytest.approx(cosine(updates[0], updates[2]) / 2, abs=1e-6)
    assert geometry.sign_agreement(updates, normal(5, seed=1))[1] == 0
    assert torch.equal(geometry.clip_to_median(updates)[1], torch.zeros(5))


def test_a_single_client_has_no_peers(normal):
    assert geometry.peer_cosine(normal(1, 5)).tolist() == [0]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_features_do_not_overflow_where_squares_of_float32_would(normal, scale):
    updates, reference = normal(4, 50), normal(50, seed=1)
    torch.testing.assert_close(geometry.norms(updates * scale) / scale, geometry.norms(updates))
    torch.testing.assert_close(
        geometry.root_cosine(updates * scale, reference), geometry.root_cosine(updates, reference)
    )
    torch.testing.assert_close(geometry.peer_cosine(updates * scale), geometry.peer_cosine(updates))


def test_sums_over_many_parameters_are_taken_in_float64():
    updates = torch.full((1, 3_000_000), 0.1)
    exact = math.sqrt(3_000_000) * float(np.float32(0.1))
    assert geometry.norms(updates).item() == pytest.approx(exact, rel=1e-10)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_the_median_is_numpys(values):
    assert geometry.median(torch.tensor(values, dtype=torch.float64)).item() == pytest.approx(np.median(values))


@quick
@cases
def test_clipping_to_the_median_keeps_directions_and_never_lengthens(n, size, scale, seed):
    updates, _ = draw(n, size, scale, seed)
    clipped = geometry.clip_to_median(torch.from_numpy(updates)).numpy()
    limit = np.median([length(row) for row in updates])
    for row, cut in zip(updates, clipped, strict=True):
        assert length(cut) <= length(row) * (1 + 1e-6)
        assert length(cut) == pytest.approx(min(length(row), limit), rel=1e-5)
        if length(cut):
            assert cosine(row, cut) == pytest.approx(1, abs=1e-5)
        if length(row) <= limit:
            assert np.array_equal(row, cut)


def test_geometry_does_not_edit_what_it_is_given(normal):
    updates, reference = normal(4, 9), normal(9, seed=1)
    before = updates.clone(), reference.clone()
    for function in (geometry.norms, geometry.peer_cosine, geometry.clip_to_median):
        function(updates)
    for function in (geometry.root_cosine, geometry.sign_agreement):
        function(updates, reference)
    geometry.clip_to(updates, torch.tensor(0.1))
    assert torch.equal(updates, before[0])
    assert torch.equal(reference, before[1])
