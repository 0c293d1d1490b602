import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.attacks import AdversaryView, agr_agnostic, make_attack
from fl_core.attacks.agr_agnostic import PERTURBATIONS, min_max_gamma, min_sum_gamma, perturbation

GAMMAS = {"min_max": min_max_gamma, "min_sum": min_sum_gamma}


def squared(rows: np.ndarray, point: np.ndarray) -> np.ndarray:
    return ((rows - point) ** 2).sum(axis=1)


def measure(name: str, rows: np.ndarray, point: np.ndarray) -> float:
    """What the constraint is on: the largest squared distance to an honest row, or their sum."""
    return float(squared(rows, point).max() if name == "min_max" else squared(rows, point).sum())


def limit(name: str, rows: np.ndarray) -> float:
    return max(measure(name, rows, row) for row in rows)


def directions(rows: np.ndarray) -> dict[str, np.ndarray]:
    mean = rows.mean(axis=0)
    return {"std": -rows.std(axis=0), "sign": -np.sign(mean), "unit": -mean / np.linalg.norm(mean)}


def authors_gamma(name: str, rows: np.ndarray, direction: np.ndarray, start: float) -> float:
    """The search of the authors' notebooks, in float64 and to a resolution relative to where it starts."""
    gamma, step, found = start, start, 0.0
    while abs(found - gamma) > 1e-9 * start:
        if measure(name, rows, rows.mean(axis=0) + gamma * direction) <= limit(name, rows):
            found, gamma = gamma, gamma + step / 2
        else:
            gamma -= step / 2
        step /= 2
    return found


def sent_by(name: str, updates: torch.Tensor, f: int, **options) -> np.ndarray:
    """What the first f clients send, (f, P) float64."""
    malicious = torch.arange(len(updates)) < f
    attack = make_attack(name, **options)
    return attack(updates, malicious, AdversaryView(torch.Generator()))[malicious].double().numpy()


CASES = {
    "honest_clients": st.integers(2, 9),
    "size": st.integers(1, 60),
    "scale": st.floats(1e-4, 1e4),
    "offset": st.floats(0, 10),
    "seed": st.integers(0, 2**31),
}


@pytest.mark.parametrize("kind", PERTURBATIONS)
@pytest.mark.parametrize("name", GAMMAS)
@settings(max_examples=30)
@given(**CASES)
def test_the_constraint_holds_at_gamma_and_fails_beyond(name, kind, honest_clients, size, scale, offset, seed):
    rows = scale * (offset + np.random.default_rng(seed).standard_normal((honest_clients, size)))
    direction = directions(rows)[kind]
    gamma = GAMMAS[name](torch.from_numpy(rows), torch.from_numpy(direction))
    mean, bound = rows.mean(axis=0), limit(name, rows)
    assert gamma > 0
    assert measure(name, rows, mean + gamma * direction) <= bound * (1 + 1e-9)
    assert measure(name, rows, mean + gamma * (1 + 1e-3) * direction) > bound


@pytest.mark.parametrize("kind", PERTURBATIONS)
@pytest.mark.parametrize("name", GAMMAS)
def test_gamma_is_where_the_authors_search_ends(name, kind):
    for seed in range(20):
        rows = np.random.default_rng(seed).standard_normal((6, 25)) + 0.3
        direction = directions(rows)[kind]
        gamma = GAMMAS[name](torch.from_numpy(rows), torch.from_numpy(direction))
        assert gamma == pytest.approx(authors_gamma(name, rows, direction, start=16.0), rel=1e-6)


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_the_perturbations_are_the_papers_three(normal, kind):
    rows = normal(6, 40)
    np.testing.assert_allclose(perturbation(rows, kind).numpy(), directions(rows.double().numpy())[kind], atol=1e-6)


@pytest.mark.parametrize("kind", PERTURBATIONS)
@pytest.mark.parametrize("name", GAMMAS)
def test_all_send_one_vector_from_the_honest_mean_along_the_perturbation_as_far_as_it_goes(normal, name, kind):
    updates = normal(10, 40)
    honest = updates[3:].double().numpy()
    sent = sent_by(name, updates, 3, perturbation=kind)
    assert (sent == sent[0]).all()
    steps = (sent[0] - honest.mean(axis=0)) / directions(honest)[kind]
    assert steps.min() > 0
    np.testing.assert_allclose(steps, steps.mean(), rtol=2e-3)
    assert measure(name, honest, sent[0]) == pytest.approx(limit(name, honest), rel=1e-5)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
@pytest.mark.parametrize("name", GAMMAS)
def test_there_is_no_cap_gamma_scales_with_the_updates(normal, name, factor):
    rows = normal(6, 30, dtype=torch.float64) + 0.5
    direction = perturbation(rows, "unit")
    assert GAMMAS[name](factor * rows, direction) == pytest.approx(factor * GAMMAS[name](rows, direction), rel=1e-9)


@pytest.mark.parametrize("kind", PERTURBATIONS)
@pytest.mark.parametrize("name", GAMMAS)
def test_where_honest_clients_agree_or_one_is_left_the_attack_hides_in_their_mean(normal, name, kind):
    one = normal(1, 40)
    np.testing.assert_allclose(
        sent_by(name, one.repeat(6, 1), 2, perturbation=kind), one.repeat(2, 1).double(), atol=1e-5
    )
    np.testing.assert_allclose(
        sent_by(name, normal(6, 40), 5, perturbation=kind)[0], normal(6, 40)[5].double(), atol=1e-6
    )


@pytest.mark.parametrize("name", GAMMAS)
def test_columns_in_chunks_tell_the_same_as_all_at_once(normal, name, monkeypatch):
    rows = normal(7, 1000)
    direction = perturbation(rows, "std")
    whole = GAMMAS[name](rows, direction)
    monkeypatch.setattr(agr_agnostic, "_CHUNK", 7 * 64)
    assert GAMMAS[name](rows, direction) == pytest.approx(whole, rel=1e-12)


def test_an_unknown_perturbation_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match="unknown perturbation 'cov'; there are: std, sign, unit"):
        make_attack("min_max", perturbation="cov")
