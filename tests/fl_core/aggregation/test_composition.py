"""Rules behind pre-aggregations: names, options, weights, and what each step does."""

from math import nan

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.aggregation import (
    Composed,
    ServerView,
    make_rule,
    preaggregation_names,
    rule_names,
    takes_num_byzantine,
)
from fl_core.aggregation.preaggregation import AdaptiveRobustClipping, Bucketing, Clipping, NearestNeighbourMixing

quick = settings(max_examples=30)


def draw(n: int, size: int, seed: int) -> torch.Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed))


def test_parts_are_applied_from_left_to_right():
    rule = make_rule("clipping+nnm+krum", num_byzantine=2, norm=3.0)
    assert rule == Composed(Clipping(3.0), Composed(NearestNeighbourMixing(2), make_rule("krum", num_byzantine=2)))


def test_the_number_of_attackers_reaches_every_part_that_takes_it_and_no_other():
    assert make_rule("arc+median", num_byzantine=2) == Composed(AdaptiveRobustClipping(2), make_rule("median"))
    rule = make_rule("clipping+trimmed_mean", num_byzantine=2)
    assert (rule.step.norm, rule.rule.num_byzantine) == (None, 2)
    assert [takes_num_byzantine(name) for name in ("nnm+median", "clipping+krum", "bucketing+median")] == [1, 1, 0]


def test_an_option_that_two_parts_take_is_refused_and_named():
    with pytest.raises(ValueError, match=r"'seed' is ambiguous in 'bucketing\+dnc': bucketing and dnc take it"):
        make_rule("bucketing+dnc", seed=1)


def test_an_option_that_no_part_takes_is_refused_with_those_that_are_taken():
    with pytest.raises(ValueError, match=r"no part of 'nnm\+median' takes 'bucket'; taken are: num_byzantine"):
        make_rule("nnm+median", bucket=2)
    with pytest.raises(ValueError, match=r"no part of 'clipping\+median' takes 'num_byzantine'"):
        make_rule("clipping+median", num_byzantine=2)


@pytest.mark.parametrize("name", ["mixing+median", "krum+median", "+median", "nnm++median"])
def test_an_unknown_step_lists_the_steps(name):
    with pytest.raises(ValueError, match=f"unknown pre-aggregation .*there are: {', '.join(preaggregation_names())}"):
        make_rule(name)


@pytest.mark.parametrize("name", ["nnm+medain", "nnm+"])
def test_an_unknown_rule_behind_a_step_lists_the_rules(name):
    with pytest.raises(ValueError, match=f"unknown aggregation rule .*there are: {', '.join(rule_names())}"):
        make_rule(name)


@pytest.mark.parametrize("name", ["nnm", "clipping+nnm"])
def test_a_step_without_a_rule_says_what_is_missing(name):
    with pytest.raises(ValueError, match=r"'nnm' in .* is a pre-aggregation: put a rule behind it"):
        make_rule(name)


def test_a_composed_rule_needs_root_data_when_its_rule_does_and_says_its_name():
    assert make_rule("nnm+fltrust").needs_root
    assert not make_rule("nnm+krum").needs_root
    with pytest.raises(ValueError, match=r"NearestNeighbourMixing\+FLTrust needs root data"):
        make_rule("nnm+fltrust")(ServerView(draw(5, 4, 0)))


def test_a_composed_rule_resets_the_memory_of_its_rule():
    rule = make_rule("nnm+centered_clipping", radius=1.0)
    first = rule(ServerView(draw(5, 4, 0))).update
    assert not torch.equal(rule(ServerView(draw(5, 4, 0))).update, first)
    rule.reset()
    assert torch.equal(rule(ServerView(draw(5, 4, 0))).update, first)


@pytest.mark.parametrize("name", ["nnm+fedavg", "nnm+krum", "nnm+geometric_median", "bucketing+krum", "nnm+nnm+caf"])
@quick
@given(n=st.integers(6, 12), seed=st.integers(0, 2**31))
def test_weights_are_told_in_terms_of_the_clients(name, n, seed):
    updates = draw(n, 8, seed)
    updates[2, 3] = nan
    result = make_rule(name)(ServerView(updates))
    assert result.weights[2] == 0
    torch.testing.assert_close(result.weights @ updates.nan_to_num(), result.update, atol=1e-5, rtol=1e-4)


def test_nnm_by_hand():
    updates = torch.tensor([[0.0], [1.0], [10.0], [11.0], [30.0]])
    mixed = NearestNeighbourMixing(2).mix(ServerView(updates))
    # Three nearest: 0,1,10 | 0,1,10 | 1,10,11 (9, 0, 1 away) | 1,10,11 | 10,11,30
    torch.testing.assert_close(mixed.updates.flatten(), torch.tensor([11 / 3, 11 / 3, 22 / 3, 22 / 3, 17.0]))


def test_without_attackers_nnm_makes_every_rule_the_mean():
    updates = draw(7, 5, 0)
    for name in ("nnm+krum", "nnm+median", "nnm+bulyan", "nnm+geometric_median"):
        result = make_rule(name, num_byzantine=0)(ServerView(updates))
        torch.testing.assert_close(result.update, updates.mean(dim=0))


def test_bucketing_uses_every_client_once_and_another_order_each_round():
    updates = draw(7, 5, 0)
    rounds = [Bucketing(bucket=3).mix(ServerView(updates, round=number)) for number in (0, 0, 1)]
    for mixed in rounds:
        assert mixed.updates.shape == (3, 5)
        assert sorted((mixed.mixing > 0).sum(dim=1).tolist()) == [1, 3, 3]
        assert (mixed.mixing > 0).sum(dim=0).tolist() == [1] * 7
        torch.testing.assert_close(mixed.mixing @ updates, mixed.updates)
    assert torch.equal(rounds[0].mixing, rounds[1].mixing)
    assert not torch.equal(rounds[0].mixing, rounds[2].mixing)


def test_buckets_are_the_clients_of_the_bound():
    with pytest.raises(ValueError, match=r"krum needs n >= 2f \+ 3; got n=5, f=num_byzantine=2"):
        make_rule("bucketing+krum", num_byzantine=2)(ServerView(draw(10, 4, 0)))


def test_clipping_by_hand():
    updates = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, -20.0]])
    static, median = (Clipping(norm).mix(ServerView(updates)).updates for norm in (2.0, None))
    torch.testing.assert_close(static, torch.tensor([[1.2, 1.6], [0.0, 1.0], [0.0, -2.0]]))
    torch.testing.assert_close(median, torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, -5.0]]))


@pytest.mark.parametrize(("n", "f", "cut"), [(10, 3, 4), (10, 1, 1), (10, 0, 0), (5, 2, 2), (11, 5, 5), (3, 1, 1)])
def test_arc_cuts_the_k_longest_to_the_next_longest(n, f, cut):
    lengths = torch.arange(1.0, n + 1)
    updates = torch.zeros(n, 2)
    updates[:, 0] = lengths
    expected = lengths.clamp_max(n - cut)
    torch.testing.assert_close(AdaptiveRobustClipping(f).mix(ServerView(updates)).updates[:, 0], expected)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Bucketing(bucket=0), "bucket must be at least 1, got 0"),
        (lambda: Clipping(norm=-1.0), "norm must be above 0 and finite, or None for the round's median; got -1.0"),
        (lambda: make_rule("nnm+median", num_byzantine=4)(ServerView(draw(8, 2, 0))), r"nnm needs n >= 2f \+ 1"),
        (lambda: make_rule("arc+median", num_byzantine=4)(ServerView(draw(8, 2, 0))), r"arc needs n >= 2f \+ 1"),
        (lambda: Composed(make_rule("krum"), make_rule("krum")), "Composed takes a pre-aggregation and a rule"),
    ],
)
def test_wrong_parameters_are_refused_with_their_bound(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_nnm_brings_the_honest_updates_together_and_keeps_a_far_attacker_out():
    updates = draw(10, 20, 0)
    updates[:3] += 100
    honest = updates[3:]
    mixed = NearestNeighbourMixing(3).mix(ServerView(updates)).updates[3:]
    spread = float((honest - honest.mean(dim=0)).norm(dim=1).min())
    assert float((mixed - honest.mean(dim=0)).norm(dim=1).max()) < 1e-3 * spread


@pytest.mark.parametrize("rule", ["foolsgold", "fldetector"])
def test_a_rule_that_remembers_clients_stands_behind_steps_that_keep_them_apart(rule):
    for step in ("nnm", "clipping", "arc"):
        assert make_rule(f"{step}+{rule}").by_client
    for name in (f"bucketing+{rule}", f"bucketing+nnm+{rule}"):
        with pytest.raises(ValueError, match="remembers clients, and Bucketing mixes them anew"):
            make_rule(name)
    with pytest.raises(ValueError, match="BestOfK remembers clients, and Bucketing"):
        make_rule("bucketing+best_of_k", rules=("fedavg", rule))
