import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from fl_core import Scenario
from fl_core.attacks import AdversaryView, make_attack
from fl_core.attacks.poisonedfl import binomial_tail

MALICIOUS = torch.tensor([True, False, False, True])


def episode(changes, seed: int = 0, **options) -> list[np.ndarray]:
    """What is sent in each round, (P,), where ``changes`` are the global model's in the rounds before."""
    attack, generator = make_attack("poisonedfl", **options), torch.Generator().manual_seed(seed)
    sent = []
    for i, change in enumerate(changes):
        updates = torch.ones(4, len(change))
        rows = attack(updates, MALICIOUS, AdversaryView(generator, i, last_change=change))[MALICIOUS]
        assert torch.equal(rows[0], rows[1])
        sent.append(rows[0].double().numpy())
    return sent


def by_the_authors(changes, sent, scale: float) -> list[np.ndarray]:
    """The magnitudes that the authors' script has, from what was sent before each round."""
    expected = []
    for i, change in enumerate(changes):
        history = change.double().numpy()
        last = sent[i - 1] if i else np.zeros_like(history)
        norm = np.linalg.norm(history)
        size = np.abs(history - last * norm / (np.linalg.norm(last) + 1e-9))
        expected.append(scale * norm * size / (np.linalg.norm(size) + 1e-9))
    return expected


def test_magnitudes_are_those_of_the_authors_code_round_after_round(normal):
    changes = [normal(50, seed=i) for i in range(6)]
    sent = episode(changes, window=100)
    for a, b in zip(sent, by_the_authors(changes, sent, 8.0), strict=True):
        np.testing.assert_allclose(np.abs(a), b, rtol=1e-4, atol=1e-5)
        assert np.linalg.norm(a) == pytest.approx(np.linalg.norm(b), rel=1e-5)


def test_the_signs_are_random_and_stay_the_same_for_an_episode(normal):
    changes = [normal(4000, seed=i) for i in range(5)]
    signs = [np.sign(sent) for sent in episode(changes)]
    assert all((s == signs[0]).all() for s in signs)
    assert np.mean(signs[0]) == pytest.approx(0, abs=5 / np.sqrt(4000))
    other = np.sign(episode(changes, seed=1)[0])
    assert np.mean(signs[0] == other) == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(4000))


def test_before_the_model_has_changed_zeros_are_sent(normal):
    sent = episode([torch.zeros(20), normal(20)])
    assert not sent[0].any()
    np.testing.assert_allclose(np.abs(sent[1]), 8 * normal(20).abs().double().numpy(), rtol=1e-5)


def lengths(changes, **options) -> list[float]:
    """The scaling factor of each round: the length of what is sent relative to the last change."""
    return [
        float(np.linalg.norm(sent)) / float(change.norm())
        for sent, change in zip(episode(changes, **options), changes, strict=True)
    ]


def test_the_factor_falls_every_window_while_the_model_does_not_follow(normal):
    changes = [normal(2000, seed=i) for i in range(8)]
    expected = [8, 8, 8, 8 * 0.7, 8 * 0.7, 8 * 0.7, 8 * 0.49, 8 * 0.49]
    assert lengths(changes, window=3) == pytest.approx(expected, rel=1e-4)


def test_the_factor_stays_where_the_model_follows(normal):
    (sent,) = episode([normal(2000)])
    signs = torch.from_numpy(np.sign(sent)).float()
    changes = [signs * normal(2000, seed=i).abs() for i in range(7)]
    assert lengths(changes, window=2) == pytest.approx([8] * 7, rel=1e-4)


def test_the_test_is_on_the_whole_change_since_the_last_one(normal):
    (sent,) = episode([normal(2000)])
    signs = torch.from_numpy(np.sign(sent)).float()
    noise = [2 * normal(2000, seed=i) for i in range(3)]
    # Each change alone is nearly random; the noise cancels, and what is left follows the signs.
    changes = [normal(2000), signs * 0.01 + noise[0], signs * 0.01 - noise[0], noise[1], noise[2]]
    assert lengths(changes, window=2) == pytest.approx([8, 8, 8, 8, 8 * 0.7], rel=1e-4)


def test_the_factor_does_not_fall_below_the_smallest(normal):
    changes = [normal(500, seed=i) for i in range(12)]
    assert lengths(changes, window=1, smallest=3.0)[-1] == pytest.approx(8 * 0.49, rel=1e-4)


def test_coordinates_that_do_not_move_are_no_evidence(normal):
    (sent,) = episode([normal(2000)])
    signs = torch.from_numpy(np.sign(sent)).float()
    moved = (torch.arange(2000) < 100) * signs
    assert lengths([normal(2000), moved, moved], window=1) == pytest.approx([8, 8, 8], rel=1e-4)


@pytest.mark.parametrize(
    ("size", "critical"), [(1_204_682, 603_618), (139_960, 70_415), (717_924, 359_948), (145_212, 73_049)]
)
def test_critical_values_are_the_authors_at_the_four_sizes_of_their_script(size, critical):
    assert binomial_tail(critical, size) <= 0.01 < binomial_tail(critical - 1, size)


@settings(max_examples=200)
@given(st.integers(0, 3000), st.data())
def test_the_binomial_tail_is_scipys(trials, data):
    successes = data.draw(st.integers(0, trials))
    assert binomial_tail(successes, trials) == pytest.approx(binom.sf(successes, trials, 0.5), rel=1e-6, abs=1e-80)


@pytest.mark.parametrize("above", [-5000, 0, 3000, 8000])
def test_the_binomial_tail_is_scipys_at_eleven_million_parameters(above):
    trials = 11_000_000
    assert binomial_tail(trials // 2 + above, trials) == pytest.approx(
        binom.sf(trials // 2 + above, trials, 0.5), rel=1e-5
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("factor", float("nan")),
        ("smallest", float("inf")),
        ("window", 0),
        ("decay", 0.0),
        ("decay", 1.1),
        ("significance", 0.0),
        ("significance", float("nan")),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"poisonedfl: {field} must .*{value}"):
        make_attack("poisonedfl", **{field: value})


def test_in_a_federation_of_averages_it_drags_the_model_along_its_signs(federation):
    built = federation(Scenario("poisonedfl", 0.3), entropy=1)
    start = built.shared.clone()
    for _ in range(6):
        built.apply(built.local_round().view.updates.mean(dim=0))
    signs = built.attack._memory.signs
    assert float((((built.shared - start) * signs) > 0).double().mean()) > 0.8


def test_a_model_that_does_not_move_is_no_success():
    still = [torch.zeros(50)] * 5
    attack, generator = make_attack("poisonedfl", window=2), torch.Generator().manual_seed(0)
    for i, change in enumerate(still):
        attack(torch.ones(4, 50), MALICIOUS, AdversaryView(generator, i, last_change=change))
    assert attack._memory.factor < attack.factor
