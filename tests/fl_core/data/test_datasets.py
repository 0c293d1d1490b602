import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from fl_core import Federation, configure
from fl_core.data import Dataset, dataset_names, load_dataset


def test_a_data_set_is_loaded_once_a_process():
    assert load_dataset("digits") is load_dataset("digits")


def test_an_unknown_data_set_lists_the_names():
    with pytest.raises(ValueError, match=f"unknown data set 'diggits'; there are: {', '.join(dataset_names())}"):
        load_dataset("diggits")


def test_digits_are_the_published_set_standardised_by_the_train_side():
    digits = load_dataset("digits")
    pixels, labels = load_digits(return_X_y=True)
    assert digits.image_shape == (1, 8, 8)
    assert np.array_equal(digits.labels.numpy(), labels)
    side = pixels[digits.train.numpy()]
    expected = (pixels - side.mean()) / side.std(ddof=1)
    np.testing.assert_allclose(digits.images(torch.arange(1797)).flatten(1).numpy(), expected, atol=1e-5)


def test_train_and_test_are_disjoint_cover_the_set_and_hold_the_same_classes():
    digits = load_dataset("digits")
    assert sorted(torch.cat([digits.train, digits.test]).tolist()) == list(range(1797))
    assert len(digits.test) == 450
    shares = torch.stack([torch.bincount(digits.labels[side]) / len(side) for side in (digits.train, digits.test)])
    assert (shares[0] - shares[1]).abs().max() < 2 / 450


def random_set(channels: int = 1, samples: int = 12, **parts: object) -> Dataset:
    """Random images of two classes; the last quarter is the test side."""
    generator = torch.Generator().manual_seed(channels)
    border = samples * 3 // 4
    fields: dict = {
        "name": "random",
        "pixels": torch.randint(256, (samples, channels, 5, 4), generator=generator, dtype=torch.uint8),
        "labels": torch.arange(samples) % 2,
        "classes": ("a", "b"),
        "train": torch.arange(border),
        "test": torch.arange(border, samples),
    }
    return Dataset(**(fields | parts))


@settings(max_examples=40)
@given(st.sampled_from([1, 3]), st.integers(1, 6), st.integers(1, 5), st.integers(0, 255), st.integers(0, 2**32 - 1))
def test_moments_are_those_of_the_train_sides_pixels(channels, height, width, spread, seed):
    # Spread 0 are constant channels, which are not scaled.
    generator = np.random.default_rng(seed)
    low = generator.integers(0, 256 - spread, size=(1, channels, 1, 1))
    pixels = generator.integers(low, low + spread + 1, size=(12, channels, height, width)).astype(np.uint8)
    made = random_set(pixels=torch.from_numpy(pixels))
    mean, deviation = made.moments
    side = pixels[:9].astype(np.float64)
    expected = side.std(axis=(0, 2, 3), ddof=1)
    assert mean.shape == deviation.shape == (channels, 1, 1)
    assert mean.dtype == deviation.dtype == torch.float32
    np.testing.assert_allclose(mean[:, 0, 0].numpy(), side.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(deviation[:, 0, 0].numpy(), np.where(expected > 0, expected, 1.0), rtol=1e-6)


def test_moments_know_nothing_of_the_test_side():
    made = random_set()
    pixels = made.pixels.clone()
    pixels[made.test] = 255
    assert all(map(torch.equal, random_set(pixels=pixels).moments, made.moments))


def test_a_constant_channel_beside_others_is_centred_and_not_scaled():
    pixels = random_set(3).pixels.clone()
    pixels[:, 1] = 77
    images = random_set(3, pixels=pixels).images(torch.arange(9))
    assert torch.equal(images[:, 1], torch.zeros(9, 5, 4))
    for channel in (0, 2):
        np.testing.assert_allclose(images[:, channel].double().mean(), 0, atol=1e-6)
        np.testing.assert_allclose(images[:, channel].double().std(), 1, rtol=1e-6)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 1, 4), (0,)])
def test_images_have_the_shape_of_the_indices_and_are_float32(shape):
    made = random_set(3)
    indices = torch.randint(12, shape, generator=torch.Generator().manual_seed(0))
    images = made.images(indices)
    assert images.shape == (*shape, 3, 5, 4)
    assert images.dtype == torch.float32
    mean, deviation = made.moments
    torch.testing.assert_close(images, (made.pixels[indices].float() - mean) / deviation)


def test_images_are_the_callers_own():
    made = random_set()
    before = made.pixels.clone()
    made.images(torch.arange(12)).zero_()
    assert torch.equal(made.pixels, before)


def test_two_federations_of_a_process_share_the_pixels():
    one, other = Federation(configure(num_clients=3)), Federation(configure(num_clients=5, split_seed=1))
    assert one.dataset.pixels.data_ptr() == other.dataset.pixels.data_ptr()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"pixels": torch.zeros(12, 5, 4, dtype=torch.uint8)},
            r"pixels must be \(S, C, H, W\) uint8, got \(12, 5, 4\)",
        ),
        ({"pixels": torch.zeros(12, 1, 5, 4)}, r"uint8, got \(12, 1, 5, 4\) torch\.float32"),
        ({"labels": torch.zeros(11, dtype=torch.int64)}, "12 images need as many labels and groups"),
        ({"groups": torch.zeros(13, dtype=torch.int64)}, "12 images need as many labels and groups"),
        ({"labels": torch.arange(12) % 3}, r"labels must lie in \[0, 2\), got 0 to 2"),
        ({"labels": torch.arange(12) % 2 - 1}, r"labels must lie in \[0, 2\), got -1 to 0"),
        ({"train": torch.zeros(0, dtype=torch.int64)}, "train and test must be indices of some of its"),
        ({"test": torch.zeros(0, dtype=torch.int64)}, "train and test must be indices of some of its"),
        ({"labels": (torch.arange(12) == 0).long()}, "class 'b' has 1 image; a class needs at least two"),
        ({"labels": torch.zeros(12, dtype=torch.int64)}, "class 'b' has 0 images"),
        ({"groups": torch.arange(12) % 10 // 2 + 40}, "group 40 stands on both sides of the border"),
    ],
    ids=[
        "axes",
        "dtype",
        "labels",
        "groups",
        "label high",
        "label low",
        "no train",
        "no test",
        "one",
        "none",
        "border",
    ],
)
def test_parts_that_do_not_fit_together_are_refused_by_name_and_number(parts, message):
    with pytest.raises(ValueError, match=f"data set 'random'.*{message}"):
        random_set(**parts)


def test_groups_of_samples_are_none_where_there_are_none():
    assert random_set().groups_of(torch.arange(3)) is None
    assert random_set(groups=torch.arange(12) * 7).groups_of(torch.tensor([5, 1])).tolist() == [35, 7]
