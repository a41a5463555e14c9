"""Images in the layout of MVTec AD as uint8 tensors: read, checked and resized once, then cached.

<root>/<category>/train/good/*            normal images, the only ones that training sees
<root>/<category>/test/good/*             optional: normal test images
<root>/<category>/test/<defect>/*         optional: anomalous test images
<root>/<category>/ground_truth/<defect>/<image name>_mask.*    optional: masks of the defects

A folder that holds just images, without any of these subfolders, is taken as normal training images.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
_FORMAT = 2  # raise it when what a cache file holds changes

log = logging.getLogger(__name__)


class DataError(ValueError):
    """A data folder cannot be used; the message names the file or folder."""


@dataclass(frozen=True)
class Category:
    """One category of images, all of one size.

    Attributes:
        name: name of the category's folder.
        train: (n, 3, size, size) uint8, normal images.
        test: (m, 3, size, size) uint8; m is 0 where there is no test set.
        labels: (m,) bool, True where anomalous.
        defects: m names of defects, "good" for normal images.
        masks: (m, size, size) bool, True on the defect, or None where there is no ground truth.
        train_files, test_files: paths relative to the category's folder, with forward slashes.
        source_size: width and height in pixels of the files.
        digest: SHA-256 of all the above but the name.
    """

    name: str
    train: Tensor
    test: Tensor
    labels: Tensor
    defects: tuple[str, ...]
    masks: Tensor | None
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    source_size: tuple[int, int]
    digest: str


def load_category(
    root: str | Path, category: str, image_size: int, cache: str | Path | None = None
) -> Category:
    """Read one category, resized to `image_size` squared with antialiasing (masks: nearest).

    Args:
        root: folder that holds the categories.
        category: name of the category's folder.
        image_size: height and width of the tensors, in pixels.
        cache: folder for the resized copy, which later calls read as long as no file changes.

    Raises:
        DataError: missing or empty folder, unreadable image, mixed sizes, a mask without its image
            or an image without its mask; names the file.
    """
    folder = category_folder(root, category)
    train, test, masks = _list_files(folder)
    if cache is None:
        return _read(folder, train, test, masks, image_size)
    path = _cache_path(Path(cache), folder, [*train, *test, *(m for m in masks if m)], image_size)
    if path.exists():
        try:
            return _read_cache(path, folder.name)
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            log.warning("%s: damaged, made anew (%s)", path, error)
    data = _read(folder, train, test, masks, image_size)
    try:
        _write_cache(path, data)
    except OSError as error:
        log.warning("%s: resized copy not kept (%s)", path, error)
    return data


def load_folder(folder: str | Path, category: Category) -> tuple[Tensor, tuple[str, ...]]:
    """Images (n, 3, size, size) uint8 of a folder, as large as those of a category, and their names.

    Raises:
        DataError: no such folder, no image in it, an unreadable one, or one that was of another size
            than the category's files; names the file.
    """
    paths = _images(Path(folder))
    if not paths:
        raise DataError(f"{folder}: no such folder, or no images in it ({', '.join(sorted(SUFFIXES))})")
    size = category.train.shape[-1]

    def image(path: Path) -> np.ndarray:
        return _pixels(path, size, category.source_size)

    images = _stack(paths, image, (3, size, size), np.uint8, Path(folder).name)
    return torch.from_numpy(images), tuple(path.name for path in paths)


def category_folder(root: str | Path, category: str) -> Path:
    """Folder of a category.

    Raises:
        DataError: it does not exist; names those that do.
    """
    folder = Path(root) / category
    if not folder.is_dir():
        have = sorted(p.name for p in Path(root).glob("*") if p.is_dir())
        found = "it holds " + ", ".join(have) if have else "it has no folders or does not exist"
        raise DataError(f"{folder}: no such category; looked in {root}: {found}")
    return folder


def _list_files(folder: Path) -> tuple[list[Path], list[Path], list[Path | None]]:
    """Training images, test images and, for each test image, its mask or None."""
    nested = (folder / "train").is_dir()
    train_folder = folder / "train" / "good" if nested else folder
    train = _images(train_folder)
    if not train:
        raise DataError(f"{train_folder}: no normal training images ({', '.join(sorted(SUFFIXES))})")
    test_folder, truth = folder / "test", folder / "ground_truth"
    test = [p for d in _subfolders(test_folder) for p in _images(d)]
    if test_folder.is_dir() and not test:
        raise DataError(f"{test_folder}: no images in its folders good/ and <defect>/; fill or remove it")
    by_image: dict[tuple[str, str], Path] = {}
    for defect in _subfolders(truth):
        for mask in _images(defect):
            by_image[defect.name, mask.stem.removesuffix("_mask")] = mask
    masks = [by_image.pop((p.parent.name, p.stem), None) for p in test]
    if by_image:
        raise DataError(f"{next(iter(by_image.values()))}: mask without a test image of that name")
    if truth.is_dir():
        for image, mask in zip(test, masks, strict=True):
            if mask is None and image.parent.name != "good":
                raise DataError(f"{image}: no mask for it in {truth / image.parent.name}")
    return train, test, masks


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
    )


def _read(folder: Path, train: list[Path], test: list[Path], masks: list[Path | None], size: int) -> Category:
    source_size = read_image(train[0]).size

    def image(path: Path) -> np.ndarray:
        return _pixels(path, size, source_size)

    def mask(path: Path | None) -> np.ndarray:
        if path is None:
            return np.zeros((size, size), dtype=bool)
        return np.asarray(_resized(path, "L", size, source_size)) > 127

    name = folder.name
    arrays = {
        "train": _stack(train, image, (3, size, size), np.uint8, f"{name}: training images"),
        "test": _stack(test, image, (3, size, size), np.uint8, f"{name}: test images"),
        "labels": np.array([p.parent.name != "good" for p in test], dtype=bool),
    }
    if any(masks):
        arrays["masks"] = _stack(masks, mask, (size, size), np.bool_, f"{name}: masks")
    names = {
        "train_files": [p.relative_to(folder).as_posix() for p in train],
        "test_files": [p.relative_to(folder).as_posix() for p in test],
        "source_size": list(source_size),
    }
    return _category(name, arrays, names)


def _category(name: str, arrays: dict[str, np.ndarray], names: dict, digest: str = "") -> Category:
    if not digest:
        sha = hashlib.sha256(json.dumps(names).encode())
        for array in arrays.values():
            sha.update(array)
        digest = sha.hexdigest()
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    files = names["test_files"]
    return Category(
        name=name,
        train=tensors["train"],
        test=tensors["test"],
        labels=tensors["labels"],
        defects=tuple(Path(f).parent.name for f in files),
        masks=tensors.get("masks"),
        train_files=tuple(names["train_files"]),
        test_files=tuple(files),
        source_size=tuple(names["source_size"]),
        digest=digest,
    )


def _stack(paths: list, read: Callable, shape: tuple[int, ...], dtype: type, title: str) -> np.ndarray:
    """Read files on all cores straight into one array, so that the images are held once."""
    stack = np.empty((len(paths), *shape), dtype)

    def fill(index: int) -> None:
        stack[index] = read(paths[index])

    with ThreadPoolExecutor() as pool:
        done: Iterable = pool.map(fill, range(len(paths)))
        for _ in tqdm(done, title, total=len(paths), disable=None, leave=False, delay=2):
            pass
    return stack


def _pixels(path: Path, size: int, source_size: tuple[int, int]) -> np.ndarray:
    return np.asarray(_resized(path, "RGB", size, source_size)).transpose(2, 0, 1)


def read_image(path: Path, mode: str = "RGB", source_size: tuple[int, int] | None = None) -> Image.Image:
    """An image file in 8 bits, upright as viewers show it, of a mode of Pillow.

    Raises:
        DataError: it is damaged, of another width and height than `source_size`, or of a depth that would
            be guessed; names the file.
    """
    try:
        image = ImageOps.exif_transpose(Image.open(path))  # as viewers show what a camera took upright
        image.load()
    except Exception as error:  # noqa: BLE001 - Pillow raises many kinds for a damaged file
        raise DataError(f"{path}: cannot be read as an image ({error})") from None
    if source_size is not None and image.size != source_size:
        raise DataError(
            f"{path}: is {image.width}x{image.height} pixels, the first training image is "
            f"{source_size[0]}x{source_size[1]}; crop or resize the images to one size"
        )
    if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip, not scale
        if 0 < (brightest := np.asarray(image).max()) < 2**12:
            raise DataError(
                f"{path}: of 16 bits the brightest pixel uses {int(brightest).bit_length()}; scale the "
                "camera's values to 16 bits, or save 8"
            )
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise DataError(f"{path}: holds floating-point values; save it with 8 or 16 bits")
    return image.convert(mode)


def _resized(path: Path, mode: str, size: int, source_size: tuple[int, int]) -> Image.Image:
    image = read_image(path, mode, source_size)
    if mode == "L" and 0 < (brightest := image.getextrema()[1]) <= 127:
        raise DataError(f"{path}: brightest value is {brightest}; a mask is white, 255, on the defect")
    if image.size == (size, size):
        return image
    # Pillow's BILINEAR widens its kernel when it shrinks an image, which is the antialiasing
    kind = Image.Resampling.NEAREST if mode == "L" else Image.Resampling.BILINEAR
    return image.resize((size, size), kind)


def _cache_path(cache: Path, folder: Path, files: list[Path], size: int) -> Path:
    """Name made of the folder and of the name, length and time of every file in it."""
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    stats = [(str(p.relative_to(folder)), (s := p.stat()).st_size, s.st_mtime_ns) for p in files]
    state = hashlib.sha256(json.dumps([_FORMAT, stats]).encode()).hexdigest()[:16]
    return cache / f"{folder.name}-{size}-{place}-{state}.npz"


def _write_cache(path: Path, data: Category) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {
        "train_files": data.train_files,
        "test_files": data.test_files,
        "source_size": data.source_size,
    }
    arrays = {"train": data.train, "test": data.test, "labels": data.labels}
    if data.masks is not None:
        arrays["masks"] = data.masks
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez(file, names=json.dumps(names), digest=data.digest, **arrays)
    os.replace(partial, path)
    prefix = path.name[: -len("0123456789abcdef.npz")]
    for old in path.parent.glob(f"{prefix}*.npz"):
        if old != path:
            old.unlink(missing_ok=True)


def _read_cache(path: Path, category: str) -> Category:
    with np.load(path) as file:
        arrays = {k: file[k] for k in ("train", "test", "labels", "masks") if k in file}
        names, digest = json.loads(str(file["names"])), str(file["digest"])
    return _category(category, arrays, names, digest)
