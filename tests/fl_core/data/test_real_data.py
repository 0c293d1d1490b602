"""The sets themselves, where ``$OPTIGRAD_DATA`` holds them; read a second time without torchvision."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fl_core.data import load_dataset


def idx(path: Path) -> np.ndarray:
    content = path.read_bytes()
    rank = content[3]
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


@pytest.mark.parametrize(
    ("name", "folder", "first_class", "labels"),
    [
        ("mnist", "MNIST", "0 - zero", [5, 0, 4, 1, 9]),
        ("fashion_mnist", "FashionMNIST", "T-shirt/top", [9, 0, 0, 3, 0]),
    ],
)
def test_mnist_and_fashion_mnist_are_the_bytes_of_their_files(data_dir, name, folder, first_class, labels):
    raw = data_dir(f"{folder}/raw/train-images-idx3-ubyte") / folder / "raw"
    dataset = load_dataset(name, raw.parents[1])
    assert dataset.image_shape == (1, 28, 28)
    assert (len(dataset.train), len(dataset.test), dataset.num_classes) == (60_000, 10_000, 10)
    assert dataset.classes[0] == first_class
    assert dataset.labels[:5].tolist() == labels
    for side, part in (("train", dataset.train), ("t10k", dataset.test)):
        assert np.array_equal(dataset.pixels[part, 0].numpy(), idx(raw / f"{side}-images-idx3-ubyte"))
        assert np.array_equal(dataset.labels[part].numpy(), idx(raw / f"{side}-labels-idx1-ubyte"))


def test_cifar10_is_the_bytes_of_its_batches(data_dir):
    folder = data_dir("cifar-10-batches-py/batches.meta") / "cifar-10-batches-py"
    dataset = load_dataset("cifar10", folder.parent)
    assert dataset.image_shape == (3, 32, 32)
    assert (len(dataset.train), len(dataset.test)) == (50_000, 10_000)
    assert dataset.classes[:3] == ("airplane", "automobile", "bird")
    assert torch.bincount(dataset.labels[dataset.train]).tolist() == [5000] * 10
    assert dataset.labels[:5].tolist() == [6, 9, 9, 4, 1]
    for position, name in ((0, "data_batch_1"), (40_000, "data_batch_5"), (50_000, "test_batch")):
        batch = pickle.loads((folder / name).read_bytes(), encoding="bytes")
        ours = dataset.pixels[position : position + 10_000]
        assert np.array_equal(ours.numpy(), batch[b"data"].reshape(-1, 3, 32, 32))
        assert dataset.labels[position : position + 10_000].tolist() == batch[b"labels"]


def test_the_validation_part_of_pneumoniamnist_is_train_side(data_dir):
    path = data_dir("pneumoniamnist.npz") / "pneumoniamnist.npz"
    dataset = load_dataset("pneumoniamnist", path.parent)
    assert (len(dataset.train), len(dataset.test)) == (4708 + 524, 624)
    with np.load(path) as arrays:
        assert np.array_equal(dataset.pixels[4708:5232, 0].numpy(), arrays["val_images"])
        assert np.array_equal(dataset.pixels[dataset.test, 0].numpy(), arrays["test_images"])
        assert np.array_equal(dataset.labels[dataset.test].numpy(), arrays["test_labels"][:, 0])


FOLDERS = {
    "alzheimer_mri": {
        "Mild Impairment": (704, 192),
        "Moderate Impairment": (32, 32),
        "No Impairment": (2560, 640),
        "Very Mild Impairment": (1792, 448),
    },
    "chest_xray": {"NORMAL": (1068, 272), "PNEUMONIA": (3081, 773)},
}


@pytest.mark.parametrize(("name", "people"), [("alzheimer_mri", 200), ("chest_xray", 2846)])
def test_the_medical_folders_are_their_files_and_nobody_is_on_both_sides(data_dir, name, people):
    folder = data_dir(f"{name}/train", f"{name}/test") / name
    dataset = load_dataset(name, folder.parent)
    assert dataset.classes == tuple(FOLDERS[name])
    assert dataset.image_shape == (1, 64, 64)
    for c, counts in enumerate(FOLDERS[name].values()):
        assert tuple(int((dataset.labels[side] == c).sum()) for side in (dataset.train, dataset.test)) == counts
    one, other = (set(dataset.groups[side].tolist()) for side in (dataset.train, dataset.test))
    assert not one & other
    assert len(one | other) == people
    files = [p for side in ("train", "test") for c in dataset.classes for p in sorted((folder / side / c).iterdir())]
    assert len(files) == len(dataset.labels)
    for i in range(0, len(files), 301):
        with Image.open(files[i]) as image:
            assert np.array_equal(dataset.pixels[i, 0].numpy(), np.asarray(image.convert("L")))
    # Samples of one person, and only those, have one group: the number before the underscore.
    number = [int(file.name.split("_")[0]) for file in files]
    assert len(set(zip(number, dataset.groups.tolist(), strict=True))) == len(set(number)) == people
