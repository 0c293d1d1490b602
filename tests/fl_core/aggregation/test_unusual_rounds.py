"""Rules by statistics, clusters, history, root data or learned weights, in rounds that nobody planned for."""

import copy
import pickle

import pytest
import torch

from fl_core.aggregation import ServerView, make_rule

NAMES = [
    "signguard",
    "lasa",
    "alignins",
    "flame",
    "rflbat",
    "foolsgold",
    "fldetector",
    "flguard",
    "best_of_k",
    "foundationfl",
    "fedgreed",
    "root_cosine",
    "logistic",
    "feature_weights",
]


def rounds(n: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed)) + 0.3


def with_row(value: float) -> torch.Tensor:
    updates = rounds(9, 24)
    updates[3] = value
    return updates


UNUSUAL = {
    "one client": rounds(1, 24),
    "two clients": rounds(2, 24),
    "one parameter": rounds(9, 1),
    "one client, one parameter": rounds(1, 1),
    "equal rows": rounds(1, 24).repeat(6, 1),
    "two kinds of equal rows": rounds(2, 24).repeat_interleave(3, dim=0),
    "zeros": torch.zeros(6, 24),
    "huge": with_row(1e30),
    "huge negative": with_row(-1e30),
    "nearly the largest": with_row(torch.finfo(torch.float32).max / 64),
}


@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.parametrize("name", NAMES)
def test_the_result_is_finite_and_its_shares_sum_to_one_round_after_round(name, kind, view):
    updates = UNUSUAL[kind].clone()
    rule = make_rule(name, **({"window": 2} if name == "fldetector" else {}))
    for _ in range(6):
        before = updates.clone()
        result = rule(view(updates))
        assert result.update.shape == (updates.shape[1],)
        assert result.update.isfinite().all()
        assert torch.equal(updates, before)
        if result.weights is not None:
            assert (result.weights >= 0).all()
            assert float(result.weights.sum()) + result.root_weight == pytest.approx(1, abs=1e-5)


KEEPS_A_HUGE_ROW_OUT = [name for name in NAMES if name not in ("foolsgold", "fldetector")]


@pytest.mark.parametrize("name", KEEPS_A_HUGE_ROW_OUT)
def test_one_client_with_huge_finite_numbers_does_not_carry_the_model_away(name, view):
    updates = UNUSUAL["huge"]
    seen = view(updates)
    longest = max(float(updates[torch.arange(9) != 3].norm(dim=1).max()), float(seen.reference.norm()))
    assert float(make_rule(name)(seen).update.norm()) <= 1.01 * longest


@pytest.mark.parametrize("name", NAMES)
def test_equal_rules_give_equal_results_and_so_do_their_copies(name, view):
    seen = view(rounds(8, 30))
    rule = make_rule(name)
    copies = [make_rule(name), copy.deepcopy(rule), pickle.loads(pickle.dumps(rule))]
    expected = rule(seen).update
    assert all(torch.equal(other(seen).update, expected) for other in copies)


@pytest.mark.parametrize("name", ["best_of_k", "fedgreed", "root_cosine", "logistic", "feature_weights"])
def test_a_rule_that_leans_on_root_data_says_so(name):
    assert make_rule(name).needs_root


@pytest.mark.parametrize(
    "name", ["signguard", "lasa", "alignins", "flame", "rflbat", "foolsgold", "fldetector", "flguard", "foundationfl"]
)
def test_the_others_need_neither_root_data_nor_a_global_model(name):
    assert not make_rule(name).needs_root
    assert make_rule(name)(ServerView(rounds(7, 20))).update.isfinite().all()
