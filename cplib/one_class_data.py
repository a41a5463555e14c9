"""Images sorted by class, one class taken as the normal one (section 5.4): CIFAR-10 or others.

`one_class.source` is one of
digits                   scikit-learn's handwritten digits of 8x8 pixels: a stand-in that needs no download
a folder                 that holds cifar-10-batches-py, as `python -m cplib.download cifar10` leaves it
a folder or a .zip file  that holds [<prefix>/]train/<class>/<image> and [<prefix>/]test/<class>/<image>
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from cplib import config as configuration
from cplib.config import Config
from cplib.data import SUFFIXES, Category, DataError


@dataclass(frozen=True)
class Source:
    """Images sorted by class, listed and not yet read.

    Attributes:
        title: what messages call it.
        files: names in order by class, by split "train" and "test".
        open: gives the image of a name.
    """

    title: str
    files: dict[str, dict[str, list[str]]]
    open: Callable[[str], Image.Image]

    def check_class(self, name: str) -> None:
        """Raise DataError unless both splits hold the class, and the test split others too."""
        for split, classes in self.files.items():
            if name not in classes:
                have = ", ".join(sorted(classes)) or "nothing"
                raise DataError(f"{self.title}: no class {name!r} in {split}, which holds {have}")
        if len(self.files["test"]) < 2:
            raise DataError(f"{self.title}: test holds only {name!r}; no other class to be anomalous")


def load(config: Config, class_name: str) -> Category:
    """Images with one class as the normal one: training images of that class, test images of all.

    Images are resized to `one_class.image_size` squared, with antialiasing where they shrink. Of each class
    the first ones in the order of names are taken, as many as `one_class` says.

    Returns:
        Names of files are <split>/<class>/<image>; the defect of an anomalous image is its class.
        source_size is that of the first training image.

    Raises:
        DataError: no such source or class, or an unreadable image; names it.
    """
    section = config.one_class
    with open_source(config) as source:
        source.check_class(class_name)
        train_names = source.files["train"][class_name][: section.train_images or None]
        by_class = source.files["test"]
        test_names = [n for c in sorted(by_class) for n in by_class[c][: section.test_images or None]]
        source_size = _open(source, train_names[0]).size
        train = _stack(source, train_names, section.image_size, f"{class_name}: training images")
        test = _stack(source, test_names, section.image_size, "test images")
    train_files, test_files = ([_short(n) for n in names] for names in (train_names, test_names))
    classes = [PurePosixPath(f).parent.name for f in test_files]
    sha = hashlib.sha256(json.dumps([class_name, source_size, train_files, test_files]).encode())
    sha.update(train)
    sha.update(test)
    return Category(
        name=class_name,
        train=torch.from_numpy(train),
        test=torch.from_numpy(test),
        labels=torch.tensor([c != class_name for c in classes]),
        defects=tuple("good" if c == class_name else c for c in classes),
        masks=None,
        train_files=tuple(train_files),
        test_files=tuple(test_files),
        source_size=source_size,
        digest=sha.hexdigest(),
    )


@contextmanager
def open_source(config: Config) -> Iterator[Source]:
    """The images that `one_class.source` names, there or, by the last part of its name, in $CUTPASTE_DATA.

    Raises:
        DataError: it is not there, or holds no images sorted by split and class.
    """
    name = config.one_class.source
    path = configuration.data_root(replace(config, data=replace(config.data, root=name)))
    if name == "digits":
        yield _in_memory(name, _digits())
    elif (path / "cifar-10-batches-py").is_dir():
        yield _in_memory(str(path), _cifar10(path))
    elif path.is_dir():
        # Not the whole tree: what lies deeper than one prefix is not meant
        found = (p.relative_to(path).as_posix() for deep in ("*/*/*", "*/*/*/*") for p in path.glob(deep))
        files = _by_split_and_class(path, filter(_is_image, found))
        yield Source(str(path), files, lambda file: Image.open(path / file))
    elif path.exists():
        try:
            archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise DataError(f"{path}: neither a folder nor a readable .zip file ({error})") from None
        with archive:
            files = _by_split_and_class(path, filter(_is_image, archive.namelist()))
            yield Source(str(path), files, lambda file: Image.open(archive.open(file)))
    else:
        raise DataError(
            f"{path}: not there (one_class.source: {name}); `python -m cplib.download cifar10` fetches "
            "CIFAR-10, and the source digits needs no files"
        )


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _by_split_and_class(path: Path | str, names: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Names [<prefix>/]<split>/<class>/<image> in order, by split and class; other names are left out."""
    files: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    prefixes, others = set(), []
    for name in sorted(names):
        *prefix, split, label, _ = ("", *PurePosixPath(name).parts) if name.count("/") > 1 else [""] * 3
        if split in files:
            files[split].setdefault(label, []).append(name)
            prefixes.add("/".join(prefix[1:]))
        else:
            others.append(name)
    for split, classes in files.items():
        if not classes:
            have = f"; it has {', '.join(others[:3])}" if others else ""
            raise DataError(f"{path}: no images [<prefix>/]{split}/<class>/<image>{have}")
    if len(prefixes) > 1:
        raise DataError(f"{path}: holds several data sets, name one: {', '.join(sorted(prefixes))}")
    return files


def _in_memory(title: str, pixels: dict[str, np.ndarray]) -> Source:
    return Source(title, _by_split_and_class(title, pixels), lambda name: Image.fromarray(pixels[name]))


def _digits() -> dict[str, np.ndarray]:
    """scikit-learn's digits, which come without a split: two thirds of each for training."""
    from sklearn.datasets import load_digits  # here, for only the stand-in needs them
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8)
    order, labels = np.arange(len(pixels)), digits.target
    parts = train_test_split(order, test_size=1 / 3, random_state=0, stratify=labels)
    return {
        f"{split}/{labels[i]}/{i:04d}": pixels[i]
        for split, part in zip(("train", "test"), parts, strict=True)
        for i in part
    }


def _cifar10(folder: Path) -> dict[str, np.ndarray]:
    """CIFAR-10 as torchvision lays it out; the number of an image is that in its split."""
    from torchvision.datasets import CIFAR10  # here, for it takes seconds

    pixels = {}
    for split in ("train", "test"):
        try:
            part = CIFAR10(folder, train=split == "train", download=False)
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"{folder / 'cifar-10-batches-py'}: incomplete or damaged ({error}); move {folder} away and "
                "run `python -m cplib.download cifar10`"
            ) from None
        names = [f"{split}/{part.classes[label]}/{i:05d}" for i, label in enumerate(part.targets)]
        pixels |= dict(zip(names, part.data, strict=True))
    return pixels


def _open(source: Source, name: str) -> Image.Image:
    try:
        image = source.open(name)
        image.load()
    except Exception as error:  # noqa: BLE001 - Pillow and zipfile raise many kinds for a damaged file
        raise DataError(f"{source.title}: {name}: cannot be read as an image ({error})") from None
    if image.mode[0] in "IF":  # Pillow would clip, not scale
        raise DataError(f"{source.title}: {name}: holds pixels of more than 8 bits; save it with 8")
    return image.convert("RGB")


def _stack(source: Source, names: Sequence[str], size: int, title: str) -> np.ndarray:
    """Images (n, 3, size, size) uint8."""
    stack = np.empty((len(names), 3, size, size), np.uint8)
    for k, name in enumerate(tqdm(names, title, disable=None, leave=False, delay=2)):
        image = _open(source, name)
        if image.size != (size, size):
            # Pillow widens its kernel when it shrinks an image, which is the antialiasing
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        stack[k] = np.asarray(image).transpose(2, 0, 1)
    return stack


def _short(name: str) -> str:
    return "/".join(PurePosixPath(name).parts[-3:])
