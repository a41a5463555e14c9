"""Views and proxy tasks: each changes what its mask says, in its own way, with a draw per sample."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.nn import functional

from cplib import augment
from cplib.augment import TASKS, VIEWS, augment_input, make_batch, translate
from cplib.config import AugmentConfig

CONFIG = AugmentConfig()
STILL = replace(CONFIG, translate=0.0, jitter=0.0, patch_jitter=0.0)
RECTANGLES = ("cutpaste", "cutout", "cutout_mean", "cutout_color", "confetti")
FILLS = ("cutout", "cutout_mean", "cutout_color", "scar")
LOCAL = (*RECTANGLES, "cutpaste_scar", "scar", "union")
TURNS = {"rotate_90": 1, "rotate_180": 2, "rotate_270": 3}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    """(n, 3, height, width) float32 in [0, 1]."""
    return torch.rand(n, 3, height, width, generator=seeded(seed))


def photos(n: int, size: int = 32, seed: int = 0) -> Tensor:
    """(n, 3, size, size) uint8."""
    return (256 * noise(n, size, size, seed)).byte()


def coded(n: int, size: int) -> Tensor:
    """(n, 3, size, size) uint8: the colour of a pixel is its row, its column and its sample."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([torch.stack([rows, columns, torch.full_like(rows, k)]) for k in range(n)]).byte()


def look(name: str, images: Tensor, config: AugmentConfig = CONFIG, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A view of a copy of the images, and its mask."""
    out = images.clone()
    return out, VIEWS[name](out, config, seeded(seed))


# --- views ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 32), (64, 64), (96, 40)])
@pytest.mark.parametrize("name", VIEWS)
def test_a_view_changes_its_mask_only_and_in_place(name, shape):
    if name in TURNS and shape[0] != shape[1]:
        pytest.skip("rotations are of square images")
    images = noise(12, *shape)
    before, address = images.clone(), images.data_ptr()
    mask = VIEWS[name](images, CONFIG, seeded(1))
    assert images.data_ptr() == address and images.shape == before.shape
    assert mask.shape == (12, *shape) and mask.dtype == torch.bool
    changed = (images != before).any(1)
    assert not (changed & ~mask).any()
    assert images.min() >= 0 and images.max() <= 1
    if name == "normal":
        assert not mask.any()
    else:
        assert changed.flatten(1).any(1).all()  # every image is anomalous
    if name in FILLS:
        assert torch.equal(changed, mask)


@pytest.mark.parametrize("name", LOCAL)
def test_every_image_has_its_own_patch(name):
    _, mask = look(name, noise(32, 64, 64))
    assert len(mask.flatten(1).unique(dim=0)) == 32
    share = mask.flatten(1).float().mean(1)
    assert (share > 0).all() and share.max() < 0.16
    if name in RECTANGLES:
        assert share.min() > 0.017
        rows, columns = mask.any(2).sum(1), mask.any(1).sum(1)
        assert torch.equal(rows * columns, mask.sum((1, 2)))
    elif name != "union":
        assert share.max() < 0.012  # 16 x 25 of 256 x 256 pixels are 0.6 %


@pytest.mark.parametrize("name", ["cutpaste", "cutpaste_scar", "union"])
def test_without_jitter_pasted_pixels_come_from_the_same_image(name):
    images = coded(20, 64) / 255
    out, mask = look(name, images, STILL)
    for k, (image, inside) in enumerate(zip((255 * out).round().long(), mask, strict=True)):
        row, column, sample = image[:, inside]
        assert (sample == k).all()
        y, x = inside.nonzero().T
        if inside.sum() > 70:  # CutPaste: at least 2 % of the image, moved as it is
            assert len((row - y).unique()) == len((column - x).unique()) == 1
        else:
            assert row.max() - row.min() < 7 and column.max() - column.min() < 5  # a scar's 3-6 x 1-4


def test_pasted_colours_are_jittered():
    images = torch.full((200, 3, 32, 32), 0.5)
    out, mask = look("cutpaste", images)
    colors = torch.stack([image[:, inside].mean(1) for image, inside in zip(out, mask, strict=True)])
    assert (colors - 0.5).abs().max() < 0.051  # grey: only its brightness can change, by a tenth
    assert stats.kstest(colors[:, 0].numpy(), stats.uniform(0.45, 0.1).cdf).pvalue > 0.001
    out, mask = look("cutpaste", noise(1, 1, 1).expand(20, 3, 32, 32))
    hues = torch.stack([image[:, inside].mean(1) for image, inside in zip(out, mask, strict=True)])
    assert len((100 * hues).round().unique(dim=0)) > 10


def test_cutout_is_grey():
    out, mask = look("cutout", noise(6, 32, 32))
    assert (out.transpose(0, 1)[:, mask] == 0.5).all()


def test_cutout_mean_is_the_mean_of_each_image():
    images = noise(6, 32, 32) * torch.linspace(0.2, 1, 6)[:, None, None, None]
    images[:, 0] *= 0.5
    out, mask = look("cutout_mean", images)
    for image, before, inside in zip(out, images, mask, strict=True):
        expected = before.flatten(1).mean(1)[:, None].expand(3, int(inside.sum()))
        torch.testing.assert_close(image[:, inside], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["cutout_color", "scar"])
def test_one_random_colour_per_image(name):
    out, mask = look(name, torch.full((500, 3, 32, 32), 2.0))
    colors = []
    for image, inside in zip(out, mask, strict=True):
        found = image[:, inside].unique(dim=1)
        assert found.shape == (3, 1)
        colors.append(found[:, 0])
    colors = torch.stack(colors)
    assert len(colors.unique(dim=0)) == 500
    for channel in colors.T:
        assert stats.kstest(channel.numpy(), "uniform").pvalue > 0.001
    assert (torch.corrcoef(colors.T) - torch.eye(3)).abs().max() < 0.15


def test_confetti_keeps_the_structure():
    images = 0.25 + 0.5 * noise(24, 64, 64)
    out, mask = look("confetti", images)
    for image, before, inside in zip(out, images, mask, strict=True):
        # the largest channel, which a turn of the hue leaves as it is
        values = torch.stack([image.amax(0)[inside], before.amax(0)[inside]])
        assert torch.corrcoef(values)[0, 1] > 0.97
        assert 0 < (image - before).abs().max() < 0.5
    still, _ = look("confetti", images, STILL)
    assert torch.equal(still, images)


def test_union_is_one_of_the_two_with_equal_chance():
    images = coded(256, 32).repeat(4, 1, 1, 1) / 255
    out, mask = look("union", images, STILL)
    pixels = mask.sum((1, 2))
    scars = pixels <= 8  # 16 x 25 of 256 x 256 pixels are 2 x 3 of 32 x 32; 2 % of these are 20
    assert ((pixels >= 16) | scars).all() and (pixels > 0).all()
    assert abs(scars.float().mean() - 0.5) < 0.05
    assert stats.binomtest(int((scars[1:] != scars[:-1]).sum()), 1023).pvalue > 0.001  # coin by coin
    assert torch.equal(out.transpose(0, 1)[:, ~mask], images.transpose(0, 1)[:, ~mask])


def test_union_of_single_images():
    kinds = {int(look("union", noise(1, 32, 32), seed=seed)[1].sum()) <= 8 for seed in range(20)}
    assert kinds == {True, False}


@pytest.mark.parametrize(("name", "turns"), TURNS.items())
def test_rotations(name, turns):
    images = noise(3, 32, 32)
    out, mask = look(name, images)
    assert torch.equal(out, torch.rot90(images, turns, (2, 3))) and mask.all()
    for _ in range(3):  # four equal turns are none
        VIEWS[name](out, CONFIG, seeded(0))
    assert torch.equal(out, images)


# --- input augmentation ---------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    n=st.integers(1, 3),
    views=st.integers(1, 3),
    data=st.data(),
)
def test_translate_is_reflection_padding_and_crop(height, width, n, views, data):
    pad = data.draw(st.integers(0, min(height, width) - 1))
    offset = st.tuples(st.integers(0, 2 * pad), st.integers(0, 2 * pad))
    offsets = data.draw(st.lists(offset, min_size=n * views, max_size=n * views))
    images = noise(n, height, width)
    padded = functional.pad(images, (pad,) * 4, mode="reflect")
    crops = translate(images, torch.tensor(offsets), pad)
    assert len(crops) == n * views
    for k, (crop, (i, j)) in enumerate(zip(crops, offsets, strict=True)):
        assert torch.equal(crop, padded[k % n, :, i : i + height, j : j + width])
    codes = (256 * images).byte()
    assert translate(codes, torch.tensor(offsets), pad)[0].dtype == torch.uint8


def test_input_translation_is_uniform_to_an_eighth_of_the_size():
    config = replace(CONFIG, jitter=0.0)
    out = augment_input(coded(1, 32), config, seeded(0), views=3000)
    places = (255 * out[:, :2, 16, 16]).round().long() - 12  # 16 - 4 at offset 0
    assert places.min() == 0 and places.max() == 8
    counts = (places[:, 0] * 9 + places[:, 1]).bincount(minlength=81)
    assert stats.chisquare(counts.numpy()).pvalue > 0.001


def test_input_jitter_has_its_strength_and_a_draw_per_view():
    grey = torch.full((2, 3, 8, 8), 128, dtype=torch.uint8)
    out = augment_input(grey, replace(CONFIG, translate=0.0), seeded(0), views=200)[:, 0, 0, 0]
    factor = out / (128 / 255)
    assert stats.kstest(factor.numpy(), stats.uniform(0.9, 0.2).cdf).pvalue > 0.001
    assert len(out.unique()) > 390


def test_without_augmentation_the_input_is_divided_by_255():
    images = photos(3)
    out = augment_input(images, STILL, seeded(0), views=2)
    torch.testing.assert_close(out, torch.cat([images, images]).float() / 255, atol=1e-7, rtol=0)


@pytest.mark.parametrize("size", [32, 45])
def test_input_augmentation_keeps_the_rows_apart(size):
    """Row k is of image k modulo n: seen by images of one colour each, where nothing else can mix in."""
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, size, size) * 60
    out = augment_input(images, replace(CONFIG, jitter=0.0), seeded(0), views=3)
    assert torch.equal((255 * out[:, 0, 0, 0]).round().long(), torch.tensor([0, 60, 120, 180] * 3))


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("name", TASKS)
def test_batch_of_a_task(name, n):
    task, images = TASKS[name], photos(n)
    before = images.clone()
    batch, labels = make_batch(images, task, CONFIG, seeded(0))
    assert task[0] == "normal" and len(set(task)) == len(task)
    assert batch.shape == (len(task) * n, 3, 32, 32) and batch.dtype == torch.float32
    assert labels.tolist() == [c for c in range(len(task)) for _ in range(n)] and labels.dtype == torch.int64
    assert batch.min() >= 0 and batch.max() <= 1
    assert torch.equal(images, before) and images.dtype == torch.uint8


@pytest.mark.parametrize("name", TASKS)
def test_batch_repeats_by_generator_alone(name):
    images, task = photos(4), TASKS[name]
    torch.manual_seed(1)
    one, _ = make_batch(images, task, CONFIG, seeded(7))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two, _ = make_batch(images, task, CONFIG, seeded(7))
    assert torch.equal(one, two) and torch.equal(torch.get_rng_state(), state)
    generator = seeded(7)
    first, _ = make_batch(images, task, CONFIG, generator)
    second, _ = make_batch(images, task, CONFIG, generator)  # the generator has moved on
    assert torch.equal(first, one)
    for other in (second, make_batch(images, task, CONFIG, seeded(8))[0]):
        assert (other != one).flatten(1).any(1).all()


@pytest.mark.parametrize("name", TASKS)
def test_rows_of_each_class_are_the_sources_in_order(name):
    """Images of one colour keep it over more than half of any view; class 0 is nothing else."""
    images = photos(6, 1).expand(6, 3, 32, 32)
    batch, labels = make_batch(images, TASKS[name], replace(CONFIG, jitter=0.0), seeded(0))
    expected = images[:, :, 0, 0].float() / 255
    for label in range(len(TASKS[name])):
        torch.testing.assert_close(batch[labels == label].flatten(2).median(2).values, expected)
    assert (batch[labels == 0] == batch[labels == 0][..., :1, :1]).all()


@pytest.mark.parametrize("name", [name for name in TASKS if name != "rotation"])
def test_anomalous_classes_differ_from_the_source_in_one_patch_only(name):
    images, task = photos(8, 64), TASKS[name]
    batch, labels = make_batch(images, task, STILL, seeded(0))
    different = (batch - images.repeat(len(task), 1, 1, 1) / 255).abs().amax(1) > 1e-6
    assert not different[labels == 0].any()
    share = different[labels > 0].flatten(1).float().mean(1)
    assert share.max() < 0.16
    assert (share == 0).all() if name == "confetti" else (share > 0).all()  # its jitter is 0 here


def test_rotation_task_is_the_four_turns():
    images = photos(3)
    batch, _ = make_batch(images, TASKS["rotation"], STILL, seeded(0))
    expected = np.concatenate([np.rot90(images.numpy(), turns, (2, 3)) for turns in range(4)]) / 255
    np.testing.assert_allclose(batch.numpy(), expected, atol=1e-6)


def test_each_view_of_a_source_has_its_own_draws():
    images = photos(6)
    batch, labels = make_batch(images, ("normal",) * 3, CONFIG, seeded(0))
    a, b, c = (batch[labels == label] for label in range(3))
    for one, two in ((a, b), (b, c), (a, c)):
        assert (one != two).flatten(1).any(1).all()
    # and patches of two classes of one kind are cut and pasted elsewhere
    pasted, labels = make_batch(images, ("cutout", "cutout"), STILL, seeded(0))
    one, two = (pasted[labels == label] == 0.5 for label in range(2))
    assert (one != two).flatten(1).any(1).all()


def test_all_classes_have_the_same_input_augmentation():
    """Else the classifier could tell them by it. Of a grey image only the brightness can change."""
    images = torch.full((400, 3, 16, 16), 128, dtype=torch.uint8)
    batch, labels = make_batch(images, ("normal", "cutpaste"), replace(CONFIG, patch_jitter=0.0), seeded(0))
    normal, anomalous = (batch[labels == c, 0].flatten(1).median(1).values for c in range(2))
    assert stats.ks_2samp(normal.numpy(), anomalous.numpy()).pvalue > 0.001
    assert abs(np.corrcoef(normal.numpy(), anomalous.numpy())[0, 1]) < 0.15


@pytest.mark.parametrize("name", TASKS)
def test_whole_batches_at_once_as_on_a_gpu(name, monkeypatch):
    images = photos(5)
    expected, _ = make_batch(images, TASKS[name], CONFIG, seeded(0))
    monkeypatch.setattr(augment, "chunks", lambda images: [slice(0, len(images))])
    batch, _ = make_batch(images, TASKS[name], CONFIG, seeded(0))
    torch.testing.assert_close(batch, expected, atol=1e-5, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", TASKS)
def test_gpu_equals_cpu(name):
    images = photos(8, 64)
    here, there = seeded(0), seeded(0)
    batch, labels = make_batch(images, TASKS[name], CONFIG, here)
    on_gpu, labels_on_gpu = make_batch(images.cuda(), TASKS[name], CONFIG, there)
    assert on_gpu.is_cuda and labels_on_gpu.is_cuda and torch.equal(labels_on_gpu.cpu(), labels)
    assert torch.equal(here.get_state(), there.get_state())  # the same draws
    torch.testing.assert_close(on_gpu.cpu(), batch, atol=1e-5, rtol=0)


def test_crops_are_cut_before_they_are_changed():
    """Section 2.4: the views of the patch model show one crop, whole, and all that was done to it."""
    images = coded(4, 64)
    still = replace(STILL, patch_jitter=0.0)
    batch, labels = make_batch(images, ("normal", "cutout"), still, seeded(0), crop=16)
    assert batch.shape == (8, 3, 16, 16) and labels.tolist() == [0] * 4 + [1] * 4
    views = (255 * batch[:4]).round().to(torch.uint8)
    for image, view in zip(images, views, strict=True):
        places = image.unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4)
        assert (places == view).flatten(2).all(2).any()
    same = (batch[4:] == batch[:4]).all(1)
    assert (same | (batch[4:] == 0.5).all(1)).all() and (same.float().mean((1, 2)) > 0.8).all()
    # each crop holds all of its cutout: 2 to 15 % of the crop, give or take the rounding to pixels
    changed = (batch[4:] == 0.5).all(1).float().mean((1, 2))
    assert (changed > 0.01).all() and (changed < 0.2).all()


def test_crops_reach_every_place():
    images = torch.arange(12 * 12, dtype=torch.uint8).view(1, 1, 12, 12).expand(500, 3, 12, 12)
    crops = augment_input(images, STILL, seeded(0), crop=8)
    corners = {int(v) for v in (255 * crops[:, 0, 0, 0]).round()}
    assert corners == {12 * i + j for i in range(5) for j in range(5)}


def test_scars_on_crops_keep_their_size_in_pixels_of_the_image():
    on_images, on_crops = (
        make_batch(
            torch.zeros(64, 3, 256, 256, dtype=torch.uint8), ("normal", "scar"), STILL, seeded(0), crop
        )
        for crop in (0, 64)
    )
    areas = [(batch[64:].sum(1) > 0).sum((1, 2)).float().mean() for batch, _ in (on_images, on_crops)]
    assert abs(areas[0] / areas[1] - 1) < 0.25
