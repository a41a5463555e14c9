"""Images sorted by class, one class taken as the normal one (section 5.4): CIFAR-10 or others.

A source is "digits" (scikit-learn's, of 8x8 pixels: a stand-in that needs no download), or a folder that holds
cifar-10-batches-py (from `python -m cplib download cifar10`) or [<prefix>/]{train,test}/<class>/<image>.
"""

import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cplib.data import Category, find, stack
from cplib.photos import DataError, list_photos, read_photo

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load_classes(
    source: str, class_name: str, image_size: int, train_images: int = 0, test_images: int = 0
) -> Category:
    """Images with one class as the normal one: training images of that class, test images of all.

    Of each class the first `train_images` and `test_images` by name are taken (0: all), resized to `image_size` squared
    with antialiasing. The defect of an anomalous image is its class. A DataError names what cannot be used.
    """
    path = find(source)  # and then what opens the image of each name <split>/<class>/<image>
    images = _digits() if source == "digits" else _folder(path)
    splits: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for split, label, file in sorted(name.split("/") for name in images):
        splits[split].setdefault(label, []).append(f"{split}/{label}/{file}")
    for split, have in splits.items():
        if class_name not in have or (split == "test" and len(have) == 1):
            have = ", ".join(have) or "nothing, `python -m cplib download cifar10` fetches CIFAR-10"
            raise DataError(f"{path}: {class_name!r} and others wanted in [*/]{split}/<class>/<image>, found {have}")
    train_files = tuple(splits["train"][class_name][: train_images or None])
    test_files = tuple(name for names in splits["test"].values() for name in names[: test_images or None])
    train, test = (stack([images[n] for n in names], image_size, class_name) for names in (train_files, test_files))
    source_size, labels = images[train_files[0]]().size, [name.split("/")[1] for name in test_files]
    names = json.dumps([class_name, source_size, train_files, test_files])
    digest = hashlib.sha256(b"".join([names.encode(), train.numpy(), test.numpy()])).hexdigest()
    is_other = torch.tensor([label != class_name for label in labels])
    defects = tuple("good" if label == class_name else label for label in labels)
    return Category(class_name, train, test, is_other, defects, None, train_files, test_files, source_size, digest)


def _folder(path: Path) -> dict[str, partial]:
    if (path / "cifar-10-batches-py").is_dir():
        return _cifar10(path)
    places = [p for split in ("train", "test") for deep in ("", "*/") for p in path.glob(f"{deep}{split}/*")]
    found = {place: images for place in places if (images := list_photos(place))}
    if len(roots := sorted({str(place.parents[1]) for place in found})) > 1:
        raise DataError(f"{path}: holds several data sets, name one: {', '.join(roots)}")
    return {"/".join(p.parts[-3:]): partial(read_photo, p) for images in found.values() for p in images}


def _digits() -> dict[str, partial]:
    """scikit-learn's digits, which come without a split: two thirds of each for training."""
    from sklearn import datasets, model_selection  # here, for only the stand-in needs them

    pixels, labels = datasets.load_digits(return_X_y=True)
    pixels = (pixels * (255 / 16)).round().astype(np.uint8).reshape(-1, 8, 8)
    parts = model_selection.train_test_split(range(len(labels)), test_size=1 / 3, random_state=0, stratify=labels)
    splits = zip(("train", "test"), parts, strict=True)
    return {f"{s}/{labels[i]}/{i:04d}": partial(Image.fromarray, pixels[i]) for s, part in splits for i in part}


def _cifar10(folder: Path) -> dict[str, partial]:
    from torchvision import datasets  # here, for it takes seconds

    try:
        found = {split: datasets.CIFAR10(folder, train=split == "train") for split in ("train", "test")}
    except (RuntimeError, OSError) as error:
        raise DataError(f"{folder}/cifar-10-batches-py: {error}; move it away and download it again") from None
    return {
        f"{split}/{batch.classes[label]}/{i:05d}": partial(Image.fromarray, batch.data[i])
        for split, batch in found.items()
        for i, label in enumerate(batch.targets)
    }
