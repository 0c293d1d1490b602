import numpy as np
import pytest
import torch

from fl_core.attacks import AdversaryView, make_attack

MALICIOUS = torch.tensor([False, True, False, True, False])


def attacked(name: str, updates: torch.Tensor, seed: int = 0, **options) -> tuple[np.ndarray, np.ndarray]:
    """(malicious rows before, after)."""
    sent = make_attack(name, **options)(updates, MALICIOUS, AdversaryView(torch.Generator().manual_seed(seed)))
    return updates[MALICIOUS].double().numpy(), sent[MALICIOUS].double().numpy()


@pytest.mark.parametrize("factor", [10.0, 0.5, -3.0, 0.0])
def test_scaling_multiplies_by_the_factor(normal, factor):
    own, sent = attacked("scaling", normal(5, 30), factor=factor)
    np.testing.assert_allclose(sent, factor * own, rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_sign_flip_reverses_the_update(normal, scale):
    own, sent = attacked("sign_flip", normal(5, 30), scale=scale)
    np.testing.assert_allclose(sent, -(scale * own), rtol=1e-6)


def test_the_defaults_are_the_papers_ten_times_scaling_and_plain_sign_flip(normal):
    for name, times in [("scaling", 10.0), ("sign_flip", -1.0)]:
        own, sent = attacked(name, normal(5, 30))
        np.testing.assert_allclose(sent, times * own, rtol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_partial_scaling_scales_a_share_of_the_coordinates_and_leaves_the_others(normal, share):
    own, sent = attacked("partial_scaling", normal(5, 20_000), factor=4.0, share=share)
    ratio = sent / own
    scaled = np.isclose(ratio, 4.0)
    assert np.all(scaled | np.isclose(ratio, 1.0))
    # Five standard deviations of a binomial share.
    assert scaled.mean(axis=1) == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / 20_000) + 1e-12)


def test_partial_scaling_chooses_coordinates_of_each_client_anew_unless_they_collude(normal):
    own, sent = attacked("partial_scaling", normal(5, 20_000))
    chosen = ~np.isclose(sent, own)
    assert np.mean(chosen[0] == chosen[1]) == pytest.approx(0.5, abs=0.02)
    _, other = attacked("partial_scaling", normal(5, 20_000), seed=1)
    assert not np.array_equal(sent, other)


@pytest.mark.parametrize("factor", [0.5, 1.0, 8.0])
def test_gaussian_noise_is_as_long_as_said_isotropic_and_independent_of_the_update(normal, factor):
    updates = normal(5, 20_000) * torch.tensor([1.0, 3.0, 1.0, 0.01, 1.0])[:, None]
    own, sent = attacked("gaussian_noise", updates, factor=factor)
    noise = sent - own
    length = np.sqrt((own**2).sum(axis=1))
    assert np.sqrt((noise**2).sum(axis=1)) / length == pytest.approx(factor, rel=0.03)
    assert np.abs(noise.mean(axis=1)) / noise.std(axis=1) == pytest.approx(0, abs=5 / np.sqrt(20_000))
    for a, b in [(noise[0], own[0]), (noise[0], noise[1])]:
        assert np.corrcoef(a, b)[0, 1] == pytest.approx(0, abs=5 / np.sqrt(20_000))


def test_a_client_that_has_learned_nothing_adds_no_noise():
    own, sent = attacked("gaussian_noise", torch.zeros(5, 30))
    assert np.array_equal(own, sent)


def test_colluding_noise_is_the_common_mean_plus_one_common_noise_of_its_length(normal):
    own, sent = attacked("gaussian_noise", normal(5, 20_000), factor=2.0, colluding=True)
    mean = own.mean(axis=0)
    ratio = np.linalg.norm(sent[0] - mean) / np.linalg.norm(mean)
    assert ratio == pytest.approx(2.0, rel=0.03)


@pytest.mark.parametrize("factor", [0.5, 10.0])
def test_random_direction_is_as_long_as_said_and_unrelated_to_the_update(normal, factor):
    own, sent = attacked("random_direction", normal(5, 20_000, seed=5), factor=factor)
    assert np.linalg.norm(sent, axis=1) / np.linalg.norm(own, axis=1) == pytest.approx([factor] * 2, rel=0.03)
    for a, b in [(sent[0], own[0]), (sent[0], sent[1])]:
        assert np.corrcoef(a, b)[0, 1] == pytest.approx(0, abs=5 / np.sqrt(20_000))


def test_random_direction_is_another_one_in_every_round(normal):
    attack, generator = make_attack("random_direction"), torch.Generator().manual_seed(0)
    updates = normal(5, 20_000, seed=5)
    rounds = [attack(updates, MALICIOUS, AdversaryView(generator, i))[1].double().numpy() for i in range(2)]
    assert np.corrcoef(*rounds)[0, 1] == pytest.approx(0, abs=5 / np.sqrt(20_000))


@pytest.mark.parametrize("factor", [1.0, 10.0, -2.0])
def test_same_value_is_one_number_in_all_coordinates_and_as_long_as_said(normal, factor):
    own, sent = attacked("same_value", normal(5, 30), factor=factor)
    assert (sent == sent[:, :1]).all()
    np.testing.assert_allclose(sent[:, 0], factor * np.sqrt((own**2).mean(axis=1)), rtol=1e-5)


def test_zero_is_zero(normal):
    _, sent = attacked("zero", normal(5, 30))
    assert not sent.any()


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("random_direction", "factor"),
        ("same_value", "factor"),
        ("scaling", "factor"),
        ("partial_scaling", "factor"),
        ("sign_flip", "scale"),
        ("gaussian_noise", "factor"),
        ("ipm", "epsilon"),
        ("alie", "z"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_strength_that_is_not_a_finite_number_is_refused_by_name(name, field, value):
    with pytest.raises(ValueError, match=f"{name}: {field} must be a finite number, got {value}"):
        make_attack(name, **{field: value})


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_refused(share):
    with pytest.raises(ValueError, match=rf"share must lie in \[0, 1\], got {share}"):
        make_attack("partial_scaling", share=share)
