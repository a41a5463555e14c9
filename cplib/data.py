"""Images in the layout of MVTec AD as uint8 tensors: read, checked and resized once, then cached.

<root>/<category>/train/good/*            normal images, the only ones that training sees
<root>/<category>/test/good/*             optional: normal test images
<root>/<category>/test/<defect>/*         optional: anomalous test images
<root>/<category>/ground_truth/<defect>/<image name>_mask.*    optional: masks of the defects
<root>/<category>/*                       in place of all these: normal training images

For good, ok and normal mean the same.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from cplib.files import digest, load_arrays, save_arrays
from cplib.photos import SUFFIXES, DataError, list_photos, read_photo, shown

GOOD = ("good", "ok", "normal")  # names of folders of normal images, in any case
_FORMAT = 6  # raise it when reading or resizing changes, so that no older copy is taken from a cache

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Category:
    """One category of images, all of one size."""

    name: str  # of the category's folder
    train: torch.Tensor  # (n, 3, size, size) uint8, normal images
    test: torch.Tensor  # (m, 3, size, size) uint8; m is 0 where there is no test set
    labels: torch.Tensor  # (m,) bool, True where anomalous
    defects: tuple[str, ...]  # m names of defects, "good" for normal images
    masks: torch.Tensor | None  # (m, size, size) bool, True on the defect; None where there is no ground truth
    train_files: tuple[str, ...]  # relative to the category's folder, with forward slashes
    test_files: tuple[str, ...]
    source_size: tuple[int, int]  # width and height in pixels of the files
    digest: str  # SHA-256 of all the above but the name and the size of the files


def find(path: str | Path) -> Path:
    """`path` if it exists, else what has its last name in the folder that CUTPASTE_DATA names, if set."""
    path, shared = Path(path).expanduser(), os.environ.get("CUTPASTE_DATA")
    return path if path.exists() or not shared else Path(shared).expanduser() / path.name


def load_category(root: str | Path, category: str, image_size: int, cache: str | Path | None = None) -> Category:
    """Read one category, resized to `image_size` squared with antialiasing (masks: nearest).

    The folder `cache` keeps the resized copy, which later calls read as long as no file changes. A DataError names what
    is wrong: a missing or empty folder, a damaged image or one of another size, a mask without image or the reverse.
    """
    if not (folder := Path(root) / category).is_dir():
        have = ", ".join(sorted(p.name for p in Path(root).glob("*") if p.is_dir()))
        raise DataError(f"{folder}: no such category; {root} holds {have or 'no folders, or does not exist'}")
    files = _list_files(folder)
    stats = [(str(p.relative_to(folder)), (s := p.stat()).st_size, s.st_mtime_ns) for f in files for p in f if p]
    path = Path(cache or "") / f"{folder.name}-{digest([_FORMAT, str(folder.resolve()), image_size, stats])}.npz"
    if not (found := load_arrays(path) if cache else {}):
        found = _read(folder, files, image_size)
        try:
            if cache:
                save_arrays(path, **found)
        except OSError as error:
            log.warning("%s: resized copy not kept (%s)", cache, error)
    sha = str(found.pop("digest"))
    fields = {k: tuple(v.tolist()) if v.dtype.kind in "Ui" else torch.from_numpy(v) for k, v in found.items()}
    return Category(name=folder.name, digest=sha, **{"masks": None} | fields)


def _list_files(folder: Path) -> tuple[list[Path], list[Path], list[Path | None]]:
    """Training images, test images and, for each test image, its mask or None."""
    normal = folder
    if (folder / "train").is_dir():
        named = [p for p in sorted((folder / "train").iterdir()) if p.is_dir() and _is_good(p)]
        normal = named[0] if named else folder / "train" / "good"
    if not (train := list_photos(normal)):
        raise DataError(f"{normal}: no normal training images ({', '.join(sorted(SUFFIXES))})")
    truth = folder / "ground_truth"
    if not (test := list_photos(folder / "test", nested=True)) and (folder / "test").is_dir():
        raise DataError(f"{folder / 'test'}: no images in its folders good/ and <defect>/; fill or remove it")
    for name in sorted({p.parent.name for p in test if _is_good(p.parent)} - {"good"}):
        log.info("%s: normal images, as in a folder good/", shown(folder / "test" / name))
    by_image: dict[tuple[str, str], Path] = {}
    for path in list_photos(truth, nested=True):
        if (other := by_image.setdefault((path.parent.name, path.stem.removesuffix("_mask")), path)) != path:
            raise DataError(f"{other} and {path.name}: two masks of one image")
    masks = [by_image.pop((p.parent.name, p.stem), None) for p in test]
    if by_image:
        raise DataError(f"{next(iter(by_image.values()))}: mask without a test image of that name")
    if bare := [p for p, m in zip(test, masks, strict=True) if not m and not _is_good(p.parent) and truth.is_dir()]:
        raise DataError(f"{bare[0]}: no mask for it in {truth / bare[0].parent.name}")
    return train, test, masks


def _is_good(folder: Path) -> bool:
    return folder.name.lower() in GOOD


def _read_image(path: Path, mode: str, source_size: tuple[int, int]) -> Image.Image:
    image = read_photo(path, mode)
    if image.size != source_size:
        sizes = f"{image.size} pixels, the first training image {source_size}"
        raise DataError(f"{shown(path)}: {sizes}; bring all to one size")
    return image


def _read(folder: Path, files: tuple[list, ...], size: int) -> dict[str, np.ndarray]:
    """The fields of a category but its name, as arrays; `masks` where there are some."""
    source_size, name = read_photo(files[0][0]).size, folder.name
    train_files, test_files = ([shown(p.relative_to(folder).as_posix()) for p in paths] for paths in files[:2])
    train, test = ([partial(_read_image, p, "RGB", source_size) for p in paths] for paths in files[:2])
    found = {"train": stack(train, size, f"{name}: training"), "test": stack(test, size, f"{name}: test")}
    found = {k: v.numpy() for k, v in found.items()}
    found["labels"] = np.array([not _is_good(p.parent) for p in files[1]], bool)
    if any(files[2]):
        masks = [partial(_read_mask, p, source_size, size) for p in files[2]]
        found["masks"] = stack(masks, size, f"{name}: masks", Image.Resampling.NEAREST)[:, 0].numpy() > 127
    # the size is that of use, not of the files: a copy of that size holds the same images
    names = {"train_files": train_files, "test_files": test_files, "source_size": (size, size)}
    sha = hashlib.sha256(json.dumps(names).encode())
    for pixels in found.values():
        sha.update(pixels)
    names |= {
        "defects": ["good" if _is_good(p.parent) else shown(p.parent.name) for p in files[1]],
        "digest": sha.hexdigest(),
    }
    return found | {k: np.array(v, str) for k, v in names.items()} | {"source_size": np.array(source_size)}


def _read_mask(path: Path | None, source_size: tuple[int, int], size: int) -> Image.Image:
    """White on the defect; all black for an image without a mask. It is reduced so that no defect disappears."""
    if path is None:
        return Image.new("L", (size, size))
    mask = _read_image(path, "L", source_size)
    if 0 < (brightest := mask.getextrema()[1]) <= 127:
        raise DataError(f"{path}: brightest value is {brightest}; a mask is white, 255, on the defect")
    reduced = mask.resize((size, size), Image.Resampling.NEAREST)
    if brightest and reduced.getextrema()[1] <= 127:  # the defect lies between the pixels that are taken
        share = np.asarray(
            mask.point(lambda v: 255 * (v > 127)).convert("F").resize((size, size), Image.Resampling.BOX)
        )
        reduced = Image.fromarray(np.uint8(255) * (share == share.max()))
    return reduced


def stack(
    images: Sequence[Callable[[], Image.Image]], size: int, title: str, method: int = Image.Resampling.BILINEAR
) -> torch.Tensor:
    """RGB images (n, 3, size, size) uint8 of functions that open one each. Pillow's BILINEAR widens its kernel when it
    shrinks an image, which is the antialiasing."""
    stacked = np.empty((len(images), 3, size, size), np.uint8)

    def fill(index: int) -> None:
        stacked[index] = np.asarray(images[index]().convert("RGB").resize((size, size), method)).transpose(2, 0, 1)

    with ThreadPoolExecutor() as pool:  # threads fill one array, so that the images are held once
        list(tqdm(pool.map(fill, range(len(images))), title, len(images), disable=None, leave=False, delay=2))
    return torch.from_numpy(stacked)
