"""Patches: drawn as section A.2 says, inside the image, and pasted from where they were cut.

`coded` images give each pixel a colour of its own, so that a pasted pixel tells where it comes from.
"""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from cplib.augment.color import Jitter, color_jitter_, draw_jitter
from cplib.augment.patches import Patches, draw_rectangles, draw_scars, fill_, paste_
from cplib.config import load
from cplib.sections import AugmentConfig

CONFIG = load(Path(__file__).parents[1] / "params/paper.yaml").augment
SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.tuples(st.integers(32, 128), st.integers(32, 128))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_large_scars(n: int, shape: tuple[int, int], config: AugmentConfig, generator: torch.Generator) -> Patches:
    """Scars in pixels of the image whatever its size, so that small images show their shape."""
    lengths = {k: tuple(256 / shape[0] * v for v in getattr(config, k)) for k in ("scar_width", "scar_length")}
    return draw_scars(n, shape, config.replace(**lengths), generator)


DRAWS = {"rectangle": draw_rectangles, "scar": draw_scars, "large scar": draw_large_scars}


def coded(n: int, height: int, width: int) -> Tensor:
    """(n, 3, height, width): the colour of a pixel is its row, its column and its sample, over 255."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.stack([rows, columns, torch.full_like(rows, k)]) for k in range(n)]) / 255


def no_jitter(n: int) -> Jitter:
    return draw_jitter(n, 0.0, seeded(0))


def each(patches: Patches) -> list[Patches]:
    """The patches as Python numbers, one per sample."""
    return [Patches(*values) for values in zip(*(field.tolist() for field in patches), strict=True)]


def crop(image: Tensor, y: int, x: int, height: int, width: int) -> Tensor:
    return image[..., y : y + height, x : x + width]


def is_uniform(values: Tensor, low: float, high: float) -> bool:
    return stats.kstest(values.double().numpy(), stats.uniform(low, high - low).cdf).pvalue > 0.001


def test_area_ratio_and_aspect_ratio_of_cutpaste():
    side = 2**14  # so large that rounding to pixels does not matter
    patches = draw_rectangles(20_000, (side, side), CONFIG, seeded(0))
    height, width = patches.height.double(), patches.width.double()
    area, aspect = height * width / side**2, height / width
    assert area.min() > 0.0199 and area.max() < 0.1501 and is_uniform(area, 0.02, 0.15)
    flat, upright = aspect[aspect < 1], aspect[aspect > 1]
    assert abs(len(flat) / len(aspect) - 0.5) < 0.015
    assert is_uniform(flat, 0.3, 1) and is_uniform(upright, 1, 3.3)
    assert torch.corrcoef(torch.stack([area, aspect]))[0, 1].abs() < 0.03


def test_width_length_and_angle_of_scars():
    patches = draw_scars(20_000, (256, 256), CONFIG, seeded(0))
    assert is_uniform(patches.angle.rad2deg(), -45, 45)
    for lengths, low, high in ((patches.width, 2, 16), (patches.height, 10, 25)):
        assert lengths.unique().tolist() == list(range(low, high + 1))
        inner = lengths.bincount()[low + 1 : high]  # rounding halves the chance of the end values
        assert stats.chisquare(inner.numpy()).pvalue > 0.001
    together = torch.stack([patches.width.double(), patches.height, patches.angle])
    assert (torch.corrcoef(together) - torch.eye(3)).abs().max() < 0.03


def test_scars_scale_with_the_image_and_are_of_1x2_pixels_at_least():
    for size, *expected in ((32, 1, 2, 2, 3), (64, 1, 4, 3, 6), (512, 4, 32, 20, 50)):
        patches = draw_scars(5000, (size, size), CONFIG, seeded(0))
        assert [int(e) for v in (patches.width, patches.height) for e in (v.min(), v.max())] == expected


@settings(deadline=None, max_examples=60)
@given(kind=st.sampled_from(sorted(DRAWS)), shape=SHAPES, seed=SEEDS)
def test_patches_lie_inside_images_of_any_shape(kind, shape, seed):
    height, width = shape
    patches = DRAWS[kind](6, shape, CONFIG, seeded(seed))
    for first, extent, room in (
        (patches.cut_y, patches.height, height),
        (patches.cut_x, patches.width, width),
        (patches.paste_y, patches.box_height, height),
        (patches.paste_x, patches.box_width, width),
    ):
        assert (extent >= 1).all() and (first >= 0).all() and (first + extent <= room).all()
    images, colors = coded(6, *shape), torch.rand(6, 3, generator=seeded(seed))
    before = images.clone()
    masks = fill_(images, patches, colors)
    assert torch.equal(images, torch.where(masks[:, None], colors[:, :, None, None], before))
    for mask, p in zip(masks, each(patches), strict=True):
        inside = crop(mask, p.paste_y, p.paste_x, p.box_height, p.box_width)
        assert inside.any() and inside.sum() == mask.sum()
        # a scar keeps its area as it turns, but for its edges
        assert abs(inside.sum() - p.height * p.width) <= (0 if kind == "rectangle" else p.height + p.width)


def test_all_places_are_equally_likely_and_cut_and_paste_independent():
    """A 4x4 patch in 8x8 pixels: 25 places to cut it from and 25 to paste it to, corners included."""
    square = CONFIG.replace(area_ratio=(0.25, 0.25), aspect_ratio=(1.0, 1.0), scar_angle=(0.0, 0.0))
    square = square.replace(scar_width=(4.0, 4.0), scar_length=(4.0, 4.0))
    for patches in (
        draw_rectangles(25_000, (8, 8), square, seeded(3)),
        draw_large_scars(25_000, (8, 8), square, seeded(3)),
    ):
        code = ((patches.cut_y * 5 + patches.cut_x) * 5 + patches.paste_y) * 5 + patches.paste_x
        counts = code.bincount(minlength=625)
        assert len(counts) == 625 and stats.chisquare(counts.numpy()).pvalue > 0.001


def test_a_scar_that_does_not_fit_is_an_error():
    for shape in ((20, 64), (64, 20)):
        with pytest.raises(ValueError, match="does not fit"):
            draw_large_scars(50, shape, CONFIG, seeded(0))


@settings(deadline=None, max_examples=40)
@given(shape=SHAPES, seed=SEEDS, steepest=st.sampled_from([0.0, 45.0, 90.0]))
def test_scars_are_the_source_rotated_to_the_nearest_pixel(shape, seed, steepest):
    """Every pixel of the image is turned back by the angle: inside the rectangle or not, and from where."""
    config = CONFIG.replace(scar_angle=(-steepest, steepest))
    patches, images = draw_large_scars(4, shape, config, seeded(seed)), coded(4, *shape)
    before = images.clone()
    masks = paste_(images, patches, no_jitter(4))
    outside = ~masks[:, None].expand_as(images)
    assert torch.equal(images[outside], before[outside])
    rows, columns = torch.meshgrid(*(torch.arange(s).double() + 0.5 for s in shape), indexing="ij")
    for k, (p, mask, image) in enumerate(zip(each(patches), masks, (255 * images).round(), strict=True)):
        down, right = rows - (p.paste_y + p.box_height / 2), columns - (p.paste_x + p.box_width / 2)
        sin, cos = math.sin(p.angle), math.cos(p.angle)
        along, across = down * cos - right * sin, right * cos + down * sin
        outside = torch.maximum(along.abs() - p.height / 2, across.abs() - p.width / 2)
        assert mask[outside < -1e-3].all() and not mask[outside > 1e-3].any()
        row, column, sample = image[:, mask]
        assert (sample == k).all()
        assert ((row >= p.cut_y) & (row < p.cut_y + p.height)).all()
        assert ((column >= p.cut_x) & (column < p.cut_x + p.width)).all()
        # middles of the source pixel and of the place turned back, at most half a pixel apart
        assert (row + 0.5 - (p.cut_y + p.height / 2 + along[mask])).abs().max() <= 0.501
        assert (column + 0.5 - (p.cut_x + p.width / 2 + across[mask])).abs().max() <= 0.501


@pytest.mark.parametrize("move", [True, False])
@pytest.mark.parametrize("kind", ["rectangle", "large scar"])
def test_pasted_colours_are_jittered_as_those_of_an_image(kind, move):
    """Contrast is about the mean of the patch alone, without the corners of a scar's bounding box."""
    patches, jitter = DRAWS[kind](48, (40, 56), CONFIG, seeded(0)), draw_jitter(48, 0.4, seeded(1))
    images, plain = (torch.rand(48, 3, 40, 56, generator=seeded(2)) for _ in range(2))
    before = images.clone()
    masks = paste_(images, patches, jitter, move)
    assert torch.equal(paste_(plain, patches, no_jitter(48), move), masks)
    for k, mask in enumerate(masks):
        rows = slice(k, k + 1)
        own = Jitter(jitter.factors[rows], jitter.order[rows])
        expected = color_jitter_(plain[rows, :, mask][..., None], own)[..., 0]
        torch.testing.assert_close(images[rows, :, mask], expected, atol=1e-5, rtol=0)
    assert move or torch.equal(plain, before)
