"""The fingerprint by the native library equals the one by PyTorch, on every instruction set of this processor."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl_core import Scenario
from fl_core.fingerprint import UpdateAutoencoder, geometry, make_shapley, native
from fl_core.fingerprint.shapley import CoalitionGame
from fl_core.training import native as engine

pytestmark = pytest.mark.skipif(
    not engine.is_built(), reason="the native engine is not built: python setup.py build_ext --inplace"
)
ISAS = engine.supported_instruction_sets() if engine.is_built() else []
quick = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=ISAS, autouse=True)
def isa(request, monkeypatch) -> str:
    monkeypatch.setenv("OPTIGRAD_ISA", request.param)
    return request.param


def by_torch(work):
    """What ``work`` gives where the library does not serve."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "serves", lambda *tensors: False)
        return work()


def sparse(n: int, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Updates of lengths from 1e-3 to 1e3 and a reference, with some zeros."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n + 1, size, generator=generator) * 10 ** (6 * torch.rand(n + 1, 1, generator=generator) - 3)
    rows = rows * (torch.rand(rows.shape, generator=generator) > 0.2)
    return rows[:-1], rows[-1]


@quick
@given(st.integers(1, 40), st.sampled_from([1, 3, 255, 256, 257, 1874, 2048, 2049, 7000]), st.integers(0, 2**31))
def test_geometry_is_that_of_torch(n, size, seed):
    updates, reference = sparse(n, size, seed)
    signs = torch.randint(0, 2, (size + 3,), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1
    assert native.serves(updates, reference, signs)
    found = geometry.measure(updates, reference, signs)
    expected = by_torch(lambda: geometry.measure(updates, reference, signs))
    for name, value in vars(expected).items():
        tolerance = 1e-13 * float(expected.norms.max()) * size**0.5 if name == "folded" else 1e-12
        torch.testing.assert_close(getattr(found, name), value, rtol=1e-12, atol=tolerance, msg=name)
    torch.testing.assert_close(geometry.norms(updates), expected.norms, rtol=1e-12, atol=0)


def test_threads_change_no_bit(normal):
    # Two parts and more: below a million elements there is one.
    updates, reference, signs = normal(7, 700_000), normal(700_000, seed=1), torch.ones(700_000)
    one = geometry.measure(updates, reference, signs), geometry.norms(updates)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        three = geometry.measure(updates, reference, signs), geometry.norms(updates)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one[1], three[1])
    for name, value in vars(one[0]).items():
        assert torch.equal(getattr(three[0], name), value), name


@pytest.mark.parametrize("clients", [1, 2, 8, 9, 10, 16, 17, 33, 70])
def test_reconstruction_errors_are_those_of_torch(normal, clients):
    autoencoder = UpdateAutoencoder(1000, torch.Generator().manual_seed(0))
    autoencoder.fit(normal(60, 256) / 16, 20, torch.Generator().manual_seed(1))
    sketches = normal(clients, 256, seed=2) / 16
    sketches[0] = 0
    found, expected = autoencoder.error(sketches), by_torch(lambda: autoencoder.error(sketches))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found[0] == 0
    assert (found[1:] > 0.1).all()  # something is left to compare


def game_of(logits: torch.Tensor, labels: torch.Tensor) -> CoalitionGame:
    """A game whose models have these outputs (N + 2, V, C)."""

    class Engine:
        def logits(self, shared, local, images):
            return logits

        def reestimate(self, shared, local, images):
            return local

    clients = len(logits) - 2
    nothing = torch.zeros(0)
    return CoalitionGame(
        engine=Engine(),
        shared=torch.zeros(3),
        local=nothing,
        updates=torch.ones(clients, 3),
        clip=torch.ones(clients, dtype=torch.float64),
        reference_images=nothing,
        images=nothing,
        labels=labels,
        num_classes=logits.shape[-1],
    )


@quick
@given(st.integers(1, 20), st.integers(1, 30), st.integers(2, 12), st.floats(0.1, 10), st.integers(0, 2**31))
def test_surrogate_shapley_values_are_those_of_torch(clients, samples, classes, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(clients + 2, samples, classes, generator=generator)
    game = game_of(logits, torch.randint(classes, (samples,), generator=generator))
    found = make_shapley("surrogate")(game, generator)
    expected = by_torch(lambda: make_shapley("surrogate")(game, generator))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12 * scale**2)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("model", [0, 1, 4])
@pytest.mark.parametrize("whole", [False, True], ids=["one", "whole"])
def test_a_model_that_has_blown_up_is_worth_as_little_as_by_torch(normal, value, model, whole):
    logits = normal(6, 5, 3)
    logits[(model,) if whole else (model, 2, 1)] = value
    game = game_of(logits, torch.tensor([0, 1, 1, 2, 0]))
    found = make_shapley("surrogate")(game, torch.Generator())
    assert found.isfinite().all()
    torch.testing.assert_close(found, by_torch(lambda: make_shapley("surrogate")(game, torch.Generator())))


def test_a_label_out_of_range_is_an_error_and_not_a_read_past_the_end(normal):
    game = game_of(normal(4, 2, 3), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="labels must be 0 to 2, got 3"):
        make_shapley("surrogate")(game, torch.Generator())


def test_a_whole_fingerprint_is_that_of_torch(federation):
    built = federation(Scenario("sign_flip", 0.3, alpha=0.5), entropy=2)
    for _ in range(2):
        built.apply(built.local_round().view.updates.mean(dim=0))
    view = built.local_round().view
    expected = by_torch(lambda: replace(view).fingerprint)
    found = replace(view).fingerprint
    torch.testing.assert_close(found.raw, expected.raw, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.observation, expected.observation, rtol=1e-4, atol=1e-5)


def test_what_the_library_does_not_take_goes_to_torch(normal):
    updates, reference, signs = normal(4, 300), normal(300, seed=1), torch.ones(300)
    everything = geometry.measure(updates, reference, signs)
    strided = torch.cat([updates, updates], dim=1)[:, :300]
    assert not native.serves(updates.clone().requires_grad_())
    for rows in (updates.double(), strided):
        assert not native.serves(rows)
        for name, value in vars(geometry.measure(rows, reference.to(rows.dtype), signs.to(rows.dtype))).items():
            torch.testing.assert_close(getattr(everything, name), value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("wrong", ["clip dtype", "clip strides", "labels dtype", "updates strides"])
def test_what_is_read_by_its_address_is_checked(normal, wrong):
    shared, updates, clip = normal(7), normal(6, 7), torch.ones(6, dtype=torch.float64)
    logits, labels = normal(8, 5, 3), torch.zeros(5, dtype=torch.int64)
    calls = {
        "clip dtype": lambda: native.probes(shared, updates, clip.float()),
        "clip strides": lambda: native.probes(shared, updates, torch.ones(12, dtype=torch.float64)[::2]),
        "updates strides": lambda: native.probes(shared, normal(7, 6).T, clip),
        "labels dtype": lambda: native.surrogate_shapley(logits, labels.int(), 5.0, [0.0] * 4),
    }
    with pytest.raises(ValueError, match=f"{wrong.split()[0]} must be contiguous"):
        calls[wrong]()
