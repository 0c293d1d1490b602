"""Folders of images, and the cache of what was decoded from them."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fl_core.data import Dataset, load_dataset
from fl_core.data.dataset import _load
from fl_core.data.location import decoded_directory


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    """A cache directory of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("xdg")))
    return decoded_directory()


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=shape or (6, 5), dtype=np.uint8)


def fill(folder: Path, side: str = "train", name: Callable[[str, int], str] | None = None, **counts: int) -> Path:
    """``counts`` grey 5x6 images a class, each of its own seed."""
    for c, (label, count) in enumerate(counts.items()):
        (folder / side / label).mkdir(parents=True)
        for i in range(count):
            file = name(label, i) if name else f"{i:03d}.png"
            Image.fromarray(pixels(1000 * c + i + 10**6 * (side == "test"))).save(folder / side / label / file)
    return folder


def load(folder: Path, **options: object) -> Dataset:
    """Past the process's memory, so that files are looked at."""
    _load.cache_clear()
    return load_dataset("image_folder", folder, **options)


def patient(label: str, i: int) -> str:
    return f"{label}{i // 3}_{i % 3}.png"


def test_classes_are_the_subfolders_in_order_and_images_the_files_in_theirs(tmp_path):
    dataset = load(fill(tmp_path, zebra=4, Ape=5, ant=3))
    assert dataset.classes == ("Ape", "ant", "zebra")
    assert dataset.labels.tolist() == [0] * 5 + [1] * 3 + [2] * 4
    assert dataset.image_shape == (1, 6, 5)
    assert dataset.groups is None
    expected = [pixels(1000 * c + i) for c, count in ((1, 5), (2, 3), (0, 4)) for i in range(count)]
    assert np.array_equal(dataset.pixels[:, 0].numpy(), np.stack(expected))


def test_a_test_folder_is_the_test_side(tmp_path):
    dataset = load(fill(fill(tmp_path, a=5, b=4), "test", a=2, b=1))
    assert dataset.train.tolist() == list(range(9))
    assert dataset.test.tolist() == [9, 10, 11]
    assert dataset.labels[dataset.test].tolist() == [0, 0, 1]
    assert np.array_equal(dataset.pixels[9, 0].numpy(), pixels(10**6))


def test_a_test_folder_without_an_image_that_can_be_read_is_not_passed_over(tmp_path):
    fill(tmp_path, a=5, b=4)
    (tmp_path / "test" / "a").mkdir(parents=True)
    (tmp_path / "test" / "a" / "x.gif").touch()
    Image.fromarray(pixels(1)).save(tmp_path / "test" / "flat.png")
    with pytest.raises(ValueError, match=r"test holds no image in a class folder; expected .*test/CLASS/\*\.png"):
        load(tmp_path)


def test_without_a_test_folder_a_stratified_quarter_is_held_out_once_and_for_all(tmp_path):
    dataset = load(fill(tmp_path, a=40, b=20))
    assert sorted([*dataset.train.tolist(), *dataset.test.tolist()]) == list(range(60))
    assert np.bincount(dataset.labels[dataset.test]).tolist() == [10, 5]
    assert load(tmp_path).test.tolist() == dataset.test.tolist()


def test_groups_are_held_out_whole(tmp_path):
    dataset = load(fill(tmp_path, name=patient, a=48, b=24), group_pattern=r"^([ab]\d+)_")
    assert len(dataset.groups.unique()) == 24
    assert not set(dataset.groups[dataset.train].tolist()) & set(dataset.groups[dataset.test].tolist())
    assert np.bincount(dataset.labels[dataset.test]).tolist() == [12, 6]
    assert [len(set(dataset.groups[i : i + 3].tolist())) for i in range(0, 72, 3)] == [1] * 24


def test_classes_of_too_few_images_to_be_held_out_by_groups_are_refused(tmp_path):
    fill(tmp_path, name=lambda label, i: f"{label}{i}.png", a=3, b=3)
    with pytest.raises(ValueError, match=r"no class has more than 3 images.* 4 or more"):
        load(tmp_path, group_pattern=r"^(\w+)\.")


def test_a_link_to_nothing_is_refused_by_name(tmp_path):
    fill(tmp_path, a=5, b=4)
    (tmp_path / "train" / "b" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"lost\.png is a link to nothing"):
        load(tmp_path)


def test_a_group_on_both_sides_of_the_border_is_refused(tmp_path):
    fill(fill(tmp_path, name=patient, a=6, b=6), "test", name=patient, a=2, b=2)
    with pytest.raises(ValueError, match="stands on both sides of the border"):
        load(tmp_path, group_pattern=r"^([ab]\d+)_")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "is not a regular expression"),
        (r"\d+", "must have one group in parentheses, has 0"),
        (r"(\d)(\d)", "must have one group in parentheses, has 2"),
        (r"(x)", r"does not fit .*a/000\.png"),
        (r"0|(x)", r"does not fit .*a/000\.png"),
    ],
)
def test_a_pattern_that_finds_no_groups_is_refused(tmp_path, pattern, message):
    with pytest.raises(ValueError, match=message) as error:
        load(fill(tmp_path, a=8, b=8), group_pattern=pattern)
    assert repr(pattern) in str(error.value)


GREY = pixels(1)
COLOUR = pixels(2, 6, 5, 3)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(GREY), GREY[None]),
        (Image.fromarray(GREY.astype(np.uint16) * 257), GREY[None]),
        (Image.fromarray((GREY // 2).astype(np.uint16) * 257 + 100), GREY[None] // 2),
        (Image.fromarray(GREY.astype(np.uint16)), GREY[None]),
        (
            Image.fromarray(np.where(GREY > 127, 255, 0).astype(np.uint8)).convert("1"),
            np.where(GREY > 127, 255, 0)[None],
        ),
        (Image.fromarray(COLOUR), COLOUR.transpose(2, 0, 1)),
        (Image.fromarray(np.dstack([COLOUR, GREY])), COLOUR.transpose(2, 0, 1)),
        (Image.fromarray(GREY).convert("P"), GREY[None].repeat(3, axis=0)),
    ],
    ids=["grey", "16 bit", "16 bit, low bits", "8 bit in 16", "1 bit", "colour", "alpha", "palette"],
)
def test_every_kind_of_image_becomes_eight_bits_grey_or_colour(tmp_path, image, expected):
    fill(tmp_path, a=4, b=4)
    image.save(tmp_path / "train" / "a" / "000.png")
    dataset = load(tmp_path)
    assert dataset.image_shape == (len(expected), 6, 5)
    assert np.array_equal(dataset.pixels[0].numpy(), expected)


def test_one_colour_image_makes_the_others_three_equal_channels(tmp_path):
    fill(tmp_path, a=4, b=4)
    Image.fromarray(COLOUR).save(tmp_path / "train" / "b" / "colour.png")
    dataset = load(tmp_path)
    assert np.array_equal(dataset.pixels[0].numpy(), pixels(0)[None].repeat(3, axis=0))
    assert np.array_equal(dataset.pixels[8].numpy(), COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".tif", ".tiff", ".webp", ".jpg", ".jpeg"])
def test_each_suffix_is_read_and_constant_images_survive_every_compression(tmp_path, suffix):
    fill(tmp_path, a=4, b=4)
    Image.fromarray(np.full((6, 5), 200, np.uint8)).save(tmp_path / "train" / "b" / f"z{suffix}")
    values = load(tmp_path).pixels[8].float()
    assert len(load(tmp_path).labels) == 9
    assert (values - 200).abs().max() <= 2


def test_images_are_resized_to_one_size_and_keep_their_value(tmp_path):
    fill(tmp_path, a=4, b=4)
    Image.fromarray(np.full((30, 7), 90, np.uint8)).save(tmp_path / "train" / "b" / "z.png")
    dataset = load(tmp_path, image_size=8)
    assert dataset.image_shape == (1, 8, 8)
    assert dataset.pixels[8].unique().tolist() == [90]


def test_mixed_sizes_are_refused_with_two_files_and_their_sizes(tmp_path):
    fill(tmp_path, a=4, b=4)
    Image.fromarray(pixels(0, 7, 9)).save(tmp_path / "train" / "b" / "z.png")
    with pytest.raises(ValueError, match=r"000\.png is 5x6, .*z\.png is 9x7\. Give image_size"):
        load(tmp_path)


@pytest.mark.parametrize("size", [0, -5])
def test_an_image_size_below_one_is_refused(tmp_path, size):
    with pytest.raises(ValueError, match=f"image_size must be a whole number of pixels, at least 1, got {size}"):
        load(fill(tmp_path, a=4, b=4), image_size=size)


@pytest.mark.parametrize("keep", [0, 5, 40, 60])
def test_a_damaged_image_is_refused_by_name(tmp_path, keep):
    path = fill(tmp_path, a=4, b=4) / "train" / "b" / "001.png"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"cannot be decoded .*; replace or remove the file") as error:
        load(tmp_path)
    assert str(path) in str(error.value)


def test_a_class_with_one_image_is_refused(tmp_path):
    fill(fill(tmp_path, a=8, b=1), "test", a=2)
    with pytest.raises(ValueError, match="class 'b' has 1 image; a class needs at least two"):
        load(tmp_path)


def test_a_folder_of_another_layout_is_refused_with_the_layout(tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*train; expected .*train/CLASS/"):
        load(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=r"train holds no class folders; expected .*train/CLASS/"):
        load(tmp_path)
    fill(tmp_path, a=4, b=4)
    (tmp_path / "train" / "c").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*c holds no .*\.png"):
        load(tmp_path)


def test_a_class_of_the_test_side_only_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"class 'c' of .*test is not in .*train"):
        load(fill(fill(tmp_path, a=4, b=4), "test", a=2, c=2))


def test_hidden_files_and_other_files_are_not_images(tmp_path):
    fill(tmp_path, a=4, b=4)
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "notes.txt").write_text("not a class")
    for name in (".DS_Store", "._000.png", "Thumbs.db", "readme.txt"):
        (tmp_path / "train" / "a" / name).write_bytes(b"not an image")
    dataset = load(tmp_path)
    assert dataset.classes == ("a", "b")
    assert len(dataset.labels) == 8


class Untouched:
    """Stands for ``PIL.Image.open`` where no image may be read."""

    def __call__(self, path: Path) -> None:
        raise AssertionError(f"{path} was read")


def test_the_second_load_reads_no_image_and_gives_the_same(tmp_path, monkeypatch):
    first = load(fill(tmp_path, a=4, b=4))
    monkeypatch.setattr(Image, "open", Untouched())
    second = load(tmp_path)
    assert second is not first
    assert np.array_equal(first.pixels.numpy(), second.pixels.numpy())


def replaced(folder: Path) -> None:
    Image.fromarray(pixels(999)).save(folder / "train" / "a" / "002.png")


def touched(folder: Path) -> None:
    os.utime(folder / "train" / "a" / "002.png", ns=(1, 1))


def added(folder: Path) -> None:
    Image.fromarray(pixels(999)).save(folder / "train" / "b" / "9.png")


def removed(folder: Path) -> None:
    (folder / "train" / "b" / "001.png").unlink()


def renamed(folder: Path) -> None:
    (folder / "train" / "b").rename(folder / "train" / "B")


@pytest.mark.parametrize("change", [replaced, touched, added, removed, renamed], ids=lambda change: change.__name__)
def test_a_change_of_the_files_is_seen(tmp_path, monkeypatch, change):
    load(fill(tmp_path, a=4, b=4))
    change(tmp_path)
    monkeypatch.setattr(Image, "open", Untouched())
    with pytest.raises(AssertionError, match="was read"):
        load(tmp_path)


def test_images_of_another_size_are_kept_apart(tmp_path):
    fill(tmp_path, a=4, b=4)
    shapes = [load(tmp_path, image_size=size).image_shape for size in (None, 4, 7, 4)]
    assert shapes == [(1, 6, 5), (1, 4, 4), (1, 7, 7), (1, 4, 4)]


@pytest.mark.parametrize("content", [b"", b"garbage", "half", "no pixels"])
def test_a_corrupt_cache_is_decoded_again_and_repaired(tmp_path, cache, monkeypatch, content):
    first = load(fill(tmp_path, a=4, b=4))
    (file,) = cache.iterdir()
    good = file.read_bytes()
    file.write_bytes({"half": good[: len(good) // 2], "no pixels": good[:128]}.get(content, content))
    assert np.array_equal(load(tmp_path).pixels.numpy(), first.pixels.numpy())
    assert file.read_bytes() == good
    monkeypatch.setattr(Image, "open", Untouched())
    load(tmp_path)


def test_a_cache_that_cannot_be_written_only_warns(tmp_path, cache):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"a file where the folder should be")
    with pytest.warns(UserWarning, match="decoded images are not kept in .*they will be decoded again"):
        dataset = load(fill(tmp_path, a=4, b=4))
    assert len(dataset.labels) == 8


@pytest.mark.parametrize("crash", ["fsync", "replace"])
def test_a_crash_while_the_cache_is_written_leaves_no_file(tmp_path, cache, monkeypatch, crash):
    def die(*args: object) -> None:
        raise KeyboardInterrupt

    fill(tmp_path, a=4, b=4)
    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if crash == "fsync" else (Path, "replace")), die)
        with pytest.raises(KeyboardInterrupt):
            load(tmp_path)
    assert list(cache.iterdir()) == []
    assert len(load(tmp_path).labels) == 8
    assert len(list(cache.iterdir())) == 1


def test_a_full_disk_only_warns_and_leaves_no_file(tmp_path, cache, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        load(fill(tmp_path, a=4, b=4))
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("name", ["alzheimer_mri", "chest_xray"])
def test_the_medical_folders_are_grouped_by_the_number_before_the_underscore(tmp_path, name):
    def number(label: str, i: int) -> str:
        return f"{'ab'.index(label) * 10 + i // 2:04d}_{i:04d}.png"

    def other(label: str, i: int) -> str:
        return f"{'ab'.index(label) * 10 + i // 2 + 5000:04d}_{i:04d}.png"

    fill(fill(tmp_path / name, name=number, a=6, b=6), "test", name=other, a=2, b=2)
    dataset = load_dataset(name, tmp_path)
    assert dataset.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]
    with pytest.raises(ValueError, match=f"{name}.*no folder"):
        load_dataset(name, tmp_path / "elsewhere")


def test_scans_of_twelve_bits_keep_what_eight_can_hold_and_stay_comparable(tmp_path):
    fill(tmp_path, a=4, b=4)
    bright, dark = np.full((6, 5), 4095, np.uint16), np.full((6, 5), 1000, np.uint16)
    for name, scan in (("000", bright), ("001", dark)):
        Image.fromarray(scan).save(tmp_path / "train" / "a" / f"{name}.png")
    dataset = load(tmp_path)
    assert [int(dataset.pixels[i].unique()) for i in (0, 1)] == [4095 // 16, 1000 // 16]
