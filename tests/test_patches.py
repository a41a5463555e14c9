"""Patches: drawn as section A.2 says, inside the image, and pasted from where they were cut.

`coded` images give each pixel a colour of its own, so that a pasted pixel tells where it comes from.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from cplib.color import CONTRAST, Jitter, draw_jitter
from cplib.config import AugmentConfig
from cplib.patches import Patches, draw_rectangles, draw_scars, fill_, paste_

CONFIG = AugmentConfig()
DRAWS = {"rectangle": draw_rectangles, "scar": draw_scars}
SQUARE = replace(CONFIG, area_ratio=(0.25, 0.25), aspect_ratio=(1.0, 1.0))  # half the side of the image
SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.tuples(st.integers(32, 256), st.integers(32, 256))
ADJUST = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scars(width: float, length: float, angle: float | tuple[float, float]) -> AugmentConfig:
    """Scars of one size, in pixels of a 256 px image."""
    angles = angle if isinstance(angle, tuple) else (angle, angle)
    return replace(CONFIG, scar_width=(width, width), scar_length=(length, length), scar_angle=angles)


def draw_large_scars(
    n: int, shape: tuple[int, int], config: AugmentConfig, generator: torch.Generator
) -> Patches:
    """Scars in pixels of the image whatever its size, so that small images show their shape."""
    stretch = 256 / shape[0]
    lengths = {k: tuple(stretch * v for v in getattr(config, k)) for k in ("scar_width", "scar_length")}
    return draw_scars(n, shape, replace(config, **lengths), generator)


def coded(n: int, height: int, width: int) -> Tensor:
    """(n, 3, height, width): the colour of a pixel is its row, its column and its sample, over 255."""
    shape = (n, height, width)
    rows = torch.arange(height)[None, :, None].expand(shape)
    columns = torch.arange(width)[None, None, :].expand(shape)
    return torch.stack([rows, columns, torch.arange(n)[:, None, None].expand(shape)], 1) / 255


def decode(images: Tensor) -> Tensor:
    return (255 * images).round().long()


def no_jitter(n: int) -> Jitter:
    return draw_jitter(n, 0.0, seeded(0))


def noise(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, height, width, generator=seeded(seed))


def each(patches: Patches) -> list[Patches]:
    """The patches as Python numbers, one per sample."""
    return [Patches(*values) for values in zip(*(field.tolist() for field in patches), strict=True)]


def crop(image: Tensor, y: int, x: int, height: int, width: int) -> Tensor:
    return image[..., y : y + height, x : x + width]


def torchvision_jitter(image: Tensor, jitter: Jitter, sample: int) -> Tensor:
    for operation in jitter.order[sample].tolist():
        image = ADJUST[operation](image, jitter.factors[sample, operation].item())
    return image


def uniform_ks(values: Tensor, low: float, high: float) -> float:
    """p-value of the values being uniform."""
    return stats.kstest(values.double().numpy(), stats.uniform(low, high - low).cdf).pvalue


# --- sizes ----------------------------------------------------------------------------------------


def test_area_ratio_and_aspect_ratio_of_cutpaste():
    side = 2**14  # so large that rounding to pixels does not matter
    patches = draw_rectangles(20_000, (side, side), CONFIG, seeded(0))
    height, width = patches.height.double(), patches.width.double()
    area, aspect = height * width / side**2, height / width
    assert area.min() > 0.0199 and area.max() < 0.1501
    assert uniform_ks(area, 0.02, 0.15) > 0.001
    flat, upright = aspect[aspect < 1], aspect[aspect > 1]
    assert abs(len(flat) / len(aspect) - 0.5) < 0.015
    assert uniform_ks(flat, 0.3, 1) > 0.001 and uniform_ks(upright, 1, 3.3) > 0.001
    assert torch.corrcoef(torch.stack([area, aspect]))[0, 1].abs() < 0.03
    assert not patches.angle.any()


@pytest.mark.parametrize("size", [32, 64, 256])
def test_area_ratio_and_aspect_ratio_hold_to_the_pixel(size):
    patches = draw_rectangles(5000, (size, size), CONFIG, seeded(1))
    height, width = patches.height, patches.width
    assert ((height - 0.5) * (width - 0.5) <= 0.15 * size**2).all()
    assert ((height + 0.5) * (width + 0.5) >= 0.02 * size**2).all()
    assert ((height - 0.5) / (width + 0.5) <= 3.3).all() and ((height + 0.5) / (width - 0.5) >= 0.3).all()
    area = height * width / size**2
    assert abs(area.mean() - 0.085) < 0.002 and area.min() < 0.025 and area.max() > 0.145


def test_ranges_are_parameters():
    config = replace(CONFIG, area_ratio=(0.3, 0.4), aspect_ratio=(0.5, 1.0))
    patches = draw_rectangles(5000, (1000, 1000), config, seeded(0))
    area, aspect = patches.height * patches.width / 1e6, patches.height / patches.width
    assert 0.299 < area.min() < 0.302 and 0.398 < area.max() < 0.401
    assert 0.498 < aspect.min() < 0.502 and aspect.max() <= 1.001


def test_width_length_and_angle_of_scars():
    patches = draw_scars(20_000, (256, 256), CONFIG, seeded(0))
    assert patches.width.unique().tolist() == list(range(2, 17))
    assert patches.height.unique().tolist() == list(range(10, 26))
    assert uniform_ks(patches.angle.rad2deg(), -45, 45) > 0.001
    for lengths, low, high in ((patches.width, 2, 16), (patches.height, 10, 25)):
        inner = lengths.bincount()[low + 1 : high]  # rounding halves the chance of the end values
        assert stats.chisquare(inner.numpy()).pvalue > 0.001
        assert abs(lengths.double().mean() - (low + high) / 2) < 0.1
    together = torch.stack([patches.width.double(), patches.height, patches.angle])
    assert (torch.corrcoef(together) - torch.eye(3)).abs().max() < 0.03


@pytest.mark.parametrize(
    ("shape", "width", "length"),
    [
        (32, (1, 2), (2, 3)),  # 0.25 to 2 and 1.25 to 3.1, at least 1 x 2
        (64, (1, 4), (3, 6)),  # 0.5 to 4 and 2.5 to 6.25
        (128, (1, 8), (5, 12)),
        (512, (4, 32), (20, 50)),
        (256, (2, 16), (10, 25)),
    ],
)
def test_scars_scale_with_the_image(shape, width, length):
    patches = draw_scars(5000, (shape, shape), CONFIG, seeded(0))
    assert (patches.width.min(), patches.width.max()) == width
    assert (patches.height.min(), patches.height.max()) == length


# --- places ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(kind=st.sampled_from(sorted(DRAWS)), shape=SHAPES, seed=SEEDS)
def test_patches_lie_inside_images_of_any_shape(kind, shape, seed):
    height, width = shape
    patches = DRAWS[kind](6, shape, CONFIG, seeded(seed))
    assert (patches.height >= 1).all() and (patches.width >= 1).all()
    for first, extent, room in (
        (patches.cut_y, patches.height, height),
        (patches.cut_x, patches.width, width),
        (patches.paste_y, patches.box_height, height),
        (patches.paste_x, patches.box_width, width),
    ):
        assert (first >= 0).all() and (first + extent <= room).all()
    masks = fill_(torch.zeros(6, 3, height, width), patches, torch.ones(6, 3))
    for mask, p in zip(masks, each(patches), strict=True):
        inside = crop(mask, p.paste_y, p.paste_x, p.box_height, p.box_width)
        assert inside.any() and inside.sum() == mask.sum()
        if kind == "rectangle":
            assert inside.all() and inside.shape == (p.height, p.width)


@pytest.mark.parametrize(
    ("draw", "config", "shape"),
    [
        (draw_rectangles, SQUARE, (8, 8)),
        (draw_large_scars, scars(4, 4, 0), (8, 8)),
        (draw_large_scars, scars(4, 5, 0), (9, 7)),
    ],
)
def test_all_places_are_equally_likely_and_cut_and_paste_independent(draw, config, shape):
    """A 4x4 patch in 8x8 pixels: 25 places to cut it from and 25 to paste it to, corners included."""
    patches = draw(25_000, shape, config, seeded(3))
    rows, columns = shape[0] - patches.height[0] + 1, shape[1] - patches.width[0] + 1
    code = ((patches.cut_y * columns + patches.cut_x) * rows + patches.paste_y) * columns + patches.paste_x
    counts = code.bincount()
    assert len(counts) == (rows * columns) ** 2 and counts.min() > 0
    assert stats.chisquare(counts.numpy()).pvalue > 0.001


@pytest.mark.parametrize("kind", DRAWS)
def test_random_patches_reach_all_four_sides(kind):
    shape = (40, 56)
    patches = DRAWS[kind](4000, shape, CONFIG, seeded(0))
    for first, extent, room in (
        (patches.cut_y, patches.height, shape[0]),
        (patches.cut_x, patches.width, shape[1]),
        (patches.paste_y, patches.box_height, shape[0]),
        (patches.paste_x, patches.box_width, shape[1]),
    ):
        assert first.min() == 0 and (first + extent).max() == room
        free = (room - extent).double()
        assert abs((first[free > 0] / free[free > 0]).mean() - 0.5) < 0.02


def test_a_patch_that_fills_the_image():
    config = replace(CONFIG, area_ratio=(1.0, 1.0), aspect_ratio=(1.0, 1.0))
    patches = draw_rectangles(3, (16, 16), config, seeded(0))
    assert fill_(torch.zeros(3, 3, 16, 16), patches, torch.ones(3, 3)).all()


@pytest.mark.parametrize("shape", [(24, 64), (64, 24)])
def test_a_scar_that_does_not_fit_is_an_error(shape):
    with pytest.raises(ValueError, match="does not fit"):
        draw_large_scars(1, shape, scars(16, 25, 45), seeded(0))
    draw_large_scars(1, (64, 64), scars(16, 25, 45), seeded(0))


def test_draws_repeat_by_generator_alone():
    for draw in DRAWS.values():
        one, two, other = (draw(8, (64, 64), CONFIG, seeded(s)) for s in (5, 5, 6))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        assert not torch.equal(one.paste_y, other.paste_y)
        assert len(torch.stack([one.cut_y, one.cut_x, one.paste_y, one.paste_x], 1).unique(dim=0)) == 8


# --- the shape of scars ---------------------------------------------------------------------------


@pytest.mark.parametrize(("angle", "shape"), [(0, (10, 4)), (90, (4, 10)), (-90, (4, 10))])
def test_upright_and_lying_scars_are_exact_rectangles(angle, shape):
    patches = draw_large_scars(6, (64, 64), scars(4, 10, angle), seeded(0))
    images = coded(6, 64, 64)
    before = images.clone()
    masks = paste_(images, patches, no_jitter(6))
    for p, mask, image, source in zip(each(patches), masks, images, before, strict=True):
        assert crop(mask, p.paste_y, p.paste_x, *shape).all() and mask.sum() == 40
        cut = crop(source, p.cut_y, p.cut_x, 10, 4)
        # rot90 turns from the row axis to the column axis, the angle counts the other way
        assert torch.equal(
            crop(image, p.paste_y, p.paste_x, *shape), torch.rot90(cut, -round(angle / 90), (1, 2))
        )


@pytest.mark.parametrize("angles", [(-45.0, 45.0), (-89.0, 89.0)])
def test_measured_angle_of_a_scar_is_the_drawn_one(angles):
    config = replace(CONFIG, scar_width=(3.0, 6.0), scar_length=(70.0, 110.0), scar_angle=angles)
    patches = draw_scars(40, (256, 256), config, seeded(0))
    masks = fill_(torch.zeros(40, 3, 256, 256), patches, torch.ones(40, 3))
    for mask, angle in zip(masks, patches.angle.rad2deg().tolist(), strict=True):
        places = mask.nonzero().double()
        axes = torch.linalg.eigh(torch.cov(places.T)).eigenvectors
        down, right = axes[:, -1].tolist()  # direction of the long side, straight down at angle 0
        difference = math.degrees(math.atan2(-right, down)) - angle
        assert abs((difference + 90) % 180 - 90) < 0.6


def test_rotation_keeps_the_area():
    patches = draw_scars(400, (256, 256), CONFIG, seeded(0))
    masks = fill_(torch.zeros(400, 3, 256, 256), patches, torch.ones(400, 3))
    pixels, area = masks.sum((1, 2)), patches.height * patches.width
    assert abs(pixels.sum() / area.sum() - 1) < 0.01
    assert ((pixels - area).abs() <= patches.height + patches.width).all()


# --- what is pasted -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(shape=SHAPES, seed=SEEDS)
def test_cutpaste_copies_its_source_exactly(shape, seed):
    patches = draw_rectangles(4, shape, CONFIG, seeded(seed))
    images = coded(4, *shape)
    before = images.clone()
    masks = paste_(images, patches, no_jitter(4))
    assert torch.equal(images[~masks[:, None].expand_as(images)], before[~masks[:, None].expand_as(images)])
    for p, image, source in zip(each(patches), images, before, strict=True):
        pasted = crop(image, p.paste_y, p.paste_x, p.height, p.width)
        assert torch.equal(pasted, crop(source, p.cut_y, p.cut_x, p.height, p.width))


@settings(deadline=None, max_examples=40)
@given(shape=st.tuples(st.integers(32, 80), st.integers(32, 80)), seed=SEEDS)
def test_scars_are_the_source_rotated_to_the_nearest_pixel(shape, seed):
    """Every pixel of the image is turned back by the angle: inside the rectangle or not, and from where."""
    patches = draw_large_scars(4, shape, CONFIG, seeded(seed))
    images = coded(4, *shape)
    before = images.clone()
    masks = paste_(images, patches, no_jitter(4))
    assert torch.equal(images[~masks[:, None].expand_as(images)], before[~masks[:, None].expand_as(images)])
    rows, columns = torch.meshgrid(*(torch.arange(s).double() + 0.5 for s in shape), indexing="ij")
    for k, (p, mask, image) in enumerate(zip(each(patches), masks, decode(images), strict=True)):
        down = rows - (p.paste_y + p.box_height / 2)
        right = columns - (p.paste_x + p.box_width / 2)
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


@pytest.mark.parametrize("strength", [0.1, 0.5])
def test_jittered_rectangles_equal_torchvision(strength):
    patches, jitter = draw_rectangles(48, (40, 56), CONFIG, seeded(0)), draw_jitter(48, strength, seeded(1))
    images = noise(48, 40, 56)
    before = images.clone()
    paste_(images, patches, jitter)
    for k, p in enumerate(each(patches)):
        expected = torchvision_jitter(crop(before[k], p.cut_y, p.cut_x, p.height, p.width), jitter, k)
        pasted = crop(images[k], p.paste_y, p.paste_x, p.height, p.width)
        torch.testing.assert_close(pasted, expected, atol=1e-5, rtol=0)
    assert images.min() >= 0 and images.max() <= 1


@pytest.mark.parametrize("strength", [0.1, 0.5])
def test_jittered_scars_equal_torchvision(strength):
    """Contrast is about the mean of the pasted pixels, without the corners of their bounding box."""
    patches = draw_large_scars(48, (40, 56), CONFIG, seeded(0))
    jitter = draw_jitter(48, strength, seeded(1))
    images, plain = noise(48, 40, 56), noise(48, 40, 56)
    masks = paste_(images, patches, jitter)
    assert torch.equal(paste_(plain, patches, no_jitter(48)), masks)
    for k, mask in enumerate(masks):
        expected = torchvision_jitter(plain[k][:, mask][:, None], jitter, k)
        torch.testing.assert_close(images[k][:, mask][:, None], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", DRAWS)
def test_colours_depend_on_the_source_rectangle_alone(kind):
    """Not on the rest of the image, nor on the other images: contrast has a mean of the patch only."""
    patches, jitter = DRAWS[kind](12, (64, 64), CONFIG, seeded(0)), draw_jitter(12, 0.5, seeded(1))
    images, other = noise(12, 64, 64, 2), noise(12, 64, 64, 3)
    for k, p in enumerate(each(patches)):
        crop(other[k], p.cut_y, p.cut_x, p.height, p.width).copy_(
            crop(images[k], p.cut_y, p.cut_x, p.height, p.width)
        )
    assert (jitter.factors[:, CONTRAST] != 1).all()
    masks = paste_(images, patches, jitter)
    paste_(other, patches, jitter)
    for image, another, mask in zip(images, other, masks, strict=True):
        assert torch.equal(image[:, mask], another[:, mask])


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("move", [True, False])
def test_a_sample_does_not_depend_on_its_batch(kind, move):
    patches, jitter = DRAWS[kind](6, (64, 64), CONFIG, seeded(0)), draw_jitter(6, 0.1, seeded(1))
    images = noise(6, 64, 64)
    before = images.clone()
    masks = paste_(images, patches, jitter, move)
    for k in range(6):
        alone, rows = before[k : k + 1].clone(), slice(k, k + 1)
        own = Patches(*(field[rows] for field in patches))
        mask = paste_(alone, own, Jitter(jitter.factors[rows], jitter.order[rows]), move)
        assert torch.equal(mask[0], masks[k])
        torch.testing.assert_close(alone[0], images[k], atol=1e-6, rtol=0)


def test_without_move_the_place_itself_is_jittered():
    patches, jitter = draw_rectangles(24, (40, 56), CONFIG, seeded(0)), draw_jitter(24, 0.3, seeded(1))
    images = noise(24, 40, 56)
    before = images.clone()
    masks = paste_(images, patches, jitter, move=False)
    assert torch.equal(images[~masks[:, None].expand_as(images)], before[~masks[:, None].expand_as(images)])
    for k, p in enumerate(each(patches)):
        place = (p.paste_y, p.paste_x, p.height, p.width)
        assert masks[k].sum() == p.height * p.width
        expected = torchvision_jitter(crop(before[k], *place), jitter, k)
        torch.testing.assert_close(crop(images[k], *place), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", DRAWS)
def test_fill_gives_each_patch_its_own_colour(kind):
    patches, colors = DRAWS[kind](8, (48, 32), CONFIG, seeded(0)), torch.rand(8, 3, generator=seeded(1))
    images = noise(8, 48, 32)
    before = images.clone()
    masks = fill_(images, patches, colors)
    expected = torch.where(masks[:, None], colors[:, :, None, None], before)
    assert torch.equal(images, expected) and masks.flatten(1).any(1).all()


@pytest.mark.parametrize("kind", DRAWS)
def test_a_part_of_a_batch_changes_in_place_and_the_rest_stays(kind):
    whole = noise(9, 32, 32)
    before, part = whole.clone(), whole.chunk(3)[1]
    masks = paste_(part, DRAWS[kind](3, (32, 32), CONFIG, seeded(0)), draw_jitter(3, 0.1, seeded(1)))
    assert torch.equal(whole[:3], before[:3]) and torch.equal(whole[6:], before[6:])
    changed = (whole != before).any(1)[3:6]
    assert changed.any() and not (changed & ~masks).any()
    with pytest.raises(RuntimeError):  # never a silent change of a copy
        fill_(
            whole.contiguous(memory_format=torch.channels_last),
            draw_rectangles(9, (32, 32), CONFIG, seeded(0)),
            torch.rand(9, 3),
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", DRAWS)
def test_gpu_equals_cpu(kind):
    patches, jitter = DRAWS[kind](16, (64, 64), CONFIG, seeded(0)), draw_jitter(16, 0.1, seeded(1))
    images = noise(16, 64, 64)
    there = images.cuda()
    masks = paste_(images, patches, jitter)
    assert torch.equal(paste_(there, patches, jitter).cpu(), masks)
    torch.testing.assert_close(there.cpu(), images, atol=1e-5, rtol=0)
