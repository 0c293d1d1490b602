"""FoolsGold and FLDetector: their formulas by other means, and what they remember."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.aggregation import ServerView, history, make_rule
from fl_core.aggregation.history import hessian_product

quick = settings(max_examples=30)


def foolsgold_by_loops(sums: np.ndarray) -> np.ndarray:
    """Learning rates as in algorithm 1 of the paper, cosines counting from 0 up."""
    n = len(sums)
    alike = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i != j:
                cosine = sums[i] @ sums[j] / np.linalg.norm(sums[i]) / np.linalg.norm(sums[j])
                alike[i, j] = max(cosine, 0.0)
    closest = alike.max(axis=1)
    pardoned = alike.copy()
    for i in range(n):
        for j in range(n):
            if closest[j] > closest[i]:
                pardoned[i, j] *= closest[i] / closest[j]
    rates = 1 - pardoned.max(axis=1)
    rates = rates / rates.max()
    with np.errstate(divide="ignore"):
        rates = np.log(rates / (1 - rates)) + 0.5
    return np.clip(rates, 0, 1)


@quick
@given(n=st.integers(2, 10), rounds=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_foolsgold_is_its_algorithm_on_the_sums_over_rounds(n, rounds, seed):
    updates = np.random.default_rng(seed).standard_normal((rounds, n, 20)).astype(np.float32) + 0.4
    rule = make_rule("foolsgold")
    for number, sent in enumerate(updates):
        result = rule(ServerView(torch.from_numpy(sent), round=number))
    rates = foolsgold_by_loops(updates.astype(np.float64).sum(axis=0))
    np.testing.assert_allclose(result.weights.numpy(), rates / rates.sum(), atol=1e-4)
    np.testing.assert_allclose(result.update, rates / rates.sum() @ updates[-1], atol=1e-3)


def test_foolsgold_gives_identical_clients_no_weight():
    updates = torch.randn(6, 300, generator=torch.Generator().manual_seed(0))
    updates[4] = updates[5]
    weights = make_rule("foolsgold")(ServerView(updates)).weights
    assert weights[4:].tolist() == [0, 0]
    assert (weights[:4] > 0.2).all()


def test_foolsgold_remembers_clients_by_who_they_are_not_by_their_row():
    generator = torch.Generator().manual_seed(0)
    rule = make_rule("foolsgold")
    aim = torch.randn(300, generator=generator)
    for number in range(4):
        updates = torch.randn(6, 300, generator=generator)
        updates[4:] += 2 * aim  # noise of their own, one aim
        order = torch.randperm(6, generator=generator)
        result = rule(ServerView(updates[order], round=number, clients=order))
    weights = torch.empty(6)
    weights[order] = result.weights
    assert weights[4:].max() < 0.5 * weights[:4].min()


def quadratic(seed: int, size: int = 6) -> torch.Tensor:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T + torch.eye(size, dtype=torch.float64)


@quick
@given(seed=st.integers(0, 2**31), m=st.integers(1, 6))
def test_the_predicted_bend_satisfies_the_last_secant_equation(seed, m):
    """What every quasi-Newton matrix does: it maps the last step to the last bend."""
    hessian = quadratic(seed)
    steps = torch.randn(m, 6, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    product = hessian_product(steps, steps @ hessian, steps[-1])
    torch.testing.assert_close(product, hessian @ steps[-1], rtol=1e-5, atol=1e-5)


def test_the_predicted_bend_is_that_of_the_recursion_that_bfgs_is():
    hessian, m = quadratic(3), 4
    steps = torch.randn(m, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    bends = steps @ hessian
    matrix = torch.eye(6, dtype=torch.float64) * (bends[-1] @ steps[-1]) / (steps[-1] @ steps[-1])
    for s, y in zip(steps, bends, strict=True):
        along = matrix @ s
        matrix = matrix - torch.outer(along, along) / (s @ along) + torch.outer(y, y) / (y @ s)
    vector = torch.randn(6, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    torch.testing.assert_close(hessian_product(steps, bends, vector), matrix @ vector)


def test_a_model_that_does_not_move_gives_no_prediction():
    still = torch.zeros(2, 4)
    assert torch.equal(hessian_product(still, still, torch.ones(4)), torch.zeros(4).double())


def play(rule, rounds: int, inconsistent: list[int], n: int = 10, size: int = 40) -> list[torch.Tensor]:
    """Clients that descend quadratics of their own; the inconsistent ones turn their sign from round to round."""
    generator = torch.Generator().manual_seed(1)
    optima = torch.randn(n, size, generator=generator) * 0.3 + 1
    curvature = torch.rand(size, generator=generator) + 0.5
    model, weights = torch.zeros(size), []
    for number in range(rounds):
        updates = 0.1 * curvature * (optima - model) + 0.003 * torch.randn(n, size, generator=generator)
        updates[inconsistent] *= 1 - 2 * (number % 2)
        result = rule(ServerView(updates, global_model=model, round=number))
        model = model + result.update
        weights.append(result.weights)
    return weights


def test_fldetector_leaves_out_the_clients_whose_updates_are_inconsistent_over_rounds():
    weights = torch.stack(play(make_rule("fldetector", window=4), 14, inconsistent=[2, 7]))
    assert (weights[:5] > 0).all()  # nothing known yet
    assert (weights[6:] == 0).nonzero()[:, 1].unique().tolist() == [2, 7]
    assert (weights[6:, [2, 7]] == 0).all()


def test_fldetector_is_the_mean_as_long_as_everybody_is_consistent():
    assert all((round_ > 0).sum() >= 9 for round_ in play(make_rule("fldetector", window=4), 8, inconsistent=[]))


def test_fldetector_predicts_over_all_the_steps_that_a_client_has_missed(monkeypatch, normal):
    along = []

    def recorded(steps, bends, vector):
        along.append(vector)
        return torch.zeros_like(vector.double())

    monkeypatch.setattr(history, "hessian_product", recorded)
    rule, models = make_rule("fldetector"), normal(5, 6).cumsum(dim=0)
    for number, clients in enumerate(([0, 1, 2], [0, 1, 2], [0, 1], [0, 1], [0, 1, 2])):
        updates = normal(len(clients), 6, seed=10 + number)
        rule(ServerView(updates, models[number], round=number, clients=torch.tensor(clients)))
    assert len(along) == 4
    torch.testing.assert_close(along[-2], models[4] - models[3])  # of those who were there the round before
    torch.testing.assert_close(along[-1], models[4] - models[1])  # of the client that was not


def test_fldetector_knows_the_steps_of_a_model_that_is_written_into(monkeypatch, normal):
    norms = []

    def recorded(steps, bends, vector):
        norms.append(float(vector.norm()))
        return torch.zeros_like(vector.double())

    monkeypatch.setattr(history, "hessian_product", recorded)
    rule, model = make_rule("fldetector"), torch.zeros(6)
    for number in range(5):
        model += rule(ServerView(normal(3, 6, seed=number), model, round=number)).update.mul_(0.5)
    assert len(norms) == 3
    assert min(norms) > 0.1


def test_fldetector_waits_for_a_full_window_of_scores():
    weights = play(make_rule("fldetector", window=6), 8, inconsistent=[2, 7])
    # The first prediction is made in round 2, from the one change of the aggregate that is known by then.
    assert all((round_ > 0).all() for round_ in weights[:7])
    assert weights[7][[2, 7]].tolist() == [0, 0]


@pytest.mark.parametrize("name", ["foolsgold", "fldetector", "flguard"])
def test_reset_forgets_everything(name):
    rule = make_rule(name, **({"window": 2} if name == "fldetector" else {}))
    before = play(rule, 6, [1])
    after_more = play(rule, 6, [1])
    rule.reset()
    again = play(rule, 6, [1])
    assert all(torch.equal(a, b) for a, b in zip(before, again, strict=True))
    if name != "flguard":  # whose memory need not change whom it keeps
        assert any(not torch.equal(a, b) for a, b in zip(before, after_more, strict=True))


@pytest.mark.parametrize("name", ["foolsgold", "fldetector", "flguard"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda rule: pickle.loads(pickle.dumps(rule))])
def test_a_copy_goes_on_from_the_same_memory_and_does_not_share_it(name, copied):
    options = {"window": 2} if name == "fldetector" else {}
    rule = make_rule(name, **options)
    play(rule, 4, [1])
    one, other = copied(rule), copied(rule)
    first = play(one, 4, [1])
    play(one, 3, [0, 2])
    assert all(torch.equal(a, b) for a, b in zip(first, play(other, 4, [1]), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, play(rule, 4, [1]), strict=True))


@pytest.mark.parametrize("name", ["foolsgold", "fldetector", "flguard"])
def test_two_rules_of_one_kind_share_no_memory(name):
    alone = play(make_rule(name), 4, [1])
    play(make_rule(name), 4, [0, 2])
    assert all(torch.equal(a, b) for a, b in zip(alone, play(make_rule(name), 4, [1]), strict=True))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("foolsgold", {"confidence": 0.0}, "confidence must be greater than 0"),
        ("fldetector", {"window": 0}, "window must be at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        make_rule(name, **options)


@pytest.mark.parametrize("name", ["foolsgold", "fldetector", "flguard", "centered_clipping"])
@pytest.mark.parametrize("after", [4, 9])
def test_a_rule_that_remembers_another_model_asks_for_a_reset(name, after):
    rule = make_rule(name)
    rule(ServerView(torch.randn(5, 6, generator=torch.Generator().manual_seed(0))))
    other = ServerView(torch.randn(5, after, generator=torch.Generator().manual_seed(1)))
    with pytest.raises(ValueError, match=rf"{name} remembers a model of 6 parameters and got updates of {after}; call"):
        rule(other)
    rule.reset()
    assert rule(other).update.shape == (after,)
