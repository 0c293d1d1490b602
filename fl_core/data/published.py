"""Published sets, read by the libraries that everybody reads them with: MNIST, Fashion-MNIST, CIFAR-10, MedMNIST."""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor

from fl_core.data.dataset import Dataset, register_dataset
from fl_core.data.location import Source, missing_file
from fl_core.data.vision import import_torchvision

_MNIST_FILES = {
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}


@register_dataset("mnist")
def mnist(source: Source) -> Dataset:
    """60,000 + 10,000 handwritten digits, 28x28 grey (LeCun et al. 1998)."""
    return _mnist_like(source, "mnist", "MNIST")


@register_dataset("fashion_mnist")
def fashion_mnist(source: Source) -> Dataset:
    """60,000 + 10,000 articles of clothing, 28x28 grey (Xiao et al. 2017, arXiv 1708.07747)."""
    return _mnist_like(source, "fashion_mnist", "FashionMNIST")


@register_dataset("cifar10")
def cifar10(source: Source) -> Dataset:
    """50,000 + 10,000 photographs, 32x32 colour (Krizhevsky 2009)."""
    datasets = _torchvision_datasets("cifar10")
    published = datasets.CIFAR10
    folder = source.directory / published.base_folder
    files = [*published.train_list, *published.test_list, [published.meta["filename"], published.meta["md5"]]]
    if source.download:
        _download("cifar10", lambda: published(source.directory, download=True))
    for name, md5 in files:
        if not (folder / name).is_file():
            raise missing_file("cifar10", folder / name, _TORCHVISION_WAYS)
        if not datasets.utils.check_integrity(folder / name, md5):
            raise ValueError(
                f"data set 'cifar10': {folder / name} is damaged: its md5 is not the published {md5}. Delete it and "
                "fetch it again (--download)."
            )
    train, test = (published(source.directory, train=side, download=False) for side in (True, False))
    pixels = torch.from_numpy(np.concatenate([train.data, test.data])).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(train.targets + test.targets)
    return _bordered("cifar10", pixels, labels, tuple(train.classes), len(train.data))


def _mnist_like(source: Source, name: str, folder: str) -> Dataset:
    datasets = _torchvision_datasets(name)
    published = getattr(datasets, folder)
    if source.download:
        _download(name, lambda: published(source.directory, download=True))
    for file, shape in _MNIST_FILES.items():
        _check_idx(name, source.directory / folder / "raw" / file, shape)
    train, test = (published(source.directory, train=side, download=False) for side in (True, False))
    pixels, labels = torch.cat([train.data, test.data]).unsqueeze(1), torch.cat([train.targets, test.targets])
    return _bordered(name, pixels, labels.long(), tuple(train.classes), len(train.data))


def _check_idx(name: str, path: Path, shape: tuple[int, ...]) -> None:
    """An idx file is a header (two zero bytes, type 8 for uint8, rank, sizes) and the bytes that it promises."""
    if not path.is_file():
        raise missing_file(name, path, _TORCHVISION_WAYS)
    header = struct.pack(">HBB", 0, 8, len(shape)) + struct.pack(f">{len(shape)}I", *shape)
    with path.open("rb") as file:
        found = file.read(len(header))
    size = len(header) + int(np.prod(shape))
    if found != header or path.stat().st_size != size:
        raise ValueError(
            f"data set {name!r}: {path} is damaged: expected {size} bytes that begin with {header.hex()}, found "
            f"{path.stat().st_size} that begin with {found.hex()}. Delete it and fetch it again (--download)."
        )


# Name: class names, whether in colour, published md5. The multi-label set (ChestMNIST) has no single label to learn.
_MEDMNIST: dict[str, tuple[int, str]] = {
    "pathmnist": (9, "a8b06965200029087d5bd730944a56c1"),
    "dermamnist": (7, "0744692d530f8e62ec473284d019b0c7"),
    "octmnist": (4, "c68d92d5b585d8d81f7112f81e2d0842"),
    "pneumoniamnist": (2, "28209eda62fecd6e6a2d98b1501bb15f"),
    "retinamnist": (5, "bd4c0672f1bba3e3a89f0e4e876791e4"),
    "breastmnist": (2, "750601b1f35ba3300ea97c75c52ff8f6"),
    "bloodmnist": (8, "7053d0359d879ad8a5505303e11de1dc"),
    "tissuemnist": (8, "ebe78ee8b05294063de985d821c1c34b"),
    "organamnist": (11, "68e3f8846a6bd62f0c9bf841c0d9eacc"),
    "organcmnist": (11, "b9ceb9546e10131b32923c5bbeaea2b1"),
    "organsmnist": (11, "9ab87b696fb54e2a387ebe992d6ed5f1"),
}
_MEDMNIST_ADDRESS = "https://zenodo.org/records/10519652/files/{file}?download=1"


def _medmnist(name: str) -> Callable[[Source], Dataset]:
    """A 2-D set of MedMNIST v2 (Yang et al. 2023, arXiv 2110.14795), 28x28; its validation part is train side here.

    The npz layout is read directly: arrays ``{train,val,test}_{images,labels}``.
    """
    num_classes, md5 = _MEDMNIST[name]

    def load(source: Source) -> Dataset:
        path = source.directory / f"{name}.npz"
        if source.download and not path.is_file():
            utils = _torchvision_datasets(name).utils
            address = _MEDMNIST_ADDRESS.format(file=path.name)
            _download(name, lambda: utils.download_url(address, source.directory, path.name, md5))
        if not path.is_file():
            raise missing_file(name, path, f"fetch it with --download or put MedMNIST's {path.name} there")
        arrays = _read_npz(name, path)
        images = np.concatenate([arrays[f"{part}_images"] for part in _PARTS])
        labels = np.concatenate([arrays[f"{part}_labels"].reshape(-1) for part in _PARTS]).astype(np.int64)
        pixels = torch.from_numpy(images if images.ndim == 4 else images[..., None]).permute(0, 3, 1, 2).contiguous()
        border = len(labels) - len(arrays["test_labels"])
        classes = tuple(str(c) for c in range(num_classes))
        return _bordered(name, pixels, torch.from_numpy(labels), classes, border)

    return load


for _name in _MEDMNIST:
    register_dataset(_name)(_medmnist(_name))

_PARTS = ("train", "val", "test")


def _read_npz(name: str, path: Path) -> dict[str, Any]:
    wanted = [f"{part}_{kind}" for part in _PARTS for kind in ("images", "labels")]
    try:
        with np.load(io.BytesIO(path.read_bytes())) as file:
            return {key: file[key] for key in wanted}
    except Exception as error:  # from damaged bytes NumPy may raise nearly anything
        raise ValueError(
            f"data set {name!r}: {path} is damaged, or not in MedMNIST's layout ({', '.join(wanted)}): {error}. Delete "
            "it and fetch it again (--download)."
        ) from error


_TORCHVISION_WAYS = "fetch it with --download (download=True), or put the files there that torchvision would leave"


def _bordered(name: str, pixels: Tensor, labels: Tensor, classes: tuple[str, ...], border: int) -> Dataset:
    """The published order: train samples first, then test samples."""
    return Dataset(name, pixels, labels, classes, torch.arange(border), torch.arange(border, len(labels)))


def _torchvision_datasets(name: str) -> Any:
    try:
        return import_torchvision().datasets
    except ImportError as error:
        raise ValueError(
            f"data set {name!r} is read with torchvision, which is not installed: pip install 'optigradtrust[vision]'"
        ) from error


def _download(name: str, fetch: Callable[[], object]) -> None:
    try:
        fetch()
    except (URLError, OSError, RuntimeError) as error:
        raise ValueError(f"data set {name!r} could not be downloaded: {error}") from error
