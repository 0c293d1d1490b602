"""What holds for every attack."""

import pytest
import torch
from torch import Tensor

from fl_core.aggregation import make_rule
from fl_core.attacks import LocalData, attack_names, make_attack

COLLUDABLE = ["scaling", "partial_scaling", "sign_flip", "gaussian_noise", "label_flip"]
OMNISCIENT = ["alie", "ipm", "min_max"]
ASSUMING = ["fang_krum", "fang_trim"]
REFERENCE = ["feature_box", "fltrust_adaptive", "reference_orthogonal"]
DEPLOYED = ["optimised_alie", "optimised_ipm", "policy_aware"]
BACKDOORS = ["dba", "edge_case", "model_replacement", "neurotoxin"]
N, P = 7, 50


@pytest.fixture
def call(white_box):
    """``call(attack, updates, malicious, seed)``: the attack by an adversary who knows everything."""

    def attacked(attack, updates: Tensor, malicious: Tensor, seed: int = 0) -> Tensor:
        return attack(updates, malicious, white_box(updates.shape[1], make_rule("fltrust"), seed))

    return attacked


def first(f: int, n: int = N) -> Tensor:
    """The malicious clients: every place is taken once as f grows, and not from the front only."""
    return torch.isin(torch.arange(n), torch.tensor([3, 0, 6, 2, 5, 1, 4])[:f])


@pytest.fixture(params=[(name, False) for name in attack_names()] + [(name, True) for name in COLLUDABLE], ids=str)
def attack(request):
    name, colluding = request.param
    return make_attack(name, **({"colluding": True} if colluding else {}))


def test_the_registry_holds_the_attacks_of_the_paper_and_the_omniscient_ones():
    assert set(attack_names()) == {"none", *COLLUDABLE, *OMNISCIENT, *ASSUMING, *REFERENCE, *DEPLOYED, *BACKDOORS}


def test_without_malicious_clients_every_attack_is_the_identity(attack, call, normal):
    updates = normal(N, P)
    assert torch.equal(call(attack, updates, first(0)), updates)


@pytest.mark.parametrize("f", range(N))
def test_every_attack_works_for_any_number_of_malicious_clients_and_spares_the_honest(attack, call, normal, f):
    updates, malicious = normal(N, P), first(f)
    before = updates.clone()
    sent = call(attack, updates, malicious)
    assert sent.shape == (N, P)
    assert sent.dtype == torch.float32
    assert sent.isfinite().all()
    assert torch.equal(sent[~malicious], before[~malicious])
    assert torch.equal(updates, before), "the caller's tensor was edited"
    sent.zero_()
    assert torch.equal(updates, before), "the result shares memory with the caller's tensor"


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("f", [1, 2, N - 1])
def test_every_attack_works_in_one_dimension_and_where_there_is_nothing_to_learn(attack, call, normal, f, size):
    for updates in (normal(N, size), torch.zeros(N, size), torch.ones(N, size)):
        sent = call(attack, updates, first(f))
        assert sent.dtype == torch.float32
        assert sent.isfinite().all()


@pytest.mark.parametrize("places", [[True, False], [False, True]])
def test_every_attack_works_with_two_clients(attack, call, normal, places):
    updates, malicious = normal(2, P), torch.tensor(places)
    sent = call(attack, updates, malicious)
    assert sent.isfinite().all()
    assert torch.equal(sent[~malicious], updates[~malicious])


def test_every_attack_is_deterministic_for_a_generator(attack, call, normal):
    updates = normal(N, P)
    assert torch.equal(call(attack, updates, first(3), seed=4), call(attack, updates, first(3), seed=4))


def test_a_federation_without_honest_clients_is_refused(attack, call, normal):
    with pytest.raises(ValueError, match=f"all {N} clients are malicious"):
        call(attack, normal(N, P), first(N))


@pytest.mark.parametrize("name", [name for name in attack_names() if name not in ("none", "label_flip", "dba")])
def test_every_attack_on_updates_changes_what_is_sent(name, call, normal):
    updates, malicious = normal(N, P), first(2)
    sent = call(make_attack(name), updates, malicious)
    assert (sent[malicious] != updates[malicious]).any(dim=1).all()


@pytest.mark.parametrize("name", COLLUDABLE)
def test_the_colluding_form_starts_from_the_mean_of_the_malicious_updates(name, call, normal):
    updates, malicious = normal(N, P), first(3)
    met = updates.clone()
    met[malicious] = updates[malicious].mean(dim=0)
    colluding = call(make_attack(name, colluding=True), updates, malicious)
    assert torch.equal(colluding, call(make_attack(name, colluding=True), met, malicious))
    assert (colluding[malicious] == colluding[malicious][0]).all(), "colluding clients send one and the same vector"
    if name not in ("partial_scaling", "gaussian_noise"):
        torch.testing.assert_close(colluding, call(make_attack(name), met, malicious))


@pytest.mark.parametrize("name", [name for name in attack_names() if not make_attack(name).poisons])
def test_an_attack_that_poisons_nothing_hands_out_the_data_as_they_are(name):
    data = LocalData(torch.ones(1, 1, 10, 1, 2, 2), torch.arange(10)[None, None], torch.arange(1), 10, lambda x: x)
    assert make_attack(name).poison(data) == (data.images, data.labels)
