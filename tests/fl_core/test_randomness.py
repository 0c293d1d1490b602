import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core import Scenario
from fl_core.randomness import Purpose, Streams

purposes = st.sampled_from(list(Purpose))
addresses = st.tuples(st.integers(0, 2**64), purposes, st.integers(0, 1000))


def numbers(entropy: int, purpose: Purpose, index: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    streams = Streams(entropy)
    drawn = torch.rand(4, generator=streams.torch(purpose, index), dtype=torch.float64)
    return tuple(streams.numpy(purpose, index).random(4)), tuple(drawn.tolist())


@settings(max_examples=50)
@given(addresses)
def test_equal_addresses_give_equal_numbers(address):
    assert numbers(*address) == numbers(*address)


@settings(max_examples=100)
@given(addresses, addresses)
def test_another_entropy_purpose_or_index_gives_other_numbers(one, other):
    if one != other:
        for a, b in zip(numbers(*one), numbers(*other), strict=True):
            assert not set(a) & set(b)


def test_streams_of_different_purposes_and_indexes_are_uncorrelated():
    rows = [Streams(7).numpy(purpose, index).standard_normal(4000) for purpose in Purpose for index in range(4)]
    correlation = np.corrcoef(np.stack(rows)) - np.eye(len(rows))
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)


def test_purposes_keep_their_published_values():
    # Part of every seeded result: a changed value changes every number in every table.
    names = ["SPLIT", "PARTITION", "MODEL", "CLIENT", "MALICIOUS", "ATTACK", "AUTOENCODER", "SHAPLEY", "SERVER"]
    assert [Purpose[name].value for name in names] == list(range(9))


def test_a_negative_entropy_is_refused():
    with pytest.raises(ValueError, match="non-negative"):
        Streams(-1).numpy(Purpose.SPLIT)


def test_an_eleventh_client_does_not_shift_the_streams_of_the_other_ten(federation):
    ten, eleven = (federation(entropy=5, num_clients=n)._batch_generators for n in (10, 11))
    for a, b in zip(ten[:-1], eleven[:10], strict=True):
        assert torch.equal(a.get_state(), b.get_state())
    assert torch.equal(ten[-1].get_state(), eleven[-1].get_state()), "the server's stream moved"
    assert len({bytes(g.get_state().numpy()) for g in eleven}) == 12


def test_an_attack_does_not_shift_the_training_of_the_honest_clients(federation):
    calm = federation(Scenario(), entropy=3)
    noisy = federation(Scenario("gaussian_noise", 0.3, attack_options={"factor": 5.0}), entropy=3)
    for _ in range(3):
        before, after = calm.local_round(), noisy.local_round()
        honest = ~after.malicious
        assert torch.equal(before.view.updates[honest], after.view.updates[honest])
        assert not torch.equal(before.view.updates[~honest], after.view.updates[~honest])
        update = before.view.updates[honest].mean(dim=0)
        calm.apply(update)
        noisy.apply(update)


def test_a_whole_federation_touches_no_global_generator(federation):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    # Another split seed: so the autoencoder is trained here and not taken from an earlier test.
    built = federation(Scenario("gaussian_noise", 0.3, alpha=0.5), split_seed=77, shapley="permutation")
    view = built.local_round().view
    assert view.fingerprint.raw.isfinite().all()
    built.fingerprinter(view.updates, view.rejected, view.global_model, view.reference, view.server_local, 20)
    built.apply(view.updates.mean(dim=0))
    built.evaluate(torch.zeros(1, built.layout.num_shared), "validation")
    assert torch.equal(torch.get_rng_state(), torch_state)
    for a, b in zip(np.random.get_state(), numpy_state, strict=True):  # noqa: NPY002
        assert np.array_equal(a, b)
