"""Each geometric feature against the double loop that its definition is."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.fingerprint import geometry, native
from fl_core.training.native import is_built

quick = settings(max_examples=30)
BY = ["torch", *(["native"] if is_built() else [])]
cases = given(st.integers(1, 8), st.integers(1, 25), st.floats(1e-3, 1e3), st.integers(0, 2**31))


@pytest.fixture(params=BY, autouse=True, scope="module")
def by(request) -> Iterator[str]:
    """Everything here holds for both ways to take the sums."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(native, "serves", lambda *tensors: False)
        yield request.param


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


def in_float64(updates: torch.Tensor, reference: torch.Tensor, signs: torch.Tensor) -> geometry.Geometry:
    """The definitions in plain float64, all columns at once."""
    rows, root = updates.double().numpy(), reference.double().numpy()
    size = rows.shape[1]
    signed = np.zeros((len(rows), -(-size // 256) * 256))
    signed[:, :size] = rows * signs[:size].double().numpy()
    lengths, length = np.sqrt((rows**2).sum(axis=1)), np.sqrt((root**2).sum())
    unit = rows / np.where(lengths > 0, lengths, 1)[:, None]
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, 0)
    agree = (np.sign(rows) == np.sign(root))[:, root != 0]
    found = (
        lengths,
        unit @ root / (length or 1),
        cosines.sum(axis=1) / max(len(rows) - 1, 1),
        agree.mean(axis=1) if agree.size else np.full(len(rows), 0.5),
        signed.reshape(len(rows), -1, 256).sum(axis=1),
        length[None],
    )
    return geometry.Geometry(*(torch.from_numpy(np.asarray(value)) for value in found))


def assert_equals_the_definition(updates: torch.Tensor, reference: torch.Tensor) -> None:
    signs = torch.randint(0, 2, reference.shape, generator=torch.Generator().manual_seed(5)) * 2.0 - 1
    measured, expected = geometry.measure(updates, reference, signs), in_float64(updates, reference, signs)
    alone = geometry.Geometry(
        geometry.norms(updates),
        geometry.root_cosine(updates, reference),
        geometry.peer_cosine(updates),
        geometry.sign_agreement(updates, reference),
        geometry.fold(updates, signs),
        geometry.norms(reference[None]),
    )
    for name, value in vars(expected).items():
        for found in (measured, alone):
            tolerance = 1e-12 * float(expected.norms.max()) if name == "folded" else 1e-12
            torch.testing.assert_close(getattr(found, name), value, rtol=1e-12, atol=tolerance, msg=name)


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 1874, 100_003])
@pytest.mark.parametrize("clients", [1, 2, 7])
def test_everything_at_once_and_each_alone_are_the_definitions(normal, clients, size):
    assert_equals_the_definition(normal(clients, size), normal(size, seed=1))


@pytest.mark.parametrize("size", [511, 512, 513, 1024, 1300])
def test_the_borders_of_chunks_are_not_seen(normal, monkeypatch, size):
    monkeypatch.setattr(geometry, "_CHUNK", 4 * 512)  # 512 columns of four clients
    assert_equals_the_definition(normal(4, size), normal(size, seed=1))


def test_a_common_offset_of_a_million_parameters_does_not_blur_the_cosines(normal):
    # Nearly parallel updates, where float32 sums would lose what tells them apart.
    updates = 1 + 1e-3 * normal(3, 1_000_000)
    assert_equals_the_definition(updates, torch.ones(1_000_000))
    assert 1e-8 < 1 - geometry.root_cosine(updates, torch.ones(1_000_000)).max() < 1e-5


@pytest.mark.slow
def test_eleven_million_parameters(normal):
    assert_equals_the_definition(normal(4, 11_000_000), normal(11_000_000, seed=1) + 0.1)


@pytest.mark.parametrize("clients", [1, 2, 5])
@pytest.mark.parametrize("size", [1, 300, 5000])
def test_the_largest_finite_updates_and_the_smallest_have_finite_features(clients, size):
    limits = torch.finfo(torch.float32)
    for value in (limits.max, -limits.max, limits.tiny, limits.smallest_normal * 2**-23, 0.0):
        for root in (limits.max, limits.tiny, 0.0):
            updates, reference = torch.full((clients, size), value), torch.full((size,), root)
            measured = geometry.measure(updates, reference, torch.ones(size))
            for name, found in vars(measured).items():
                assert found.isfinite().all(), (name, value, root)
            expected = math.copysign(1.0, value) if value and root else 0.0
            torch.testing.assert_close(measured.root_cosine, torch.full((clients,), expected, dtype=torch.float64))
            assert geometry.clip_to_median(updates).isfinite().all()


def test_no_buffer_grows_with_the_number_of_parameters(normal):
    def largest(size: int) -> int:
        updates, reference, signs = normal(4, size), normal(size, seed=1), torch.ones(size)
        with torch.profiler.profile(profile_memory=True) as profile:
            geometry.measure(updates, reference, signs)
        return max(event.cpu_memory_usage for event in profile.events())

    assert largest(3_000_000) <= largest(200_000) < 8 * 2**20


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
