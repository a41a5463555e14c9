"""Views: what each class of a proxy task does to an image (sections 2.2, 5.1), batched on any device.

Images are (n, 3, height, width), float in [0, 1] unless stated. Every sample has its own draw. Draws come from a CPU
`torch.Generator` whatever the device of the images, so a seed means the same on every device.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Generator, Tensor, nn

from cplib.augment.color import color_jitter_, draw_jitter
from cplib.augment.patches import Patches, draw_rectangles, draw_scars, fill_, paste_
from cplib.sections import AugmentConfig, Names

View = Callable[[Tensor, AugmentConfig, Generator], Tensor]  # changes images in place, returns the mask of the changes
Draw = Callable[[int, tuple[int, int], AugmentConfig, Generator], Patches]


def augment_input(
    images: Tensor, config: AugmentConfig, generator: Generator, views: int = 1, crop: int = 0, place: str = "uniform"
) -> Tensor:
    """Random translation and colour jitter that normal and augmented samples share (section A.1).

    Args:
        images: (n, 3, height, width) uint8.
        views: number of views of each image, each with its own draws.
        crop: if not 0, take a random crop of so many pixels squared, in place of the translation (section 2.4). All
            views of an image show the same crop: with a crop for each view the task long stays at chance.
        place: of crops, "uniform" or "structure": more often where grey values vary (not in the paper).

    Returns:
        (views * n, 3, height, width) float32 in [0, 1], or crop squared; row k is of image k modulo n.
    """
    n, shape, pad = views * len(images), images.shape[2:], 0
    if crop:
        draw = _structured_places if place == "structure" else _uniform_places
        offsets, shape = draw(images, crop, generator).repeat(views, 1), (crop, crop)
    else:
        pad = round(config.translate * shape[0])
        offsets = torch.randint(0, 2 * pad + 1, (n, 2), generator=generator)
    height, width = shape
    padded = nn.functional.pad(images.float(), (pad,) * 4, mode="reflect") if pad else images  # it pads no bytes
    crops = [padded[k % len(images), :, i : i + height, j : j + width] for k, (i, j) in enumerate(offsets.tolist())]
    out = torch.stack(crops).float().div_(255)
    return color_jitter_(out, draw_jitter(n, config.jitter, generator))


def _uniform_places(images: Tensor, crop: int, generator: Generator) -> Tensor:
    """Rows and columns (n, 2) of the first pixel of a crop of each image."""
    free = torch.tensor([images.shape[2] - crop + 1, images.shape[3] - crop + 1])
    return (torch.rand(len(images), 2, generator=generator) * free).long().minimum(free - 1)


def _structured_places(images: Tensor, crop: int, generator: Generator) -> Tensor:
    """As `_uniform_places`, with a probability proportional to the standard deviation of the crop's grey values. It is
    known at every eighth of a crop; between these, places are uniform."""
    step, grey = max(1, crop // 8), images.float().mean(1, keepdim=True).div_(255)
    coarse = (nn.functional.avg_pool2d(x, step) for x in (grey, grey.square()))
    mean, square = (nn.functional.avg_pool2d(x, crop // step, 1) for x in coarse)
    std = (square - mean.square()).clamp_(min=0).sqrt_().flatten(1).cpu() + 1e-6
    chosen = torch.multinomial(std, 1, generator=generator)[:, 0]
    corner = step * torch.stack([chosen // mean.shape[3], chosen % mean.shape[3]], 1)
    last = torch.tensor([images.shape[2] - crop, images.shape[3] - crop])
    return (corner + torch.randint(0, step, corner.shape, generator=generator)).minimum(last)


def _paste(images: Tensor, config: AugmentConfig, generator: Generator, draw: Draw, move: bool = True) -> Tensor:
    """Patches of the image, colours jittered, pasted elsewhere (or left where they are)."""
    patches = draw(len(images), images.shape[2:], config, generator)
    return paste_(images, patches, draw_jitter(len(images), config.patch_jitter, generator), move)


def _fill(images: Tensor, config: AugmentConfig, generator: Generator, draw: Draw, color: Callable) -> Tensor:
    """Patches filled with one colour of each image: `color` gives (n, 3) of images and generator."""
    patches = draw(len(images), images.shape[2:], config, generator)
    return fill_(images, patches, color(images, generator))


def _random_color(images: Tensor, generator: Generator) -> Tensor:
    return torch.rand(len(images), 3, generator=generator)


def _union(images: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    coin = torch.rand(len(images), generator=generator) < 0.5
    mask = torch.zeros_like(images[:, 0], dtype=torch.bool)
    for name, chosen in (("cutpaste", coin), ("cutpaste_scar", ~coin)):
        rows = chosen.nonzero()[:, 0].to(images.device)
        some = images[rows]
        mask[rows] = VIEWS[name](some, config, generator)
        images[rows] = some
    return mask


def _rotate(images: Tensor, config: AugmentConfig, generator: Generator, turns: int) -> Tensor:
    """Square images turned by so many quarters, 0 for images as they are."""
    if turns:
        images.copy_(torch.rot90(images, turns, (2, 3)))
    return torch.full_like(images[:, 0], turns > 0, dtype=torch.bool)


VIEWS: dict[str, View] = {
    "normal": partial(_rotate, turns=0),
    "cutpaste": partial(_paste, draw=draw_rectangles),  # CutPaste: a rectangle (section 2.2)
    "cutpaste_scar": partial(_paste, draw=draw_scars),  # CutPaste-Scar: a long thin rectangle, rotated (section 2.2)
    "union": _union,  # one of the two with equal chance (section 5.2)
    "cutout": partial(_fill, draw=draw_rectangles, color=lambda images, _: torch.full((len(images), 3), 0.5)),
    "cutout_mean": partial(_fill, draw=draw_rectangles, color=lambda images, _: images.mean((2, 3))),  # section 5.1
    "cutout_color": partial(_fill, draw=draw_rectangles, color=_random_color),  # section 5.1
    "scar": partial(_fill, draw=draw_scars, color=_random_color),  # section 2.2
    "confetti": partial(_paste, draw=draw_rectangles, move=False),  # jittered where it is (section 5.1)
    "rotate_90": partial(_rotate, turns=1),
    "rotate_180": partial(_rotate, turns=2),
    "rotate_270": partial(_rotate, turns=3),
}


def on_crops(config: AugmentConfig, size: float, crop: int) -> AugmentConfig:
    """Parameters for crops of images of a size. Scars scale with what they are pasted on: here they are enlarged, so
    that on the crop they have the pixels that they have on the image. Without a crop, 0, nothing changes."""
    lengths = {k: getattr(config, k) for k in ("scar_width", "scar_length")}
    return config.replace(**{k: tuple(v * size / (crop or size) for v in span) for k, span in lengths.items()})


def make_batch(
    images: Tensor, task: Names, config: AugmentConfig, generator: Generator, crop: int = 0, place: str = "uniform"
) -> tuple[Tensor, Tensor]:
    """One view per class of every source image (n, 3, size, size) uint8, each with its own input augmentation.

    `task` names `VIEWS`, as an entry of `tasks.TASKS` does. `crop` and `place` are as for `augment_input`: images are
    cropped first, so that every view shows what was done to it (section 2.4). Returns (classes * n, 3, size, size)
    float32 in [0, 1], class after class, and (classes * n,) labels.
    """
    batch = augment_input(images, config, generator, len(task), crop, place)
    config = on_crops(config, math.sqrt(images.shape[2] * images.shape[3]), crop)
    for name, view in zip(task, batch.chunk(len(task)), strict=True):
        VIEWS[name](view, config, generator)
    labels = torch.arange(len(task), device=images.device).repeat_interleave(len(images))
    return batch, labels
