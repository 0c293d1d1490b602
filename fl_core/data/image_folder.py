"""Folders of images, one subfolder a class: anybody's own data, and the two medical sets that come as such folders.

Images are decoded and resized once and kept as one uint8 array in the user's cache directory.
"""

import hashlib
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold, train_test_split
from tqdm import tqdm

from fl_core.data.dataset import Dataset, register_dataset, too_few_images
from fl_core.data.location import Source, decoded_directory
from fl_core.files import write_atomically

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
_LAYOUT = "train/CLASS/*.png and, if there is a test side of its own, test/CLASS/*.png"
_TEST_SHARE = 0.25
# Raised when files come out of the decoder as other images than before, so that those that were kept are not taken.
_DECODER = 3
_EIGHT_BITS, _TWELVE_BITS = 2**8, 2**12
_NOTHING = np.empty(0, dtype=np.uint8)
_DEEP_GREY = {"I", "I;16", "I;16B", "I;16L"}
_GREY = {"1", "L", "LA", "La", *_DEEP_GREY}


@dataclass(frozen=True)
class _File:
    path: Path
    label: int
    test: bool


@register_dataset("image_folder")
def image_folder(source: Source, image_size: int | None = None, group_pattern: str | None = None) -> Dataset:
    """A folder of one's own: ``train/CLASS/*.png``, optionally ``test/CLASS/*.png``; png, jpeg, bmp, tiff or webp.

    Without a test folder a stratified quarter of the images (of the groups, where there are groups) is held out once
    and for all with a constant seed.

    Args:
        source: Its directory is the folder.
        image_size: Resize to this many pixels square; by default images are taken as they are, all of one size.
        group_pattern: Regular expression with one group; what it finds in a file's name (without its folder) says
            which images belong together, such as ``"^(\\d+)_"`` for ``0042_17.png``.

    Raises:
        ValueError: No such folder, no classes, a file that cannot be decoded, mixed sizes without ``image_size``.
    """
    return _load_folder("image_folder", source.directory, image_size, group_pattern)


@register_dataset("alzheimer_mri")
def alzheimer_mri(source: Source, image_size: int | None = None) -> Dataset:
    """6,400 MRI slices of 200 subjects in four stages of impairment, 64x64 grey, split *by subject*.

    Files ``alzheimer_mri/{train,test}/CLASS/SUBJECT_SLICE.png``. Neighbouring slices of one head are nearly the same
    picture: split by slice, as the set usually circulates, a 1-nearest-neighbour classifier scores 99.8 %.
    """
    return _load_folder("alzheimer_mri", source.directory / "alzheimer_mri", image_size, r"^(\d+)_")


@register_dataset("chest_xray")
def chest_xray(source: Source, image_size: int | None = None) -> Dataset:
    """5,194 chest X-rays of 2,846 patients, normal or pneumonia (Kermany et al. 2018), 64x64 grey, split by patient.

    Files ``chest_xray/{train,test}/CLASS/PATIENT_INDEX.png``.
    """
    return _load_folder("chest_xray", source.directory / "chest_xray", image_size, r"^(\d+)_")


def _load_folder(name: str, folder: Path, image_size: int | None, group_pattern: str | None) -> Dataset:
    if image_size is not None and (not isinstance(image_size, int) or image_size < 1):
        raise ValueError(f"image_size must be a whole number of pixels, at least 1, got {image_size!r}")
    classes, files = _scan(name, folder)
    labels = torch.tensor([file.label for file in files])
    groups = None if group_pattern is None else torch.from_numpy(_groups(name, files, group_pattern))
    pixels = torch.from_numpy(_decoded(name, folder, files, image_size))
    test = torch.tensor([file.test for file in files])
    if not test.any():
        test[_held_out(name, classes, labels.numpy(), None if groups is None else groups.numpy())] = True
    return Dataset(name, pixels, labels, classes, (~test).nonzero()[:, 0], test.nonzero()[:, 0], groups)


def _scan(name: str, folder: Path) -> tuple[tuple[str, ...], list[_File]]:
    """Class names, and every image in the order of its path."""
    train = folder / "train"
    if not train.is_dir():
        raise ValueError(
            f"data set {name!r}: no folder {train}; expected {folder.name}/{_LAYOUT}. Set the data directory with "
            f"--data-dir (data_dir=...)."
        )
    classes = tuple(path.name for path in _subfolders(train))
    if not classes:
        raise ValueError(f"data set {name!r}: {train} holds no class folders; expected {folder.name}/{_LAYOUT}")
    files: list[_File] = []
    for side in (train, folder / "test"):
        for path in _subfolders(side) if side.is_dir() else []:
            if path.name not in classes:
                raise ValueError(f"data set {name!r}: class {path.name!r} of {side} is not in {train}: {classes}")
            images = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES and not p.name.startswith("."))
            if not images and side == train:
                raise ValueError(f"data set {name!r}: class folder {path} holds no {', '.join(sorted(_SUFFIXES))} file")
            broken = next((image for image in images if not image.exists()), None)
            if broken is not None:
                raise ValueError(f"data set {name!r}: {broken} is a link to nothing; remove it, or put its file there")
            files += [_File(image, classes.index(path.name), side != train) for image in images]
    if (folder / "test").is_dir() and not any(file.test for file in files):
        raise ValueError(
            f"data set {name!r}: {folder / 'test'} holds no image in a class folder; expected {folder.name}/{_LAYOUT}. "
            "Remove it, and a part of train is held out instead"
        )
    return classes, files


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _groups(name: str, files: Sequence[_File], pattern: str) -> NDArray[np.int64]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"group_pattern {pattern!r} is not a regular expression: {error}") from error
    if compiled.groups != 1:
        raise ValueError(f"group_pattern {pattern!r} must have one group in parentheses, has {compiled.groups}")
    found = []
    for file in files:
        match = compiled.search(file.path.name)
        if match is None or match.group(1) is None:
            raise ValueError(f"data set {name!r}: group_pattern {pattern!r} does not fit {file.path}")
        found.append(match.group(1))
    numbers: NDArray[np.int64] = np.unique(found, return_inverse=True)[1].astype(np.int64)
    return numbers


def _held_out(
    name: str, classes: Sequence[str], labels: NDArray[np.int64], groups: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """A quarter of the images, alike in classes; of grouped images, of the groups."""
    folds = round(1 / _TEST_SHARE)
    counts = np.bincount(labels, minlength=len(classes))
    if counts.min() < 2:
        raise too_few_images(name, classes[int(counts.argmin())], int(counts.min()))
    if groups is not None and len(np.unique(groups)) < folds:
        raise ValueError(
            f"data set {name!r}: {len(np.unique(groups))} groups cannot be divided into train and test; there must be "
            f"{folds} at least, or a test folder"
        )
    samples = np.arange(len(labels))
    if groups is None:
        if round(_TEST_SHARE * len(labels)) < len(classes):
            raise ValueError(
                f"data set {name!r}: a quarter of {len(labels)} images does not hold all {len(classes)} classes; add "
                "images, or a test folder"
            )
        held: NDArray[np.int64] = train_test_split(samples, test_size=_TEST_SHARE, stratify=labels, random_state=0)[1]
        return held
    if counts.max() < folds:
        raise ValueError(
            f"data set {name!r}: no class has more than {counts.max()} images, and a quarter of the groups can be held "
            f"out of {folds} or more: add images, or a test folder"
        )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        # A class with fewer groups than folds is on one side only; there is nothing that could be done about it.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        _, fold = next(splitter.split(samples, labels, groups))
    return np.asarray(fold, dtype=np.int64)


def _decoded(name: str, folder: Path, files: Sequence[_File], image_size: int | None) -> NDArray[np.uint8]:
    """(S, C, H, W) uint8, from the cache if these very files have been decoded before."""
    cache = decoded_directory() / f"{name}-{_fingerprint(folder, files, image_size)}.npy"
    if cache.is_file():
        try:
            cached: NDArray[np.uint8] = np.load(cache)
            return cached
        except (ValueError, OSError, EOFError):
            cache.unlink(missing_ok=True)
    images = _decode(name, files, image_size)
    buffer = BytesIO()
    np.save(buffer, images)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cache, buffer.getvalue())
    except OSError as error:
        warnings.warn(f"decoded images are not kept in {cache}, they will be decoded again: {error}", stacklevel=2)
    return images


def _fingerprint(folder: Path, files: Sequence[_File], image_size: int | None) -> str:
    """Changes when a file is added, removed, replaced or touched."""
    digest = hashlib.sha256(f"{_DECODER} {folder} {image_size}".encode())
    for file in files:
        status = file.path.stat()
        digest.update(f"{file.path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _decode(name: str, files: Sequence[_File], image_size: int | None) -> NDArray[np.uint8]:
    divisor = _deep_divisor(files)
    arrays = [
        _decode_file(name, file.path, image_size, divisor)
        for file in tqdm(files, desc=f"decoding {name}", unit="image", disable=None)
    ]
    colour = any(array.ndim == 3 for array in arrays)
    for array, file in zip(arrays, files, strict=True):
        if array.shape[:2] != arrays[0].shape[:2]:
            (height, width), (other_height, other_width) = arrays[0].shape[:2], array.shape[:2]
            raise ValueError(
                f"data set {name!r}: images differ in size: {files[0].path} is {width}x{height}, {file.path} is "
                f"{other_width}x{other_height}. Give image_size=... to resize them all (--dataset-options "
                "image_size=64; --image-size 64 of python -m fl_core.data)."
            )
    images = np.empty((len(arrays), 3 if colour else 1, *arrays[0].shape[:2]), dtype=np.uint8)
    for i in range(len(arrays)):
        array, arrays[i] = arrays[i], _NOTHING  # given back one by one: both at once would be twice the set
        images[i] = array.transpose(2, 0, 1) if array.ndim == 3 else array
    return images


def _decode_file(name: str, path: Path, image_size: int | None, divisor: int) -> NDArray[np.uint8]:
    """(H, W) uint8 for a grey image, (H, W, 3) for a colour one."""
    try:
        with Image.open(path) as file:
            file.load()
            image = _eight_bit(file, divisor)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"data set {name!r}: {path} cannot be decoded ({error}); replace or remove the file"
        ) from error
    if image_size is not None and image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8)


def _deep_divisor(files: Sequence[_File]) -> int:
    """What grey values of more than 8 bits are divided by, one number for the whole set: images stay comparable.

    Scans of 12 bits come in files of 16, of which they use a sixteenth, and images of 8 bits in such files too.
    """
    largest = 0
    for file in files:
        # What cannot be read here is an error with the file's name where it is decoded.
        with suppress(OSError, SyntaxError, ValueError, Image.DecompressionBombError), Image.open(file.path) as image:
            if image.mode in _DEEP_GREY:
                largest = max(largest, int(np.asarray(image).max()))
    return 1 if largest < _EIGHT_BITS else 16 if largest < _TWELVE_BITS else 257


def _eight_bit(image: Image.Image, divisor: int) -> Image.Image:
    if image.mode in _DEEP_GREY:
        # Pillow's own conversion would cut everything above 255 to white.
        return Image.fromarray((np.asarray(image, dtype=np.int64).clip(0, 65535) // divisor).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; save them as 8 or 16 bits")
    if image.mode == "P":
        image = image.convert("RGBA")  # a palette may be partly transparent
    return image.convert("L" if image.mode in _GREY else "RGB")
