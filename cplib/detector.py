"""A detector of defects for one's own parts, in scikit-learn's conventions: it sees photographs of good ones alone.

Feature maps of a network are compared with those of the good photographs and of copies of them with colour jitter. A
score is in standard deviations of the scores that good photographs have under the others: 0 is ordinary.
"""

import copy
import importlib.util
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from PIL import Image
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from tqdm import tqdm, trange

from cplib import model, photos, train
from cplib.augment import views
from cplib.augment.tasks import METHODS as TASKS
from cplib.files import replace_bytes
from cplib.photos import DamagedError, DataError
from cplib.sections import AugmentConfig, TrainConfig

log = logging.getLogger(__name__)

FORMAT = "cutpaste detector 1"  # of saved files; raise the number when what they hold changes
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
SIZE = {"pretrained": 384, "cutpaste": 256}  # pixels squared at which a method looks at a photograph, or at a tile
_MOST_GOOD = 1000  # photographs that the densities are fitted to
_SCARRED = 100  # photographs on which scars are pasted, to choose a density
_SAMPLE = 32  # of these, by which features are scaled and reduced
_BANK = 5000  # places of good photographs among which the nearest is looked for
_BATCH = 8
_CHUNK = 16  # photographs that are read side by side
_DRIFT = 0.05  # p-value below which three quarters of the photographs are for another reason than defects
_FACTS = (
    "method_",
    "density_",
    "scar_aucs_",
    "photo_size_",
    "input_size_",
    "grey_levels_",
    "good_",
)  # of a fitted detector, beside tensors
_LEAST_STD = 1e-3  # floors what good photographs vary by: of equal ones nothing is an infinite defect

Photos = str | Path | Sequence[str | Path] | np.ndarray


class Density(nn.Module):
    """What good features are like. `describe` gives vectors of places, `forward` how far they are from good ones; `fit`
    fills the buffers, which are all that is saved.

    Args:
        levels: of the network.
        stride: pixels between places; 0: one place, the average.
        width: of vectors, reduced to the directions in which good ones vary most; 0: all.
        unit: whether vectors are scaled to length 1.
    """

    name = ""

    def __init__(self, levels: Sequence[str], stride: int, width: int, unit: bool) -> None:
        super().__init__()
        self.levels, self.stride, self.width, self.unit = tuple(levels), stride, width, unit

    def keep(self, **tensors: Tensor) -> None:
        """Buffers by name, made or replaced."""
        for name, value in tensors.items():
            self.register_buffer(name, value)

    def features(self, maps: dict[str, Tensor], grid: tuple[int, int]) -> Tensor:
        """Vectors (n, rows, columns, channels) on a grid, of feature maps by level, averaged over 3 x 3 places; without
        a stride, of the average of each tile. All levels weigh alike."""
        found = []
        for k, level in enumerate(self.levels):
            x = maps[level]
            if not self.stride or x.shape[2] > grid[0]:
                x = nn.functional.avg_pool2d(x, (x.shape[2] // grid[0], x.shape[3] // grid[1]))
            x = nn.functional.normalize(x, dim=1) if self.unit else x / self.sizes[k]
            if x.shape[2] < grid[0]:
                x = nn.functional.interpolate(x, grid, mode="bilinear", align_corners=False)
            found.append(x)
        x = torch.cat(found, 1)
        if self.stride:
            x = nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return x.permute(0, 2, 3, 1)

    def describe(self, maps: dict[str, Tensor], grid: tuple[int, int]) -> Tensor:
        """`features`, reduced to those directions in which good ones vary most."""
        x = self.features(maps, grid)
        return (x - self.center) @ self.basis if self.width else x

    def scale(self, maps: dict[str, Tensor], grid: tuple[int, int]) -> None:
        """Choose what features are divided by, and the directions that are kept, by maps of some good photographs."""
        self.keep(
            sizes=torch.stack([maps[level].std((0, 2, 3)).square().mean().sqrt() + 1e-9 for level in self.levels])
        )
        if self.width:
            flat = self.features(maps, grid).flatten(0, 2)
            _, vectors = torch.linalg.eigh(torch.cov(flat.T.double()))
            self.keep(center=flat.mean(0), basis=vectors.flip(1)[:, : self.width].float().contiguous())

    def fit(self, good: Tensor, copies: Tensor, generator: torch.Generator) -> Tensor:
        """Fit to vectors (n, rows, columns, d) of good photographs and of copies of them. Returns the distances
        (n, rows, columns) of the good ones from what the density would be without the photograph itself."""
        raise NotImplementedError

    def forward(self, vectors: Tensor) -> Tensor:
        """Distances (n, rows, columns) of vectors (n, rows, columns, d) from good ones."""
        raise NotImplementedError


class PerLocation(Density):
    """A Gaussian for each place with Ledoit-Wolf shrinkage; the Mahalanobis distance (equation 2, section 4.2)."""

    name = "per_location"

    def fit(self, good: Tensor, copies: Tensor, generator: torch.Generator) -> Tensor:
        n, grid, d = len(good), good.shape[1:3], good.shape[3]
        both = torch.cat([good, copies]).flatten(1, 2).transpose(0, 1)  # (places, photographs and copies, d)
        count, each = both.shape[1], both.shape[1] // n
        means, whitens, own = [], [], []
        for x in both.split(max(1, 2**25 // (d * (d + 2 * count)))):
            mean = x.double().mean(1, keepdim=True)
            x = x.double() - mean
            covariance, share, level = _ledoit_wolf(x)
            eye = torch.eye(d, dtype=torch.float64, device=x.device)
            shrunk = (1 - share) * covariance + (share * level + 1e-9) * eye
            whiten = torch.linalg.solve_triangular(torch.linalg.cholesky(shrunk), eye, upper=False).mT
            white = (x @ whiten).unflatten(1, (each, n))
            own.append(torch.cat([_left_out(white[:, :, rows], count, share) for rows in _blocks(n)], 1))
            means.append(mean[:, 0].float())
            whitens.append(whiten.float())
        self.keep(mean=torch.cat(means), whiten=torch.cat(whitens).contiguous())
        return torch.cat(own).T.reshape(n, *grid).sqrt().float()

    def forward(self, vectors: Tensor) -> Tensor:
        x = (vectors.flatten(1, 2) - self.mean).transpose(0, 1)
        return (x @ self.whiten).square().sum(2).sqrt().T.reshape(vectors.shape[:3])


class Nearest(Density):
    """The distance to the nearest of some places of good photographs, wherever it is."""

    name = "nearest"

    def fit(self, good: Tensor, copies: Tensor, generator: torch.Generator) -> Tensor:
        flat, places = torch.cat([good, copies]).flatten(0, 2), good.shape[1] * good.shape[2]
        chosen = torch.randperm(len(flat), generator=generator)[:_BANK].to(flat.device)
        self.keep(bank=flat[chosen].float())
        photo, found = chosen // places % len(good), []
        for rows in _blocks(len(good)):
            left_out = (photo >= rows.start) & (photo < rows.stop)
            found += [self._distances(x[None], left_out) for x in good[rows]]
        return torch.cat(found)

    def _distances(self, vectors: Tensor, left_out: Tensor | None = None) -> Tensor:
        x = vectors.flatten(0, 2)
        squared = self.bank.square().sum(1) - 2 * (x @ self.bank.T)
        if left_out is not None:
            squared = squared.masked_fill(left_out, torch.inf)
        nearest = squared.amin(1) + x.square().sum(1)
        return nearest.clamp(min=0).sqrt().reshape(vectors.shape[:3])

    def forward(self, vectors: Tensor) -> Tensor:
        return self._distances(vectors)


def _ledoit_wolf(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Covariances (places, d, d) of centred samples (places, n, d), and (places, 1, 1) how far each is best drawn
    towards the sphere of which variance (Ledoit and Wolf, 2004)."""
    n, d = x.shape[1:]
    covariance = x.mT @ x / n
    level = covariance.diagonal(dim1=1, dim2=2).mean(1)
    spread = covariance.square().sum((1, 2)) - d * level.square()
    noise = (x.square().sum(2).square().sum(1) / n - covariance.square().sum((1, 2))) / n
    share = (noise / spread.clamp(min=1e-30)).clamp(0, 1)
    return covariance, share[:, None, None], level[:, None, None]


def _blocks(n: int) -> list[slice]:
    """Photographs left out together: a tenth, one after the other, as those often show the same part or day."""
    size = max(1, n // 10)
    return [slice(start, start + size) for start in range(0, n, size)]


def _left_out(x: Tensor, count: int, share: Tensor) -> Tensor:
    """Squared distances (places, k) of photographs from Gaussians without them all and their copies, of which x
    (places, 1 + copies, k, d) are whitened and centred by the Gaussians with them, out of `count` samples.

    Without m samples X the mean moves by the sum of X over -(count - m), and the covariance loses w X^T B X, with B of
    1 on the diagonal and 1 / (count - m) added everywhere. So sample i differs from the mean by X^T a, where a is
    column i of B, and by Woodbury's identity its distance is a^T G (1 - w B G)^-1 a, where G = X X^T.
    """
    k, x = x.shape[2], x.flatten(1, 2)
    gram, one = x @ x.mT, torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    lost = one + 1 / (count - x.shape[1])
    a = lost[:, :k]
    solved = torch.linalg.solve(one - (1 - share) / count * (lost @ gram), a)
    return ((gram @ a) * solved).sum(1).clamp(min=0)


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
        first = self.maps(images[:_SAMPLE].to(device).float() / 255)
        for density in self.candidates:
            density.scale(first, self.grid(density, images))
        with_scars = len(images[:_SCARRED]) if len(self.candidates) > 1 else 0
        found: dict[Density, list] = {density: [] for density in self.candidates}
        for start in trange(0, len(images), _BATCH, desc="good photographs", disable=None, leave=False):
            batch = images[start : start + _BATCH].to(device)
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


class Detector(BaseEstimator):
    """Finds what is unlike good parts in photographs.

    Args:
        method: "pretrained": features of a network that was trained on ImageNet; "cutpaste": of one that learns from
            the good photographs alone by the study's recipe, minutes on a CPU; "auto": the first where its weights
            are found or can be downloaded, else the second.
        size: photographs are seen at about size x size pixels, with their own aspect ratio; None: the method's.
        tiles: cut each photograph into tiles x tiles parts and see each at that size, for small defects.
        false_alarms: share of good photographs that the verdict "defect" may fall on.
        updates: of the training of "cutpaste"; None: the recipe's.
        random_state: seed of all that is drawn.
        device: of torch; None: the first GPU, else the CPU.
        max_pixels: a photograph larger than that is refused.
    """

    def __init__(
        self,
        method: str = "auto",
        size: int | None = None,
        tiles: int = 1,
        false_alarms: float = 0.01,
        updates: int | None = None,
        random_state: int = 0,
        device: str | None = None,
        max_pixels: int = photos.MAX_PIXELS,
    ) -> None:
        self.method, self.size, self.tiles, self.false_alarms = method, size, tiles, false_alarms
        self.updates, self.random_state, self.device, self.max_pixels = updates, random_state, device, max_pixels

    def fit(self, good: Photos, y: None = None) -> Self:
        """Learn from at least 4 good photographs: a folder with all that is in it, a list of files, or an array
        (n, height, width) or (n, height, width, 3) uint8. Raises DataError, of all but unreadable files, which are
        left out with a warning, and ValueError for parameters out of range."""
        self._check()
        names, sources = listed(good)
        generator = torch.Generator().manual_seed(self.random_state)
        if len(sources) > _MOST_GOOD:
            chosen = torch.randperm(len(sources), generator=generator)[:_MOST_GOOD].sort().values.tolist()
            log.info("%d of %d good photographs are used", _MOST_GOOD, len(sources))
            names, sources = [names[k] for k in chosen], [sources[k] for k in chosen]
        self.method_ = self.method if self.method != "auto" else _best_method()
        self.photo_size_, self.grey_levels_ = _kind(sources, self.max_pixels)
        width, height = self.photo_size_
        side, unit = (self.size or SIZE[self.method_]) / math.sqrt(width * height), 32
        self.input_size_ = tuple(self.tiles * unit * max(2, round(v * side / unit)) for v in (height, width))
        read = list(self._read(names, sources, False, []))
        if len(read) < 4:
            raise DataError(f"{len(read)} good photographs can be read; at least 4 are needed")
        images = torch.stack([image for _, _, image in read])
        device = torch.device(self.device or train.default_device())
        network = self._network(images, device)
        self.scorer_ = Scorer(network, _densities(self.method_), self.tiles).to(device).eval()
        scores, self.scar_aucs_ = self.scorer_.fit(images, generator, device)
        self.good_scores_, self.density_ = np.sort(scores.numpy()), self.scorer_.density.name
        self.good_ = [name for name, *_ in read]
        return self

    def score(self, images: Photos, strict: bool = False) -> pd.DataFrame:
        """Scores of photographs, the most anomalous first: columns image (name), score, p_value (share of good
        photographs that score as high), verdict ("defect" or "good"), x and y (the hottest place, in pixels).

        `strict`: an unreadable file is an error; else it is left out with a warning, and the table's `attrs["skipped"]`
        names it. A photograph whose aspect ratio differs from the good ones' by more than 2 % is a DataError.
        """
        return self.table(*self.scored(images, strict))

    def score_maps(self, images: Photos, strict: bool = False) -> Iterator[tuple[str, np.ndarray]]:
        """Name and map (height, width) float32 of each photograph in its own size, one after the other: how anomalous
        each pixel is, in standard deviations of the most anomalous place of a good photograph."""
        for name, size, _, heat in self._scored(images, strict, []):
            full = Image.fromarray(heat).resize(size, Image.Resampling.BICUBIC)
            yield name, np.asarray(full)

    def threshold(self, false_alarm_rate: float | None = None) -> float:
        """The score above which at most that share of good photographs lies (default: `false_alarms`). Of n good
        photographs, no share below 1 / (n + 1) can be told: then it is their highest score, with a warning."""
        scores, rate = self._fitted().good_scores_, self.false_alarms if false_alarm_rate is None else false_alarm_rate
        allowed = math.floor(rate * (len(scores) + 1))
        if not allowed:
            needed = math.ceil(1 / rate) - 1 if rate else math.inf
            log.warning(
                "%d good photographs tell no rate of %g, %s would: the threshold is their highest score",
                len(scores),
                rate,
                needed,
            )
        return float(scores[len(scores) - max(allowed, 1)])

    def save(self, path: str | Path) -> None:
        """Write the detector to a file of safetensors: tensors and JSON, nothing that runs."""
        self._fitted()
        facts = {name: getattr(self, name) for name in _FACTS} | {"params": self.get_params()}
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.scorer_.state_dict().items()}
        tensors["good_scores"] = torch.from_numpy(self.good_scores_)
        content = safetensors.torch.save(tensors, {"format": FORMAT, "facts": json.dumps(facts)})
        Path(path).expanduser().parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(Path(path).expanduser(), content)

    def export(self, path: str | Path) -> None:
        """Write one ONNX file: from `image` (1, 3, height, width) uint8, RGB, at `input_size_`, to `score` (1,) and
        `map` (1, rows, columns) float32. It needs the extra `export`."""
        images = torch.zeros(1, 3, *self._fitted().input_size_, dtype=torch.uint8)
        program = torch.onnx.export(
            copy.deepcopy(self.scorer_).cpu().to(memory_format=torch.contiguous_format),
            (images,),
            input_names=["image"],
            output_names=["score", "map"],
            dynamo=True,
            verbose=False,
        )
        program.save(Path(path).expanduser())

    @classmethod
    def load(cls, path: str | Path, device: str | None = None) -> Self:
        """A detector from a file of `save`. A DataError names a file that is none, is damaged or of another version."""
        path = Path(path).expanduser()
        try:
            with safetensors.safe_open(path, "pt") as file:
                facts = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        except (OSError, safetensors.SafetensorError) as error:
            raise DataError(f"{photos.shown(path)}: cannot be read as a detector ({error})") from None
        if (found := facts.get("format")) != FORMAT:
            raise DataError(
                f"{photos.shown(path)}: is of the format {found!r}, this version reads {FORMAT!r}; fit it again"
            )
        try:
            return cls._restored(json.loads(facts["facts"]), tensors, device)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{photos.shown(path)}: damaged detector ({str(error)[:200]})") from None

    @classmethod
    def _restored(cls, facts: dict[str, Any], tensors: dict[str, Tensor], device: str | None) -> Self:
        found = cls(**facts["params"] | {"device": device})
        found._check()
        for name in _FACTS:
            value = facts[name]
            setattr(found, name, tuple(value) if isinstance(value, list) and name != "good_" else value)
        found.good_scores_ = tensors.pop("good_scores").numpy()
        densities = _densities(found.method_, [found.density_])
        found.scorer_ = Scorer(_skeleton(found.method_), densities, found.tiles).eval()
        own = {n.removeprefix("density."): v for n, v in tensors.items() if n.startswith("density.")}
        found.scorer_.density.keep(**{n: torch.empty_like(v) for n, v in own.items()})
        found.scorer_.load_state_dict(tensors)
        found.scorer_.to(torch.device(device or train.default_device()))
        with torch.inference_mode():  # what does not fit together shows here
            found.scorer_(torch.zeros(1, 3, *found.input_size_, dtype=torch.uint8, device=found.scorer_.offset.device))
        return found

    def open(self, source: Path | np.ndarray) -> Image.Image:
        """A photograph upright, RGB in 8 bits."""
        return _opened(source, self.grey_levels_, self.max_pixels)

    def _check(self) -> None:
        if self.method not in ("auto", *METHODS):
            raise ValueError(f"method {self.method!r}: unknown; known: auto, {', '.join(METHODS)}")
        for name, least, most in (("size", 64, 2048), ("tiles", 1, 16), ("updates", 1, 2**20 - 1)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and least <= value <= most):
                raise ValueError(f"{name}: must be a whole number from {least} to {most}, got {value!r}")
        if not 0 <= self.false_alarms < 1:
            raise ValueError(f"false_alarms: must be a share from 0 to below 1, got {self.false_alarms!r}")

    def _fitted(self) -> Self:
        if not hasattr(self, "scorer_"):
            raise NotFittedError("this Detector is not fitted: call fit with good photographs, or load one")
        return self

    def _network(self, images: Tensor, device: torch.device) -> model.ProxyClassifier:
        if self.method_ == "pretrained":
            return _stripped(model.build_pretrained(BACKBONE, "pretrained", len(TASK), 0), self.method_)
        config = TRAIN if self.updates is None else TRAIN.replace(updates=self.updates)
        net = model.build(len(TASK), self.random_state)
        train.fit(net, images.to(device), TASK, AUGMENT, config, self.random_state, config.crop)
        return _stripped(net, self.method_)

    def _read(self, names: list[str], sources: list, strict: bool, skipped: list[str]) -> Iterator[tuple]:
        """Name, size (width, height) and image (3, height, width) uint8 of each photograph, at the detector's size."""

        def one(source: Path | np.ndarray) -> tuple[tuple[int, int], Tensor] | DamagedError:
            try:
                photo = self.open(source)
            except DamagedError as error:
                return error
            x = np.asarray(photo.resize(self.input_size_[::-1], Image.Resampling.BILINEAR))
            return photo.size, torch.from_numpy(x.transpose(2, 0, 1).copy())

        shape, is_told = self.photo_size_, False
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(sources), _CHUNK):
                chunk = zip(names[start : start + _CHUNK], pool.map(one, sources[start : start + _CHUNK]), strict=True)
                for name, found in chunk:
                    if isinstance(found, DamagedError):
                        if strict:
                            raise found
                        log.warning("left out: %s", found)
                        skipped.append(name)
                        continue
                    size, image = found
                    if size != shape:
                        told = f"{name}: {size[0]} x {size[1]} pixels, the good ones {shape[0]} x {shape[1]}"
                        if abs(math.log(size[0] * shape[1] / (size[1] * shape[0]))) > math.log(1.02):
                            raise DataError(f"{told}: another aspect ratio")
                        if not is_told:
                            log.warning("%s: resized, as all that are of another size", told)
                        is_told = True
                    yield name, size, image

    @torch.inference_mode()
    def _scored(self, images: Photos, strict: bool, skipped: list[str]) -> Iterator[tuple]:
        """Name, size, score and map (rows, columns) float32 of each photograph."""
        scorer, (names, sources) = self._fitted().scorer_, listed(images)
        bar = tqdm(total=len(sources), desc="photographs", disable=None, leave=False)
        read = self._read(names, sources, strict, skipped)
        while batch := list(islice(read, _BATCH)):
            score, heat = scorer(torch.stack([image for *_, image in batch]).to(scorer.offset.device))
            bar.update(len(batch))
            for (name, size, _), s, h in zip(batch, score.tolist(), heat.float().cpu().numpy(), strict=True):
                yield name, size, s, h
        bar.close()

    def scored(self, images: Photos, strict: bool = False) -> tuple[list[tuple], list[str]]:
        """Name, size, score and map (rows, columns) float32 at the network's places of each photograph; and the names
        of those left out. `table` and maps come from it, at the cost of one."""
        skipped: list[str] = []
        return list(self._scored(images, strict, skipped)), skipped

    def table(self, scored: Sequence[tuple], skipped: list[str]) -> pd.DataFrame:
        """The table of `score` from what `scored` gives."""
        good, threshold, rows = self.good_scores_, self.threshold(), []
        for name, (width, height), score, heat in scored:
            y, x = np.unravel_index(heat.argmax(), heat.shape)
            place = {"x": int((x + 0.5) * width / heat.shape[1]), "y": int((y + 0.5) * height / heat.shape[0])}
            p_value = (1 + len(good) - np.searchsorted(good, score)) / (1 + len(good))
            verdict = "defect" if score > threshold else "good"
            rows.append({"image": name, "score": score, "p_value": p_value, "verdict": verdict, **place})
        table = pd.DataFrame(rows, columns=["image", "score", "p_value", "verdict", "x", "y"])
        if len(table) >= 5 and table["p_value"].quantile(0.75) <= _DRIFT:
            told = "most of the photographs look unlike the good ones: has the camera or the light changed?"
            log.warning("%s (median p-value %.3f)", told, table["p_value"].median())
        table = table.sort_values("score", ascending=False, kind="stable", ignore_index=True)
        table.attrs["skipped"] = skipped
        return table


def listed(given: Photos) -> tuple[list[str], list[Path | np.ndarray]]:
    """Names of photographs, and where they are."""
    if isinstance(given, np.ndarray):
        if given.dtype != np.uint8 or given.ndim not in (3, 4) or (given.ndim == 4 and given.shape[3] != 3):
            shape = f"{given.shape} {given.dtype}"
            raise DataError(f"array: must be (n, height, width) or (n, height, width, 3) uint8, got {shape}")
        return [str(k) for k in range(len(given))], list(given)
    if isinstance(given, str | Path):
        folder = Path(given).expanduser()
        found = [folder] if folder.is_file() else photos.list_photos(folder, nested=True)
        if not found:
            what = "no photographs in it" if folder.is_dir() else "no such folder"
            raise DataError(f"{photos.shown(folder)}: {what} ({' '.join(sorted(photos.SUFFIXES))})")
        return [photos.shown(p.relative_to(folder).as_posix() if p != folder else p.name) for p in found], found
    found = [Path(p).expanduser() for p in given]
    return [photos.shown(p) for p in found], found


def _kind(sources: list[Path | np.ndarray], max_pixels: int) -> tuple[tuple[int, int], tuple[float, float] | None]:
    """The size that most good photographs have, and the levels of those of 16-bit grey."""
    if isinstance(sources[0], np.ndarray):
        return sources[0].shape[1::-1], None
    sizes, deep = [], []
    for path in sources:
        try:
            size, is_deep = photos.peek(path, max_pixels)
        except DamagedError:
            continue
        sizes.append(size)
        deep += [path] if is_deep else []
    if not sizes:
        raise DataError("none of the good photographs can be read")
    return Counter(sizes).most_common(1)[0][0], photos.grey_levels(deep, max_pixels) if deep else None


def _opened(source: Path | np.ndarray, levels: tuple | None, max_pixels: int) -> Image.Image:
    if isinstance(source, np.ndarray):
        return Image.fromarray(source).convert("RGB")
    return photos.read_photo(source, "RGB", levels, max_pixels)


def _best_method() -> str:
    """ "pretrained" where its weights are at hand."""
    try:
        if importlib.util.find_spec("timm"):
            model.weights_file(BACKBONE, "pretrained")
            return "pretrained"
        log.info("package timm is missing, so the method is cutpaste: pip install timm")
    except model.WeightsMissingError as error:
        log.info("%s; so the method is cutpaste", error)
    return "cutpaste"


def _densities(method: str, names: Sequence[str] = ("per_location", "nearest")) -> list[Density]:
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


def _skeleton(method: str) -> model.ProxyClassifier:
    """The network of a method, whose weights come from a file."""
    if method == "pretrained":
        return _stripped(model.build_pretrained(BACKBONE, "none", len(TASK), 0), method)
    return _stripped(model.build(len(TASK), 0), method)
