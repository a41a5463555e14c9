"""Is the batched augmentation faster than the usual one, image by image on a pool of workers?"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from PIL import Image
from reference import Pool

from cplib.augment import TASKS, make_batch
from cplib.config import AugmentConfig
from cplib.train import update_generator

SIZE, SOURCES = 256, 32


def smooth_images(n: int, size: int) -> list[Image.Image]:
    coarse = np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    return [Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC) for c in coarse]


def test_augmentation(compare):
    """Three views of 32 images at 256 px, batched or image by image, on the same cores."""
    images = smooth_images(SOURCES, SIZE)
    tensors = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    threads = torch.get_num_threads()
    updates = itertools.count()

    def ours() -> None:
        generator = update_generator(0, next(updates))
        make_batch(tensors, TASKS["cutpaste_3way"], AugmentConfig(), generator)

    try:
        with Pool(images, threads, True) as processes, Pool(images, threads, False) as workers:
            assert processes.batch().shape == workers.batch().shape == (3 * SOURCES, 3, SIZE, SIZE)
            others = {
                f"PIL, {threads} processes": processes.batch,
                f"PIL, {threads} threads": workers.batch,
            }
            compare(f"3 views of {SOURCES} images, {SIZE} px", ours, others, rounds=9)
    finally:
        torch.set_num_threads(threads)
