"""Company over rounds: its definition by loops, whose memory it is, and what it makes of attackers with one aim."""

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
from fl_core.aggregation import CompanyMemory, Composed, GivenTrust, TrustWeighting, make_rule
from fl_core.aggregation.preaggregation import Bucketing

REMEMBERS = TrustWeighting("none", sybil_exponent=1, sybil_memory=4)
ROUNDS, HONEST, ATTACKERS, SIZE = 12, 14, 6, 2000


def relative_by_loops(updates: np.ndarray, exponent: float) -> np.ndarray:
    """Company over the median client's, from the definition, pair by pair."""
    company = []
    for i, one in enumerate(updates):
        total = 1.0
        for j, other in enumerate(updates):
            if i != j:
                total += max(one @ other / np.linalg.norm(one) / np.linalg.norm(other), 0) ** exponent
        company.append(total)
    return np.array(company) / np.median(company)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    exponent=st.floats(0.25, 4),
    power=st.floats(0.25, 8),
    rounds=st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=5),
    seed=st.integers(0, 2**31),
)
def test_a_voice_is_of_the_mean_over_the_rounds_that_a_client_took_part_in(view, exponent, power, rounds, seed):
    rng = np.random.default_rng(seed)
    rule = GivenTrust(torch.ones(6), TrustWeighting("none", sybil_exponent=exponent, sybil_memory=power))
    past: dict[int, list[float]] = {}
    for present in map(sorted, rounds):
        sent = (rng.standard_normal((len(present), 15)) + 0.5).astype(np.float32)
        for client, value in zip(present, relative_by_loops(sent.astype(np.float64), exponent), strict=True):
            past.setdefault(client, []).append(value)
        seen = replace(view(torch.from_numpy(sent)), clients=torch.tensor(present))
        result = replace(rule, values=torch.ones(len(present)), memory=rule.memory)(seen)
        voices = [min(1, 1 / np.mean(past[client])) ** power for client in present]
        np.testing.assert_allclose(result.weights.numpy(), np.array(voices) / (sum(voices) + 1), rtol=1e-4)


def rounds_with_one_aim(seed: int = 0) -> torch.Tensor:
    """Updates (rounds, clients, size): all noise, the last six with a little of one direction, the same in all rounds.

    So little that in some rounds an honest client has more company than an attacker.
    """
    generator = torch.Generator().manual_seed(seed)
    updates = torch.randn(ROUNDS, HONEST + ATTACKERS, SIZE, generator=generator)
    common, aim = torch.randn(2, SIZE, generator=generator)
    updates += 0.1 * common + 0.6 * torch.rand(ROUNDS, HONEST + ATTACKERS, 1, generator=generator) * common
    updates[:, HONEST:] += 0.8 * aim
    return updates


def test_attackers_with_one_aim_are_heard_less_from_round_to_round_and_honest_clients_are_not(view):
    rule = GivenTrust(torch.ones(HONEST + ATTACKERS), replace(REMEMBERS, sybil_memory=8))
    weights = torch.stack([rule(view(sent)).weights for sent in rounds_with_one_aim()])
    once = TrustWeighting("none", sybil_exponent=1)
    alone = torch.stack(
        [GivenTrust(torch.ones(HONEST + ATTACKERS), once)(view(s)).weights for s in rounds_with_one_aim()]
    )
    overlaps = alone[:, HONEST:].amax(dim=1) > alone[:, :HONEST].amin(dim=1)
    assert overlaps.float().mean() > 0.5  # one round does not tell them apart
    assert weights[-1, HONEST:].max() < 0.5 * weights[-1, :HONEST].min()
    assert weights[-1, HONEST:].sum() < 0.5 * alone[-1, HONEST:].sum()


@pytest.mark.parametrize("name", ["logistic", "feature_weights", "shapley", "safeguarded_shapley", "policy"])
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


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda rule: pickle.loads(pickle.dumps(rule))])
def test_what_a_copy_sees_the_rule_does_not_remember(copied, digits_view):
    rule = TrustAggregator(TrustNet(), REMEMBERS)
    rule(digits_view)
    before = rule.memory.with_round(digits_view, 1.0)
    other = copied(rule)
    other(replace(digits_view, updates=digits_view.updates[:1].expand(8, -1).clone()))
    assert torch.equal(rule.memory.with_round(digits_view, 1.0), before)
    assert not torch.equal(other.memory.with_round(digits_view, 1.0), before)


def test_rejected_clients_are_not_remembered_for_what_they_sent(view, normal):
    updates = normal(6, 15)
    broken = updates.clone()
    broken[5, 0] = float("nan")
    memory = CompanyMemory()
    GivenTrust(torch.ones(6), REMEMBERS, memory)(view(broken))
    alone = CompanyMemory()
    GivenTrust(torch.ones(5), REMEMBERS, alone)(view(updates[:5]))
    torch.testing.assert_close(memory.with_round(view(updates), 1.0), alone.with_round(view(updates), 1.0))
    nobody = view(torch.full((2, 15), float("inf")))
    assert CompanyMemory().with_round(nobody, 1.0).shape == (0,)
    assert GivenTrust(torch.ones(2), REMEMBERS, memory)(nobody).root_weight == 1


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


def test_a_memory_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"sybil_memory=8 remembers the company that sybil_exponent counts, .* give"):
        TrustWeighting(sybil_memory=8)
