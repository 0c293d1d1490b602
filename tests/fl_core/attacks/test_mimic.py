import numpy as np
import pytest
import torch
from torch import Tensor

from fl_core.attacks import AdversaryView, make_attack
from fl_core.attacks.mimic import _times_covariance


def episode(rounds: list[Tensor], malicious: Tensor, seed: int = 0, **options) -> list[Tensor]:
    """What the malicious clients send in each round, (f, P)."""
    attack, generator = make_attack("mimic", **options), torch.Generator().manual_seed(seed)
    return [attack(rows, malicious, AdversaryView(generator, i))[malicious] for i, rows in enumerate(rounds)]


def copied(sent: Tensor, updates: Tensor) -> int:
    """Whose update all of ``sent`` are, bit by bit."""
    matches = [i for i, row in enumerate(updates) if (sent == row).all()]
    assert len(matches) == 1
    return matches[0]


def spread(normal, seed: int) -> Tensor:
    """Eight clients; the fourth and the seventh stand far out on opposite sides of one direction."""
    rows = normal(8, 60, seed=seed)
    rows[4] += 40 * normal(60, seed=99) / 60**0.5
    rows[7] -= 40 * normal(60, seed=99) / 60**0.5
    return rows


MALICIOUS = torch.arange(8) < 3


@pytest.mark.parametrize("seed", range(8))
def test_all_malicious_clients_copy_one_honest_client_exactly(normal, seed):
    updates = normal(8, 60, seed=seed)
    (sent,) = episode([updates], MALICIOUS, seed)
    assert copied(sent, updates) >= 3


@pytest.mark.parametrize("seed", range(8))
def test_it_is_the_client_furthest_out_in_the_direction_of_largest_variance(normal, seed):
    rounds = [spread(normal, 10 * seed + i) for i in range(4)]
    chosen = [copied(sent, rows) for sent, rows in zip(episode(rounds, MALICIOUS, seed), rounds, strict=True)]
    assert set(chosen) in ({4}, {7})


def test_either_end_of_the_direction_may_be_copied(normal):
    updates = spread(normal, 0)
    assert {copied(episode([updates], MALICIOUS, seed)[0], updates) for seed in range(12)} == {4, 7}


def test_over_the_rounds_the_direction_comes_to_be_the_covariances_first_eigenvector(normal):
    attack, generator = make_attack("mimic", warmup=60), torch.Generator().manual_seed(0)
    scales = torch.cat([torch.tensor([3.0]), torch.ones(19)])
    rows = torch.cat([torch.zeros(1, 20), normal(40, 20) * scales])
    alignment = []
    for i in range(60):
        attack(rows, torch.arange(41) < 1, AdversaryView(generator, i))
        centred = rows[1:].double().numpy() - rows[1:].double().numpy().mean(axis=0)
        first = np.linalg.svd(centred)[2][0]
        alignment.append(abs(float(attack._memory.direction.double().numpy() @ first)))
    assert alignment[0] < alignment[5] < alignment[-1]
    assert alignment[-1] == pytest.approx(1, abs=1e-3)


def test_a_step_is_a_product_with_the_covariance(normal):
    rows, mean, vector = normal(6, 30), normal(30, seed=1), normal(30, seed=2)
    offsets = (rows - mean).double().numpy()
    np.testing.assert_allclose(
        _times_covariance(rows, mean, vector).numpy(),
        offsets.T @ (offsets @ vector.double().numpy()),
        rtol=1e-4,
        atol=1e-3,
    )


def test_after_the_warm_up_the_client_stays_the_same_whatever_it_sends(normal):
    calm, late = [spread(normal, i) for i in range(3)], [normal(8, 60, seed=50 + i) for i in range(6)]
    rounds = calm + late
    chosen = [copied(sent, rows) for sent, rows in zip(episode(rounds, MALICIOUS, warmup=3), rounds, strict=True)]
    assert len(set(chosen[2:])) == 1


def test_it_follows_a_client_to_another_place_and_copies_another_one_while_that_is_absent(normal):
    attack, generator = make_attack("mimic", warmup=1), torch.Generator().manual_seed(0)
    everyone = spread(normal, 0)

    def round_of(clients: list[int]) -> int:
        rows = everyone[clients]
        malicious = torch.tensor(clients) < 3
        seen = AdversaryView(generator, clients=torch.tensor(clients))
        return clients[copied(attack(rows, malicious, seen)[malicious], rows)]

    target = round_of([0, 1, 2, 3, 4, 5, 6, 7])
    assert target in (4, 7)
    assert round_of([2, 3, 4, 7]) == target
    assert round_of([0, 1, 5, 6, target]) == target
    assert round_of([0, 3, 5, 6]) in (3, 5, 6)
    assert round_of([1, 4, 5, 7]) == target


def test_while_it_warms_up_the_client_may_change(normal):
    rounds = [normal(8, 60, seed=i) for i in range(12)]
    chosen = [copied(sent, rows) for sent, rows in zip(episode(rounds, MALICIOUS, warmup=12), rounds, strict=True)]
    assert len(set(chosen)) > 1


def test_rounds_in_which_all_agree_leave_the_direction_as_it_was(normal):
    rounds = [torch.zeros(8, 60), spread(normal, 1)]
    sent = episode(rounds, MALICIOUS)
    assert torch.equal(sent[0], rounds[0][:3])
    assert copied(sent[1], rounds[1]) in (4, 7)


@pytest.mark.parametrize("warmup", [0, -1])
def test_without_a_warm_up_there_is_nobody_to_copy(warmup):
    with pytest.raises(ValueError, match=f"mimic: warmup must be a number of rounds, 1 or more, got {warmup}"):
        make_attack("mimic", warmup=warmup)
