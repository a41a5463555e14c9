"""Is the batched augmentation faster than the usual one, what does it add to an update, what do the defaults of
`train` save, and how far is dense scoring above its forward passes?"""

import itertools
import time
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from PIL import Image
from reference import CONFIG, loader
from sklearn.covariance import LedoitWolf
from torch import Tensor

from cplib import model, train
from cplib.augment import views
from cplib.augment.tasks import TASKS
from cplib.config import load
from cplib.localize import patch_maps, pixels
from cplib.sections import TrainConfig

TRAIN = load(Path(__file__).parents[2] / "params/paper.yaml").train
TASK = TASKS["cutpaste_3way"]


def smooth_images(n: int, size: int) -> Tensor:
    coarse = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(coarse, size=size, mode="bilinear") * 255).byte()


def test_augmentation(compare):
    """Three views of 32 images at 256 px, batched or image by image, on the same cores."""
    images, workers, updates = smooth_images(32, 256), torch.get_num_threads(), itertools.count()
    files = [Image.fromarray(image) for image in np.ascontiguousarray(images.permute(0, 2, 3, 1))]

    def ours() -> None:
        views.make_batch(images, TASK, CONFIG, train.update_generator(0, next(updates)))

    batches = loader(files, workers)
    others = {f"PIL, {workers} processes": lambda: list(batches)}
    compare("3 views of 32 images, 256 px", ours, others, rounds=9)


def time_update(images: Tensor, config: TrainConfig, ready: tuple[Tensor, Tensor] | None = None) -> float:
    """Seconds of an update of `fit`, but for its first. `ready`: a batch to use instead of an augmented one."""
    begins, make_batch = [], views.make_batch

    def timed(*args) -> tuple[Tensor, Tensor]:
        if images.is_cuda:
            torch.cuda.synchronize()
        begins.append(time.perf_counter())
        return ready or make_batch(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "make_batch", timed)
        train.fit(model.build(len(TASK), 0), images, TASK, CONFIG, config.replace(updates=4), seed=0)
    return median(b - a for a, b in itertools.pairwise(begins[1:]))


@pytest.mark.parametrize(("size", "sources"), [(256, 32), (128, 16)])
def test_share_of_augmentation(compare, size, sources):
    """An update against one on a ready batch: 1 less the ratio is the share of augmentation."""
    images, config = smooth_images(60, size).to(train.default_device()), TRAIN.replace(sources=sources)
    ready = views.make_batch(images[:sources], TASK, CONFIG, train.update_generator(0, 0))
    others = {"ready batch": lambda: time_update(images, config, ready)}
    compare(f"update, {sources} x 3 views, {size} px", lambda: time_update(images, config), others, rounds=3)


def test_precision_and_layout(compare):
    """The defaults of precision and memory layout against the others, at 128 px."""
    images, default = smooth_images(60, 128).to(train.default_device()), TRAIN.replace(sources=16)
    changes = [{"precision": p, "channels_last": c} for p in ("bfloat16", "float32") for c in (True, False)]
    others = {str(change): lambda c=change: time_update(images, default.replace(**c)) for change in changes}
    note = f"ours: auto = {train.resolved_precision(images.device, 'auto')}, channels_last"
    compare("update, 16 x 3 views, 128 px", lambda: time_update(images, default), others, rounds=3, note=note)


@pytest.mark.parametrize("crop", [32, 64])
def test_small_maps(compare, crop):
    """Forward and backward of 24 x 3 crops, as `lite` trains on them, with the convolutions of torchvision."""
    nets = [model.build(3, 0).to(memory_format=torch.channels_last) for _ in range(2)]
    for layer in nets[1].modules():
        layer.__class__ = torch.nn.Conv2d if isinstance(layer, model._Conv3x3) else layer.__class__
    batch, labels = smooth_images(72, crop).float() / 255, torch.arange(72) % 3
    batch = batch.contiguous(memory_format=torch.channels_last)

    def step(net: torch.nn.Module) -> None:
        torch.nn.functional.cross_entropy(net(batch), labels).backward()

    compare(f"update, 24 x 3 crops of {crop} px", lambda: step(nets[0]), {"torchvision's": lambda: step(nets[1])}, 3)


@pytest.mark.parametrize("name", patch_maps.PLACEMENTS)
def test_dense_scoring(compare, name):
    """From uint8 images of 256 px to maps of pixels, patches of 64 px, stride 8, densities of 60 normal images."""
    config, images, side = TRAIN.replace(stem="3x3_stride2"), smooth_images(3, 256), 25
    net = model.build(3, 0, stem=config.stem).to(memory_format=torch.channels_last).eval()
    normal = torch.randn(60, side, side, 512, generator=torch.Generator().manual_seed(0)) + 5
    of_patches = patch_maps.PLACEMENTS[name](torch.nn.functional.normalize(normal, dim=-1))

    def score() -> None:
        pixels.to_pixels(of_patches(patch_maps.unit_patches(net, images, 64, 8, config)).numpy(), 64, 8)

    ready = torch.rand(64, 3, 64, 64).contiguous(memory_format=torch.channels_last)

    def forward() -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            for first in range(0, 3 * side**2, 64):
                net.embed(ready[: 3 * side**2 - first])
        return time.perf_counter() - started

    compare(f"dense scoring of 3 images, {name}", score, {"forward passes alone": forward}, rounds=3)


def test_gaussians_per_location(compare):
    """57x57 Gaussians in 512 dimensions (A.5), of as many images as `pill` has, against scikit-learn's."""
    side, n, m, few, generator = 57, 267, 20, 20, torch.Generator().manual_seed(0)
    embeddings = torch.empty(n + m, side, side, 512, dtype=torch.half)
    for row in embeddings:  # one by one: in float32 they are 2 GiB
        row.copy_(torch.nn.functional.normalize(torch.randn(side, side, 512, generator=generator) + 5, dim=-1))
    points = embeddings[n:]
    normal, tested = (x.flatten(1, 2)[:, :few].double().numpy() for x in (embeddings[:n], points))

    def location_by_location() -> float:
        started = time.perf_counter()
        for k in range(few):
            LedoitWolf().fit(normal[:, k]).mahalanobis(tested[:, k])
        return (time.perf_counter() - started) * side**2 / few

    others = {"LedoitWolf().mahalanobis": location_by_location}
    compare(
        f"{side}x{side} Gaussians of {n} images, {m} images scored",
        lambda: patch_maps.per_location(embeddings[:n], points),
        others,
        2,
    )
