"""Distributions of actions: densities, modes, and that nobody counts who is not there."""

import numpy as np
import pytest
import torch
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution, kl_divergence

from agents.distributions import DISTRIBUTIONS, make_distribution

DRIVE = torch.tensor([[0.0, 1.0, -2.0], [0.3, -0.3, 0.7]])
LOG_STD = torch.tensor([-1.0])


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_mode_is_the_networks_own_action(name: str) -> None:
    distribution = make_distribution(name).proba_distribution(DRIVE, LOG_STD)
    torch.testing.assert_close(distribution.get_actions(deterministic=True), torch.tanh(DRIVE))


@pytest.mark.parametrize("name", ["gaussian", "beta"])
def test_no_action_is_likelier_than_the_mode(name: str) -> None:
    distribution = make_distribution(name).proba_distribution(DRIVE, LOG_STD)
    best = distribution.log_prob(torch.tanh(DRIVE))
    for shift in (-0.02, 0.02):
        assert (distribution.log_prob((torch.tanh(DRIVE) + shift).clamp(-0.999, 0.999)) < best).all()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_density_of_one_client_integrates_to_one(name: str) -> None:
    actions = torch.linspace(-3, 3, 60_001) if name == "gaussian" else torch.linspace(-1, 1, 60_001)[1:-1]
    for drive in (0.0, 0.8):
        around = make_distribution(name).proba_distribution(torch.full((len(actions), 1), drive), LOG_STD)
        density = around.log_prob(actions[:, None]).exp()
        assert torch.trapezoid(density, actions) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_samples_spread_about_as_much_as_the_scale_says_at_trust_one_half(name: str) -> None:
    torch.manual_seed(0)
    samples = (
        make_distribution(name).proba_distribution(torch.zeros(20_000, 1), torch.log(torch.tensor([0.2]))).sample()
    )
    assert float(samples.std()) == pytest.approx(0.2, rel=0.05)
    assert float(samples.mean()) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("name", ["squashed", "beta"])
def test_samples_stay_inside_the_box_and_have_a_finite_density_even_at_its_edge(name: str) -> None:
    torch.manual_seed(0)
    distribution = make_distribution(name).proba_distribution(torch.full((5000, 2), 4.0), torch.tensor([0.0]))
    samples = distribution.sample()
    assert (samples.abs() <= 1).all()
    assert distribution.log_prob(samples).isfinite().all()


@pytest.mark.parametrize("drive", [0.3, 6.0, 9.0, -9.0])
def test_the_gradient_of_a_squashed_samples_density_is_right_beyond_the_edge_too(drive: float) -> None:
    score = torch.full((1, 4), drive, requires_grad=True)
    torch.manual_seed(0)
    actions, log_prob = make_distribution("squashed").log_prob_from_params(score, torch.tensor([-1.0]))
    torch.manual_seed(0)
    exact = torch.full((1, 4), drive, dtype=torch.float64, requires_grad=True)
    noise = torch.distributions.Normal(torch.zeros(1, 4), torch.ones(1, 4)).rsample().double()
    x = exact + torch.tensor(-1.0).exp().double() * noise
    expected = (-noise.square() / 2 + 1 - np.log(2 * np.pi) / 2 - 2 * torch.log(1 / torch.cosh(x))).sum()
    (gradient,), (wanted,) = torch.autograd.grad(log_prob.sum(), score), torch.autograd.grad(expected, exact)
    torch.testing.assert_close(log_prob.double().sum(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-4)
    assert (actions.abs() <= 1).all()


def test_the_squashed_density_is_that_of_stable_baselines3() -> None:
    torch.manual_seed(0)
    theirs = SquashedDiagGaussianDistribution(3).proba_distribution(DRIVE, LOG_STD.expand(3))
    actions = theirs.sample()
    ours = make_distribution("squashed").proba_distribution(DRIVE, LOG_STD)
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["gaussian", "beta"])
def test_the_entropy_is_the_mean_of_minus_the_log_density(name: str) -> None:
    torch.manual_seed(0)
    distribution = make_distribution(name).proba_distribution(DRIVE[:1].expand(20_000, 3), LOG_STD)
    entropy = distribution.entropy()
    assert entropy is not None
    estimate = -distribution.log_prob(distribution.sample()).mean()
    assert float(estimate.detach()) == pytest.approx(float(entropy[0]), abs=0.05)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_who_is_not_there_counts_neither_in_density_nor_in_divergence(name: str) -> None:
    mask = torch.tensor([[True, True, False], [True, True, False]])
    padded = make_distribution(name).proba_distribution(DRIVE * mask, LOG_STD, mask)
    alone = make_distribution(name).proba_distribution(DRIVE[:, :2], LOG_STD)
    actions = torch.tensor([[0.1, -0.2, 0.9], [0.0, 0.4, -0.9]])
    torch.testing.assert_close(padded.log_prob(actions), alone.log_prob(actions[:, :2]))
    other = make_distribution(name).proba_distribution(DRIVE * mask, LOG_STD + 0.3, mask)
    divergence = kl_divergence(padded, other)
    assert (divergence[:, 2] == 0).all()
    assert (divergence[:, :2] > 0).all()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_samples_are_differentiable_in_score_and_scale(name: str) -> None:
    torch.manual_seed(0)
    drive, log_std = DRIVE.clone().requires_grad_(), LOG_STD.clone().requires_grad_()
    actions, log_prob = make_distribution(name).log_prob_from_params(drive, log_std)
    (actions.sum() + log_prob.sum()).backward()
    for gradient in (drive.grad, log_std.grad):
        assert gradient is not None
        assert np.isfinite(gradient.numpy()).all()
        assert gradient.abs().sum() > 0


def test_an_unknown_distribution_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match=r"'cauchy'; there are: squashed, beta, gaussian"):
        make_distribution("cauchy")


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("scale", [-3.0, -0.5, 0.0, 0.5])
def test_at_every_scale_a_gradient_reaches_score_and_scale(name: str, scale: float) -> None:
    drive, log_std = DRIVE.clone().requires_grad_(), torch.tensor([scale], requires_grad=True)
    make_distribution(name).proba_distribution(drive, log_std).log_prob(torch.full_like(DRIVE, 0.5)).sum().backward()
    assert drive.grad is not None
    assert log_std.grad is not None
    assert (drive.grad.abs() > 1e-6).all()
    assert abs(float(log_std.grad)) > 1e-6
