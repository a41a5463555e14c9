"""Views and proxy tasks of CutPaste (sections 2.1, 2.2, 5.1), batched on any device.

Images are (n, 3, height, width), float in [0, 1] unless stated. Every sample has its own draw. Draws come
from a CPU `torch.Generator` whatever the device of the images, so a seed means the same on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor

from cplib.color import chunks, draw_jitter, jitter_images_, jitter_steps
from cplib.config import AugmentConfig
from cplib.patches import draw_rectangles, draw_scars, fill_, paste_


def translate(
    images: Tensor, offsets: Tensor, pad: int, shape: tuple[int, int] | None = None
) -> list[Tensor]:
    """Pad by reflection and crop, by default back to the size of the images.

    Args:
        images: (n, 3, height, width), any dtype.
        offsets: (m, 2) row and column of the crop, integers in [0, 2 pad]; m is a multiple of n,
            crop k is of image k modulo n.
        pad: pixels on each side, less than height and width.
        shape: height and width of the crops.

    Returns:
        m views of (3, *shape) into the padded images.
    """
    height, width = shape or images.shape[2:]
    padded = images
    if pad:
        left, right = images[..., 1 : pad + 1].flip(3), images[..., -pad - 1 : -1].flip(3)
        padded = torch.cat([left, images, right], 3)
        above, below = padded[:, :, 1 : pad + 1].flip(2), padded[:, :, -pad - 1 : -1].flip(2)
        padded = torch.cat([above, padded, below], 2)
    return [
        padded[k % len(images), :, i : i + height, j : j + width] for k, (i, j) in enumerate(offsets.tolist())
    ]


def augment_input(
    images: Tensor, config: AugmentConfig, generator: Generator, views: int = 1, crop: int = 0
) -> Tensor:
    """Random translation and colour jitter that normal and augmented samples share (section A.1).

    Args:
        images: (n, 3, height, width) uint8.
        views: number of views of each image, each with its own draws.
        crop: if not 0, take a random crop of so many pixels squared, in place of the translation: the input
            of the patch model (section 2.4). All views of an image show the same crop, so that classes
            differ by their augmentation alone: with a crop for each view the task long stays at chance.

    Returns:
        (views * n, 3, height, width) float32 in [0, 1], or crop squared; row k is of image k modulo n.
    """
    n, shape = views * len(images), images.shape[2:]
    if crop:
        free = torch.tensor([shape[0] - crop + 1, shape[1] - crop + 1])
        offsets = (torch.rand(len(images), 2, generator=generator) * free).long().minimum(free - 1)
        offsets = offsets.repeat(views, 1)
        shape, pad = (crop, crop), 0
    else:
        pad = round(config.translate * shape[0])
        offsets = torch.randint(0, 2 * pad + 1, (n, 2), generator=generator)
    steps = jitter_steps(draw_jitter(n, config.jitter, generator), images.device)
    crops = translate(images, offsets, pad, shape)
    out = torch.empty(n, 3, *shape, device=images.device)
    for rows in chunks(out):
        x = out[rows]
        x.copy_(torch.stack(crops[rows])).div_(255)
        jitter_images_(x, steps.select(rows))
    return out


# --- views: what a class of a proxy task does to images, in place; they return the mask of what changed ---

View = Callable[[Tensor, AugmentConfig, Generator], Tensor]


def normal(images: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """The images as they are."""
    return torch.zeros_like(images[:, 0], dtype=torch.bool)


def cutpaste(images: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """CutPaste (section 2.2): a rectangle of the image, colours jittered, pasted elsewhere."""
    patches = draw_rectangles(len(images), images.shape[2:], config, generator)
    return paste_(images, patches, draw_jitter(len(images), config.patch_jitter, generator))


def cutpaste_scar(images: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """CutPaste-Scar (section 2.2): a long thin rectangle, colours jittered and rotated."""
    patches = draw_scars(len(images), images.shape[2:], config, generator)
    return paste_(images, patches, draw_jitter(len(images), config.patch_jitter, generator))


def union(images: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """CutPaste or CutPaste-Scar with equal chance (section 5.2)."""
    coin = torch.rand(len(images), generator=generator) < 0.5
    mask = torch.zeros_like(images[:, 0], dtype=torch.bool)
    for view, chosen in ((cutpaste, coin), (cutpaste_scar, ~coin)):
        rows = chosen.nonzero()[:, 0].to(images.device)
        part = images[rows]
        mask[rows] = view(part, config, generator)
        images[rows] = part
    return mask


def cutout(images: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """Cutout (section 5.1): a rectangle of the size of CutPaste's, filled with grey."""
    patches = draw_rectangles(len(images), images.shape[2:], config, generator)
    return fill_(images, patches, torch.full((len(images), 3), 0.5))


def cutout_mean(images: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """Cutout filled with the mean colour of the image (section 5.1)."""
    patches = draw_rectangles(len(images), images.shape[2:], config, generator)
    return fill_(images, patches, images.mean((2, 3)))


def cutout_color(images: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """Cutout filled with one random colour (section 5.1)."""
    patches = draw_rectangles(len(images), images.shape[2:], config, generator)
    return fill_(images, patches, torch.rand(len(images), 3, generator=generator))


def scar(images: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """Scar (section 2.2): a long thin rotated box of one random colour."""
    patches = draw_scars(len(images), images.shape[2:], config, generator)
    return fill_(images, patches, torch.rand(len(images), 3, generator=generator))


def confetti(images: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """Confetti (section 5.1): the colours of a rectangle jittered where they are, as CutPaste jitters."""
    patches = draw_rectangles(len(images), images.shape[2:], config, generator)
    jitter = draw_jitter(len(images), config.patch_jitter, generator)
    return paste_(images, patches, jitter, move=False)


def _rotation(turns: int) -> View:
    def rotate(images: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
        images.copy_(torch.rot90(images, turns, (2, 3)))
        return torch.ones_like(images[:, 0], dtype=torch.bool)

    rotate.__doc__ = f"The image turned by {90 * turns} degrees; square images only."
    return rotate


VIEWS: dict[str, View] = {
    "normal": normal,
    "cutpaste": cutpaste,
    "cutpaste_scar": cutpaste_scar,
    "union": union,
    "cutout": cutout,
    "cutout_mean": cutout_mean,
    "cutout_color": cutout_color,
    "scar": scar,
    "confetti": confetti,
    "rotate_90": _rotation(1),
    "rotate_180": _rotation(2),
    "rotate_270": _rotation(3),
}


def _for_crops(config: AugmentConfig, image_size: int, crop: int) -> AugmentConfig:
    """Scars scale with what they are pasted on: stretched so that on a crop they have the image's pixels."""
    stretch = image_size / crop
    lengths = {k: tuple(stretch * v for v in getattr(config, k)) for k in ("scar_width", "scar_length")}
    return replace(config, **lengths)


# Proxy tasks: the views that the classifier tells apart, class 0 the normal one.
TASKS: dict[str, tuple[str, ...]] = {
    "rotation": ("normal", "rotate_90", "rotate_180", "rotate_270"),
    "cutpaste_3way": ("normal", "cutpaste", "cutpaste_scar"),
} | {v: ("normal", v) for v in VIEWS if v != "normal" and not v.startswith("rotate")}


def make_batch(
    images: Tensor, task: tuple[str, ...], config: AugmentConfig, generator: Generator, crop: int = 0
) -> tuple[Tensor, Tensor]:
    """One view per class of every source image, each with its own input augmentation.

    Args:
        images: (n, 3, size, size) uint8.
        task: names of views, one of `TASKS`.
        generator: on the CPU.
        crop: if not 0, the views are of a random crop of so many pixels squared, one for each source image;
            cropped first, so that every view shows what was done to it (section 2.4). Scars keep their
            size in pixels of the image.

    Returns:
        (classes * n, 3, size, size) float32 in [0, 1], class after class, and (classes * n,) labels; size is
        that of the images or of the crop.
    """
    batch = augment_input(images, config, generator, len(task), crop)
    if crop:
        config = _for_crops(config, images.shape[2], crop)
    for name, view in zip(task, batch.chunk(len(task)), strict=True):
        VIEWS[name](view, config, generator)
    labels = torch.arange(len(task), device=images.device).repeat_interleave(len(images))
    return batch, labels
