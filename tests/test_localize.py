"""Patch maps: each patch is seen where it is, densities are the direct ones, a defect is found in place."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from cplib import data, demo, localize, model, pixels
from cplib.config import TrainConfig
from cplib.gde import DensityError

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = TrainConfig(precision="float32", stem="3x3_stride2")


@pytest.fixture(scope="module")
def net():
    return model.build(3, 0, stem="3x3_stride2").eval()


def random_images(n: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed)).byte()


def random_embeddings(n: int, side: int = 3, d: int = 24, seed: int = 0) -> torch.Tensor:
    """Correlated embeddings (n, side, side, d) of a mean that differs by location."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(9)) * torch.logspace(0, -1.5, d)
    place = torch.randn(side, side, d, generator=torch.Generator().manual_seed(8))
    x = torch.randn(n, side, side, d, generator=generator) @ mix * 0.1 + place
    return localize.unit_length(x)


def direct(samples: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distances by scikit-learn in float64."""
    return LedoitWolf().fit(np.float64(samples)).mahalanobis(np.float64(points))


# --- embeddings -----------------------------------------------------------------------------------


def test_embedding_of_a_patch_is_that_of_the_crop(net):
    images = random_images(2, 48)
    found = list(localize.embed_patches(net, images, 16, 8, CONFIG, batch_size=7))
    assert [tuple(e.shape) for e in found] == [(5, 5, 512)] * 2
    assert localize.grid_side(48, 16, 8) == 5
    for n, i, j in ((0, 0, 0), (0, 1, 3), (1, 4, 2), (1, 4, 4)):
        crop = images[n : n + 1, :, 8 * i : 8 * i + 16, 8 * j : 8 * j + 16].float() / 255
        with torch.inference_mode():
            torch.testing.assert_close(found[n][i, j], net.embed(crop)[0], rtol=1e-4, atol=1e-5)


def test_patches_are_embedded_in_float32_whatever_training_takes(net):
    images = random_images(1, 32)
    half, full = (
        next(localize.embed_patches(net, images, 16, 8, replace(CONFIG, precision=p)))
        for p in ("bfloat16", "float32")
    )
    assert torch.equal(half, full)


def test_the_papers_grids():
    assert localize.grid_side(256, 32, 4) == 57 and localize.grid_side(256, 64, 4) == 49


@pytest.mark.parametrize("stem", model.STEMS)
def test_batches_are_bounded_by_memory(stem):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for device in (cpu, gpu):
        sizes = [localize._batch_size(p, stem, device) for p in (16, 32, 64, 256, 1024)]
        assert sizes == sorted(sizes, reverse=True) and sizes[-1] >= 1
    assert localize._batch_size(64, stem, gpu) > localize._batch_size(64, stem, cpu)


# --- densities ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 10, 40], ids=["three", "fewer than dimensions", "more"])
def test_gaussians_per_location_equal_direct_ones(n, monkeypatch):
    train, test = random_embeddings(n), random_embeddings(5, seed=1)
    monkeypatch.setattr(localize, "_BLOCK_BYTES", 10_000)  # a few locations at a time
    monkeypatch.setattr(localize, "_BUFFER_IMAGES", 8)
    density = localize.LocationGaussians()
    for image in train:
        density.partial_fit(image)
    scores = density.score(test)
    assert scores.shape == (5, 3, 3) and scores.dtype == torch.float32
    for i in range(3):
        for j in range(3):
            expected = direct(train[:, i, j].numpy(), test[:, i, j].numpy())
            np.testing.assert_allclose(scores[:, i, j], expected, rtol=1e-5)


def test_gaussians_per_location_where_all_images_are_equal():
    density = localize.LocationGaussians()
    for _ in range(4):
        density.partial_fit(random_embeddings(1)[0])
    same, other = density.score(torch.cat([random_embeddings(1), random_embeddings(1, seed=1)]))
    assert (same == 0).all() and torch.isfinite(other).all() and (other > 0).all()


def test_shared_gaussian_equals_that_of_all_patches_together():
    train, test = random_embeddings(12), random_embeddings(4, seed=1)
    density = localize.SharedGaussian()
    for image in train:
        density.partial_fit(image)
    everything = train.reshape(-1, train.shape[-1]).double().numpy()
    mean, covariance, shrinkage = density.moments()
    np.testing.assert_allclose(mean, everything.mean(0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(everything.T, bias=True), rtol=1e-9, atol=1e-12)
    assert shrinkage == pytest.approx(LedoitWolf().fit(everything).shrinkage_, rel=1e-9)
    expected = direct(everything, test.reshape(-1, test.shape[-1]).numpy())
    np.testing.assert_allclose(density.score(test).flatten(), expected, rtol=1e-5)


def test_shared_gaussian_takes_more_images_after_scoring():
    train, test = random_embeddings(8), random_embeddings(2, seed=1)
    late, whole = localize.SharedGaussian(), localize.SharedGaussian()
    for k, image in enumerate(train):
        late.partial_fit(image)
        whole.partial_fit(image)
        if k == 3:
            late.score(test)
    assert torch.equal(late.score(test), whole.score(test))


@pytest.mark.parametrize("kind", localize.DENSITIES.values())
def test_too_little_to_fit_is_named(kind):
    density = kind()
    density.partial_fit(random_embeddings(1, side=1)[0])
    with pytest.raises(DensityError, match="at least 2"):
        density.score(random_embeddings(1, side=1))


def test_embedding_that_is_not_finite_is_named():
    with pytest.raises(DensityError, match="not finite"):
        localize.unit_length(torch.tensor([[1.0, float("nan")]]))


# --- maps -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weave(tmp_path_factory):
    """40 normal images of the demo's cloth at 64 px and a few test images, uint8."""
    root = tmp_path_factory.mktemp("demo") / "demo"
    demo.draw(root, 64, train=40, test_good=2, test_defect=1, categories=["weave"], progress=False)
    return data.load_category(root, "weave", 64)


def maps_of(net, train, test, **options):
    return localize.score_maps(net, train, test, 32, 8, CONFIG, **options)


def test_a_drawn_defect_has_the_peak_in_its_place(net, weave):
    """Even with random weights, on an otherwise normal image, with either density."""
    places = [(18, 36), (40, 20), (28, 28)]
    images = weave.test[weave.labels.logical_not()][:1].repeat(3, 1, 1, 1)
    for image, (row, column) in zip(images, places, strict=True):
        image[:, row : row + 8, column : column + 8] = torch.tensor([200, 30, 30]).byte().view(3, 1, 1)
    for maps in maps_of(net, weave.train, images).values():
        for found, (row, column) in zip(pixels.to_pixels(maps, 32, 8), places, strict=True):
            assert found.shape == (64, 64)
            peak = np.unravel_index(found.argmax(), found.shape)
            assert np.abs(np.array(peak) - [row + 3.5, column + 3.5]).max() <= 8


def test_maps_depend_neither_on_order_nor_on_batches(net, weave, monkeypatch):
    train, test = weave.train[:8], weave.test
    maps = maps_of(net, train, test)
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    shuffled = maps_of(net, train.flip(0), test[order], batch_size=5)
    monkeypatch.setattr(localize, "_CHUNK_BYTES", 1)  # image by image
    single = maps_of(net, train, test, batch_size=25)
    for name in localize.DENSITIES:
        assert maps[name].shape == (len(test), 5, 5) and maps[name].dtype == np.float32
        np.testing.assert_allclose(shuffled[name], maps[name][order], rtol=1e-2)
        np.testing.assert_allclose(single[name], maps[name], rtol=1e-2)


def test_no_test_images_no_maps(net, weave):
    assert maps_of(net, weave.train[:2], weave.test[:0], densities=["shared"])["shared"].shape == (0, 5, 5)


PEAK = """
import re
from pathlib import Path
import torch
from cplib import localize, model
from cplib.config import TrainConfig

class Net:  # embeds an image as a network does, and then draws noise, which takes less time
    def __init__(self):
        self.net = model.build(3, 0, stem="3x3_stride2").to(memory_format=torch.channels_last).eval()
        self.seen = 0

    def embed(self, patches):
        self.seen += len(patches)
        return self.net.embed(patches) if self.seen <= 57**2 else torch.randn(len(patches), 512) + 1

torch.set_num_threads(1)
train, test = (torch.zeros(n, 3, 256, 256, dtype=torch.uint8) for n in (267, 167))
maps = localize.score_maps(Net(), train, test, 32, 4, TrainConfig())
assert maps["shared"].shape == maps["per_location"].shape == (167, 57, 57)
# of this program alone: getrusage starts from the peak of the process that started it
print(int(re.search("VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 2**20)
"""


@pytest.mark.slow
def test_peak_memory_at_256_px_and_stride_4_is_below_4_gib():
    """As many images as `pill` has, both densities, 57x57 patches of 32 px."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 1 < float(done.stdout) < 4
