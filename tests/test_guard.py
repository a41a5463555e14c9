"""Stored numbers of tiny trainings, densities and maps: whoever changes what training or scoring computes raises
`plan.RECIPE` and renews the numbers with `python tests/test_guard.py`."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cplib import gde, model, synthetic, train
from cplib.config import load
from cplib.localize import patch_maps, pixels
from cplib.runs.plan import RECIPE, Training
from cplib.runs.trained import Trained

pytest.importorskip("timm")
gradcam = pytest.importorskip("cplib.localize.gradcam")

STORED = Path(__file__).with_name("guard.json")
# Relative. On other processors sums are made in another order, which training magnifies: hence its low learning rate
TOLERANCE = dict.fromkeys(("cutpaste_3way", "rotation", "union", "patch", "transfer", "maps", "pixels"), 3e-3)
TOLERANCE |= {"density": 1e-6, "held_out": 1e-6, "gradcam": 1e-3, "synthetic": 1e-6}
CPU = torch.device("cpu")
CONFIG = load(Path(__file__).parents[1] / "params/paper.yaml")
BASE = CONFIG.train.replace(updates=3, sources=4, learning_rate=3e-4, precision="float32", threads=1)


def images(n: int, size: int, seed: int) -> Tensor:
    coarse = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    x = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return (255 * x.clamp(0, 1)).round().to(torch.uint8)


def compute(folder: Path) -> dict[str, Any]:
    """All numbers, from five images that are written to an empty folder."""
    x = images(5, 32, 0)
    (folder / "box").mkdir()
    for k, image in enumerate(x.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(folder / f"box/{k}.png")

    def trained(task: str, phases: list, settings: Any, **options: Any) -> tuple[model.ProxyClassifier, list[dict]]:
        place = {"category": "box", "source": str(folder), "image_size": 32, "augment": CONFIG.augment}
        training = Training(**place, task=task, phases=tuple(phases), settings=settings, seed=1, **options)
        return Trained(training, folder / "study", str(folder / "cache"), CPU)._network

    out: dict[str, Any] = {}
    stems = {"cutpaste_3way": "imagenet", "rotation": "3x3_stride1", "union": "imagenet", "patch": "3x3_stride2"}
    for name, stem in stems.items():
        config, is_patch = BASE.replace(stem=stem), name == "patch"
        net, history = trained("cutpaste_3way" if is_patch else name, [config], config, crop=16 * is_patch)
        e = train.embed(net, x, config)["pool"].double()
        out[name] = {"loss": [row["loss"] for row in history], "accuracy": history[0]["accuracy"]}
        out[name] |= {"mean": float(e.mean()), "std": float(e.std())}
    patch, rates = net, (CONFIG.transfer.head_learning_rate, CONFIG.transfer.learning_rate)
    phases = [BASE.replace(updates=2, learning_rate=rate) for rate in rates]
    net, history = trained("cutpaste_3way", phases, BASE, backbone="test_efficientnet", weights="none")
    levels = {k: v.double() for k, v in train.embed(net, x, BASE).items()}
    means = {k: [float(v.mean()), float(v.std())] for k, v in levels.items()}
    out["transfer"] = {"loss": [row["loss"] for row in history], "levels": means}

    rng = np.random.default_rng(0)
    normal, test = rng.normal(1, 0.3, (20, 12)), rng.normal(1.05, 0.4, (4, 12))
    out["density"] = {n: gde.density(n).fit(normal).score_samples(test).tolist() for n in gde.DENSITIES}
    out["held_out"] = gde.held_out_log_density("ledoit_wolf", normal)

    maps = patch_maps.score_maps(patch, images(6, 32, 1), images(2, 32, 2), 16, 8, config)
    out["maps"] = {k: [float(v) for v in m.ravel()[[0, 4, 8, 13]]] for k, m in maps.items()}
    spread = pixels.to_pixels(maps["shared"], 16, 8)
    masks = np.zeros(spread.shape, bool)
    masks[0, 4:14, 6:20] = masks[1, 20:24, 3:9] = True
    found = {"mean": float(spread.mean()), "auroc": pixels.auroc(spread, masks), "aupro": pixels.aupro(spread, masks)}
    out["pixels"] = {"shape": list(spread.shape), **found}
    net = model.build(3, 1).eval()
    density = gde.density("ledoit_wolf").fit(train.embed(net, x, BASE)["pool"].numpy())
    out["gradcam"] = float(np.abs(gradcam.maps(net, images(2, 64, 3), density)).mean())
    out["synthetic"] = {}
    for kind in synthetic.KINDS:
        fillings = synthetic.Fillings("none", "none")
        drawn = synthetic.draw(images(2, 64, 4), kind, CONFIG.augment.area_ratio, fillings, ["a", "b"])
        out["synthetic"][kind] = [int(values.long().sum()) for values in drawn]
    return out


def flat(numbers: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Names and values of all numbers in nested dicts and lists."""
    if isinstance(numbers, dict | list):
        pairs = numbers.items() if isinstance(numbers, dict) else enumerate(numbers)
        for key, value in pairs:
            yield from flat(value, f"{name}.{key}")
    else:
        yield name, numbers


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> dict[str, Any]:
    return compute(tmp_path_factory.mktemp("guard"))


@pytest.mark.parametrize("part", TOLERANCE)
def test_numbers_are_those_of_the_recipe(part, numbers):
    stored = json.loads(STORED.read_text())
    assert dict(flat(numbers[part])) == pytest.approx(dict(flat(stored[part])), rel=TOLERANCE[part], abs=2e-6)


def test_numbers_are_stored_for_this_recipe():
    stored = json.loads(STORED.read_text())
    assert stored["recipe"] == RECIPE, "RECIPE was raised: renew the numbers with python tests/test_guard.py"
    assert stored.keys() == {"recipe", *TOLERANCE}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = compute(Path(folder))
    rounded = json.loads(json.dumps(found), parse_float=lambda text: float(f"{float(text):.7g}"))
    STORED.write_text(json.dumps({"recipe": RECIPE, **rounded}, indent=1) + "\n")
