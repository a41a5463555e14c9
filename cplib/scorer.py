"""From photographs to scores and maps: the network and the density of a detector, as one module of torch."""

import importlib.util
import logging
from collections.abc import Sequence

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from tqdm import trange

from cplib import model, train
from cplib.augment import views
from cplib.augment.tasks import METHODS as TASKS
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
BATCH = 8  # photographs at a time
_SCARRED = 100  # photographs on which scars are pasted, to choose a density
_SAMPLE = 32  # photographs by which features are scaled and reduced
_LEAST_STD = 1e-3  # floors what good photographs vary by: of equal ones nothing is an infinite defect


class Scorer(nn.Module):
    """Network and density as one module, from photographs to scores and maps: what is saved and exported."""

    def __init__(self, network: model.ProxyClassifier, densities: Sequence[Density], tiles: int) -> None:
        super().__init__()
        self.network, self.tiles, self.density = network, tiles, densities[0]
        self.candidates = list(densities)
        self.register_buffer("offset", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps by level of images (n, 3, height, width), float in [0, 1]; those of tiles are joined."""
        n, _, height, width = images.shape
        t, h, w = self.tiles, height // self.tiles, width // self.tiles
        tiles = images.view(n, 3, t, h, t, w).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, h, w)
        needed, found = {level for density in self.candidates for level in density.levels}, {}
        for level, x in self.network.maps(tiles.contiguous(memory_format=torch.channels_last)):
            if level in needed:
                joined = x.float().reshape(n, t, t, *x.shape[1:]).permute(0, 3, 1, 4, 2, 5)
                found[level] = joined.flatten(4).flatten(2, 3)
            if len(found) == len(needed):
                break
        return found

    def grid(self, density: Density, images: Tensor) -> tuple[int, int]:
        """Rows and columns of places at which a density looks."""
        height, width = images.shape[2:]
        return (height // density.stride, width // density.stride) if density.stride else (self.tiles, self.tiles)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (n,) and maps (n, rows, columns) of images (n, 3, height, width) uint8, in standard deviations of the
        highest distance that a good photograph has anywhere."""
        vectors = self.density.describe(self.maps(images.float() / 255), self.grid(self.density, images))
        heat = (self.density(vectors) - self.offset) / self.spread
        return heat.amax((1, 2)), heat

    @torch.inference_mode()
    def fit(self, images: Tensor, generator: torch.Generator, device: torch.device) -> tuple[Tensor, dict[str, float]]:
        """Fit the densities to good photographs (n, 3, height, width) uint8, and keep the one that best tells them from
        copies with a pasted scar. Returns the scores (n,) float64 of each photograph under the density without it,
        and that AUC by density, if there is a choice."""
        some = images[:: -(-len(images) // _SAMPLE)]  # neighbours may show the same part
        first = self.maps(some.to(device).float() / 255)
        for density in self.candidates:
            density.scale(first, self.grid(density, images))
        with_scars = len(images[:_SCARRED]) if len(self.candidates) > 1 else 0
        found: dict[Density, list] = {density: [] for density in self.candidates}
        for start in trange(0, len(images), BATCH, desc="good photographs", disable=None, leave=False):
            batch = images[start : start + BATCH].to(device)
            versions = [batch.float() / 255, views.augment_input(batch, AUGMENT, generator)]
            if start < with_scars:
                versions.append(batch.float() / 255)
                views.VIEWS["cutpaste_scar"](versions[-1], AUGMENT, generator)
            maps = [self.maps(x) for x in versions]
            for density, of_density in found.items():
                kept = torch.half if density.stride else torch.float
                of_density.append([density.describe(x, self.grid(density, images)).to(kept) for x in maps])
        best: tuple = (-1.0,)
        aucs = {}
        for density, of_density in found.items():
            good, copies = (torch.cat([x[k] for x in of_density]).float() for k in (0, 1))
            highest, auc = density.fit(good, copies, generator).amax((1, 2)).double().cpu(), 0.5
            if with_scars:
                scarred = torch.cat([density(x[2].float()).amax((1, 2)) for x in of_density if len(x) == 3]).cpu()
                labels = [0] * len(highest) + [1] * len(scarred)
                aucs[density.name] = auc = float(roc_auc_score(labels, torch.cat([highest, scarred.double()])))
            best = max(best, (auc, density, highest), key=lambda x: x[0])
        _, self.density, highest = best
        self.candidates = [self.density]
        self.offset.fill_(highest.mean())
        self.spread.fill_(max(float(highest.std()), _LEAST_STD))
        return (highest - self.offset.item()) / self.spread.item(), aucs


def network(method: str, images: Tensor, updates: int | None, seed: int) -> model.ProxyClassifier:
    """The network of a method: pretrained, or trained on images (n, 3, height, width) uint8."""
    if method == "pretrained":
        return _stripped(model.build_pretrained(BACKBONE, "pretrained", len(TASK), 0), method)
    config = TRAIN if updates is None else TRAIN.replace(updates=updates)
    net = model.build(len(TASK), seed)
    train.fit(net, images, TASK, AUGMENT, config, seed, config.crop)
    return _stripped(net, method)


def densities(method: str, names: Sequence[str] = ("per_location", "nearest")) -> list[Density]:
    """New densities that a method may have, of some names."""
    if method == "cutpaste":
        return [PerLocation((model.POOL,), 0, 0, True)]
    levels = ("level4", "level5", "level6")
    found = [PerLocation(levels, 16, 100, False), Nearest(levels, 8, 100, True)]
    return [density for density in found if density.name in names]


def _stripped(network: model.ProxyClassifier, method: str) -> model.ProxyClassifier:
    """Without what gives no feature of the method."""
    network.head = nn.Identity()
    if method == "pretrained":
        encoder = network.encoder
        encoder.blocks, encoder.conv_head, encoder.bn2 = encoder.blocks[:5], nn.Identity(), nn.Identity()
    return network.requires_grad_(False).eval()


def skeleton(method: str) -> model.ProxyClassifier:
    """The network of a method, whose weights come from a file."""
    if method == "pretrained":
        return _stripped(model.build_pretrained(BACKBONE, "none", len(TASK), 0), method)
    return _stripped(model.build(len(TASK), 0), method)


def best_method() -> str:
    """ "pretrained" where its weights are at hand."""
    try:
        if importlib.util.find_spec("timm"):
            model.weights_file(BACKBONE, "pretrained")
            return "pretrained"
        log.info("package timm is missing, so the method is cutpaste: pip install timm")
    except model.WeightsMissingError as error:
        log.info("%s; so the method is cutpaste", error)
    return "cutpaste"
