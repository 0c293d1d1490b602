"""Root data, rejected clients and names: what rules do at the edges."""

from math import inf, nan

import pytest
import torch

from fl_core.aggregation import ReferenceRule, ServerView, make_rule, rule_names

P = 12


def rows(n: int, seed: int, size: int = P) -> torch.Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed)) + 0.3


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


BOUNDED = [
    *("median", "trimmed_mean", "mean_around_median", "sign_majority", "krum", "multi_krum", "bulyan", "monna", "mda"),
    *("geometric_median", "centered_clipping", "norm_bounding", "dnc", "caf", "fltrust", "root_only", "shapley"),
    *("nnm+krum", "clipping+fedavg", "arc+fedavg", "bucketing+median"),
]


@pytest.mark.parametrize("name", BOUNDED)
def test_a_defence_stays_finite_and_bounded_when_one_client_sends_huge_finite_numbers(name, view):
    updates = rows(9, 2)
    updates[4] = 1e30
    seen = view(updates, reference=rows(1, 3)[0])
    others = updates[torch.arange(9) != 4]
    longest = max(float(others.norm(dim=1).max()), float(seen.reference.norm()))
    assert float(make_rule(name)(seen).update.norm()) <= longest * 1.0001


TOLD = {
    **{"krum": 3, "multi_krum": 3, "bulyan": 1, "trimmed_mean": 4, "mean_around_median": 4, "mda": 4, "caf": 4},
    **{"monna": 4, "dnc": 4, "nnm+krum": 3, "arc+bulyan": 1, "clipping+nnm+trimmed_mean": 4, "bucketing+median": None},
}


@pytest.mark.parametrize("name", list(TOLD))
def test_a_client_that_sends_nan_does_not_stop_the_round_of_a_rule_that_was_told_f(name, view):
    # As many of n = 9 as the bounds allow; these Byzantine clients then send NaN.
    f = TOLD[name]
    updates = rows(9, 0)
    rule = make_rule(name, **({} if f is None else {"num_byzantine": f}))
    rule(view(updates))
    updates[: f or 3] = nan
    assert rule(view(updates)).update.isfinite().all()


def test_an_unknown_rule_lists_the_names():
    with pytest.raises(ValueError, match=f"unknown aggregation rule 'fedblock'; there are: {', '.join(rule_names())}"):
        make_rule("fedblock")


@pytest.mark.parametrize("name", ["nnm+oracle", "clipping+nnm+anchored_oracle"])
def test_an_oracle_is_no_part_of_another_rule(name):
    with pytest.raises(ValueError, match=r"racle needs the truth, which no server view holds"):
        make_rule(name)


def test_the_only_rules_that_need_the_truth_are_the_oracles():
    assert {name for name in rule_names() if isinstance(make_rule(name), ReferenceRule)} == {
        "oracle",
        "anchored_oracle",
    }
