"""Embedded demo data: three inspection stations drawn from a seed, in MVTec AD's folder layout.

    <root>/<category>/train/good/000.png              normal images only
    <root>/<category>/test/{good,<defect>}/000.png
    <root>/<category>/ground_truth/<defect>/000_mask.png    grey, 0 or 255, the size of the image

`weave` (plain-woven cloth) and `board` (a planed board) are textures, `plate` (a screwed metal plate
with socket, print and cable) is an object. Pose, texture, colour, light, focus and noise vary from
image to image, so that colour and pixel statistics say little; a defect is a change of the local
structure, as in the real data (Bergmann et al., CVPR 2019). The demo shows that the pipeline works
where MVTec AD cannot be downloaded: no number measured on it is a result of the paper.

    python -m cplib.demo --root data/demo

Scenes (`cplib.demo_scenes`) are drawn at twice the image size. A defect is drawn into the scene, not
onto the photograph: light, blur and noise act on it as on the rest, and its mask is where the
photographs of one scene with and without the defect differ.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from cplib.demo_drawing import Array, Rng, grid, scale
from cplib.demo_scenes import SCENES

log = logging.getLogger(__name__)

TEXTURES = ("weave", "board")
CATEGORIES = (*TEXTURES, "plate")
DEFECTS = {
    "weave": ("cut", "missing_thread", "patch", "shifted", "stain"),
    "board": ("gap", "inlay", "label", "stain"),
    "plate": ("chip", "label", "misprint", "scratch"),
}
MASK_THRESHOLD = 4  # grey levels (of 255) in any channel; a smaller change drowns in the noise
AREA_RANGE = (0.002, 0.16)  # of the image; a defect whose mask falls outside is drawn again


# --- camera and files ----------------------------------------------------------------------------


def _photograph(rng: Rng, rgb: Array) -> Array:
    """Scene (2 size, 2 size, 3) to image (size, size, 3), uint8: light, colour, focus, noise."""
    n = len(rgb) // 2
    rgb = 0.25 * (rgb[::2, ::2] + rgb[1::2, ::2] + rgb[::2, 1::2] + rgb[1::2, 1::2])
    x, y = grid(n)
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.4)
    light = 1 + strength * (math.cos(angle) * (x - 0.5) + math.sin(angle) * (y - 0.5))
    light = light - rng.uniform(0.05, 0.3) * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    white_balance = np.float32(rng.normal(1, 0.08, 3))
    rgb = scale(rgb, light * rng.uniform(0.75, 1.15)) * white_balance
    rgb = ndimage.gaussian_filter(rgb, (*(n / 128 * rng.uniform(0.3, 0.65),) * 2, 0))
    grain, tint = (rng.standard_normal((n, n, k), np.float32) for k in (1, 3))
    rgb = 255 * rgb + rng.uniform(1, 3) * (grain + 0.4 * tint)
    return np.clip(rgb + 0.5, 0, 255).astype(np.uint8)


def _streams(seed: int, category: str, split: str, kind: str, index: int, take: int = 0) -> list:
    """Generators for scene, camera and defect of one image: functions of its name alone."""
    name = zlib.crc32(f"{category}/{split}/{kind}".encode())
    children = np.random.SeedSequence([seed, name, index]).spawn(3)
    children[2] = np.random.SeedSequence([seed, name, index, take])
    return [np.random.default_rng(child) for child in children]


def render(
    category: str, split: str, kind: str, index: int, size: int, seed: int = 0, clean: bool = False
) -> tuple[Array, Array]:
    """Draw one image.

    Args:
        category, split, kind, index: its place; kind is "good" or one of `DEFECTS[category]`.
        size: width and height in pixels.
        clean: leave the defect out; everything else of the image stays.

    Returns:
        Image (size, size, 3), uint8, and mask (size, size), bool. Outside the mask a defective
        image equals its clean rendering to the bit.
    """

    def shoot(defect: str | None, take: int = 0) -> Array:
        scene, camera, flaw = _streams(seed, category, split, kind, index, take)
        return _photograph(camera, SCENES[category](scene, 2 * size, defect, flaw))

    normal = shoot(None)
    empty = np.zeros((size, size), bool)
    if clean or kind == "good":
        return normal, empty
    for take in range(50):
        image = shoot(kind, take)
        changed = np.abs(image.astype(int) - normal).max(-1) > MASK_THRESHOLD
        mask = ndimage.binary_fill_holes(changed | ndimage.binary_closing(changed, np.ones((3, 3))))
        if AREA_RANGE[0] <= mask.mean() <= AREA_RANGE[1]:
            return np.where(mask[..., None], image, normal), mask
    raise RuntimeError(
        f"no visible {kind} after 50 attempts: {category} {split} {index}, size {size}, seed {seed}"
    )


def _save(folder: Path, category: str, split: str, kind: str, index: int, size: int, seed: int) -> None:
    image, mask = render(category, split, kind, index, size, seed)
    files = {folder / category / split / kind / f"{index:03d}.png": image}
    if kind != "good":
        masks = folder / category / "ground_truth" / kind
        files[masks / f"{index:03d}_mask.png"] = np.uint8(255) * mask
    for path, pixels in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, compress_level=3)  # noise gains nothing from more


def draw(
    root: Path | str,
    size: int = 128,
    train: int = 60,
    test_good: int = 20,
    test_defect: int = 10,
    seed: int = 0,
    categories: Sequence[str] = CATEGORIES,
    progress: bool = True,
) -> None:
    """Write the data set below `root`, whole or not at all.

    The images are drawn into a hidden folder beside `root`, which takes its name at the end:
    whatever interrupts the drawing, a `root` that exists is complete. An older demo data set there
    is replaced. Equal arguments give byte-identical files (with the same numpy, scipy and Pillow on
    the same kind of processor), and an image does not depend on how many others are drawn.

    Args:
        root: folder of the data set.
        size: width and height of the images in pixels, at least 32.
        train, test_good: normal images per category.
        test_defect: images per kind of defect, see `DEFECTS`.
        seed: not negative.
        categories: a selection from `CATEGORIES`.
        progress: show a bar, if the output is a terminal.

    Raises:
        ValueError: an argument is out of range.
        FileExistsError: `root` holds something else than demo data.
    """
    root = Path(root)
    if unknown := sorted(set(categories) - set(CATEGORIES)):
        raise ValueError(f"unknown demo categories {unknown}; there are {list(CATEGORIES)}")
    if not categories:
        raise ValueError("no demo category selected")
    if size < 32 or min(train, test_good, test_defect) < 1 or seed < 0:
        given = f"{size=}, {train=}, {test_good=}, {test_defect=}, {seed=}"
        raise ValueError(f"size must be at least 32, counts at least 1, seed at least 0: {given}")
    found = [path.name for path in root.iterdir()] if root.is_dir() else []
    if (root.exists() and not root.is_dir()) or set(found) - set(CATEGORIES):
        raise FileExistsError(f"{root} exists and holds more than demo data; choose another folder")

    todo = []
    for category in dict.fromkeys(categories):
        todo += [(category, "train", "good", index) for index in range(train)]
        todo += [(category, "test", "good", index) for index in range(test_good)]
        for defect in DEFECTS[category]:
            todo += [(category, "test", defect, index) for index in range(test_defect)]
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{root.name}.partial-", dir=root.parent))
    try:
        for place in tqdm(todo, "demo data", unit="image", disable=None if progress else True):
            _save(partial / "new", *place, size, seed)
        if root.exists():
            os.replace(root, partial / "old")
        os.replace(partial / "new", root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    log.info("%d images of %d x %d pixels in %s", len(todo), size, size, root)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m cplib.demo", description="Draw the demo data.")
    parser.add_argument("--root", type=Path, default=Path("data/demo"), help="folder to write")
    parser.add_argument("--size", type=int, default=128, help="width and height in pixels")
    parser.add_argument("--train", type=int, default=60, help="normal images to train on")
    parser.add_argument("--test-good", type=int, default=20, help="normal images to test on")
    parser.add_argument("--test-defect", type=int, default=10, help="images per kind of defect")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing")
    parser.add_argument("--categories", nargs="+", default=CATEGORIES, choices=CATEGORIES)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    draw(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
