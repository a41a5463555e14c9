"""From photographs to scores and maps: the network and the density of a detector, as one module of torch."""

import importlib.util
import json
import logging
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from tqdm import trange

from cplib import model, train
from cplib.augment import views
from cplib.augment.tasks import METHODS as TASKS
from cplib.files import digest, replace_bytes
from cplib.localize.places import Density, Nearest, PerLocation
from cplib.sections import AugmentConfig, TrainConfig

log = logging.getLogger(__name__)

BACKBONE = "tf_efficientnetv2_b0"
TASK = TASKS["cutpaste_3way"]
# The recipe of params/lite.yaml, with all threads: a test holds them side by side
TRAIN = TrainConfig(
    **{"updates": 400, "sources": 24, "learning_rate": 0.001, "optimizer": "adamw", "weight_decay": 0.01, "warmup": 20},
    **{"crop": 64, "crop_place": "structure", "momentum": 0.9, "label_smoothing": 0.0, "average": 0.0},
    **{"head_layers": 1, "normalize": "imagenet", "stem": "imagenet"},
    **{"precision": "auto", "channels_last": True, "compile": False, "threads": 0},
)
AUGMENT = AugmentConfig(
    **{"translate": 0.0, "jitter": 0.1, "patch_jitter": 0.1, "area_ratio": (0.02, 0.15), "aspect_ratio": (0.3, 3.3)},
    **{"scar_width": (2.0, 16.0), "scar_length": (10.0, 25.0), "scar_angle": (-45.0, 45.0)},
)
METHODS = ("pretrained", "cutpaste")
FORMAT = "cutpaste detector 3"  # of saved files; raise the number when what they hold changes
BATCH = 8  # photographs at a time
_SAMPLE = 32  # photographs by which features are scaled and reduced
_LEAST_STD = 1e-3  # floors what good photographs vary by: of equal ones nothing is an infinite defect


class Scorer(nn.Module):
    """Network and densities as one module, from photographs to scores and maps: what is saved and exported."""

    def __init__(self, network: model.ProxyClassifier, method: str, tiles: int) -> None:
        super().__init__()
        self.network, self.tiles, self.densities = network, tiles, nn.ModuleList(densities(method))
        self.register_buffer("offset", torch.zeros(len(self.densities)))
        self.register_buffer("spread", torch.ones(len(self.densities)))

    def vectors(self, images: Tensor) -> Iterator[Tensor]:
        """What each density describes of images (n, 3, height, width), float in [0, 1]."""
        return (density.describe(*found) for density, found in self.maps(images))

    def maps(self, images: Tensor) -> Iterator[tuple[Density, tuple[dict[str, Tensor], tuple[int, int]]]]:
        """For each density feature maps by level, those of tiles joined, and rows and columns of its places."""
        n, _, height, width = images.shape
        t, h, w = self.tiles, height // self.tiles, width // self.tiles
        tiles = images.view(n, 3, t, h, t, w).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, h, w)
        needed, found = {level for density in self.densities for level in density.levels}, {}
        for level, x in self.network.maps(tiles.contiguous(memory_format=torch.channels_last)):
            if level in needed:
                joined = x.float().reshape(n, t, t, *x.shape[1:]).permute(0, 3, 1, 4, 2, 5)
                found[level] = joined.flatten(4).flatten(2, 3)
            if len(found) == len(needed):
                break
        for density in self.densities:
            stride = density.stride
            yield density, (found, (height // stride, width // stride) if stride else (t, t))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (n,) and maps (n, rows, columns) of images (n, 3, height, width) uint8: means over the densities, each
        in standard deviations of the highest distance that a good photograph has anywhere."""
        pairs = zip(self.densities, self.vectors(images.float() / 255), strict=True)
        found = [(density(x) - self.offset[k]) / self.spread[k] for k, (density, x) in enumerate(pairs)]
        score = torch.stack([x.amax((1, 2)) for x in found]).mean(0)
        size = (max(x.shape[1] for x in found), max(x.shape[2] for x in found))
        grown = [nn.functional.interpolate(x[:, None], size, mode="bilinear") for x in found]
        return score, torch.cat(grown, 1).mean(1)

    @torch.inference_mode()
    def fit(self, images: Tensor, generator: torch.Generator, device: torch.device) -> Tensor:
        """Fit the densities to good photographs (n, 3, height, width) uint8 and to a copy of each with colour jitter.
        Returns the scores (n,) float64 of each photograph under densities without it."""
        some = images[:: -(-len(images) // _SAMPLE)]  # spread, as neighbours may show the same part
        for density, found in self.maps(some.to(device).float() / 255):
            density.scale(*found)
        both: list[list] = [[], []]  # photographs and copies, in batches, by density
        step = max(1, BATCH // self.tiles**2)
        for start in trange(0, len(images), step, desc="good photographs", disable=None, leave=False):
            batch = images[start : start + step].to(device)
            for kept, x in zip(
                both, (batch.float() / 255, views.augment_input(batch, AUGMENT, generator)), strict=True
            ):
                kept.append([v.to(torch.half if v[0].numel() > v.shape[-1] else torch.float) for v in self.vectors(x)])
        scores = []
        for k, density in enumerate(self.densities):
            good, copies = (torch.cat([vectors[k] for vectors in kept]).float() for kept in both)
            highest = density.fit(good, copies, generator).amax((1, 2))
            self.offset[k], self.spread[k] = highest.mean(), max(float(highest.std()), _LEAST_STD)
            scores.append((highest - self.offset[k]) / self.spread[k])
        return torch.stack(scores).mean(0).double().cpu()


def network(
    method: str, images: Tensor | None = None, updates: int | None = None, seed: int = 0
) -> model.ProxyClassifier:
    """The network of a method without what gives no feature of it: pretrained, or trained on images
    (n, 3, height, width) uint8. Without images its weights are random, to be replaced by those of a file."""
    if method == "pretrained":
        net = model.build_pretrained(BACKBONE, "none" if images is None else "pretrained", len(TASK), 0)
        encoder = net.encoder
        encoder.blocks, encoder.conv_head, encoder.bn2 = encoder.blocks[:5], nn.Identity(), nn.Identity()
    else:
        net = model.build(len(TASK), seed)
        if images is not None:
            config = TRAIN if updates is None else TRAIN.replace(updates=updates)
            train.fit(net, images, TASK, AUGMENT, config, seed, config.crop)
    net.head = nn.Identity()
    return net.requires_grad_(False).eval()


def restored(method: str, tiles: int, tensors: dict[str, Tensor]) -> Scorer:
    """A scorer from its `state_dict`. Raises whatever torch does where that is of another one."""
    module = Scorer(network(method), method, tiles).eval()
    for k, density in enumerate(module.densities):
        start = f"densities.{k}."
        own = {name.removeprefix(start): v for name, v in tensors.items() if name.startswith(start)}
        density.keep(**{name: torch.empty_like(v) for name, v in own.items()})
    module.load_state_dict(tensors)
    return module


def write(path: Path, facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a detector's file: tensors, facts as JSON, and a digest of both."""
    told = json.dumps(facts, default=lambda value: value.item())
    content = {"format": FORMAT, "facts": told, "digest": file_digest(told, tensors)}
    replace_bytes(path, safetensors.torch.save(tensors, content))


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and tensors of a detector's file. A ValueError tells of one of another version or that was changed."""
    with safetensors.safe_open(path, "pt") as file:
        content = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    if (found := content.get("format")) != FORMAT:
        raise ValueError(f"is of the format {found!r}, this version reads {FORMAT!r}; fit it again")
    if content["digest"] != file_digest(content["facts"], tensors):
        raise ValueError("damaged: what it holds has changed since it was written")
    return json.loads(content["facts"]), tensors


def file_digest(facts: str, tensors: dict[str, Tensor]) -> str:
    """Digest of all that a detector's file holds."""
    return digest([facts, {name: sha256(x.numpy().tobytes()).hexdigest() for name, x in tensors.items()}])


def densities(method: str) -> list[Density]:
    """New densities of a method."""
    if method == "cutpaste":
        return [PerLocation((model.POOL,), 0, 0, True)]
    levels = ("level4", "level5", "level6")
    return [PerLocation(levels, 16, 100, False), Nearest(levels, 8, 100, True)]


def best_method() -> str:
    """ "pretrained" where its weights are at hand."""
    try:
        if importlib.util.find_spec("timm"):
            model.weights_file(BACKBONE, "pretrained")
            return "pretrained"
        log.warning("package timm is missing, so the method is cutpaste, which trains for minutes: pip install timm")
    except model.WeightsMissingError as error:
        log.warning("%s; so the method is cutpaste, which trains for minutes", error)
    return "cutpaste"
