"""The demo data set: scenes drawn from a seed, photographed and saved in MVTec AD's folder layout.

    <root>/<category>/train/good/000.png              normal images only
    <root>/<category>/test/{good,<defect>}/000.png
    <root>/<category>/ground_truth/<defect>/000_mask.png    grey, 0 or 255, the size of the image

`weave` (plain-woven cloth) is a texture, `plate` (a screwed metal plate with socket, print and cable) an
object. Pose, texture, colour, light, focus and noise vary from image to image, so that colour and pixel
statistics say little. A defect is a change of the local structure, as in the real data (Bergmann et al.,
CVPR 2019). The demo shows that the pipeline works where MVTec AD cannot be downloaded. No number measured
on it is a result of the paper.

Scenes (`demo.scenes`) are drawn at twice the image size. A defect is drawn into the scene, not onto the
photograph: light, blur and noise act on it as on the rest. Its mask is where the photographs of one scene
with and without the defect differ.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from demo.drawing import Array, Rng, grid, scale
from demo.scenes import DEFECTS, SCENES

MASK_THRESHOLD = 4  # grey levels (of 255) in any channel; a smaller change drowns in the noise
AREA_RANGE = (0.002, 0.16)  # of the image; a defect whose mask falls outside is drawn again

log = logging.getLogger(__name__)


def draw(
    root: Path | str,
    size: int = 128,
    train: int = 100,
    test_good: int = 40,
    test_defect: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Write the data set below `root`, whole or not at all.

    The images are drawn into a hidden folder beside `root`, which takes its name at the end. Whatever
    interrupts the drawing, a `root` that exists is complete. An older demo data set is replaced. Equal
    arguments give byte-identical files (with the same numpy, scipy and Pillow on the same kind of
    processor). An image does not depend on how many others are drawn.

    Args:
        root: folder of the data set.
        size: width and height of the images in pixels, at least 32.
        train, test_good: normal images per category.
        test_defect: images per kind of defect, see `DEFECTS`.
        seed: not negative.
        progress: show a bar, if the output is a terminal.

    Raises:
        ValueError: an argument is out of range.
        FileExistsError: `root` holds something else than demo data.
    """
    root = Path(root)
    if size < 32 or min(train, test_good, test_defect) < 1 or seed < 0:
        given = f"{size=}, {train=}, {test_good=}, {test_defect=}, {seed=}"
        raise ValueError(f"size must be at least 32, counts at least 1, seed at least 0: {given}")
    if root.exists() and not (root.is_dir() and {path.name for path in root.iterdir()} <= set(SCENES)):
        raise FileExistsError(f"{root} exists and holds more than demo data; choose another folder")

    counts = {("train", "good"): train, ("test", "good"): test_good}
    images = [
        (category, split, kind, index)
        for category, defects in DEFECTS.items()
        for (split, kind), count in (counts | {("test", defect): test_defect for defect in defects}).items()
        for index in range(count)
    ]
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{root.name}.partial-", dir=root.parent))
    try:
        for image in tqdm(images, "demo data", unit="image", disable=None if progress else True):
            _save(partial / "new", *image, size, seed)
        if root.exists():
            os.replace(root, partial / "old")
        os.replace(partial / "new", root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    log.info("%d images of %d x %d pixels in %s", len(images), size, size, root)


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
    key = [seed, zlib.crc32(f"{category}/{split}/{kind}".encode()), index]  # an image depends on its name alone

    def shoot(defect: str | None, take: int = 0) -> Array:
        seeds = [*np.random.SeedSequence(key).spawn(2), np.random.SeedSequence([*key, take])]
        scene, camera, flaw = map(np.random.default_rng, seeds)
        return _photograph(camera, SCENES[category](scene, 2 * size, defect, flaw))

    normal = shoot(None)
    if clean or kind == "good":
        return normal, np.zeros((size, size), bool)
    for take in range(50):
        image = shoot(kind, take)
        changed = np.abs(image.astype(int) - normal).max(-1) > MASK_THRESHOLD
        mask = ndimage.binary_fill_holes(changed | ndimage.binary_closing(changed, np.ones((3, 3))))
        if AREA_RANGE[0] <= mask.mean() <= AREA_RANGE[1]:
            return np.where(mask[..., None], image, normal), mask
    raise RuntimeError(f"no visible {kind} after 50 attempts: {category} {split} {index}, size {size}, seed {seed}")


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


def _save(folder: Path, category: str, split: str, kind: str, index: int, size: int, seed: int) -> None:
    image, mask = render(category, split, kind, index, size, seed)
    files = {f"{split}/{kind}/{index:03d}.png": image}
    if kind != "good":
        files[f"ground_truth/{kind}/{index:03d}_mask.png"] = np.uint8(255) * mask
    for name, pixels in files.items():
        path = folder / category / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, compress_level=3)  # noise gains nothing from more
