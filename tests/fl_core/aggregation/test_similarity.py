"""Similarity over rounds: its definition by loops, whose memory it is, and what it makes of attackers with one aim."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.deployed import TrustAggregator
from agents.trust_net import TrustNet
from fl_core.aggregation import (
    Composed,
    GivenTrust,
    SimilarityMemory,
    TrustWeighting,
    make_rule,
    rule_factory,
    rule_names,
)
from fl_core.aggregation.preaggregation import Bucketing
from fl_core.aggregation.similarity import trusted_median

REMEMBERS = TrustWeighting("none", sybil_exponent=1, sybil_power=4)
ROUNDS, HONEST, ATTACKERS, SIZE = 12, 14, 6, 2000


def relative_by_loops(updates: np.ndarray, trust: np.ndarray, exponent: float) -> np.ndarray:
    """Similarity mass over that of the median client by trust, from the definition, pair by pair."""
    mass = []
    for i, one in enumerate(updates):
        total = 1.0
        for j, other in enumerate(updates):
            if i != j:
                total += max(one @ other / np.linalg.norm(one) / np.linalg.norm(other), 0) ** exponent
        mass.append(total)
    for value in sorted(mass):
        if sum(t for c, t in zip(mass, trust, strict=True) if c <= value) >= trust.sum() / 2:
            return np.array(mass) / value
    raise AssertionError


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    exponent=st.floats(0.25, 4),
    power=st.floats(0.25, 8),
    rounds=st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=5),
    seed=st.integers(0, 2**31),
)
def test_a_discount_is_of_the_mean_over_the_rounds_that_a_client_took_part_in(view, exponent, power, rounds, seed):
    rng = np.random.default_rng(seed)
    weighting, memory = TrustWeighting("none", sybil_exponent=exponent, sybil_power=power), SimilarityMemory()
    past: dict[int, list[float]] = {}
    for present in map(sorted, rounds):
        sent = (rng.standard_normal((len(present), 15)) + 0.5).astype(np.float32)
        trust = rng.uniform(0.1, 1, len(present)).astype(np.float32)
        for client, value in zip(present, relative_by_loops(sent.astype(float), trust, exponent), strict=True):
            past.setdefault(client, []).append(value)
        seen = replace(view(torch.from_numpy(sent)), clients=torch.tensor(present))
        result = GivenTrust(torch.from_numpy(trust), weighting, memory)(seen)
        heard = [t * min(1, 1 / np.mean(past[c])) ** power for c, t in zip(present, trust, strict=True)]
        np.testing.assert_allclose(result.weights.numpy(), np.array(heard) / (sum(heard) + 1), rtol=1e-4)
    assert memory.means() == pytest.approx({client: np.mean(values) for client, values in past.items()}, rel=1e-5)


@pytest.mark.parametrize(
    ("trust", "expected"), [([1, 1, 1, 1, 1], 3), ([0, 0, 0, 1, 1], 4), ([9, 1, 1, 1, 1], 1), ([0, 0, 0, 0, 0], 3)]
)
def test_in_the_median_clients_count_by_their_trust(trust, expected):
    order = torch.tensor([3, 0, 4, 1, 2])
    values = torch.arange(1.0, 6.0, dtype=torch.float64)
    assert trusted_median(values[order], torch.tensor(trust, dtype=torch.float32)[order]) == expected


def rounds_with_one_aim(seed: int = 0) -> torch.Tensor:
    """Updates (rounds, clients, size): all noise, the last six with a little of one direction, the same in all rounds.

    So little that in some rounds an honest client is more alike to others than an attacker.
    """
    generator = torch.Generator().manual_seed(seed)
    updates = torch.randn(ROUNDS, HONEST + ATTACKERS, SIZE, generator=generator)
    common, aim = torch.randn(2, SIZE, generator=generator)
    updates += 0.1 * common + 0.6 * torch.rand(ROUNDS, HONEST + ATTACKERS, 1, generator=generator) * common
    updates[:, HONEST:] += 0.8 * aim
    return updates


def test_attackers_with_one_aim_are_heard_less_from_round_to_round_and_honest_clients_are_not(view):
    trust, sent = torch.ones(HONEST + ATTACKERS), rounds_with_one_aim()
    rule = GivenTrust(trust, replace(REMEMBERS, sybil_power=8))
    weights = torch.stack([rule(view(updates)).weights for updates in sent])
    once = GivenTrust(trust, TrustWeighting("none", sybil_exponent=1))
    alone = torch.stack([once(view(updates)).weights for updates in sent])
    overlaps = alone[:, HONEST:].amax(dim=1) > alone[:, :HONEST].amin(dim=1)
    assert overlaps.float().mean() > 0.5  # one round does not tell them apart
    assert weights[-1, HONEST:].max() < 0.5 * weights[-1, :HONEST].min()
    assert weights[-1, HONEST:].sum() < 0.5 * alone[-1, HONEST:].sum()


def test_attackers_that_resemble_nobody_do_not_make_the_honest_ones_suspect_unless_they_are_trusted(view, normal):
    honest, noise = 0.7 * normal(1, 2000) + normal(10, 2000, seed=1), normal(10, 2000, seed=2)
    seen = view(torch.cat([honest, noise]))
    weighting = replace(REMEMBERS, sybil_power=8)
    distrusted = torch.cat([torch.ones(10), torch.full((10,), 0.1)])
    assert (weighting.discounted(seen, distrusted)[:10] > 0.4).all()
    assert (weighting.discounted(seen, torch.ones(20))[:10] < 0.1).all()


def reads_trust(name: str) -> bool:
    """Whether the rule is trust with a weighting, and no reference that must be told the truth."""
    return "weighting" in getattr(rule_factory(name), "__dataclass_fields__", {}) and not name.endswith("oracle")


@pytest.mark.parametrize("name", [*filter(reads_trust, rule_names()), "policy"])
def test_every_rule_that_weighs_trust_remembers_until_it_is_reset(name, digits_view):
    size = digits_view.updates.shape[1]
    twins = torch.randn(8, size, generator=torch.Generator().manual_seed(0))
    twins[4:] = twins[4]
    seen = replace(digits_view, updates=0.01 * twins)

    def make():
        return TrustAggregator(TrustNet(), REMEMBERS) if name == "policy" else make_rule(name, weighting=REMEMBERS)

    rule, fresh = make(), make()
    assert rule.by_client
    first, _ = rule(digits_view), fresh(seen)
    assert not torch.equal(rule(digits_view).weights, fresh(digits_view).weights)  # it has not met the twins
    rule.reset()
    assert torch.equal(rule(digits_view).weights, first.weights)


def test_the_anchored_oracle_remembers_too(view, normal):
    told = make_rule("anchored_oracle", weighting=REMEMBERS).told(torch.tensor([False] * 5 + [True]))
    first = told(view(normal(6, 15)))
    told(view(normal(1, 15, seed=3).expand(6, -1) + 0.1 * normal(6, 15, seed=4)))
    assert not torch.equal(told(view(normal(6, 15))).weights, first.weights)
    told.reset()
    assert torch.equal(told(view(normal(6, 15))).weights, first.weights)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda rule: pickle.loads(pickle.dumps(rule))])
def test_what_a_copy_sees_the_rule_does_not_remember(copied, digits_view):
    rule, alone = (TrustAggregator(TrustNet(), REMEMBERS) for _ in range(2))
    alone.policy.load_state_dict(rule.policy.state_dict())
    for one in (rule, alone):
        one(digits_view)
    other = copied(rule)
    other(replace(digits_view, updates=digits_view.updates[:3].repeat(3, 1)[:8]))
    weights = rule(digits_view).weights
    assert torch.equal(weights, alone(digits_view).weights)
    assert not torch.equal(weights, other(digits_view).weights)


def test_rejected_clients_are_not_remembered_for_what_they_sent(view, normal):
    updates = normal(6, 15)
    broken = updates.clone()
    broken[5, 0] = float("nan")
    seen, kept = (GivenTrust(torch.ones(count), REMEMBERS) for count in (6, 5))
    for rule, sent in ((seen, broken), (kept, updates[:5])):
        rule(view(sent))
    torch.testing.assert_close(seen(view(broken)).weights[:5], kept(view(updates[:5])).weights)
    nobody = view(torch.full((6, 15), float("inf")))
    assert seen(nobody).root_weight == 1
    assert REMEMBERS(nobody, torch.ones(0)).root_weight == 1


@pytest.mark.parametrize("anchor", [0.0, 1.0])
def test_no_discount_leaves_nothing_however_large_the_power(view, normal, anchor):
    updates = torch.cat([normal(14, 500), normal(1, 500, seed=1).expand(6, -1)])
    trust = torch.cat([torch.zeros(14), torch.ones(6)])
    weighting = TrustWeighting("none", root_anchor=anchor, sybil_exponent=2, sybil_power=1e6)
    rule = GivenTrust(trust + 1e-3, weighting)
    for _ in range(2):
        result = rule(view(updates))
        assert result.update.isfinite().all()
        assert float(result.weights.sum()) + result.root_weight == pytest.approx(1)


def test_a_round_in_which_nobody_is_trusted_is_remembered_too(view, normal):
    twins = normal(1, 15, seed=1).expand(6, -1) + 0.1 * normal(6, 15, seed=2)
    weighting = replace(REMEMBERS, root_anchor=0)
    met, fresh = SimilarityMemory(), SimilarityMemory()
    nobody = GivenTrust(torch.zeros(6), weighting, met)(view(torch.cat([normal(2, 15), twins[2:]])))
    assert nobody.root_weight == 1
    after = [GivenTrust(torch.ones(6), weighting, memory)(view(normal(6, 15))).weights for memory in (met, fresh)]
    assert not torch.equal(*after)


def test_without_a_memory_nothing_is_remembered_and_clients_may_be_mixed(view, normal):
    once = TrustWeighting("none", sybil_exponent=2)
    rule = make_rule("shapley", weighting=once)
    first = rule(view(normal(6, 15)))
    rule(view(normal(1, 15).expand(6, -1).clone()))
    assert torch.equal(rule(view(normal(6, 15))).weights, first.weights)
    assert not rule.by_client
    Composed(Bucketing(), rule)
    with pytest.raises(ValueError, match="ShapleyTrust remembers clients, and Bucketing mixes them anew"):
        Composed(Bucketing(), make_rule("shapley", weighting=REMEMBERS))


def test_a_power_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"sybil_power=8 needs a sybil_exponent above 0, .* give one, such as 1, or"):
        TrustWeighting(sybil_power=8)
