"""What does dense scoring of an image cost, and how far is it above its floor: forward passes of its patches?

At 256 px, patches of 64 px, stride 8: 625 patches an image. Densities are of 60 normal
images; a density per location makes its factors in `score`, here for 3 images, in a run for all together.
"""

from __future__ import annotations

import time
from statistics import median

import pytest
import torch
from sklearn.covariance import LedoitWolf

from cplib import localize, model, pixels
from cplib.config import TrainConfig

SIZE, PATCH, STRIDE = 256, 64, 8
CONFIG = TrainConfig(stem="3x3_stride2")
IMAGES = 3  # scored together in a round


@pytest.fixture(scope="module")
def net():
    return model.build(3, 0, stem=CONFIG.stem).to(memory_format=torch.channels_last).eval()


def random_images(n: int) -> torch.Tensor:
    coarse = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear") * 255).byte()


def forward_alone(net, patches: int) -> float:
    """Seconds of the encoder on so many ready patches, in the batches of `embed_patches`."""
    batch = localize._batch_size(PATCH, CONFIG.stem, torch.device("cpu"))
    batches = torch.arange(patches).chunk(-(-patches // batch))
    ready = torch.rand(batch, 3, PATCH, PATCH).contiguous(memory_format=torch.channels_last)
    started = time.perf_counter()
    with torch.inference_mode():
        for part in batches:
            net.embed(ready[: len(part)])
    return time.perf_counter() - started


@pytest.mark.parametrize("name", localize.DENSITIES)
def test_dense_scoring(net, answer, benchmark, name):
    """From uint8 images to maps of pixels, by image, and its share of forward passes."""
    side = localize.grid_side(SIZE, PATCH, STRIDE)
    density = localize.DENSITIES[name]()
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        density.partial_fit(localize.unit_length(torch.randn(side, side, 512, generator=generator) + 5))
    images, floors, whole = random_images(IMAGES), [], []

    def score() -> None:
        started = time.perf_counter()
        stream = localize.embed_patches(net, images, PATCH, STRIDE, CONFIG)
        maps = density.score(torch.stack([localize.unit_length(e) for e in stream]))
        pixels.to_pixels(maps.numpy(), PATCH, STRIDE)
        whole.append((time.perf_counter() - started) / IMAGES)

    benchmark.pedantic(
        score, setup=lambda: floors.append(forward_alone(net, side**2)), rounds=3, warmup_rounds=1
    )
    # Each round against the floor measured just before it: what else the machine does slows both
    share = median(floor / image for floor, image in zip(floors[1:], whole[1:], strict=True))
    benchmark.extra_info["share_of_forward"] = round(share, 4)
    per_patch = 1000 * median(floors[1:]) / side**2
    answer(
        f"dense scoring of an image, {name}",
        median(whole[1:]),
        "forward passes alone",
        median(floors[1:]),
        share,
        f"{side**2} patches of {per_patch:.2f} ms, overhead {100 * (1 / share - 1):.1f} %",
    )


def test_gaussians_per_location(compare):
    """57x57 Gaussians in 512 dimensions (A.5), of as many images as `pill` has, against scikit-learn's."""
    side, n, m, few = localize.grid_side(SIZE, 32, 4), 267, 20, 20
    generator = torch.Generator().manual_seed(0)
    points = localize.unit_length(torch.randn(m, side, side, localize.WIDTH, generator=generator) + 5)
    density = localize.LocationGaussians()
    for _ in range(n):
        patches = torch.randn(side, side, localize.WIDTH, generator=generator) + 5
        density.partial_fit(localize.unit_length(patches))
    samples = torch.cat(density._buffers)[:n, :few].double().numpy()
    few_points = points.flatten(1, 2)[:, :few].double().numpy()

    def location_by_location() -> float:
        started = time.perf_counter()
        for k in range(few):
            LedoitWolf().fit(samples[:, k]).mahalanobis(few_points[:, k])
        return (time.perf_counter() - started) * side**2 / few

    question = f"{side}x{side} Gaussians of {n} images, {m} images scored"
    others = {"LedoitWolf().mahalanobis": location_by_location}
    compare(question, lambda: density.score(points), others, rounds=2, note=f"theirs from {few} locations")
