import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from fl_core.attacks import AdversaryView, make_attack
from fl_core.attacks.colluding import alie_z


def sent_by(name: str, updates: torch.Tensor, f: int, **options) -> np.ndarray:
    """What the first f clients send, (f, P) float64."""
    malicious = torch.arange(len(updates)) < f
    return (
        make_attack(name, **options)(updates, malicious, AdversaryView(torch.Generator()))[malicious].double().numpy()
    )


def test_alies_z_for_50_workers_of_which_24_are_corrupt():
    # Algorithm 3: s = floor(50/2 + 1) - 24 = 2, z = max z with phi(z) < (50 - 24 - 2)/(50 - 24) = 24/26.
    assert alie_z(50, 24) == pytest.approx(1.4260, abs=1e-4)


def test_alies_z_lies_where_a_printed_table_of_the_normal_distribution_has_it():
    # Two decimals and four digits: phi(1.42) = 0.9222 and phi(1.43) = 0.9236 enclose 24/26 = 0.9231;
    # 20 workers, 4 corrupt: s = 7, 9/16 = 0.5625 between phi(0.15) = 0.5596 and phi(0.16) = 0.5636;
    # 10 workers, 3 corrupt: s = 3, 4/7 = 0.5714 between phi(0.18) = 0.5714 and phi(0.19) = 0.5753.
    assert 1.42 < alie_z(50, 24) < 1.43
    assert 0.15 < alie_z(20, 4) < 0.16
    assert 0.18 <= alie_z(10, 3) < 0.19


@pytest.mark.parametrize(("n", "f"), [(2, 1), (3, 1), (5, 1)])
def test_alie_hides_in_the_mean_where_all_or_half_of_the_honest_are_needed(n, f):
    assert alie_z(n, f) == 0


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


def test_the_registry_has_both_ends_of_ipms_epsilon(normal):
    updates = normal(10, 40)
    mean = updates[3:].double().numpy().mean(axis=0)
    for name, epsilon in [("ipm", 2.0), ("ipm_small", 0.1)]:
        assert make_attack(name).epsilon == epsilon
        np.testing.assert_allclose(sent_by(name, updates, 3)[0], -epsilon * mean, rtol=1e-4, atol=1e-6)


def test_where_honest_clients_agree_or_one_is_left_alie_hides_in_their_mean(normal):
    one = normal(1, 40)
    np.testing.assert_allclose(sent_by("alie", one.repeat(6, 1), 2), one.repeat(2, 1).double(), atol=1e-6)
    np.testing.assert_allclose(sent_by("alie", normal(6, 40), 5)[0], normal(6, 40)[5].double(), atol=1e-6)
