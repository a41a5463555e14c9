"""The 3-way augmentation as one would write it: image by image, Pillow and torchvision, a pool of workers.

It is what the batched `cplib.augment` is measured against: the same steps with the same ranges, in 8 bits, as
a data set class of a data loader would do them. Workers live as long as the pool and hold the source images.
"""

from __future__ import annotations

import math
import random
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from cplib.config import AugmentConfig

CONFIG = AugmentConfig()
PART = 4  # source images per task of the pool

_sources: list[Image.Image] = []
_patch_jitter = transforms.ColorJitter(*[CONFIG.patch_jitter] * 4)
_input_jitter = transforms.ColorJitter(*[CONFIG.jitter] * 4)
_to_tensor = transforms.ToTensor()


def augment_input(image: Image.Image) -> Image.Image:
    size, pad = image.height, round(CONFIG.translate * image.height)
    crop = transforms.RandomCrop(size, padding=pad, padding_mode="reflect")
    return _input_jitter(crop(image))


def cutpaste(image: Image.Image) -> Image.Image:
    low, high = CONFIG.aspect_ratio
    area = random.uniform(*CONFIG.area_ratio) * image.width * image.height
    aspect = random.choice([random.uniform(low, 1), random.uniform(1, high)])
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    patch = _patch_jitter(_cut(image, width, height))
    image.paste(patch, _place(image, patch))
    return image


def cutpaste_scar(image: Image.Image) -> Image.Image:
    width, length = round(random.uniform(*CONFIG.scar_width)), round(random.uniform(*CONFIG.scar_length))
    patch = _patch_jitter(_cut(image, width, length)).convert("RGBA")
    patch = patch.rotate(random.uniform(*CONFIG.scar_angle), expand=True)
    image.paste(patch, _place(image, patch), mask=patch)
    return image


def _cut(image: Image.Image, width: int, height: int) -> Image.Image:
    x, y = random.randint(0, image.width - width), random.randint(0, image.height - height)
    return image.crop((x, y, x + width, y + height))


def _place(image: Image.Image, patch: Image.Image) -> tuple[int, int]:
    return random.randint(0, image.width - patch.width), random.randint(0, image.height - patch.height)


def views(image: Image.Image) -> Tensor:
    """The three views (3, 3, height, width) of one image, each with its own input augmentation."""
    changes = (lambda view: view, cutpaste, cutpaste_scar)
    return torch.stack([_to_tensor(change(augment_input(image))) for change in changes])


def _start(images: list[Image.Image]) -> None:
    torch.set_num_threads(1)
    _sources[:] = images


def _part(first: int) -> Tensor:
    return torch.stack([views(image) for image in _sources[first : first + PART]])


class Pool:
    """Makes batches of all `images` on `workers` processes or threads of one torch thread each.

    Processes hand their tensors over in shared memory, as those of a data loader do.
    """

    def __init__(self, images: list[Image.Image], workers: int, processes: bool) -> None:
        if processes:
            context = torch.multiprocessing.get_context("spawn")
            self.executor = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(images,))
        else:
            self.executor = ThreadPoolExecutor(workers, initializer=_start, initargs=(images,))
        self.n = len(images)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.executor.shutdown()

    def batch(self) -> Tensor:
        """(3 n, 3, height, width) float32 in [0, 1], class after class."""
        parts = list(self.executor.map(_part, range(0, self.n, PART)))
        return torch.cat(parts).transpose(0, 1).flatten(0, 1)
