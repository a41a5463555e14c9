"""Views and proxy tasks: each changes what its mask says, in its own way, with a draw per sample."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from cplib.augment import color, views
from cplib.augment.tasks import TASKS
from cplib.augment.views import VIEWS, augment_input, make_batch
from cplib.config import load

CONFIG = load(Path(__file__).parents[1] / "params/paper.yaml").augment
STILL = CONFIG.replace(translate=0.0, jitter=0.0, patch_jitter=0.0)
RECTANGLES = ("cutpaste", "cutout", "cutout_mean", "cutout_color", "confetti")
FILLS = ("cutout", "cutout_mean", "cutout_color", "scar")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    """(n, 3, height, width) float32 in [0, 1]."""
    return torch.rand(n, 3, height, width, generator=seeded(seed))


def coded(n: int, size: int) -> Tensor:
    """(n, 3, size, size) uint8: the colour of a pixel is its row, its column and its sample."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([torch.stack([rows, columns, torch.full_like(rows, k)]) for k in range(n)]).byte()


def look(name: str, images: Tensor, config=CONFIG, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A view of a copy of the images, and its mask."""
    out = images.clone()
    return out, VIEWS[name](out, config, seeded(seed))


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_changes_its_mask_only_and_every_image_in_its_own_place(name):
    images = noise(32, 48, 48)
    out, mask = look(name, images, seed=1)
    changed = (out != images).any(1)
    assert not (changed & ~mask).any() and out.min() >= 0 and out.max() <= 1
    if name == "normal" or name.startswith("rotate_"):
        turns = 0 if name == "normal" else int(name.removeprefix("rotate_")) // 90
        assert torch.equal(out, torch.rot90(images, turns, (2, 3)))
        return
    assert changed.flatten(1).any(1).all()  # every image is anomalous
    assert len(mask.flatten(1).unique(dim=0)) > 28
    share = mask.flatten(1).float().mean(1)
    if name in RECTANGLES:
        assert share.min() > 0.015 and share.max() < 0.17
    elif name != "union":
        assert share.max() < 0.015  # 16 x 25 of 256 x 256 pixels are 0.6 %
    if name in FILLS:
        assert torch.equal(changed, mask)


@pytest.mark.parametrize("name", FILLS)
def test_fillings_are_one_colour_per_image(name):
    """Grey, the mean of the image, or random and uniform."""
    images = noise(400, 32, 32) * torch.linspace(0.2, 1, 400)[:, None, None, None]
    out, mask = look(name, images)
    found = [image[:, inside].unique(dim=1) for image, inside in zip(out, mask, strict=True)]
    assert all(color.shape == (3, 1) for color in found)
    colors = torch.cat(found, 1).T
    if name == "cutout":
        assert (colors == 0.5).all()
    elif name == "cutout_mean":
        torch.testing.assert_close(colors, images.mean((2, 3)), atol=1e-6, rtol=0)
    else:
        assert all(stats.kstest(channel.numpy(), "uniform").pvalue > 0.001 for channel in colors.T)
        assert (torch.corrcoef(colors.T) - torch.eye(3)).abs().max() < 0.17


def test_union_is_one_of_the_two_with_equal_chance():
    pixels = look("union", noise(1, 32, 32).expand(1024, -1, -1, -1), STILL)[1].sum((1, 2))
    scars = pixels <= 8  # 16 x 25 of 256 x 256 pixels are 2 x 3 of 32 x 32; 2 % of these are 20
    assert ((pixels >= 16) | scars).all() and (pixels > 0).all()
    assert abs(scars.float().mean() - 0.5) < 0.05
    assert stats.binomtest(int((scars[1:] != scars[:-1]).sum()), 1023).pvalue > 0.001  # coin by coin


def test_input_is_shifted_uniformly_to_an_eighth_of_its_size_and_jittered():
    out = augment_input(coded(1, 32), CONFIG.replace(jitter=0.0), seeded(0), views=3000)
    places = (255 * out[:, :2, 16, 16]).round().long() - 12  # 16 - 4 at offset 0
    counts = (places[:, 0] * 9 + places[:, 1]).bincount(minlength=81)
    assert places.min() == 0 and places.max() == 8 and stats.chisquare(counts.numpy()).pvalue > 0.001
    grey = torch.full((2, 3, 8, 8), 128, dtype=torch.uint8)  # of which only the brightness can change
    factor = augment_input(grey, CONFIG, seeded(0), views=200)[:, 0, 0, 0] / (128 / 255)
    assert stats.kstest(factor.numpy(), stats.uniform(0.9, 0.2).cdf).pvalue > 0.001


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(TASKS)), st.integers(1, 5), st.sampled_from([32, 45]), st.sampled_from([0, 16]))
def test_a_batch_holds_a_view_per_class_of_each_source_and_repeats_by_its_generator(name, n, size, crop):
    """Of images of one colour each, which most of any view keeps; class 0 is nothing else."""
    task, colours = TASKS[name], 40 + 30 * torch.arange(n, dtype=torch.uint8)
    images = colours[:, None, None, None].expand(n, 3, size, size).clone()
    before, state = images.clone(), torch.get_rng_state()
    config = CONFIG.replace(jitter=0.0)
    batch, labels = make_batch(images, task, config, seeded(7), crop)
    assert batch.shape == (len(task) * n, 3, *[crop or size] * 2) and batch.dtype == torch.float32
    assert labels.tolist() == [c for c in range(len(task)) for _ in range(n)]
    assert batch.min() >= 0 and batch.max() <= 1 and torch.equal(images, before)
    shown = (255 * batch).round().flatten(1)
    assert shown.median(1).values.tolist() == colours.tolist() * len(task)
    assert torch.equal(shown[:n], colours[:, None].float().expand_as(shown[:n]))
    assert torch.equal(make_batch(images, task, config, seeded(7), crop)[0], batch)
    assert torch.equal(torch.get_rng_state(), state)


def test_each_view_of_a_source_has_its_own_draws():
    generator, images = seeded(0), (256 * noise(1, 32, 32)).byte().repeat(6, 1, 1, 1)
    for task, config in ((("normal",) * 2, CONFIG), (("cutout",) * 2, STILL)):
        rows = torch.cat([make_batch(images, task, config, generator)[0] for _ in range(2)])
        assert len(rows.unique(dim=0)) == len(rows)


def test_all_classes_have_the_same_input_augmentation():
    """Else the classifier could tell them by it. Of a grey image only the brightness can change."""
    images = torch.full((400, 3, 16, 16), 128, dtype=torch.uint8)
    batch, labels = make_batch(images, ("normal", "cutpaste"), CONFIG.replace(patch_jitter=0.0), seeded(0))
    normal, anomalous = (batch[labels == c, 0].flatten(1).median(1).values for c in range(2))
    assert stats.ks_2samp(normal.numpy(), anomalous.numpy()).pvalue > 0.001
    assert abs(np.corrcoef(normal.numpy(), anomalous.numpy())[0, 1]) < 0.15


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("device", ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def test_whole_batches_at_once_as_on_a_gpu(name, device, monkeypatch):
    images, here, there = (256 * noise(8, 64, 64)).byte(), seeded(0), seeded(0)
    expected, expected_labels = make_batch(images, TASKS[name], CONFIG, here)
    monkeypatch.setattr(color, "TOGETHER", {})
    batch, labels = make_batch(images.to(device), TASKS[name], CONFIG, there)
    assert batch.device.type == device and torch.equal(labels.cpu(), expected_labels)
    assert torch.equal(here.get_state(), there.get_state())  # the same draws
    torch.testing.assert_close(batch.cpu(), expected, atol=1e-5, rtol=0)


def test_structured_crops_lie_where_grey_values_vary_and_reach_every_place():
    flat = torch.full((400, 3, 64, 64), 128, dtype=torch.uint8)
    busy = flat.clone()
    busy[:, :, :16, 48:] = torch.randint(0, 256, (400, 3, 16, 16), dtype=torch.uint8, generator=seeded(0))
    places = views._structured_places(busy, 16, seeded(1))
    hit = (places[:, 0] < 16) & (places[:, 1] > 32)
    assert hit.float().mean() > 0.95 and places.min() >= 0 and places.max() <= 48
    everywhere = views._structured_places(flat, 16, seeded(2))
    assert set(everywhere[:, 0].tolist()) >= {0, 48} and len(everywhere.unique(dim=0)) > 300
    assert torch.equal(places, views._structured_places(busy, 16, seeded(1)))


def test_crops_are_cut_before_they_are_changed():
    """Section 2.4: the views of the patch model show one crop, whole, and all that was done to it."""
    images = coded(4, 64)
    batch, _ = make_batch(images, ("normal", "cutout"), STILL, seeded(0), crop=16)
    normal, changed = (255 * batch[:4]).round().byte(), (batch[4:] == 0.5).all(1)
    for image, view in zip(images, normal, strict=True):
        places = image.unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4)
        assert (places == view).flatten(2).all(2).any()
    assert ((batch[4:] == batch[:4]).all(1) | changed).all()
    # each crop holds all of its cutout: 2 to 15 % of the crop, give or take the rounding to pixels
    share = changed.float().mean((1, 2))
    assert (share > 0.01).all() and (share < 0.2).all()


def test_scars_on_crops_keep_their_size_in_pixels_of_the_image():
    images, task = torch.zeros(64, 3, 256, 256, dtype=torch.uint8), ("normal", "scar")
    on_images, on_crops = (make_batch(images, task, STILL, seeded(0), crop)[0][64:].sum(1) > 0 for crop in (0, 64))
    assert abs(on_images.sum() / on_crops.sum() - 1) < 0.25
