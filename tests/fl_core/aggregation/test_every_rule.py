"""What holds for every registered rule, and for rules behind pre-aggregations, on the views of a digits federation."""

import copy
import pickle
import re
from math import inf, nan

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fl_core.aggregation import Aggregate, ReferenceRule, ServerView, make_rule, rule_names

SIMPLE = [name for name in rule_names() if not isinstance(make_rule(name), ReferenceRule)]
COMPOSED = ["nnm+trimmed_mean", "clipping+nnm+krum", "arc+median", "bucketing+geometric_median", "nnm+shapley"]
EVERY = [*SIMPLE, *COMPOSED]
# Moving all updates, and the server's own, by a vector moves the result by it.
TRANSLATED = [
    *("fedavg", "median", "trimmed_mean", "mean_around_median", "krum", "multi_krum", "bulyan", "monna", "mda"),
    *("geometric_median", "rfa", "dnc", "caf", "nnm+trimmed_mean", "bucketing+geometric_median"),
]
# A random order of the clients is part of the algorithm: equivariant in distribution only.
DRAWS_AN_ORDER = {"bucketing+geometric_median"}
# Of few clients NNM makes pairs of equal rows, and Krum's scores tie: there is no right answer.
TIES_BELOW = {"clipping+nnm+krum": 7}
# Its result is a step of one length in all coordinates.
NEVER_A_MEAN = {"sign_majority"}
# What these do even to updates that all agree: noise, and the smallest entries cut away.
UNCHANGED = {"flame": {"noise": 0.0}, "lasa": {"sparsity": 0.0}}

several = settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 2**31)


@pytest.fixture
def rows(digits_view):
    """Random updates of the federation's length: ``rows(n, seed)``."""
    size = digits_view.updates.shape[1]

    def draw(n: int, seed: int) -> Tensor:
        return torch.randn(n, size, generator=torch.Generator().manual_seed(seed)) + 0.3

    return draw


def exact(values: Tensor) -> Tensor:
    return (values * 1024).round() / 1024


def assert_shares(result: Aggregate, n: int) -> None:
    if result.weights is not None:
        assert result.weights.shape == (n,)
        assert (result.weights >= 0).all()
        assert float(result.weights.sum()) + result.root_weight == pytest.approx(1, abs=1e-5)


def assert_same(one: Aggregate, other: Aggregate) -> None:
    """Bit for bit."""
    assert torch.equal(one.update, other.update)
    assert one.root_weight == other.root_weight
    assert (one.weights is None) == (other.weights is None)
    assert one.weights is None or torch.equal(one.weights, other.weights)


def needs_more(name: str, view: ServerView) -> bool:
    """Whether the rule refuses so few clients, quoting its bound."""
    try:
        make_rule(name)(view)
    except ValueError as error:
        assert re.search(r"needs n >=? ?\d|needs at least|at least \d", str(error)), error
        return True
    return False


@pytest.mark.parametrize("name", [name for name in EVERY if name not in DRAWS_AN_ORDER])
@several
@given(n=st.integers(3, 12), seed=seeds, data=st.data())
def test_the_order_of_the_clients_does_not_matter(name, seen, rows, n, seed, data):
    assume(n >= TIES_BELOW.get(name, 3))
    order = torch.tensor(data.draw(st.permutations(range(n))))
    updates = rows(n, seed)
    one, other = make_rule(name)(seen(updates)), make_rule(name)(seen(updates[order], clients=order))
    torch.testing.assert_close(one.update, other.update, atol=1e-4, rtol=1e-4)
    assert one.root_weight == pytest.approx(other.root_weight, abs=1e-5)
    assert (one.weights is None) == (other.weights is None)
    if one.weights is not None:
        torch.testing.assert_close(one.weights[order], other.weights, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", TRANSLATED)
@several
@given(n=st.integers(3, 12), seed=seeds, length=st.sampled_from([0.1, 1.0, 30.0]))
def test_moving_all_updates_moves_the_result(name, seen, rows, n, seed, length):
    # Multiples of 2^-10, whose sums float32 holds exactly: else a rounding would decide who is nearest.
    updates, move = exact(rows(n, seed)), exact(length * rows(1, seed + 1)[0])
    reference = exact(rows(1, seed + 2)[0])
    one = make_rule(name)(seen(updates, reference=reference))
    other = make_rule(name)(seen(updates + move, reference=reference + move))
    torch.testing.assert_close(other.update, one.update + move, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", EVERY)
@several
@given(
    n=st.integers(4, 9),
    bad=st.lists(st.tuples(st.integers(0, 1000), st.sampled_from([nan, inf, -inf])), min_size=1, max_size=4),
    seed=seeds,
    data=st.data(),
)
def test_a_client_with_a_non_finite_update_gets_no_weight_and_changes_nothing(name, seen, rows, n, bad, seed, data):
    good, broken = rows(n, seed), rows(len(bad), seed + 1)
    for row, (place, value) in zip(broken, bad, strict=True):
        row[place] = value
    order = torch.tensor(data.draw(st.permutations(range(n + len(bad)))))
    rejected, kept = order >= n, order[order < n]
    alone = make_rule(name)(seen(good[kept], clients=kept))
    together = make_rule(name)(seen(torch.cat([good, broken])[order], clients=order))
    torch.testing.assert_close(together.update, alone.update, atol=1e-5, rtol=1e-4)
    assert together.root_weight == pytest.approx(alone.root_weight, abs=1e-5)
    if alone.weights is not None:
        assert (together.weights[rejected] == 0).all()
        torch.testing.assert_close(together.weights[~rejected], alone.weights, atol=1e-5, rtol=1e-4)
    assert_shares(together, n + len(bad))


@pytest.mark.parametrize("name", EVERY)
@several
@given(
    n=st.integers(3, 9),
    seed=seeds,
    spoiled=st.sampled_from(["huge", "zero", "equal", "tiny", "opposite", "none"]),
    data=st.data(),
)
def test_finite_updates_make_a_finite_result_and_shares_of_sum_one(name, seen, rows, n, seed, spoiled, data):
    updates = rows(n, seed)
    some = data.draw(st.integers(1, n))
    match spoiled:
        case "huge":
            updates[:some] *= 1e30
        case "zero":
            updates[:some] = 0
        case "equal":
            updates[:] = updates[0]
        case "tiny":
            updates[:some] *= 1e-30
        case "opposite":
            updates[:some] = -updates[-1]
    result = make_rule(name)(seen(updates))
    assert result.update.isfinite().all()
    assert_shares(result, n)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_clients_give_a_finite_result_or_an_error_that_quotes_the_bound(name, n, seen, rows):
    view = seen(rows(n, 0))
    if not needs_more(name, view):
        result = make_rule(name)(view)
        assert result.update.isfinite().all()
        assert_shares(result, n)


@pytest.mark.parametrize("name", [name for name in EVERY if not make_rule(name).needs_root])
@pytest.mark.parametrize("n", [1, 3, 7, 10])
def test_a_single_parameter_is_enough(name, n):
    view = ServerView(torch.randn(n, 1, generator=torch.Generator().manual_seed(n)))
    if not needs_more(name, view):
        assert make_rule(name)(view).update.isfinite().all()


@pytest.mark.parametrize("name", EVERY)
def test_when_all_are_rejected_the_reference_is_used(name, seen, rows):
    view = seen(torch.full_like(rows(4, 0), nan))
    result = make_rule(name)(view)
    assert torch.equal(result.update, view.reference)
    assert result.weights.tolist() == [0, 0, 0, 0]
    assert result.root_weight == 1


@pytest.mark.parametrize("name", EVERY)
def test_nothing_that_a_rule_is_given_is_edited(name, seen, rows):
    view = seen(rows(9, 1) * torch.arange(1.0, 10)[:, None])
    before = [part.clone() for part in (view.updates, view.reference, view.global_model, view.server_local)]
    rule = make_rule(name)
    for _ in range(2):  # the second time with a memory, where there is one
        rule(view)
    for part, old in zip((view.updates, view.reference, view.global_model, view.server_local), before, strict=True):
        assert torch.equal(part, old)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in NEVER_A_MEAN])
def test_the_result_is_what_the_clients_and_the_server_agree_on(name, seen, rows):
    common = rows(1, 5)
    rule = make_rule(name, **UNCHANGED.get(name, {}))
    result = rule(seen(common.repeat(7, 1), reference=common[0]))
    torch.testing.assert_close(result.update, common[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_equal_rounds_give_equal_results_and_reset_forgets_them(name, seen, rows):
    rounds = [seen(rows(9, number), round=number) for number in range(3)]
    rule = make_rule(name)
    rule.reset()
    first = [rule(view) for view in rounds]
    rule.reset()
    for view, old in zip(rounds, first, strict=True):
        assert_same(rule(view), old)
    fresh = make_rule(name)
    for view, old in zip(rounds, first, strict=True):
        assert_same(fresh(view), old)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda rule: pickle.loads(pickle.dumps(rule))])
def test_a_copy_goes_on_by_itself_from_where_the_rule_was(name, copied, seen, rows):
    rounds = [seen(rows(9, number), round=number) for number in range(3)]
    rule = make_rule(name)
    rule(rounds[0])
    twin = copied(rule)
    for view in rounds[1:]:
        twin(view)  # first, so that a memory that is shared would show in the original
    again = copied(rule)
    for view in rounds[1:]:
        assert_same(again(view), rule(view))
