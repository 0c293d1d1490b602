"""Damaged and missing files of published sets, and downloads that fail: one ValueError, which says what to do."""

import io
import struct
from pathlib import Path
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import torch

from fl_core.data import load_dataset
from fl_core.data.published import _MEDMNIST
from fl_core.data.vision import import_torchvision

try:
    torchvision = import_torchvision()
except ImportError:
    torchvision = None
with_torchvision = pytest.mark.skipif(torchvision is None, reason="torchvision is not installed (the [vision] extra)")

IDX = {
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}


def header(shape: tuple[int, ...]) -> bytes:
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)


def idx_files(folder: Path) -> Path:
    """The four files as they are published, with zeros for pixels and 0 to 9 in turn for labels; sparse on disk."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, shape in IDX.items():
        with (raw / name).open("wb") as file:
            file.write(header(shape))
            if len(shape) == 1:
                file.write(bytes(i % 10 for i in range(shape[0])))
            file.truncate(len(header(shape)) + int(np.prod(shape)))
    return raw


@with_torchvision
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("fashion_mnist", "FashionMNIST/raw/train-images-idx3-ubyte"),
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
        ("pneumoniamnist", "pneumoniamnist.npz"),
    ],
)
def test_a_missing_file_is_named_with_both_ways_to_get_it(tmp_path, name, file):
    with pytest.raises(ValueError, match=f"data set '{name}': no file") as error:
        load_dataset(name, tmp_path)
    for part in (str(tmp_path / file), "--download", "put ", "--data-dir", "$OPTIGRAD_DATA"):
        assert part in str(error.value)


@with_torchvision
def test_idx_files_as_published_are_read(tmp_path):
    idx_files(tmp_path)
    dataset = load_dataset("mnist", tmp_path)
    assert (len(dataset.train), len(dataset.test), dataset.image_shape) == (60_000, 10_000, (1, 28, 28))
    assert torch.equal(dataset.labels, torch.arange(70_000) % 10)


@with_torchvision
@pytest.mark.parametrize("name", IDX)
@pytest.mark.parametrize("damage", ["truncated", "one byte more", "empty", "header", "gzip", "missing"])
def test_a_damaged_idx_file_is_refused_by_name(tmp_path, name, damage):
    path = idx_files(tmp_path) / name
    size = path.stat().st_size
    with path.open("r+b") as file:
        if damage == "truncated":
            file.truncate(size - 1)
        elif damage == "one byte more":
            file.truncate(size + 1)
        elif damage == "empty":
            file.truncate(0)
        elif damage == "header":
            file.write(header((59_999, *IDX[name][1:])))
        elif damage == "gzip":
            file.write(b"\x1f\x8b\x08\x00")
    if damage == "missing":
        path.unlink()
    with pytest.raises(ValueError, match="no file" if damage == "missing" else "is damaged: expected") as error:
        load_dataset("mnist", tmp_path)
    assert str(path) in str(error.value)
    assert "--download" in str(error.value)


@with_torchvision
@pytest.mark.parametrize("damaged", ["data_batch_1", "data_batch_4", "test_batch", "batches.meta"])
def test_a_cifar_batch_of_another_md5_is_refused_by_name(tmp_path, monkeypatch, damaged):
    published = torchvision.datasets.CIFAR10
    folder = tmp_path / published.base_folder
    folder.mkdir()
    contents = {name: name.encode() for name, _ in [*published.train_list, *published.test_list]}
    contents["batches.meta"] = b"meta"
    for name, content in contents.items():
        (folder / name).write_bytes(content + (b"!" if name == damaged else b""))

    def md5(name: str) -> str:
        import hashlib

        return hashlib.md5(contents[name], usedforsecurity=False).hexdigest()

    monkeypatch.setattr(published, "train_list", [[name, md5(name)] for name, _ in published.train_list])
    monkeypatch.setattr(published, "test_list", [[name, md5(name)] for name, _ in published.test_list])
    monkeypatch.setattr(published, "meta", published.meta | {"md5": md5("batches.meta")})
    with pytest.raises(ValueError, match=f"is damaged: its md5 is not the published {md5(damaged)}") as error:
        load_dataset("cifar10", tmp_path)
    assert str(folder / damaged) in str(error.value)


def arrays(classes: int = 2, colour: bool = False, **changes: object) -> dict:
    generator = np.random.default_rng(0)
    made: dict = {}
    for part, samples in (("train", 20), ("val", 8), ("test", 12)):
        shape = (samples, 28, 28, 3) if colour else (samples, 28, 28)
        made[f"{part}_images"] = generator.integers(256, size=shape, dtype=np.uint8)
        made[f"{part}_labels"] = (np.arange(samples) % classes).astype(np.uint8)[:, None]
    made |= changes
    return {key: value for key, value in made.items() if value is not None}


def npz(path: Path, content: dict) -> Path:
    np.savez(path, **content)
    return path


@pytest.mark.parametrize(("name", "classes", "colour"), [("pneumoniamnist", 2, False), ("dermamnist", 7, True)])
def test_medmnist_is_read_from_its_layout_with_the_validation_part_on_the_train_side(tmp_path, name, classes, colour):
    content = arrays(classes, colour)
    npz(tmp_path / f"{name}.npz", content)
    dataset = load_dataset(name, tmp_path)
    assert dataset.image_shape == (3 if colour else 1, 28, 28)
    assert dataset.classes == tuple(map(str, range(classes)))
    assert dataset.train.tolist() == list(range(28))
    assert dataset.test.tolist() == list(range(28, 40))
    for part, start in (("train", 0), ("val", 20), ("test", 28)):
        images = content[f"{part}_images"]
        expected = images.transpose(0, 3, 1, 2) if colour else images[:, None]
        assert np.array_equal(dataset.pixels[start : start + len(images)].numpy(), expected)
        assert np.array_equal(dataset.labels[start : start + len(images)].numpy(), content[f"{part}_labels"][:, 0])


@pytest.mark.parametrize("key", ["train_images", "val_labels", "test_images"])
def test_an_npz_without_a_key_is_refused_with_the_layout(tmp_path, key):
    path = npz(tmp_path / "pneumoniamnist.npz", arrays(**{key: None}))
    with pytest.raises(ValueError, match="not in MedMNIST's layout") as error:
        load_dataset("pneumoniamnist", tmp_path)
    assert str(path) in str(error.value)
    assert key in str(error.value).split("layout")[1]


@pytest.mark.parametrize("keep", [0, 1, 100, -1, 0.5])
def test_a_truncated_npz_is_refused(tmp_path, keep):
    path = npz(tmp_path / "pneumoniamnist.npz", arrays())
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep == 0.5 else keep])
    with pytest.raises(ValueError, match=r"pneumoniamnist\.npz is damaged.*--download"):
        load_dataset("pneumoniamnist", tmp_path)


def test_an_npz_whose_bytes_are_damaged_is_refused(tmp_path):
    path = npz(tmp_path / "pneumoniamnist.npz", arrays())
    content = bytearray(path.read_bytes())
    content[5000] ^= 255  # within the first array, whose checksum the archive holds
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"pneumoniamnist\.npz is damaged"):
        load_dataset("pneumoniamnist", tmp_path)


def test_a_compressed_npz_whose_stream_is_damaged_is_refused(tmp_path):
    path = tmp_path / "pneumoniamnist.npz"
    np.savez_compressed(path, **arrays())
    content = bytearray(path.read_bytes())
    content[120:184] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"pneumoniamnist\.npz is damaged"):
        load_dataset("pneumoniamnist", tmp_path)


def test_labels_beyond_the_published_classes_are_refused(tmp_path):
    npz(tmp_path / "pneumoniamnist.npz", arrays(3))
    with pytest.raises(ValueError, match=r"'pneumoniamnist': labels must lie in \[0, 2\), got 0 to 2"):
        load_dataset("pneumoniamnist", tmp_path)


ERRORS = [
    URLError("no route to host"),
    HTTPError("http://x", 404, "no such page", None, None),
    ConnectionResetError("reset"),
    RuntimeError("File not found or corrupted."),
]


@with_torchvision
@pytest.mark.parametrize("problem", ERRORS, ids=lambda problem: type(problem).__name__)
@pytest.mark.parametrize(
    ("name", "kind"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("cifar10", "CIFAR10")]
)
def test_a_download_that_fails_is_one_error_with_the_reason(tmp_path, monkeypatch, name, kind, problem):
    def fail(self: object, *args: object, **kwargs: object) -> None:
        raise problem

    monkeypatch.setattr(getattr(torchvision.datasets, kind), "download", fail)
    with pytest.raises(ValueError, match=f"data set '{name}' could not be downloaded: ") as error:
        load_dataset(name, tmp_path, download=True)
    assert str(problem) in str(error.value)


@with_torchvision
@pytest.mark.parametrize("problem", ERRORS, ids=lambda problem: type(problem).__name__)
def test_a_download_of_medmnist_that_fails_is_one_error_with_the_reason(tmp_path, monkeypatch, problem):
    def fail(*args: object, **kwargs: object) -> None:
        raise problem

    monkeypatch.setattr(torchvision.datasets.utils.urllib.request, "urlopen", fail)
    with pytest.raises(ValueError, match="data set 'pneumoniamnist' could not be downloaded: "):
        load_dataset("pneumoniamnist", tmp_path, download=True)


@with_torchvision
def test_medmnist_is_fetched_once_from_the_published_address_and_checked_by_md5(tmp_path, monkeypatch):
    asked = []

    def fetch(address: str, folder: Path, file: str, md5: str) -> None:
        asked.append((address, md5))
        npz(Path(folder) / file, arrays())

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", fetch)
    first = load_dataset("pneumoniamnist", tmp_path, download=True)
    assert load_dataset("pneumoniamnist", tmp_path, download=True) is first
    assert load_dataset("pneumoniamnist", tmp_path) is first
    address = "https://zenodo.org/records/10519652/files/pneumoniamnist.npz?download=1"
    assert asked == [(address, _MEDMNIST["pneumoniamnist"][1])]


def test_after_a_failure_the_files_are_looked_for_again(tmp_path):
    with pytest.raises(ValueError, match="no file"):
        load_dataset("pneumoniamnist", tmp_path)
    content = io.BytesIO()
    np.savez(content, **arrays())
    (tmp_path / "pneumoniamnist.npz").write_bytes(content.getvalue())
    assert len(load_dataset("pneumoniamnist", tmp_path).labels) == 40
