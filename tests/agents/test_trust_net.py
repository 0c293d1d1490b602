"""Symmetries of the network, and that it runs with any number of clients."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.playing import greedy
from agents.trust_net import SCORE_LIMIT, ActionValueNet, Architecture, TrustNet
from optigrad_env.observation import SCORE_SCALE, trust_of_action

MakePolicy = Callable[..., TrustNet]
CLIENTS = [1, 2, 10, 25, 50]


def fingerprints(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def fixed_net() -> TrustNet:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return TrustNet(Architecture(width=16, depth=2, heads=4)).eval()


NET = fixed_net()


@settings(derandomize=True, max_examples=50)
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


ONE_ABSENT = torch.tensor([True, True, False, True, True, False, True])


def masked(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A round of seven places with five clients in it, and the same five alone."""
    alone = fingerprints(5, seed=seed)
    padded = torch.zeros(7, 6)
    padded[ONE_ABSENT] = alone
    return padded, alone


def test_clients_that_are_not_there_change_nothing_for_the_others(policy: TrustNet) -> None:
    padded, alone = masked()
    score, value = policy.score_and_value(padded, ONE_ABSENT)
    expected, same = policy.score_and_value(alone)
    torch.testing.assert_close(score[ONE_ABSENT], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(value, same, rtol=1e-4, atol=1e-5)
    assert (policy(padded, ONE_ABSENT)[~ONE_ABSENT] == 0).all()


def test_what_stands_in_the_row_of_an_absent_client_does_not_matter(policy: TrustNet) -> None:
    padded, _ = masked()
    other = padded.clone()
    other[~ONE_ABSENT] = 3.0
    torch.testing.assert_close(policy(padded, ONE_ABSENT), policy(other, ONE_ABSENT), rtol=1e-4, atol=1e-5)
    assert (policy(padded) - policy(other)).abs().max() > 1e-3


def test_a_mask_of_all_is_no_mask(policy: TrustNet) -> None:
    observed = fingerprints(3, 8)
    everyone = torch.ones(3, 8, dtype=torch.bool)
    torch.testing.assert_close(policy(observed, everyone), policy(observed), rtol=1e-4, atol=1e-5)


def test_a_round_with_nobody_is_finite_and_so_are_its_gradients(policy: TrustNet) -> None:
    mask = torch.stack([ONE_ABSENT, torch.zeros(7, dtype=torch.bool)])
    score, value = policy.score_and_value(torch.stack([masked()[0], torch.zeros(7, 6)]), mask)
    (score.sum() + value.sum()).backward()
    assert score.isfinite().all()
    assert value.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.parameters())


def test_a_mask_of_another_shape_is_refused_with_both_shapes(policy: TrustNet) -> None:
    with pytest.raises(ValueError, match=r"\(4,\).*\(5,\)"):
        policy(torch.zeros(4, 6), torch.ones(5, dtype=torch.bool))


def critic(outputs: int = 1) -> ActionValueNet:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return ActionValueNet(Architecture(width=16, depth=1, heads=4), outputs=outputs)


@pytest.mark.parametrize("clients", CLIENTS)
def test_the_worth_of_an_action_does_not_depend_on_the_order_of_the_clients(clients: int) -> None:
    observed, action, net = fingerprints(2, clients), fingerprints(2, clients, seed=1)[..., 0], critic(outputs=5)
    order = torch.randperm(clients, generator=torch.Generator().manual_seed(2))
    worth = net(observed, action)
    assert worth.shape == (2, 5)
    torch.testing.assert_close(net(observed[:, order], action[:, order]), worth, rtol=1e-4, atol=1e-5)


def test_which_client_an_action_belongs_to_matters_to_its_worth() -> None:
    observed, action, net = fingerprints(6), torch.tensor([1.0, -1, -1, -1, -1, -1]), critic()
    assert (net(observed, action) - net(observed, action.roll(1))).abs() > 1e-5


def test_actions_of_absent_clients_are_worth_nothing() -> None:
    padded, alone = masked()
    action, net = torch.linspace(-1, 1, 7), critic()
    worth = net(padded, action, ONE_ABSENT)
    torch.testing.assert_close(worth, net(alone, action[ONE_ABSENT]), rtol=1e-4, atol=1e-5)
    moved = torch.where(ONE_ABSENT, action, -action)
    torch.testing.assert_close(net(padded, moved, ONE_ABSENT), worth)


@pytest.mark.parametrize("given", [torch.zeros(6), torch.zeros(0, 6)])
def test_what_is_no_round_of_clients_is_refused(given: torch.Tensor, policy: TrustNet) -> None:
    with pytest.raises(ValueError, match=r"expected 6 features in .* at least one client; got"):
        policy(given)
    with pytest.raises(ValueError, match="expected a tensor"):
        policy(given.numpy())


def test_other_floating_point_numbers_are_judged_as_float32(policy: TrustNet) -> None:
    observation = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(policy(observation.double()), policy(observation))


def test_trust_that_is_deployed_is_the_trust_that_an_environment_makes_of_the_greedy_action() -> None:
    """The network's limit and the action's scale are one number."""
    seen = fingerprints(9)
    action = greedy(NET)(seen.numpy())
    torch.testing.assert_close(trust_of_action(action, 9), NET(seen).detach(), rtol=1e-5, atol=1e-6)
    assert SCORE_LIMIT == SCORE_SCALE
