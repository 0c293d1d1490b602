import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from fl_core.attacks import AdversaryView, make_attack
from fl_core.attacks.colluding import alie_z, min_max_gamma


def sent_by(name: str, updates: torch.Tensor, f: int, **options) -> np.ndarray:
    """What the first f clients send, (f, P) float64."""
    malicious = torch.arange(len(updates)) < f
    return (
        make_attack(name, **options)(updates, malicious, AdversaryView(torch.Generator()))[malicious].double().numpy()
    )


def diameter(rows: np.ndarray) -> float:
    return max(float(np.sqrt(((a - b) ** 2).sum())) for a in rows for b in rows)


def test_alies_z_for_50_workers_of_which_24_are_corrupt():
    # Algorithm 3: s = floor(50/2 + 1) - 24 = 2, z = max z with phi(z) < (50 - 24 - 2)/(50 - 24) = 24/26.
    assert alie_z(50, 24) == pytest.approx(1.4260, abs=1e-4)


@given(st.integers(3, 200), st.data())
def test_alies_z_is_the_normal_quantile_of_algorithm_3(n, data):
    f = data.draw(st.integers(1, (n - 1) // 2))
    supporters = n // 2 + 1 - f
    assert alie_z(n, f) == pytest.approx(norm.ppf((n - f - supporters) / (n - f)), abs=1e-9)


@given(st.integers(2, 60), st.data())
def test_alies_z_is_finite_for_any_number_of_malicious_clients(n, data):
    assert np.isfinite(alie_z(n, data.draw(st.integers(1, n - 1))))


@pytest.mark.parametrize("f", [2, 4, 7])
def test_alie_sends_the_honest_mean_less_z_deviations(normal, f):
    updates = normal(10, 40)
    honest = updates[f:].double().numpy()
    z = norm.ppf((10 - f - max(6 - f, 1)) / (10 - f))
    expected = honest.mean(axis=0) - z * honest.std(axis=0)
    np.testing.assert_allclose(sent_by("alie", updates, f), np.tile(expected, (f, 1)), atol=1e-5)
    fixed = honest.mean(axis=0) - 2.5 * honest.std(axis=0)
    np.testing.assert_allclose(sent_by("alie", updates, f, z=2.5), np.tile(fixed, (f, 1)), atol=1e-5)


@pytest.mark.parametrize("epsilon", [0.1, 2.0, 50.0])
def test_ipm_sends_the_reversed_honest_mean(normal, epsilon):
    updates = normal(10, 40)
    expected = -epsilon * updates[3:].double().numpy().mean(axis=0)
    np.testing.assert_allclose(
        sent_by("ipm", updates, 3, epsilon=epsilon), np.tile(expected, (3, 1)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("epsilon", "reversed_"), [(0.5, False), (7 / 3 - 0.01, False), (7 / 3 + 0.01, True), (20.0, True)]
)
def test_ipm_reverses_the_mean_of_all_once_epsilon_passes_honest_over_malicious(normal, epsilon, reversed_):
    # Sum of all = (1 - eps f / (N - f)) * sum of the honest ones.
    updates = normal(10, 40) + 1
    honest = updates[3:].double().numpy()
    mean = np.concatenate([sent_by("ipm", updates, 3, epsilon=epsilon), honest]).mean(axis=0)
    assert (mean @ honest.mean(axis=0) < 0) == reversed_


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 9), st.integers(1, 60), st.floats(1e-4, 1e4), st.integers(0, 2**31))
def test_min_max_goes_as_far_as_two_honest_updates_are_apart_and_no_further(honest_clients, size, scale, seed):
    rows = scale * np.random.default_rng(seed).standard_normal((honest_clients, size))
    direction = -rows.std(axis=0)
    gamma = min_max_gamma(torch.from_numpy(rows), torch.from_numpy(direction))

    def furthest(g: float) -> float:
        sent = rows.mean(axis=0) + g * direction
        return max(float(np.linalg.norm(sent - row)) for row in rows)

    limit = diameter(rows)
    assert gamma >= 0
    assert furthest(gamma) <= limit * (1 + 1e-9)
    assert furthest(gamma * (1 + 1e-3)) > limit


def test_min_max_sends_one_vector_along_the_inverse_deviation(normal):
    updates = normal(10, 40)
    honest = updates[3:].double().numpy()
    sent = sent_by("min_max", updates, 3)
    assert (sent == sent[0]).all()
    steps = (sent[0] - honest.mean(axis=0)) / -honest.std(axis=0)
    assert steps.min() > 0
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-3)
    assert max(np.linalg.norm(sent[0] - row) for row in honest) == pytest.approx(diameter(honest), rel=1e-4)


@pytest.mark.parametrize("name", ["alie", "min_max"])
def test_where_honest_clients_agree_or_one_is_left_the_attack_hides_in_their_mean(name, normal):
    one = normal(1, 40)
    np.testing.assert_allclose(sent_by(name, one.repeat(6, 1), 2), one.repeat(2, 1).double(), atol=1e-6)
    np.testing.assert_allclose(sent_by(name, normal(6, 40), 5)[0], normal(6, 40)[5].double(), atol=1e-6)
