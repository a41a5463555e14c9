"""Patches that CutPaste and its relatives cut, paste, jitter or fill (section A.2), batched on any device.

A batch of patches is handled as the list of their pixels, those of all samples in one flat tensor: work and memory grow
with what is pasted, not with the images, and no loop runs over the samples.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from cplib.augment.color import HUE, Jitter, blend_weights, jitter_pixels_
from cplib.sections import AugmentConfig

REFERENCE_SIZE = 256  # pixels; the image size for which the paper gives the lengths of the scar


class Patches(NamedTuple):
    """Draws of one patch per sample, on the CPU; all (n,), integers in pixels but the angle."""

    height: Tensor  # of the patch before rotation
    width: Tensor
    cut_y: Tensor  # first row and column of the source rectangle
    cut_x: Tensor
    angle: Tensor  # rotation in radians, counted from the column axis to the row axis; 0 for CutPaste
    box_height: Tensor  # of the bounding box of the rotated patch
    box_width: Tensor
    paste_y: Tensor  # first row and column of the bounding box
    paste_x: Tensor


def draw_rectangles(n: int, shape: tuple[int, int], config: AugmentConfig, generator: Generator) -> Patches:
    """Patches of CutPaste (section A.2) for images of a shape (height and width): area ratio uniform, aspect ratio
    uniform in its range below 1 or, with equal chance, above; all places at which the patch lies inside."""
    area = _uniform(n, *config.area_ratio, generator) * shape[0] * shape[1]
    low, high = config.aspect_ratio
    flat = torch.rand(n, generator=generator) < 0.5
    aspect = torch.where(flat, _uniform(n, low, 1, generator), _uniform(n, 1, high, generator))
    height = (area * aspect).sqrt().round().long().clamp(1, shape[0])
    width = (area / aspect).sqrt().round().long().clamp(1, shape[1])
    return _place(height, width, torch.zeros(n), shape, generator)


def draw_scars(n: int, shape: tuple[int, int], config: AugmentConfig, generator: Generator) -> Patches:
    """Patches of CutPaste-Scar (section A.2): width, length and angle uniform; at least 1x2 pixels. A ValueError tells
    of one that was drawn and does not fit into the shape."""
    scale = shape[0] / REFERENCE_SIZE
    width = (_uniform(n, *config.scar_width, generator) * scale).round().long().clamp(min=1)
    length = (_uniform(n, *config.scar_length, generator) * scale).round().long().clamp(min=2)
    angle = torch.deg2rad(_uniform(n, *config.scar_angle, generator))
    return _place(length, width, angle, shape, generator)


def _uniform(n: int, low: float, high: float, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)


def _place(height: Tensor, width: Tensor, angle: Tensor, shape: tuple[int, int], generator: Generator) -> Patches:
    """Draw where patches are cut and pasted, uniform over all places inside."""
    sin, cos = angle.sin().abs(), angle.cos().abs()
    # a hundredth of a pixel of slack, so that rounding errors at angle 0 add no empty row
    box_height = (height * cos + width * sin - 0.01).ceil().long()
    box_width = (width * cos + height * sin - 0.01).ceil().long()
    if (box_height > shape[0]).any() or (box_width > shape[1]).any():
        size = f"{int(box_height.max())}x{int(box_width.max())}"
        raise ValueError(f"a patch of {size} pixels does not fit into {shape[0]}x{shape[1]}")
    places = []
    for extent, room in ((height, shape[0]), (width, shape[1]), (box_height, shape[0]), (box_width, shape[1])):
        free = room - extent + 1
        places.append((torch.rand(len(extent), generator=generator) * free).long().minimum(free - 1))
    return Patches(height, width, *places[:2], angle, box_height, box_width, *places[2:])


class _Pixels(NamedTuple):
    """Pixels of the bounding boxes of all patches, one after the other; all (pixels,), on the device."""

    sample: Tensor
    source: Tensor  # place in the flattened plane of the sample's image
    target: Tensor
    inside: Tensor  # False in the corners of the box of a rotated patch


def _pixels(patches: Patches, shape: tuple[int, int], device: torch.device) -> _Pixels:
    counts = patches.box_height * patches.box_width
    total, start = int(counts.sum()), counts.cumsum(0) - counts
    p = Patches(*(v.to(device, non_blocking=True) for v in patches))
    sample = torch.repeat_interleave(torch.arange(len(counts), device=device), counts.to(device), output_size=total)
    local = torch.arange(total, device=device) - start.to(device)[sample]
    box_width = p.box_width[sample]
    i = local.div(box_width, rounding_mode="floor")
    j = local - i * box_width
    target = (p.paste_y * shape[1] + p.paste_x)[sample] + i * shape[1] + j
    first = (p.cut_y * shape[1] + p.cut_x)[sample]
    y, x = i - ((p.box_height - 1) / 2)[sample], j - ((p.box_width - 1) / 2)[sample]
    sin, cos = p.angle.sin()[sample], p.angle.cos()[sample]
    height, width = p.height[sample], p.width[sample]
    down, across = y * cos - x * sin, x * cos + y * sin
    inside = (down.abs() <= height / 2) & (across.abs() <= width / 2)
    row = (down + height / 2).floor().long().clamp(min=0).minimum(height - 1)
    column = (across + width / 2).floor().long().clamp(min=0).minimum(width - 1)
    return _Pixels(sample, first + row * shape[1] + column, target, inside)


def _gather(images: Tensor, sample: Tensor, place: Tensor) -> Tensor:
    """Colours (3, pixels) of places in the flattened planes of contiguous images."""
    return images.flatten(2)[sample, :, place].T.contiguous()


def _fill(images: Tensor, pixels: _Pixels, colors: Tensor) -> Tensor:
    """Write colours (3, pixels) to the targets in contiguous images; returns the mask of these places."""
    sample, _, target, inside = pixels
    images.flatten(2)[sample, :, target] = torch.where(inside, colors, _gather(images, sample, target)).T
    mask = torch.zeros_like(images[:, 0], dtype=torch.bool)
    mask.flatten(1)[sample, target] = inside
    return mask


def paste_(images: Tensor, patches: Patches, jitter: Jitter, move: bool = True) -> Tensor:
    """Copy each image's patch, with jittered colours, to another place of the same image, in place.

    Images are (n, 3, height, width) float32 in [0, 1], contiguous. Rotated patches are sampled to the nearest pixel, so
    each pasted colour is one of the source. Without `move` the colours are jittered where the patch would be pasted
    (Confetti). Returns masks (n, height, width) bool of the pasted pixels.
    """
    pixels = _pixels(patches, images.shape[2:], images.device)
    sample = pixels.sample
    colors = _gather(images, sample, pixels.source if move else pixels.target)
    weight = pixels.inside.float()
    total = colors.new_zeros(len(images)).index_add_(0, sample, weight)

    def mean(plane: Tensor) -> Tensor:
        return plane.new_zeros(len(images)).index_add_(0, sample, plane * weight) / total

    jitter_pixels_(colors, blend_weights(jitter), jitter.factors[:, HUE], lambda v: v[sample], mean)
    return _fill(images, pixels, colors)


def fill_(images: Tensor, patches: Patches, colors: Tensor) -> Tensor:
    """Fill each image's patch with its colour, of (n, 3) float in [0, 1], in place; images and masks as `paste_`."""
    pixels = _pixels(patches, images.shape[2:], images.device)
    return _fill(images, pixels, colors.to(images.device).T[:, pixels.sample])
