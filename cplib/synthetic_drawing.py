"""Synthetic defects (section 5.3): a digit, square, ellipse or heart on an image, filled with a random colour
or with a piece of a natural image.

The paper states neither size nor place nor number: here the area is that of CutPaste's patch, the place
uniform, one defect an image. Shapes are antialiased and turned by any angle.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor

from cplib.config import AugmentConfig
from cplib.data import SUFFIXES, DataError

KINDS = ("mnist", "square", "ellipse", "heart", "square_natural", "ellipse_natural", "heart_natural")
_SIDE = 512  # pixels of a shape before it is turned and shrunk, which antialiases it
_MNIST = ("t10k-images-idx3-ubyte.gz", "train-images-idx3-ubyte.gz")


class Fillings:
    """Digits to draw, and natural images to fill shapes with.

    Args:
        digits: folder of MNIST's files; if it is missing, the folder of that name in CUTPASTE_DATA, else
            scikit-learn's digits.
        natural_images: likewise a folder of images, else scikit-learn's two.

    Attributes:
        digits: (k, height, width) uint8, white on black.
        natural: arrays (height, width, 3) uint8.
        sources: what they are, by kind of filling.

    Raises:
        DataError: a file that cannot be read; names it.
    """

    def __init__(self, digits: str, natural_images: str) -> None:
        self.sources = {}
        folder = _find(digits)
        file = next((folder / n for n in _MNIST if folder and (folder / n).exists()), None)
        if file:
            self.digits, self.sources["digits"] = _read_mnist(file), f"MNIST ({file.name})"
        else:
            self.digits = (load_digits().images * (255 / 16)).round().astype(np.uint8)
            self.sources["digits"] = "scikit-learn's digits, 8x8 pixels"
        folder = _find(natural_images)
        files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) if folder else []
        if files:
            self.natural = [_read_image(p) for p in files]
            self.sources["natural images"] = f"{len(files)} images of the folder {folder.name}"
        else:
            self.natural = list(load_sample_images().images)
            self.sources["natural images"] = "the two sample images of scikit-learn"


def _find(folder: str) -> Path | None:
    places = [Path(folder).expanduser()]
    if shared := os.environ.get("CUTPASTE_DATA"):
        places.append(Path(shared).expanduser() / Path(folder).name)
    return next((p for p in places if p.is_dir()), None)


def _read_mnist(path: Path) -> np.ndarray:
    try:
        values = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8)
        magic, count, height, width = values[:16].view(">i4")
        if magic != 2051 or count < 1:
            raise ValueError(f"magic number {magic}, {count} images")
        return values[16:].reshape(count, height, width)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as images of MNIST ({error})") from None


def _read_image(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # noqa: BLE001 - Pillow raises many kinds for a damaged file
        raise DataError(f"{path}: cannot be read as an image ({error})") from None


def draw(
    images: Tensor,
    kind: str,
    config: AugmentConfig,
    fillings: Fillings,
    keys: Sequence[str],
) -> tuple[Tensor, Tensor]:
    """Images with one defect each.

    The draws of an image depend on its key and the kind alone, not on the images beside it.

    Args:
        images: (n, 3, size, size) uint8.
        kind: one of `KINDS`.
        config: for the range of areas.
        keys: n texts, from which the images' draws are made.

    Returns:
        Images as given with a defect, and masks (n, size, size) bool, True where a defect is.
    """
    changed, masks = images.clone(), torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
    for k, key in enumerate(keys):
        digest = hashlib.sha256(f"{kind} {key}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        alpha = _shape(kind, images.shape[-1], config.area_ratio, fillings, rng)
        height, width = alpha.shape
        y, x = (int(rng.integers(0, images.shape[-1] - n + 1)) for n in (height, width))
        content = torch.from_numpy(_content(kind, height, width, fillings, rng)).permute(2, 0, 1)
        a = torch.from_numpy(alpha)
        part = changed[k, :, y : y + height, x : x + width]
        part.copy_((part.float() * (1 - a) + content.float() * a).round().to(torch.uint8))
        masks[k, y : y + height, x : x + width] = a > 0.5
    return changed, masks


def _shape(
    kind: str, size: int, area_ratio: tuple[float, float], fillings: Fillings, rng: np.random.Generator
) -> np.ndarray:
    """Coverage (height, width) float32 in [0, 1] of a shape's pixels, turned and at its size."""
    target = rng.uniform(*area_ratio) * size**2
    if kind == "mnist":
        digit = fillings.digits[rng.integers(len(fillings.digits))]
        large = Image.fromarray(digit).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    else:
        large = Image.new("L", (_SIDE, _SIDE), 0)
        _OUTLINES[kind.removesuffix("_natural")](ImageDraw.Draw(large), rng)
    large = large.rotate(rng.uniform(0, 360), Image.Resampling.BICUBIC, expand=True)
    large = large.crop(large.getbbox())
    covered = np.asarray(large, dtype=np.float64).sum() / 255
    # the side is what the image can hold, should a thin digit of that area be longer
    scale = min(np.sqrt(target / covered), size / max(large.size))
    shape = tuple(max(1, min(size, round(n * scale))) for n in large.size)
    return np.asarray(large.resize(shape, Image.Resampling.BOX), dtype=np.float32) / 255


def _square(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    pen.rectangle((0, 0, _SIDE - 1, _SIDE - 1), fill=255)


def _ellipse(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    half = _SIDE * rng.uniform(0.5, 1) / 2  # up to twice as long as wide
    pen.ellipse((0, _SIDE / 2 - half, _SIDE - 1, _SIDE / 2 + half - 1), fill=255)


def _heart(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    t = np.linspace(0, 2 * np.pi, 200)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    points = np.stack([x, y], 1) / 34 + 0.5
    pen.polygon([tuple(p) for p in points * (_SIDE - 1)], fill=255)


_OUTLINES = {"square": _square, "ellipse": _ellipse, "heart": _heart}


def _content(kind: str, height: int, width: int, fillings: Fillings, rng: np.random.Generator) -> np.ndarray:
    """What the shape is filled with, (height, width, 3) uint8."""
    if not kind.endswith("_natural"):
        return np.broadcast_to(rng.integers(0, 256, 3, dtype=np.uint8), (height, width, 3)).copy()
    image = fillings.natural[rng.integers(len(fillings.natural))]
    # a piece twice the size, halved: as sharp as a photograph, and with something to see in it
    h, w = (min(2 * n, have) for n, have in zip((height, width), image.shape[:2], strict=True))
    y, x = rng.integers(0, image.shape[0] - h + 1), rng.integers(0, image.shape[1] - w + 1)
    piece = Image.fromarray(image[y : y + h, x : x + w])
    return np.asarray(piece.resize((width, height), Image.Resampling.BILINEAR)).copy()
