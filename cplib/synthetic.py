"""Synthetic defects (section 5.3): a digit, square, ellipse or heart on an image, filled with a random colour or with a
piece of a natural image.

The paper states neither size nor place nor number: here the area is a parameter, the place uniform, one defect an
image. Shapes are antialiased and turned by any angle.
"""

import gzip
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor

from cplib.data import find
from cplib.photos import DataError, list_photos, read_photo

KINDS = ("mnist", "square", "ellipse", "heart", "square_natural", "ellipse_natural", "heart_natural")
_SIDE = 512  # pixels of a shape before it is turned and shrunk, which antialiases it


class Fillings:
    """`digits` (k, height, width) uint8 to draw, white on black; `natural` images (height, width, 3) uint8 to fill
    shapes with; `sources`: what they are; `digest`: of their pixels.

    They are of a folder of MNIST's files and one of images; where one is missing, of that of its name in CUTPASTE_DATA,
    else scikit-learn's digits and two images. A DataError names a file that cannot be read.
    """

    def __init__(self, digits: str, natural_images: str) -> None:
        self.digits = (load_digits().images * (255 / 16)).round().astype(np.uint8)
        self.natural = list(load_sample_images().images)
        self.sources = {"digits": "scikit-learn's digits, 8x8 pixels"}
        self.sources["natural images"] = "the two sample images of scikit-learn"
        if files := [*find(digits).rglob("t10k-images-idx3-ubyte.gz")]:
            self.digits, self.sources["digits"] = _read_mnist(files[0]), f"MNIST ({files[0].name})"
        if files := list_photos(folder := find(natural_images)):
            self.natural = [np.asarray(read_photo(path)) for path in files]
            self.sources["natural images"] = f"{len(files)} images of the folder {folder.name}"
        self.digest = hashlib.sha256(b"".join(map(np.ascontiguousarray, [self.digits, *self.natural]))).hexdigest()[:8]


fillings = lru_cache(maxsize=2)(Fillings)  # read once


def _read_mnist(path: Path) -> np.ndarray:
    try:
        return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as images of MNIST ({error})") from None


def defects(normal: Tensor, category: str, kind: str, scoring: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Each normal test image of a category (n, 3, size, size) uint8, in order from the first, `per_image` times with a
    defect of `KINDS`, and the masks; the same for every network. `scoring` is that of a run of the part synthetic."""
    repeats = range(scoring["per_image"])
    keys = [f"{scoring['seed']} {category} {k} {r}" for r in repeats for k in range(len(normal))]
    filled = fillings(scoring["digits_path"], scoring["natural_images_path"])
    return draw(normal.repeat(len(repeats), 1, 1, 1), kind, scoring["area_ratio"], filled, keys)


def draw(
    images: Tensor, kind: str, area_ratio: tuple[float, float], fillings: Fillings, keys: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Images (n, 3, size, size) uint8 with one defect each, and masks (n, size, size) bool, True where it is.

    The draws of an image depend on its key and the kind, one of `KINDS`, alone. `area_ratio` is the lowest and highest
    area of a defect, as a share of the image's.
    """
    changed, size = images.clone(), images.shape[-1]
    masks = torch.zeros(len(images), size, size, dtype=torch.bool)
    for k, key in enumerate(keys):
        digest = hashlib.sha256(f"{kind} {key}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        alpha = _shape(kind, size, rng.uniform(*area_ratio) * size**2, fillings, rng)
        y, x = (int(rng.integers(0, size - n + 1)) for n in alpha.shape)
        content = torch.from_numpy(_content(kind, alpha.shape, fillings, rng)).permute(2, 0, 1)
        a, place = torch.from_numpy(alpha), (slice(y, y + alpha.shape[0]), slice(x, x + alpha.shape[1]))
        old = changed[k][:, *place]
        old.copy_((old.float() * (1 - a) + content.float() * a).round().to(torch.uint8))
        masks[k][place] = a > 0.5
    return changed, masks


def _shape(kind: str, size: int, area: float, fillings: Fillings, rng: np.random.Generator) -> np.ndarray:
    """Coverage (height, width) float32 in [0, 1] of a shape's pixels, turned and at its size, for an image's `size`."""
    if kind == "mnist":
        digit = Image.fromarray(fillings.digits[rng.integers(len(fillings.digits))])
        large = digit.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    else:
        large = _outline(kind.removesuffix("_natural"), rng)
    large = large.rotate(rng.uniform(0, 360), Image.Resampling.BICUBIC, expand=True)
    large = large.crop(large.getbbox())
    covered = np.asarray(large, dtype=np.float64).sum() / 255
    # the side is what the image can hold, should a thin digit of that area be longer
    scale = min(np.sqrt(area / covered), size / max(large.size))
    shape = tuple(max(1, min(size, round(n * scale))) for n in large.size)
    return np.asarray(large.resize(shape, Image.Resampling.BOX), dtype=np.float32) / 255


def _outline(shape: str, rng: np.random.Generator) -> Image.Image:
    """A square, ellipse or heart, white on black."""
    large = Image.new("L", (_SIDE, _SIDE), 255 if shape == "square" else 0)
    if shape == "ellipse":
        half = _SIDE * rng.uniform(0.5, 1) / 2  # up to twice as long as wide
        ImageDraw.Draw(large).ellipse((0, _SIDE / 2 - half, _SIDE - 1, _SIDE / 2 + half - 1), fill=255)
    elif shape == "heart":
        t = np.linspace(0, 2 * np.pi, 200)
        x, y = 16 * np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
        points = (np.stack([x, y], 1) / 34 + 0.5) * (_SIDE - 1)
        ImageDraw.Draw(large).polygon([tuple(p) for p in points], fill=255)
    return large


def _content(kind: str, shape: tuple[int, int], fillings: Fillings, rng: np.random.Generator) -> np.ndarray:
    """What a shape of a height and width is filled with, (height, width, 3) uint8."""
    if not kind.endswith("_natural"):
        return np.full((*shape, 3), rng.integers(0, 256, 3, dtype=np.uint8))
    image = fillings.natural[rng.integers(len(fillings.natural))]
    # a piece twice the size, halved: as sharp as a photograph, and with something to see in it
    h, w = (min(2 * n, have) for n, have in zip(shape, image.shape[:2], strict=True))
    y, x = rng.integers(0, image.shape[0] - h + 1), rng.integers(0, image.shape[1] - w + 1)
    piece = Image.fromarray(image[y : y + h, x : x + w])
    return np.asarray(piece.resize(shape[::-1], Image.Resampling.BILINEAR)).copy()
