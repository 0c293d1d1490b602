"""Symmetries of the network, and that it runs with any number of clients."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.trust_net import Architecture, TrustNet

MakePolicy = Callable[..., TrustNet]
CLIENTS = [1, 2, 10, 25, 50]


def fingerprints(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def fixed_net() -> TrustNet:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return TrustNet(Architecture(width=16, depth=2, heads=4)).eval()


NET = fixed_net()


@settings(deadline=None, derandomize=True, max_examples=50)
@given(order=st.integers(1, 30).flatmap(lambda n: st.permutations(range(n))), seed=st.integers(0, 999))
def test_permuting_the_clients_permutes_their_trust_and_leaves_the_value(order: list[int], seed: int) -> None:
    observed = fingerprints(len(order), seed=seed)
    score, value = NET.score_and_value(observed)
    permuted, same = NET.score_and_value(observed[order])
    torch.testing.assert_close(permuted, score[order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(same, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clients", CLIENTS)
def test_one_set_of_weights_gives_trust_inside_zero_and_one_for_any_number_of_clients(
    clients: int, policy: TrustNet
) -> None:
    trust = policy(100 * fingerprints(clients))
    assert trust.shape == (clients,)
    assert ((trust > 0) & (trust < 1)).all()


@pytest.mark.parametrize("clients", CLIENTS)
def test_a_batch_is_judged_as_its_members_alone(clients: int, policy: TrustNet) -> None:
    batch = fingerprints(2, 3, clients)
    together = policy(batch)
    assert together.shape == (2, 3, clients)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(together[i, j], policy(batch[i, j]), rtol=1e-4, atol=1e-5)


def test_trust_is_the_sigmoid_of_a_score_inside_the_action_box(policy: TrustNet) -> None:
    observed = 50 * fingerprints(20)
    score, value = policy.score_and_value(observed)
    assert (score.abs() <= 5).all()
    assert value.shape == ()
    torch.testing.assert_close(policy(observed), 1 / (1 + torch.exp(-score)))


def test_a_clients_trust_depends_on_the_other_clients_too(policy: TrustNet) -> None:
    observed = fingerprints(6)
    changed = observed.clone()
    changed[3:] *= -1
    assert (policy(observed)[:3] - policy(changed)[:3]).abs().max() > 1e-3


def test_there_is_no_dropout_so_training_mode_changes_nothing(policy: TrustNet) -> None:
    observed = fingerprints(10)
    assert torch.equal(policy.train()(observed), policy.eval()(observed))
    assert not any(
        "Dropout" in type(module).__name__ or "BatchNorm" in type(module).__name__ for module in policy.modules()
    )


@pytest.mark.parametrize("clients", CLIENTS)
def test_rounds_in_which_all_clients_look_alike_are_judged_alike_and_finitely(clients: int, policy: TrustNet) -> None:
    trust = policy(torch.zeros(clients, 6))
    assert trust.isfinite().all()
    torch.testing.assert_close(trust, trust[:1].expand(clients))


def test_every_weight_takes_part_in_score_or_value(policy: TrustNet) -> None:
    score, value = policy.score_and_value(fingerprints(4, 10))
    (score.square().sum() + value.square().sum()).backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_input_is_not_edited(policy: TrustNet) -> None:
    observed = fingerprints(10)
    kept = observed.clone()
    policy(observed)
    assert torch.equal(observed, kept)


@pytest.mark.parametrize("features", [5, 7, 12])
def test_another_number_of_features_is_refused_with_both_numbers(features: int, policy: TrustNet) -> None:
    with pytest.raises(ValueError, match=rf"expected 6 features.*\(10, {features}\)"):
        policy(torch.zeros(10, features))


@pytest.mark.parametrize("sizes", [{"width": 0}, {"depth": 0}, {"heads": 0}, {"width": 10, "heads": 4}])
def test_impossible_sizes_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="heads divide width"):
        Architecture(**sizes)
