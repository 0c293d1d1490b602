from math import inf, nan

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fl_core.aggregation import GivenTrust, ServerView, TrustWeighting, make_rule
from fl_core.aggregation import trust as trust_module
from fl_core.aggregation.trust import CLIPS

quick = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(
    trust=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=10),
    anchor=st.floats(0.01, 10),
    clip=st.sampled_from(CLIPS),
    seed=st.integers(0, 2**31),
)
def test_the_aggregate_is_the_weighted_sum_of_clipped_updates_and_the_reference(view, trust, anchor, clip, seed):
    rng = np.random.default_rng(seed)
    updates = rng.standard_normal((len(trust), 15)) * rng.uniform(0.1, 10, (len(trust), 1))
    reference = rng.standard_normal(15)
    weighting = TrustWeighting(clip, anchor)
    seen = view(torch.from_numpy(updates).float(), torch.from_numpy(reference).float())
    result = GivenTrust(torch.tensor(trust), weighting)(seen)

    lengths = [float(np.sqrt(row @ row)) for row in updates]
    middle, own = np.median(lengths), np.sqrt(reference @ reference)
    limit = {"none": np.inf, "median": middle, "reference": own, "median_or_reference": max(middle, own)}[clip]
    total = sum(trust) + anchor
    expected = anchor / total * reference
    for row, length, t in zip(updates, lengths, trust, strict=True):
        expected = expected + t / total * row * min(1.0, limit / length)
    np.testing.assert_allclose(result.update.numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(result.weights.numpy(), np.array(trust) / total, atol=1e-6)
    assert float(result.weights.sum()) + result.root_weight == pytest.approx(1, abs=1e-5)


def test_without_anchor_and_without_trust_the_reference_is_used_alone(view, normal):
    seen = view(normal(4, 9))
    result = GivenTrust(torch.zeros(4), TrustWeighting(root_anchor=0))(seen)
    assert torch.equal(result.update, seen.reference)
    assert (result.weights.tolist(), result.root_weight) == ([0, 0, 0, 0], 1)


def test_without_anchor_the_reference_takes_no_part_once_there_is_any_trust(view, normal):
    seen = view(normal(4, 9))
    result = GivenTrust(torch.tensor([0.0, 1e-3, 0.0, 0.0]), TrustWeighting("none", root_anchor=0))(seen)
    torch.testing.assert_close(result.update, seen.updates[1])
    assert result.root_weight == 0


def test_an_anchor_of_one_counts_as_one_fully_trusted_client(view, normal):
    seen = view(normal(4, 9))
    result = GivenTrust(torch.ones(4), TrustWeighting("none"))(seen)
    torch.testing.assert_close(result.update, torch.cat([seen.updates, seen.reference[None]]).mean(dim=0))


def test_a_client_without_trust_has_no_influence_at_all_where_updates_are_not_clipped_to_a_median(view, normal):
    updates = normal(4, 9)
    reference = normal(9, seed=1)
    rule = GivenTrust(torch.tensor([1.0, 0.0, 1.0, 1.0]), TrustWeighting("reference"))
    before = rule(view(updates, reference)).update
    updates[1] *= -1e6
    torch.testing.assert_close(rule(view(updates, reference)).update, before)


def test_trust_of_rejected_clients_is_ignored(view, normal):
    updates = normal(4, 9)
    updates[2, 0] = float("nan")
    rule = GivenTrust(torch.tensor([0.5, 0.5, 100.0, 0.5]))
    result = rule(view(updates))
    assert result.weights.tolist() == pytest.approx([0.2, 0.2, 0, 0.2])
    assert result.root_weight == pytest.approx(0.4)


def test_weights_are_differentiable_in_the_trust_and_batched():
    trust = torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights, root = TrustWeighting().weights(trust)
    torch.testing.assert_close(weights.sum(dim=1) + root, torch.ones(3, dtype=torch.float64))
    assert torch.autograd.gradcheck(TrustWeighting().weights, trust)


def test_trust_for_another_number_of_clients_is_refused(view, normal):
    with pytest.raises(ValueError, match=r"trust of shape \(3,\) for 4 clients"):
        GivenTrust(torch.ones(3))(view(normal(4, 9)))


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), True, "1"])
@pytest.mark.parametrize("name", ["root_anchor", "safeguard_margin", "sybil_exponent", "sybil_power"])
def test_a_number_that_cannot_be_is_refused_with_its_value(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*got {value!r}"):
        TrustWeighting(**{name: value})


def discount_by_loops(updates: np.ndarray, exponent: float) -> np.ndarray:
    """What trust is multiplied by, from the definition, pair by pair."""
    mass = []
    for i, one in enumerate(updates):
        total = 1.0
        for j, other in enumerate(updates):
            lengths = np.linalg.norm(one) * np.linalg.norm(other)
            if i != j and lengths > 0:
                total += max(one @ other / lengths, 0) ** exponent
        mass.append(total)
    return np.minimum(1, np.median(mass) / np.array(mass))


@quick
@given(
    clients=st.integers(1, 9),
    sybils=st.integers(0, 4),
    exponent=st.floats(0.25, 8),
    zero=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_sybils_are_discounted_as_defined(view, clients, sybils, exponent, zero, seed):
    rng = np.random.default_rng(seed)
    updates = rng.standard_normal((clients, 15)) * rng.uniform(0.01, 100, (clients, 1)) + 0.5
    updates = np.concatenate([updates, np.repeat(updates[:1], sybils, axis=0)])
    updates[0] *= not zero
    updates = updates.astype(np.float32)
    trust = rng.uniform(0.1, 1, len(updates)).astype(np.float32)
    expected = discount_by_loops(updates.astype(np.float64), exponent)
    seen = view(torch.from_numpy(updates))
    weighting = TrustWeighting("none", sybil_exponent=exponent)
    np.testing.assert_allclose(weighting.discount(seen.accepted).numpy(), expected, rtol=1e-5)
    result = GivenTrust(torch.from_numpy(trust), weighting)(seen)
    without = GivenTrust(torch.from_numpy(trust * expected.astype(np.float32)), TrustWeighting("none"))(seen)
    torch.testing.assert_close(result.update, without.update)
    torch.testing.assert_close(result.weights, without.weights)
    assert result.root_weight == pytest.approx(without.root_weight)


def test_copies_of_one_update_weigh_little_more_than_one_among_clients_who_differ(normal):
    honest, copies = normal(14, 4000), normal(1, 4000, seed=1).expand(6, -1)
    discount = TrustWeighting(sybil_exponent=2).discount(torch.cat([honest, copies]))
    assert discount[14:].sum() == pytest.approx(1, abs=0.05)
    assert discount[:14].min() > 0.98


def test_noise_that_sybils_add_buys_weight_back_by_degrees(normal):
    honest, copies = normal(14, 4000), normal(1, 4000, seed=1).expand(6, -1)

    def discounted(noise: float) -> float:
        noisy = copies + noise * normal(6, 4000, seed=2)
        return float(TrustWeighting(sybil_exponent=2).discount(torch.cat([honest, noisy]))[14:].sum())

    by_noise = [discounted(noise) for noise in (0, 0.5, 1, 2)]
    assert by_noise == sorted(by_noise)
    assert by_noise[2] == pytest.approx(6 / 2.25, abs=0.1)  # cosines of 0.5
    assert by_noise[-1] - by_noise[0] > 3


def test_clients_who_are_all_alike_lose_nothing(view, normal):
    trust = torch.rand(5, generator=torch.Generator().manual_seed(0))
    seen = view(normal(1, 9).expand(5, -1).clone())
    plain, counted = (GivenTrust(trust, TrustWeighting(sybil_exponent=exponent))(seen) for exponent in (0, 2))
    torch.testing.assert_close(counted.update, plain.update)
    torch.testing.assert_close(counted.weights, plain.weights)


def test_nobody_gains_by_others_being_sybils_and_a_majority_of_them_goes_unnoticed(normal):
    honest, copies = normal(4, 4000), normal(1, 4000, seed=1)
    few = TrustWeighting(sybil_exponent=2).discount(torch.cat([honest, copies.expand(3, -1)]))
    assert few.max() == 1
    many = TrustWeighting(sybil_exponent=2).discount(torch.cat([honest, copies.expand(6, -1)]))
    assert many.min() > 0.95  # the median client is one of them: discounting is no help against a majority


def test_rejected_clients_discount_nobody(view, normal):
    updates = normal(6, 9)
    updates[3:] = updates[2]
    broken = updates.clone()
    broken[5, 0] = float("inf")
    rule = GivenTrust(torch.ones(6), TrustWeighting(sybil_exponent=2))
    kept = GivenTrust(torch.ones(5), rule.weighting)(view(updates[:5]))
    torch.testing.assert_close(rule(view(broken)).weights[:5], kept.weights)
    assert rule.weighting.discount(updates[:0]).shape == (0,)


def test_the_safeguards_candidates_are_discounted_too(view, normal, monkeypatch):
    updates = torch.cat([normal(4, 15), normal(1, 15, seed=1).expand(3, -1)])
    weighting = TrustWeighting("none", safeguard=True, sybil_exponent=2)
    monkeypatch.setattr(trust_module, "_least", lambda losses, margin: 4)  # half of the weight is the clients'
    result = GivenTrust(torch.ones(7), weighting)(view(updates))
    discount = weighting.discount(updates)
    assert discount[4:].max() < 0.6
    torch.testing.assert_close(result.weights, 0.5 * discount / (discount.sum() + 1))
    assert result.root_weight == pytest.approx(1 - float(result.weights.sum()))


def test_a_majority_that_sends_next_to_nothing_shrinks_the_others_unless_the_reference_is_a_floor(view, normal):
    updates = torch.cat([2 * normal(4, 9), 1e-6 * normal(6, 9)])
    seen = view(updates)
    trust = torch.tensor([1.0] * 4 + [0.0] * 6)

    def clients_part(clip):
        result = GivenTrust(trust, TrustWeighting(clip))(seen)
        return float((result.update - result.root_weight * seen.reference).norm())

    assert clients_part("median") < 1e-4
    assert clients_part("median_or_reference") == pytest.approx(clients_part("reference"), rel=1e-6)
    assert clients_part("reference") > 0.1 * float(seen.reference.norm())


def test_an_unknown_clip_lists_the_names():
    with pytest.raises(ValueError, match=f"unknown update_clip 'mean'; there are: {', '.join(CLIPS)}$"):
        TrustWeighting(update_clip="mean")


def test_shapley_trust_is_the_positive_part_of_the_observed_shapley_value(view, normal):
    seen = view(normal(6, 9))
    values = np.tanh(seen.updates.double().numpy() @ seen.reference.double().numpy())
    assert (values < 0).any()
    assert (values > 0).any()
    weights = make_rule("shapley")(seen).weights.numpy()
    np.testing.assert_allclose(weights, np.maximum(values, 0) / (np.maximum(values, 0).sum() + 1), atol=1e-5)


def drawn(view, clients: int, seed: int):
    """Updates (N, 15), a reference (15,), and what a server sees of them."""
    rng = np.random.default_rng(seed)
    updates, reference = rng.standard_normal((clients, 15)), rng.standard_normal(15)
    return updates, reference, view(torch.from_numpy(updates).float(), torch.from_numpy(reference).float())


def losses_of(updates: np.ndarray) -> np.ndarray:
    """What the view of these tests loses on each of its samples, which are the parameters."""
    return np.minimum((updates - 0.3) ** 2, 9)


def candidates_of(updates: np.ndarray, reference: np.ndarray, trust: np.ndarray, anchor: float) -> np.ndarray:
    """The safeguard's nine, written out: each of two aggregates at four shares, and the reference."""
    helpful = np.tanh(updates @ reference) > 0
    rows = [
        kept * (each @ updates + anchor * reference) / (each.sum() + anchor) + (1 - kept) * reference
        for kept in (1, 0.75, 0.5, 0.25)
        for each in (trust, trust * helpful)
    ]
    return np.stack([*rows, reference])


@quick
@given(
    trust=st.lists(st.floats(0.0625, 1, width=32), min_size=1, max_size=10),
    anchor=st.floats(0.01, 10),
    seed=st.integers(0, 2**31),
)
def test_the_safeguard_takes_the_candidate_with_the_least_loss_on_root_data(view, trust, anchor, seed):
    updates, reference, seen = drawn(view, len(trust), seed)
    result = GivenTrust(torch.tensor(trust), TrustWeighting("none", anchor, True, safeguard_margin=0))(seen)

    losses = losses_of(candidates_of(updates, reference, np.array(trust), anchor)).mean(axis=1)
    found = losses_of(result.update.double().numpy()).mean()
    assert found == pytest.approx(losses.min(), abs=1e-5)
    assert float(result.weights.sum()) + result.root_weight == pytest.approx(1, abs=1e-5)
    expected = result.weights.double().numpy() @ updates + result.root_weight * reference
    np.testing.assert_allclose(result.update.numpy(), expected, atol=1e-4)


@quick
@given(
    trust=st.lists(st.floats(0.0625, 1, width=32), min_size=1, max_size=10),
    margin=st.floats(0, 5),
    seed=st.integers(0, 2**31),
)
def test_with_a_margin_only_what_is_clearly_better_than_trust_alone_is_taken(view, trust, margin, seed):
    updates, reference, seen = drawn(view, len(trust), seed)
    result = GivenTrust(torch.tensor(trust), TrustWeighting("none", safeguard=True, safeguard_margin=margin))(seen)

    losses = losses_of(candidates_of(updates, reference, np.array(trust), 1.0))
    gains = losses[0] - losses
    ratio = gains.mean(axis=1) / np.maximum(gains.std(axis=1) / 15**0.5, 1e-300)
    assume(np.abs(ratio - margin).min() > 1e-4 or margin == 0)
    allowed = [losses[0].mean(), *losses[ratio > margin].mean(axis=1)]
    assert losses_of(result.update.double().numpy()).mean() == pytest.approx(min(allowed), abs=1e-5)


@pytest.mark.parametrize(
    ("losses", "margin", "expected"),
    [
        ([[1, 1, 1, 1], [0, 0, 2, 1.2]], 0, 1),  # any gain
        ([[1, 1, 1, 1], [0, 0, 2, 1.2]], 0.5, 0),  # 0.2 on average, and half a standard error is 0.208
        ([[1, 1, 1, 1], [0, 0, 2, 1.2]], 0.45, 1),
        ([[1, 1, 1, 1], [0.9, 0.9, 0.9, 0.9], [0, 0, 2, 1.2]], 0.5, 1),  # the least loss is not clearly less
        ([[1, 1, 1, 1], [0.9, 0.9, 0.9, 0.9], [0, 0, 2, 1.2]], 0, 2),
        ([[1, 1], [1, 1], [1, 1]], 0, 0),  # of equals the first
        ([[1, 1], [2, 0], [0, 2]], 0, 0),
        ([[2, 2], [1, 1], [1, 1]], 3, 1),  # a gain without spread has any margin
        ([[1.0], [0.9]], 100, 1),  # one sample has no spread
    ],
)
def test_a_candidate_replaces_trust_alone_if_it_gains_more_than_the_margin(losses, margin, expected):
    assert trust_module._least(torch.tensor(losses, dtype=torch.float64), margin) == expected


def test_whoever_is_trusted_a_safeguarded_round_ends_no_worse_than_root_data_alone(digits_view, seen, normal):
    honest = digits_view.updates
    attacked = seen(torch.cat([honest[:2], -20 * honest[2:]]))
    trust = torch.tensor([0.0, 0.0, *[1.0] * 6])
    plain, guarded = (GivenTrust(trust, TrustWeighting("none", 1.0, on, 0))(attacked) for on in (False, True))
    losses = attacked.root_losses(torch.stack([guarded.update, attacked.reference, plain.update]))
    assert losses[0] <= losses[1] < losses[2]


def test_where_trust_alone_is_best_the_safeguard_changes_nothing(seen, digits_view):
    reference = torch.zeros_like(digits_view.reference)
    good = seen(digits_view.reference.expand(4, -1).clone(), reference=reference)
    plain, guarded = (GivenTrust(torch.ones(4), TrustWeighting(safeguard=on))(good) for on in (False, True))
    assert torch.equal(plain.weights, guarded.weights)
    torch.testing.assert_close(plain.update, guarded.update)


def test_without_trust_and_without_anchor_the_safeguard_has_the_reference_only(view, normal):
    reference = normal(9)
    seen = view(-reference.expand(3, -1), reference)  # nobody helps
    for trust in (torch.zeros(3), torch.ones(3)):
        result = GivenTrust(trust, TrustWeighting(root_anchor=0, safeguard=True))(seen)
        assert result.update.isfinite().all()
        assert float(result.weights.sum()) + result.root_weight == pytest.approx(1)


def test_the_safeguard_without_root_data_says_what_it_needs(normal):
    bare = ServerView(normal(4, 9), reference=normal(9))
    with pytest.raises(ValueError, match="needs root data: give ServerView a fingerprinter"):
        GivenTrust(torch.ones(4), TrustWeighting(safeguard=True))(bare)


def test_the_safeguarded_rules_trust_is_the_unsafeguarded_ones(view, normal):
    seen = view(normal(6, 9))
    assert torch.equal(make_rule("safeguarded_shapley").trust(seen), make_rule("shapley").trust(seen))
    losses = seen.root_losses(torch.stack([make_rule(n)(seen).update for n in ("safeguarded_shapley", "shapley")]))
    assert losses[0] <= losses[1]


@pytest.mark.parametrize("weighting", [TrustWeighting(), TrustWeighting(root_anchor=2), TrustWeighting(safeguard=True)])
def test_the_safeguarded_rule_has_the_safeguard_whatever_weighting_it_is_given(weighting):
    rule = make_rule("safeguarded_shapley", weighting=weighting)
    assert (rule.weighting.safeguard, rule.weighting.root_anchor) == (True, weighting.root_anchor)


def test_the_safeguard_leaves_rejected_clients_out(seen, digits_view):
    updates = digits_view.updates.clone()
    updates[3, 7] = float("inf")
    rule = GivenTrust(torch.ones(8), TrustWeighting(safeguard=True))
    result, without = rule(seen(updates)), seen(updates[torch.arange(8) != 3])
    assert result.weights[3] == 0
    torch.testing.assert_close(result.update, GivenTrust(torch.ones(7), rule.weighting)(without).update)
    nobody = rule(seen(torch.full_like(updates, float("nan"))))
    assert torch.equal(nobody.update, digits_view.reference)


def test_a_safeguard_that_is_neither_on_nor_off_is_refused():
    with pytest.raises(ValueError, match="safeguard must be true or false, got 'yes'"):
        TrustWeighting(safeguard="yes")


@pytest.mark.parametrize("value", [1e39, 1e7, float("inf"), -1.0])
def test_an_anchor_that_float32_does_not_hold_is_refused(value):
    with pytest.raises(ValueError, match=r"root_anchor must be a number from 0 to 1e\+06, got"):
        TrustWeighting(root_anchor=value)


@pytest.mark.parametrize("safeguard", [False, True])
@pytest.mark.parametrize(
    ("trust", "message"),
    [
        ([nan, 1, 1, 1], "0 or more and finite, got nan for 1 of 4 clients"),
        ([-1, -1, 0, 1], "0 or more and finite, got -1.0 for 2 of 4 clients"),
        ([inf, 1, 1, 1], "got inf for 1 of 4"),
        ([1, 1, 1], r"one value for each of 4 clients, got the shape \(3,\)"),
        ([[1], [1], [1], [1]], r"got the shape \(4, 1\)"),
    ],
)
def test_trust_that_would_turn_or_break_the_model_is_refused(view, normal, trust, message, safeguard):
    weighting = TrustWeighting(safeguard=safeguard)
    with pytest.raises(ValueError, match=message):
        weighting(view(normal(4, 9)), torch.tensor(trust, dtype=torch.float32))


def test_given_trust_must_be_a_tensor():
    with pytest.raises(ValueError, match="trust must be a tensor, one value a client, got list"):
        GivenTrust([1.0, 1.0])
