"""What holds for every rule."""

from math import inf, nan

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl_core.aggregation import Aggregate, ReferenceRule, ServerView, make_rule, rule_names

P = 12
several = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows(n: int, seed: int, size: int = P) -> torch.Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed)) + 0.3


def assert_shares(result: Aggregate, n: int) -> None:
    if result.weights is not None:
        assert result.weights.shape == (n,)
        assert (result.weights >= 0).all()
        assert float(result.weights.sum()) + result.root_weight == pytest.approx(1, abs=1e-5)


# From n = 4: with three clients Krum scores by one neighbour, and two that are each other's nearest tie.
@several
@given(n=st.integers(4, 12), seed=st.integers(0, 2**31), data=st.data())
def test_every_rule_is_equivariant_to_the_order_of_the_clients(rule, view, n, seed, data):
    order = torch.tensor(data.draw(st.permutations(range(n))))
    updates = rows(n, seed)
    one, other = rule(view(updates)), rule(view(updates[order]))
    torch.testing.assert_close(one.update, other.update, atol=1e-4, rtol=1e-4)
    assert (one.weights is None) == (other.weights is None)
    if one.weights is not None:
        torch.testing.assert_close(one.weights[order], other.weights, atol=1e-5, rtol=1e-4)


@several
@given(
    n=st.integers(3, 9),
    bad=st.lists(st.tuples(st.integers(0, P - 1), st.sampled_from([nan, inf, -inf])), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_a_client_with_a_non_finite_update_gets_no_weight_and_changes_nothing_for_the_others(
    rule, view, n, bad, seed, data
):
    good = rows(n, seed)
    broken = rows(len(bad), seed + 1)
    for row, (place, value) in zip(broken, bad, strict=True):
        row[place] = value
    order = torch.tensor(data.draw(st.permutations(range(n + len(bad)))))
    rejected = order >= n
    alone, together = rule(view(good[order[~rejected]])), rule(view(torch.cat([good, broken])[order]))
    torch.testing.assert_close(together.update, alone.update, atol=1e-5, rtol=1e-4)
    assert together.root_weight == pytest.approx(alone.root_weight, abs=1e-5)
    if alone.weights is not None:
        assert (together.weights[rejected] == 0).all()
        torch.testing.assert_close(together.weights[~rejected], alone.weights, atol=1e-5, rtol=1e-4)
    assert_shares(together, n + len(bad))


@several
@given(n=st.integers(3, 12), seed=st.integers(0, 2**31))
def test_shares_of_clients_and_root_sum_to_one(rule, view, n, seed):
    assert_shares(rule(view(rows(n, seed))), n)


def test_when_all_are_rejected_the_reference_is_used(rule, view):
    seen = view(torch.full((4, P), nan))
    result = rule(seen)
    assert torch.equal(result.update, seen.reference)
    assert result.weights.tolist() == [0, 0, 0, 0]
    assert result.root_weight == 1


@pytest.mark.parametrize("name", ["fedavg", "median", "trimmed_mean", "krum"])
def test_when_all_are_rejected_and_there_is_no_root_data_the_model_stays(name):
    result = make_rule(name)(ServerView(torch.full((4, P), inf)))
    assert torch.equal(result.update, torch.zeros(P))
    assert result.weights.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("name", ["fltrust", "root_only", "shapley"])
def test_a_rule_that_leans_on_root_data_says_so_where_there_is_none(name):
    with pytest.raises(ValueError, match=r"needs root data.*reference"):
        make_rule(name)(ServerView(rows(5, 0)))
    assert make_rule(name).needs_root


@pytest.mark.parametrize("name", ["fedavg", "median", "trimmed_mean", "krum"])
def test_the_other_rules_run_without_root_data(name):
    assert not make_rule(name).needs_root
    assert make_rule(name)(ServerView(updates=rows(5, 0))).update.shape == (P,)


def test_no_rule_edits_what_it_is_given_or_hands_it_out(rule, view):
    seen = view(rows(6, 1))
    before = seen.updates.clone(), seen.reference.clone()
    rule(seen)
    assert torch.equal(seen.updates, before[0])
    assert torch.equal(seen.reference, before[1])


def test_every_rule_returns_what_the_clients_agree_on(rule, view):
    common = rows(1, 5)
    result = rule(view(common.repeat(7, 1), reference=common[0]))
    torch.testing.assert_close(result.update, common[0], atol=1e-5, rtol=1e-5)


def test_every_rule_survives_finite_updates_of_any_length_including_none(rule, view):
    updates = rows(9, 2)
    updates[0] = 0.0
    updates[1] *= 1e-30
    for length in (1e-3, 1.0, 100.0):
        result = rule(view(updates, reference=length * rows(1, 3)[0]))
        assert result.update.isfinite().all()


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum", "fltrust", "root_only", "shapley"])
def test_a_defence_stays_finite_and_bounded_when_one_client_sends_huge_finite_numbers(name, view):
    updates = rows(9, 2)
    updates[4] = 1e30
    seen = view(updates, reference=rows(1, 3)[0])
    others = updates[torch.arange(9) != 4]
    longest = max(float(others.norm(dim=1).max()), float(seen.reference.norm()))
    assert float(make_rule(name)(seen).update.norm()) <= longest


@pytest.mark.parametrize("name", ["krum", "trimmed_mean"])
def test_a_client_that_sends_nan_does_not_stop_the_round_of_a_rule_that_was_told_f(name):
    # f = 3 of n = 9 is what both bounds allow; the three Byzantine clients then send NaN.
    f = {"krum": 3, "trimmed_mean": 4}[name]
    updates = rows(9, 0)
    rule = make_rule(name, num_byzantine=f)
    rule(ServerView(updates))
    updates[:f] = nan
    assert rule(ServerView(updates)).update.isfinite().all()


def test_an_unknown_rule_lists_the_names():
    with pytest.raises(ValueError, match=f"unknown aggregation rule 'bulyan'; there are: {', '.join(rule_names())}"):
        make_rule("bulyan")


def test_the_only_rules_that_need_the_truth_are_the_oracles():
    assert {name for name in rule_names() if isinstance(make_rule(name), ReferenceRule)} == {
        "oracle",
        "anchored_oracle",
    }
