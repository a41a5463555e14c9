"""What does a training update cost, which part of it is augmentation, and do the defaults of `train` pay?

Updates are those of `train.fit` itself, on the default device; the time of its first update is dropped.
The table of pytest-benchmark gives whole calls of `fit`, the table of answers single updates.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from statistics import median

import pytest
import torch
from torch import Tensor

from cplib import augment, train
from cplib.config import AugmentConfig, TrainConfig

TASK = augment.TASKS["cutpaste_3way"]


def random_images(size: int, n: int = 60) -> Tensor:
    coarse = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return (images * 255).byte().to(train.default_device())


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def time_updates(
    images: Tensor, config: TrainConfig, updates: int = 2, ready: tuple[Tensor, Tensor] | None = None
) -> list[tuple[float, float]]:
    """Seconds of augmentation and of the whole of each update of `fit`, but for its first update.

    `ready` is a batch with its labels to use instead of an augmented one.
    """
    begins, ends = [], []
    make_batch = augment.make_batch

    def timed(*args) -> tuple[Tensor, Tensor]:
        begins.append(now(images.device))
        batch = ready or make_batch(*args)
        ends.append(now(images.device))
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "make_batch", timed)
        train.fit(images, TASK, AugmentConfig(), replace(config, updates=1 + updates), seed=0)
    begins.append(now(images.device))
    return [(ends[k] - begins[k], begins[k + 1] - begins[k]) for k in range(1, 1 + updates)]


@pytest.mark.parametrize(("size", "sources"), [(256, 32), (128, 16)])
def test_share_of_augmentation(benchmark, answer, size, sources):
    """An update against one on a ready batch, and the share of augmentation within the former."""
    images, config = random_images(size), TrainConfig(sources=sources)
    ready = augment.make_batch(images[:sources], TASK, AugmentConfig(), train.update_generator(0, 0))
    with_augmentation, without = [], []
    benchmark.pedantic(
        lambda: with_augmentation.extend(time_updates(images, config)),
        setup=lambda: without.extend(time_updates(images, config, ready=ready)),
        rounds=2,
    )
    share = median(augmentation / whole for augmentation, whole in with_augmentation)
    benchmark.extra_info["share_of_augmentation"] = round(share, 4)
    answer(
        f"update, {sources} x 3 views, {size} px",
        ours := median(whole for _, whole in with_augmentation),
        "ready batch",
        theirs := median(whole for _, whole in without),
        theirs / ours,
        f"augmentation {median(a for a, _ in with_augmentation):.3f} s, {100 * share:.1f} % of the update",
    )


def test_precision_and_layout(compare):
    """The defaults of precision and memory layout against the others, at 128 px."""
    images, default = random_images(128), TrainConfig(sources=16)
    others = {
        f"{precision}, {'channels_last' if channels_last else 'contiguous'}": replace(
            default, precision=precision, channels_last=channels_last
        )
        for precision in ("bfloat16", "float32")
        for channels_last in (True, False)
    }

    def update(config: TrainConfig):
        return lambda: median(whole for _, whole in time_updates(images, config))

    used = "bfloat16" if train.autocast(images.device, "auto")._enabled else "float32"
    compare(
        "update, 16 x 3 views, 128 px",
        update(default),
        {name: update(config) for name, config in others.items()},
        rounds=3,
        note=f"ours: auto = {used}, channels_last",
    )


@pytest.mark.skipif("CPLIB_BENCHMARK_COMPILE" not in os.environ, reason="set CPLIB_BENCHMARK_COMPILE to run")
def test_compile(compare):
    """The defaults against a compiled model, at 128 px; compilation itself takes about 40 s."""
    images, default = random_images(128), TrainConfig(sources=16)
    compiled = replace(default, compile=True)
    compare(
        "update, 16 x 3 views, 128 px",
        lambda: median(whole for _, whole in time_updates(images, default)),
        {"torch.compile": lambda: median(whole for _, whole in time_updates(images, compiled))},
        rounds=3,
    )
