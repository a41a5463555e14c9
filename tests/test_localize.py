"""Patch maps: equal to patches scored one by one; Gaussians equal scikit-learn's; memory is bounded."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from cplib import model
from cplib.config import load
from cplib.gde import normalized
from cplib.localize import patch_maps

pytestmark = pytest.mark.usefixtures("one_thread")

PAPER = Path(__file__).parents[1] / "params/paper.yaml"
CONFIG = load(PAPER).train.replace(precision="float32", stem="3x3_stride2")


def noisy_images(n: int, size: int, seed: int) -> torch.Tensor:
    """(n, 3, size, size) uint8: one pattern with a little noise of each image's own."""
    pattern = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(9))
    noise = torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return (60 + 100 * pattern + 20 * noise).byte()


def random_embeddings(n: int, side: int = 3, d: int = 24, seed: int = 0) -> torch.Tensor:
    """Correlated embeddings (n, side, side, d) of a mean that differs by location."""
    generator = torch.Generator().manual_seed(9)
    mix = torch.randn(d, d, generator=generator) * torch.logspace(0, -1.5, d)
    place = torch.randn(side, side, d, generator=generator)
    x = torch.randn(n, side, side, d, generator=torch.Generator().manual_seed(seed)) @ mix * 0.1 + place
    return torch.nn.functional.normalize(x, dim=-1)


def direct(samples: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distances with scikit-learn's mean and covariance in float64."""
    fitted = LedoitWolf(store_precision=False).fit(np.float64(samples))
    difference = np.float64(points) - fitted.location_
    return (difference * np.linalg.solve(fitted.covariance_, difference.T).T).sum(1)


@pytest.mark.parametrize("n", [3, 10, 40], ids=["three", "fewer than dimensions", "more"])
def test_gaussians_equal_scikit_learns(n, monkeypatch):
    monkeypatch.setattr(patch_maps, "_BLOCK_BYTES", 10_000)  # a few locations at a time
    train, test = random_embeddings(n), random_embeddings(5, seed=1)
    scores = {name: placement(train)(test) for name, placement in patch_maps.PLACEMENTS.items()}
    expected = np.empty((5, 3, 3))
    for i, j in np.ndindex(3, 3):
        expected[:, i, j] = direct(train[:, i, j].numpy(), test[:, i, j].numpy())
    np.testing.assert_allclose(scores["per_location"], expected, rtol=1e-5)
    together = direct(*(x.reshape(-1, x.shape[-1]).numpy() for x in (train, test)))
    np.testing.assert_allclose(scores["shared"].flatten(), together, rtol=1e-5)


@pytest.mark.parametrize("placement", patch_maps.PLACEMENTS.values())
def test_equal_images_are_scored(placement):
    one, other = (random_embeddings(1, side=1, seed=seed) for seed in (0, 1))
    scores = placement(one.repeat(4, 1, 1, 1))(torch.cat([one, other])).flatten()
    assert scores[0] == 0 and torch.isfinite(scores[1]) and scores[1] > 0


def test_maps_are_those_of_patches_embedded_and_scored_one_by_one(monkeypatch):
    """In float32, whatever the precision of training: it hides differences between patches."""
    net = model.build(3, 0, stem="3x3_stride2").eval()
    monkeypatch.setattr(patch_maps, "CHUNK_BYTES", 1)  # a test image at a time
    monkeypatch.setattr(patch_maps, "_batch_size", lambda *_: 7)
    train, test = noisy_images(5, 32, 0), noisy_images(2, 32, 1)
    maps = patch_maps.score_maps(net, train, test, 16, 8, CONFIG.replace(precision="bfloat16"))
    places = [(i, j) for i in range(3) for j in range(3)]

    def embed(images: torch.Tensor, i: int, j: int) -> np.ndarray:
        crops = images[:, :, 8 * i : 8 * i + 16, 8 * j : 8 * j + 16] / 255
        with torch.inference_mode():
            return normalized(torch.cat([net.embed(crop[None]) for crop in crops]).numpy())

    normal, tested = ([embed(images, i, j) for i, j in places] for images in (train, test))
    expected = {
        "per_location": np.stack([direct(a, b) for a, b in zip(normal, tested, strict=True)], 1),
        "shared": np.stack([direct(np.concatenate(normal), b) for b in tested], 1),
    }
    for name, found in maps.items():
        assert found.shape == (2, 3, 3) and found.dtype == np.float32
        np.testing.assert_allclose(found.reshape(2, 9), expected[name], rtol=1e-3)
    none = patch_maps.score_maps(net, train, test[:0], 16, 8, CONFIG, densities=["shared"])
    assert {name: found.shape for name, found in none.items()} == {"shared": (0, 3, 3)}


PEAK = """
import re, sys
from pathlib import Path
import torch
from cplib import model
from cplib.config import load
from cplib.localize import patch_maps

class Net:  # embeds an image as a network does, and then draws noise, which takes less time
    def __init__(self):
        self.net = model.build(3, 0, stem="3x3_stride2").to(memory_format=torch.channels_last).eval()
        self.seen = 0

    def embed(self, patches):
        self.seen += len(patches)
        return self.net.embed(patches) if self.seen <= 57**2 else torch.randn(len(patches), 512) + 1

torch.set_num_threads(1)
train, test = (torch.zeros(n, 3, 256, 256, dtype=torch.uint8) for n in (267, 167))
config = load(sys.argv[1]).train.replace(stem="3x3_stride2")
maps = patch_maps.score_maps(Net(), train, test, 32, 4, config)
assert maps["shared"].shape == maps["per_location"].shape == (167, 57, 57)
# of this program alone: getrusage starts from the peak of the process that started it
print(int(re.search("VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 2**20)
"""


@pytest.mark.slow
def test_peak_memory_at_256_px_and_stride_4_is_below_4_gib():
    """As many images as `pill` has, both densities, 57x57 patches of 32 px."""
    done = subprocess.run([sys.executable, "-c", PEAK, PAPER], cwd=PAPER.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 1 < float(done.stdout) < 4
