"""The 3-way augmentation as one would write it: image by image, Pillow and torchvision, a data loader's processes.

It is what the batched `cplib.augment.views` is measured against: the same steps with the same ranges, in 8 bits.
"""

import math
import random
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cplib.config import load

CONFIG = load(Path(__file__).parents[2] / "params/paper.yaml").augment
_patch_jitter = transforms.ColorJitter(*[CONFIG.patch_jitter] * 4)
_input_jitter = transforms.ColorJitter(*[CONFIG.jitter] * 4)
_to_tensor = transforms.ToTensor()


def augment_input(image: Image.Image) -> Image.Image:
    size, pad = image.height, round(CONFIG.translate * image.height)
    return _input_jitter(transforms.RandomCrop(size, padding=pad, padding_mode="reflect")(image))


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


class Views(Dataset):
    """Three views (3, 3, height, width) float32 in [0, 1] of each image, each with its own input augmentation."""

    def __init__(self, images: list[Image.Image]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        changes = (lambda view: view, cutpaste, cutpaste_scar)
        return torch.stack([_to_tensor(change(augment_input(self.images[index]))) for change in changes])


def loader(images: list[Image.Image], workers: int) -> DataLoader:
    """Batches of four images from processes of one torch thread each, which live as long as the loader."""
    return DataLoader(Views(images), 4, num_workers=workers, persistent_workers=True, multiprocessing_context="spawn")
