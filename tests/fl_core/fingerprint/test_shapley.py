from dataclasses import replace
from itertools import combinations, permutations
from math import comb, exp, log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from fl_core import Scenario
from fl_core.fingerprint import CoalitionGame, make_shapley, shapley, shapley_names
from fl_core.fingerprint.geometry import clip_factors, clip_to_median, median, norms
from fl_core.fingerprint.shapley import ExactShapley, PermutationShapley, quadratic_shapley, singles_shapley

quick = settings(max_examples=40)


class TableGame:
    """A game that is a table: a value for each of the 2^N coalitions, the empty one first."""

    def __init__(self, n: int, seed: int) -> None:
        self.updates = torch.zeros(n, 1)
        self.table = np.random.default_rng(seed).standard_normal(2**n)
        self.asked = 0

    def __getitem__(self, coalition) -> float:
        return float(self.table[sum(1 << i for i in coalition)])

    def values(self, members: torch.Tensor) -> torch.Tensor:
        self.asked += len(members)
        return torch.tensor([self[row.nonzero().flatten().tolist()] for row in members], dtype=torch.float64)


def by_permutations(n: int, value) -> np.ndarray:
    """Mean marginal contribution over all orders of arrival."""
    total = np.zeros(n)
    orders = list(permutations(range(n)))
    for order in orders:
        for k, i in enumerate(order):
            total[i] += value(order[: k + 1]) - value(order[:k])
    return total / len(orders)


def by_subsets(n: int, value) -> np.ndarray:
    return np.array(
        [
            sum(
                (value((*s, i)) - value(s)) / (n * comb(n - 1, size))
                for size in range(n)
                for s in combinations([j for j in range(n) if j != i], size)
            )
            for i in range(n)
        ]
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@quick
@given(st.integers(1, 5), st.integers(0, 2**31))
def test_exact_values_are_the_mean_marginals_over_all_orders(n, seed):
    game = TableGame(n, seed)
    expected = by_permutations(n, game.__getitem__)
    np.testing.assert_allclose(ExactShapley()(game, generator()).numpy(), expected, atol=1e-12)


@quick
@given(st.integers(1, 8), st.integers(0, 2**31))
def test_exact_values_share_out_the_whole_gain(n, seed):
    game = TableGame(n, seed)
    gain = game[range(n)] - game[()]
    assert ExactShapley()(game, generator()).sum().item() == pytest.approx(gain, abs=1e-9)


@quick
@given(st.integers(1, 8), st.integers(0, 2**31), st.sampled_from([2, 10, 100]))
def test_permutation_values_share_out_the_whole_gain_however_few_the_permutations(n, seed, count):
    game = TableGame(n, seed)
    gain = game[range(n)] - game[()]
    assert PermutationShapley(count)(game, generator(seed)).sum().item() == pytest.approx(gain, abs=1e-9)


def test_permutation_values_converge_to_the_exact_ones_and_evaluate_no_coalition_twice():
    game = TableGame(5, 0)
    exact = by_permutations(5, game.__getitem__)
    errors = [np.abs(PermutationShapley(k)(game, generator(1)).numpy() - exact).max() for k in (10, 3000)]
    assert errors[1] < 0.1 < errors[0]
    game.asked = 0
    PermutationShapley(3000)(game, generator(1))
    assert game.asked <= 2**5


def test_permutation_values_use_each_order_forwards_and_backwards():
    # Two orders, one the reverse of the other, are all there is for N = 2, so a single pair is exact.
    game = TableGame(2, 3)
    np.testing.assert_allclose(PermutationShapley(2)(game, generator()), by_permutations(2, game.__getitem__))


@pytest.mark.parametrize("count", [0, 1, 7, -2])
def test_a_number_of_permutations_that_is_not_even_is_refused(count):
    with pytest.raises(ValueError, match=f"num_permutations must be even and at least 2, got {count}"):
        PermutationShapley(count)


def test_exact_refuses_more_than_twelve_clients_and_says_what_to_use():
    with pytest.raises(ValueError, match=r"N=13 is more than 12; use 'surrogate' or 'permutation'"):
        ExactShapley()(TableGame(13, 0), generator())


@settings(max_examples=60)
@given(st.integers(1, 7), st.floats(0.01, 100), st.integers(0, 2**31))
def test_the_closed_form_equals_the_enumeration_of_the_quadratic_game(n, scale, seed):
    rng = np.random.default_rng(seed)
    b, q = rng.standard_normal(n), scale * rng.standard_normal((n, n))
    centring = np.eye(n) - 1 / n
    q = centring @ (q + q.T) @ centring  # rows that add up to none, as those of changes do
    constant, empty = rng.standard_normal(2)

    def value(coalition) -> float:
        if not len(coalition):
            return empty
        m = np.zeros(n)
        m[list(coalition)] = 1 / len(coalition)
        return constant - b @ m - m @ q @ m / 2

    parts = (b, q.diagonal(), constant, empty)
    result = quadratic_shapley(*(torch.from_numpy(np.array(x, dtype=np.float64)) for x in parts))
    np.testing.assert_allclose(result.numpy(), by_subsets(n, value), atol=1e-9 * (1 + scale))
    assert result.sum().item() == pytest.approx(value(range(n)) - empty, abs=1e-9 * (1 + scale))


@quick
@given(st.integers(1, 7), st.integers(0, 2**31))
def test_clients_that_are_worth_something_only_alone_share_nothing_out(n, seed):
    alone = np.random.default_rng(seed).standard_normal(n)

    def value(coalition) -> float:
        return alone[coalition[0]] if len(coalition) == 1 else 0.0

    result = singles_shapley(torch.from_numpy(alone)).numpy()
    np.testing.assert_allclose(result, by_subsets(n, value), atol=1e-12)
    assert result.sum() == pytest.approx(alone[0] if n == 1 else 0, abs=1e-12)


def game_of(built, clients: int | None = None) -> CoalitionGame:
    """The real game of a federation's present round, among its first so many clients."""
    view = built.local_round().view
    updates = view.updates[:clients]
    lengths = norms(updates)
    utility = built.splits.utility
    return CoalitionGame(
        engine=built.engine,
        shared=view.global_model,
        local=view.server_local,
        updates=updates,
        clip=clip_factors(lengths, median(lengths)),
        reference_images=built.simulator.images,
        images=built.dataset.images(utility),
        labels=built.dataset.labels[utility],
        num_classes=10,
    )


def test_the_value_of_a_coalition_is_the_capped_utility_of_its_mean_update(federation):
    built = federation(Scenario("sign_flip", 0.3, attack_options={"scale": 30.0}))
    game = game_of(built)
    members = torch.rand(20, 10, generator=generator()) < 0.4
    members[0], members[1] = False, True
    for row, value in zip(members, game.values(members).tolist(), strict=True):
        chosen = clip_to_median(game.updates).numpy()[row.numpy()]
        offset = chosen.mean(axis=0) if len(chosen) else np.zeros(game.updates.shape[1], dtype=np.float32)
        logits = built.engine.logits(
            (game.shared + torch.from_numpy(offset))[None], game.statistics[None], game.images
        )[0]
        losses = []
        for output, label in zip(logits.double().numpy(), game.labels.tolist(), strict=True):
            top = output.max()
            loss = top + log(sum(exp(z - top) for z in output)) - output[label]
            losses.append(min(loss, 2 * log(10)))
        assert value == pytest.approx(-np.mean(losses), abs=1e-5)


def test_a_blown_up_coalition_is_worth_the_cap_and_not_nan(federation):
    game = game_of(federation())
    broken = replace(game, updates=game.updates * 1e38)
    values = broken.values(torch.ones(1, 10, dtype=torch.bool))
    assert -2 * log(10) - 1e-9 <= values.item() < 0
    for name in ("surrogate", "permutation"):
        assert make_shapley(name)(broken, generator()).isfinite().all()


@pytest.mark.parametrize("name", shapley_names())
def test_clients_that_send_the_same_are_worth_the_same(federation, name):
    game = game_of(federation(), clients=5)
    game.updates[3], game.clip[3] = game.updates[1], game.clip[1]
    values = make_shapley(name)(game, generator())
    assert values.shape == (5,)
    assert values.dtype == torch.float64
    tolerance = 0.2 * float(values.abs().max()) if name == "permutation" else 1e-6
    assert values[3].item() == pytest.approx(values[1].item(), abs=tolerance)


def test_the_surrogate_shares_out_the_whole_gain(federation):
    game = game_of(federation(Scenario("sign_flip", 0.3)))
    everybody, nobody = game.values(torch.tensor([[True], [False]]).expand(2, 10))
    total = make_shapley("surrogate")(game, generator()).sum()
    assert total.item() == pytest.approx((everybody - nobody).item(), abs=1e-6)


@pytest.mark.parametrize("clients", [1, 2])
def test_the_surrogate_is_exact_for_two_clients_and_for_one(federation, clients):
    # Nobody, each alone and everybody are all the coalitions there are.
    game = game_of(federation(Scenario("sign_flip", 0.3)), clients)
    exact, estimate = (make_shapley(name)(game, generator()) for name in ("exact", "surrogate"))
    torch.testing.assert_close(estimate, exact, atol=1e-6, rtol=0)


def test_no_more_models_are_made_at_once_than_have_so_many_parameters_together(federation, monkeypatch):
    game = game_of(federation())
    whole = make_shapley("surrogate")(game, generator())
    monkeypatch.setattr(shapley, "_PARAMETERS_AT_ONCE", 3 * len(game.shared))
    assert [len(piece) for piece in game.pieces(game.updates)] == [3, 3, 3, 1]
    torch.testing.assert_close(make_shapley("surrogate")(game, generator()), whole, atol=1e-6, rtol=0)


def test_the_surrogate_ranks_the_clients_of_real_rounds_as_the_exact_values_do(federation):
    correlations = []
    for entropy, attack in enumerate(["none", "sign_flip", "gaussian_noise", "label_flip"]):
        built = federation(Scenario(attack, 0.3 if attack != "none" else 0.0, alpha=0.5), entropy=entropy)
        for _ in range(3):
            game = game_of(built)
            exact, estimate = (make_shapley(name)(game, generator()) for name in ("exact", "surrogate"))
            correlations.append(spearmanr(exact, estimate).statistic)
            built.apply(game.mean_update)
    assert np.mean(correlations) >= 0.93, correlations
    assert min(correlations) > 0.75, correlations


def test_attackers_that_reverse_their_updates_are_worth_less_than_the_honest(federation):
    built = federation(Scenario("sign_flip", 0.3, attack_options={"scale": 5.0}))
    values = make_shapley("exact")(game_of(built), generator())
    assert values[built.malicious].max() < values[~built.malicious].min()


def test_an_unknown_estimator_lists_the_names():
    with pytest.raises(ValueError, match="unknown Shapley estimator 'guess'; there are: surrogate, permutation, exact"):
        make_shapley("guess")
