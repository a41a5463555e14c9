"""Fixtures: a tiny category in MVTec AD's layout, a tiny configuration, and the real data where they are."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cplib.config import Config, load

ROOT = Path(__file__).resolve().parents[1]
SIZE = 40  # pixels of the tiny category's files


def draw_image(seed: int, size: int = SIZE, hole: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A smooth random image (size, size, 3), uint8, with a black square if wanted, and its mask, bool."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(60, 220, (4, 4, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).copy()
    mask = np.zeros((size, size), bool)
    if hole:
        row, col = rng.integers(0, size - size // 4, 2)
        mask[row : row + size // 4, col : col + size // 4] = True
        image[mask] = 0
    return image, mask


def write_category(
    folder: Path, train: int = 6, good: int = 3, holes: int = 3, masks: bool = True, size: int = SIZE
) -> Path:
    """Write a category of smooth images, anomalous ones with a black square; returns its folder."""
    places = [("train/good", i, False) for i in range(train)]
    places += [("test/good", i, False) for i in range(good)]
    places += [("test/hole", i, True) for i in range(holes)]
    for number, (place, index, hole) in enumerate(places):
        image, mask = draw_image(number, size, hole)
        files = {folder / place / f"{index:03d}.png": image}
        if hole and masks:
            files[folder / "ground_truth/hole" / f"{index:03d}_mask.png"] = np.uint8(255) * mask
        for path, pixels in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture
def make_category() -> Callable[..., Path]:
    """`write_category`, for tests that need a category of their own."""
    return write_category


@pytest.fixture
def category(tmp_path: Path) -> Path:
    """Folder of a tiny category `box` that the test may change: 6 normal images, 3 good, 3 with holes."""
    return write_category(tmp_path / "data" / "box")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Parameters of a study of about a second a run on the tiny category. Use it with monkeypatch.chdir(tmp_path)."""
    training = {"updates": 2, "sources": 2}
    return load(
        ROOT / "params/paper.yaml",
        {
            "study": "tiny",
            "methods": ["untrained", "cutout", "cutpaste_3way"],
            "categories": ["box"],
            "textures": [],
            "seeds": 1,
            "data": {"root": str(tmp_path / "data"), "image_size": 32, "cache": str(tmp_path / "cache")},
            "train": {**training, "precision": "float32", "threads": 1},
            "localize": {
                **training,
                "categories": ["box"],
                "aligned": ["box"],
                "image_size": 32,
                "patch_sizes": [16],
                "stride": 8,
                "seeds": 1,
            },
            "curve": {"updates": {"literal": [2]}, "seeds": 1},
            "recipes": {"variants": {"crops": {"train.crop": 30, "train.optimizer": "adamw"}}},
            "sensitivity": {
                "categories": ["box"],
                "seeds": 1,
                "learning_rate": [0.03, 0.01],
                "updates": [1.0, 2.0],
                "patch_jitter": [],
                "max_area": [],
                "head_layers": [],
                "translate": [],
                "normalize": [],
            },
            "synthetic": {"seeds": 1, "digits": "none", "natural_images": "none"},
            "tsne": {"per_group": 4},
            "one_class": {
                **training,
                "source": "digits",
                "classes": ["1"],
                "methods": ["cutout"],
                "train_images": 6,
                "test_images": 2,
                "seeds": 1,
                "stem": "3x3_stride2",
            },
            "transfer": {
                "backbone": "test_efficientnet",
                "weights": "none",
                "image_size": 32,
                "sources": 2,
                "head_updates": 2,
                "updates": 2,
                "precision": "float32",
                "levels": ["pool", "level6"],
                "seeds": 1,
                "curve": [0, 2],
            },
        },
    )


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for tensors so small that more only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
