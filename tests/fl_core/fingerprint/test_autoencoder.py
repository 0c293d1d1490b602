import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fl_core import Scenario
from fl_core.fingerprint import UpdateAutoencoder, train_autoencoder
from fl_core.fingerprint.autoencoder import SKETCH


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_like(updates: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Isotropic noise with the norms of the updates."""
    noise = torch.randn(updates.shape, generator=generator(seed))
    return noise * (updates.norm(dim=1) / noise.norm(dim=1))[:, None]


@pytest.fixture(scope="module")
def honest_low_rank() -> torch.Tensor:
    """Sketches that live near a 5-dimensional subspace, of about unit length: (300, 256)."""
    basis = torch.randn(5, SKETCH, generator=generator(1)) / SKETCH**0.5
    return torch.randn(300, 5, generator=generator(2)) @ basis / 5**0.5


@pytest.fixture(scope="module")
def trained(honest_low_rank) -> UpdateAutoencoder:
    autoencoder = UpdateAutoencoder(1000, generator())
    autoencoder.fit(honest_low_rank[:200], 150, generator(3))
    autoencoder.calibrate(honest_low_rank[200:])
    return autoencoder


def test_the_layers_have_the_papers_sizes():
    autoencoder = UpdateAutoencoder(1000, generator())
    shapes = [tuple(w.shape) for name, w in autoencoder.named_parameters() if name.endswith("weight")]
    assert shapes == [
        (512, 256), (256, 512), (128, 256), (2 * 64, 128), (128, 64), (256, 128), (512, 256), (256, 512),
    ]  # fmt: skip


def test_the_sketch_preserves_cosines_with_an_error_of_about_one_sixteenth():
    size = 20_000
    autoencoder = UpdateAutoencoder(size, generator())
    base = torch.randn(40, size, generator=generator(1))
    # Pairs of true cosines all the way from -1 to 1.
    mix = torch.linspace(-1, 1, 40)[:, None]
    other = mix * base + (1 - mix.square()).sqrt() * torch.randn(40, size, generator=generator(2))

    def cosines(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
        return torch.cosine_similarity(a, b, dim=1).numpy()

    one = torch.tensor(1.0)
    error = cosines(autoencoder.sketch(base, one), autoencoder.sketch(other, one)) - cosines(base, other)
    assert np.sqrt(np.mean(error**2)) < 0.1
    assert abs(error.mean()) < 0.05


def test_the_sketch_preserves_squared_norms_on_average_and_is_in_units_of_the_scale():
    size = 20_000
    updates = torch.randn(100, size, generator=generator(1)) * 3
    sketches = UpdateAutoencoder(size, generator()).sketch(updates, torch.tensor(3.0))
    assert sketches.shape == (100, SKETCH)
    assert (sketches.square().sum() / (updates / 3).square().sum()).item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 1874])
def test_the_sketch_is_linear_and_loses_no_coordinate_of_updates_of_any_size(size):
    autoencoder = UpdateAutoencoder(size, generator())
    unit = autoencoder.sketch(torch.eye(size), torch.tensor(1.0))
    assert ((unit != 0).sum(dim=1) == 1).all()
    assert (unit.abs().sum(dim=1) == 1).all()
    updates = torch.randn(3, size, generator=generator(1))
    torch.testing.assert_close(autoencoder.sketch(updates, torch.tensor(1.0)), updates @ unit, atol=1e-5, rtol=1e-5)


def test_a_scale_of_zero_gives_no_division_by_zero():
    sketch = UpdateAutoencoder(300, generator()).sketch(torch.zeros(2, 300), torch.tensor(0.0))
    assert torch.equal(sketch, torch.zeros(2, SKETCH))


def test_honest_sketches_are_reconstructed_and_noise_of_the_same_norm_is_not(trained, honest_low_rank):
    honest = trained.error(honest_low_rank[200:])
    noise = trained.error(noise_like(honest_low_rank[200:]))
    assert honest.median() < 0.5
    assert noise.min() > honest.quantile(0.9)
    assert trained.typical_error.item() == pytest.approx(np.median(honest.numpy()))


def test_the_error_is_the_relative_squared_residual(honest_low_rank):
    # A decoder that answers 0 everywhere has an error of exactly 1, one that answers c of ‖x − c‖²/‖x‖².
    autoencoder = UpdateAutoencoder(1000, generator())
    last = autoencoder.decoder[-1]
    with torch.no_grad():
        last.weight.zero_()
        torch.testing.assert_close(autoencoder.error(honest_low_rank), torch.ones(300))
        last.bias.fill_(0.7)
    x = 16 * honest_low_rank.double().numpy()
    expected = ((x - 0.7) ** 2).sum(axis=1) / (x**2).sum(axis=1)
    np.testing.assert_allclose(autoencoder.error(honest_low_rank).numpy(), expected, rtol=1e-4)


def test_a_zero_update_has_no_error(trained):
    assert trained.error(torch.zeros(2, SKETCH)).tolist() == [0, 0]


@pytest.mark.parametrize("scale", [0.0, 1e-3, 10.0])
@pytest.mark.parametrize("length", [1e-38, 1e-20, 1.0, 1e10, 1e19, 1e25, 1e38])
def test_the_error_of_a_finite_update_of_any_length_is_a_finite_number(trained, length, scale):
    updates = length * torch.rand(5, 1000, generator=generator(4))
    assert updates.isfinite().all()
    assert trained.error(trained.sketch(updates, torch.tensor(scale))).isfinite().all()


def test_training_is_deterministic_for_a_generator(honest_low_rank):
    def train(seed: int) -> list[torch.Tensor]:
        autoencoder = UpdateAutoencoder(1000, generator(seed))
        autoencoder.fit(honest_low_rank, 5, generator(seed))
        autoencoder.calibrate(honest_low_rank)
        return list(autoencoder.state_dict().values())

    assert all(torch.equal(a, b) for a, b in zip(train(0), train(0), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(train(0), train(1), strict=True))


@pytest.mark.parametrize("count", [1, 5, 300])
def test_before_any_gradient_it_projects_on_the_64_principal_directions(honest_low_rank, count):
    sketches = honest_low_rank[:count] + 0.01 * torch.randn(count, SKETCH, generator=generator(4))
    autoencoder = UpdateAutoencoder(1000, generator())
    autoencoder.fit(sketches, 0, generator())
    x = sketches.double().numpy()
    directions = np.linalg.svd(x, full_matrices=True)[2][:64]
    inside = ((honest_low_rank.double().numpy() @ directions.T) ** 2).sum(axis=1)
    expected = 1 - inside / (honest_low_rank.double().numpy() ** 2).sum(axis=1)
    if count >= 64:  # with fewer, which directions fill the rest is nobody's business
        np.testing.assert_allclose(autoencoder.error(honest_low_rank).numpy(), expected, atol=1e-3)
    assert autoencoder.error(sketches).mean() < 0.02, "five directions hold nearly all there is"


@pytest.mark.parametrize("length", [0.05, 0.3, 5.0])
def test_an_honest_update_is_known_at_any_length(trained, honest_low_rank, length):
    honest = honest_low_rank[200:]
    shorter, as_is = trained.error(length * honest), trained.error(honest)
    noise = trained.error(length * noise_like(honest))
    assert (shorter - as_is).abs().max() < 0.1
    assert noise.min() > shorter.quantile(0.9)


def test_training_goes_on_where_64_directions_are_not_enough():
    sketches = torch.randn(300, SKETCH, generator=generator(1)) / SKETCH**0.5

    def mean_error(steps: int) -> float:
        autoencoder = UpdateAutoencoder(1000, generator())
        autoencoder.fit(sketches, steps, generator(1))
        return float(autoencoder.error(sketches).mean())

    assert mean_error(300) < mean_error(0) - 0.01


def test_it_learns_in_a_caller_that_has_switched_gradients_off(honest_low_rank):
    with torch.no_grad():
        autoencoder = UpdateAutoencoder(1000, generator())
        autoencoder.fit(honest_low_rank, 0, generator())
        before = [parameter.clone() for parameter in autoencoder.parameters()]
        autoencoder.fit(honest_low_rank, 2, generator())
        assert not all(torch.equal(a, b) for a, b in zip(autoencoder.parameters(), before, strict=True))


def test_along_the_simulated_federation_that_it_was_trained_on_it_tells_noise_from_honest_updates(federation):
    built = federation()
    autoencoder = built.autoencoder(*built.initial_model())()
    shared, local = built.initial_model()
    honest = built.simulator(shared, local, 60, generator(5))
    scale = honest.mean(dim=0).norm()
    errors = [autoencoder.error(autoencoder.sketch(rows, scale)) for rows in (honest, noise_like(honest))]
    assert errors[0].median() < 1
    assert roc_auc_score([0] * 60 + [1] * 60, torch.cat(errors).numpy()) > 0.95


@pytest.mark.parametrize("entropy", [0, 1])
def test_in_an_episode_it_tells_noise_from_honest_updates(federation, entropy):
    built = federation(Scenario(), entropy=entropy)
    view = built.local_round().view
    honest = built.simulator(view.global_model, view.server_local, 60, generator(5))
    errors = built.fingerprinter.reconstruction_error(
        torch.cat([honest, noise_like(honest)]), view.global_model, view.reference, view.server_local, 0
    )
    assert errors[:60].median() < 1, "worse than answering zero"
    assert roc_auc_score([0] * 60 + [1] * 60, errors.numpy()) > 0.9


def test_simulated_clients_are_skewed_bootstraps_of_the_reference_half_alone(federation):
    built = federation()
    simulator = built.simulator
    picks = simulator._bootstraps(400, generator())
    assert picks.shape == (400, built.config.training.steps, built.config.training.batch_size)
    assert set(picks.unique().tolist()) <= set(range(len(simulator.labels)))
    shares = torch.nn.functional.one_hot(simulator.labels[picks].flatten(1), 10).double().mean(dim=1)
    largest = shares.amax(dim=1)
    assert largest.max() > 0.9, "no simulated client is skewed"
    assert largest.min() < 0.3, "no simulated client is mixed"
    torch.testing.assert_close(shares.mean(dim=0), torch.full((10,), 0.1).double(), atol=0.03, rtol=0)


def test_training_an_autoencoder_is_deterministic_and_does_not_move_the_federation(federation):
    built = federation()
    shared, local = built.initial_model()
    given = shared.clone(), local.clone()
    one, again = (train_autoencoder(built.simulator, shared, local, generator(4)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), again.state_dict().values(), strict=True))
    assert torch.equal(shared, given[0])
    assert torch.equal(local, given[1])
