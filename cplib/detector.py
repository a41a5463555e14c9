"""A detector of defects for one's own parts, in scikit-learn's conventions: it sees photographs of good ones alone.

Feature maps of a network are compared with those of the good photographs and of copies of them with colour jitter. A
score is in standard deviations of the scores that good photographs have under the others: 0 is ordinary.
"""

import copy
import logging
import math
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from tqdm import tqdm

from cplib import photos, scorer, train
from cplib.photos import DataError

log = logging.getLogger(__name__)

SIZE = {"pretrained": 384, "cutpaste": 256}  # pixels squared at which a method looks at a photograph, or at a tile
_MOST_GOOD = 1000  # photographs that the densities are fitted to
_DRIFT = 0.05  # p-value below which three quarters of the photographs are for another reason than defects
# of a fitted detector, beside tensors
_FACTS = ("method_", "photo_size_", "input_size_", "grey_levels_", "good_")


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

    def fit(self, good: photos.Photos, y: None = None, strict: bool = False) -> Self:
        """Learn from at least 4 good photographs: a folder with all that is in it, a list of files and folders, or an
        array (n, height, width) or (n, height, width, 3) uint8. Raises DataError, and ValueError for parameters out of
        range. `strict`: also of unreadable files; else they are left out with a warning, and `skipped_` names them."""
        self._check()
        new = copy.copy(self)  # an error leaves the detector as it was
        new._learn(*photos.listed(good), strict)
        vars(self).update(vars(new))
        return self

    def _learn(self, names: list[str], sources: list[Path | np.ndarray], strict: bool) -> None:
        seed, most = int(self.random_state or 0), max(_MOST_GOOD // self.tiles**2, 50)  # of tiles there are many more
        generator = torch.Generator().manual_seed(seed)
        if len(sources) > most:
            chosen = torch.randperm(len(sources), generator=generator)[:most].sort().values.tolist()
            log.warning("%d of %d good photographs are used", most, len(sources))
            names, sources = [names[k] for k in chosen], [sources[k] for k in chosen]
        self.method_ = self.method if self.method != "auto" else scorer.best_method()
        self.photo_size_, self.grey_levels_ = photos.kind(sources, self.max_pixels)
        width, height = self.photo_size_
        side, unit = (self.size or SIZE[self.method_]) / math.sqrt(width * height), 32
        self.input_size_ = tuple(self.tiles * unit * max(2, round(v * side / unit)) for v in (height, width))
        if self.tiles > 1 and self.input_size_[0] > height:
            log.warning("%d tiles magnify photographs of %d x %d pixels: fewer see as much", self.tiles, width, height)
        self.skipped_: list[str] = []
        read = list(self._read(names, sources, strict, self.skipped_))
        distinct: dict[bytes, tuple] = {}
        for one in read:
            distinct.setdefault(sha256(one[2].numpy().tobytes()).digest(), one)
        if 4 <= len(distinct) < len(read):  # copies would tell of each other that they are good
            log.warning("%d good photographs are copies of others, and left out", len(read) - len(distinct))
            read = list(distinct.values())
        if len(read) < 4:
            raise DataError(f"{len(read)} good photographs can be read; at least 4 are needed")
        images = torch.stack([image for _, _, image in read])
        device = torch.device(self.device or train.default_device())
        network = scorer.network(self.method_, images.to(device), self.updates, seed)
        self.scorer_ = scorer.Scorer(network, self.method_, self.tiles).to(device).eval()
        scores = self.scorer_.fit(images, generator, device).numpy()
        order = scores.argsort(kind="stable")  # the last set the threshold
        self.good_scores_, self.good_ = scores[order], [read[k][0] for k in order]
        if not math.floor(self.false_alarms * (len(read) + 1)) and self.false_alarms:
            needed = math.ceil(1 / self.false_alarms) - 1
            told = "%d good photographs tell no rate of %g, %d would: the threshold is their highest score"
            log.warning(told, len(read), self.false_alarms, needed)

    def score(self, images: photos.Photos, strict: bool = False) -> pd.DataFrame:
        """Scores of photographs, the most anomalous first: columns image (name), score, p_value (the share that scores
        as high among the n good photographs and itself, at least 1 / (n + 1)), verdict ("defect" or "good"), x and y
        (the hottest place, in pixels).

        `strict`: an unreadable file is an error; else it is left out with a warning, and the table's `attrs["skipped"]`
        names it. A photograph whose aspect ratio differs from the good ones' by more than 2 % is a DataError.
        """
        return self.table(*self.scored(images, strict))

    def score_maps(self, images: photos.Photos, strict: bool = False) -> Iterator[tuple[str, np.ndarray]]:
        """Name and map (height, width) float32 of each photograph in its own size, one after the other: how anomalous
        each pixel is, in standard deviations of the most anomalous place of a good photograph."""
        for name, size, _, heat in self._scored(images, strict, []):
            full = Image.fromarray(heat).resize(size, Image.Resampling.BICUBIC)
            yield name, np.asarray(full)

    def threshold(self, false_alarm_rate: float | None = None) -> float:
        """The score above which at most that share of good photographs lies (default: `false_alarms`). Of n good
        photographs, no share below 1 / (n + 1) can be told: then it is their highest score."""
        scores, rate = self._fitted().good_scores_, self.false_alarms if false_alarm_rate is None else false_alarm_rate
        _check_rate("false_alarm_rate" if false_alarm_rate is not None else "false_alarms", rate)
        return float(scores[len(scores) - max(math.floor(rate * (len(scores) + 1)), 1)])

    def save(self, path: str | Path) -> None:
        """Write the detector to a file of safetensors: tensors and JSON, nothing that runs."""
        self._fitted()._check()
        facts = {name: getattr(self, name) for name in _FACTS} | {"tiles_": self.scorer_.tiles}
        facts["params"] = self.get_params() | {"device": None}
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.scorer_.state_dict().items()}
        tensors["good_scores"] = torch.from_numpy(self.good_scores_)
        scorer.write(_file(path), facts, tensors)

    def export(self, path: str | Path) -> None:
        """Write one ONNX file: from `image` (1, 3, height, width) uint8, RGB, at `input_size_`, to `score` (1,) and
        `map` (1, rows, columns) float32. It needs the extra `export`."""
        images = torch.zeros(1, 3, *self._fitted().input_size_, dtype=torch.uint8)
        module = copy.deepcopy(self.scorer_).cpu().to(memory_format=torch.contiguous_format)
        names = {"input_names": ["image"], "output_names": ["score", "map"]}
        program = torch.onnx.export(module, (images,), **names, dynamo=True, verbose=False)
        _file(path).parent.mkdir(parents=True, exist_ok=True)
        program.save(_file(path))

    @classmethod
    def load(cls, path: str | Path, device: str | None = None) -> Self:
        """A detector from a file of `save`. A DataError names a file that is none, is damaged or of another version."""
        path = _file(path)
        try:
            facts, tensors = scorer.read(path)
            found = cls(**facts["params"])
            found._check()
            for name in _FACTS:
                value = facts[name]
                setattr(found, name, tuple(value) if isinstance(value, list) and name != "good_" else value)
            found.good_scores_ = tensors.pop("good_scores").numpy()
            found.scorer_ = scorer.restored(found.method_, int(facts["tiles_"]), tensors)
            with torch.inference_mode():  # what does not fit together shows here
                found.scorer_(torch.zeros(1, 3, *found.input_size_, dtype=torch.uint8))
        except Exception as error:  # noqa: BLE001 - whatever a hostile file leads to
            raise DataError(f"{photos.shown(path)}: cannot be read as a detector ({str(error)[:200]})") from None
        found.device = device
        found.scorer_.to(torch.device(device or train.default_device()))
        return found

    def open(self, source: Path | np.ndarray) -> Image.Image:
        """A photograph upright, RGB in 8 bits."""
        return photos.read_photo(source, "RGB", self._fitted().grey_levels_, self.max_pixels)

    def _check(self) -> None:
        if self.method not in ("auto", *scorer.METHODS):
            raise ValueError(f"method {self.method!r}: unknown; known: auto, {', '.join(scorer.METHODS)}")
        whole = {"size": (64, 2048), "tiles": (1, 16), "updates": (1, 2**20 - 1), "max_pixels": (1, 2**40)}
        for name, (least, most) in (whole | {"random_state": (0, 2**12 - 1)}).items():
            value = getattr(self, name)
            if value is None and name not in ("tiles", "max_pixels"):
                continue
            if not (isinstance(value, Integral) and least <= value <= most):
                raise ValueError(f"{name}: must be a whole number from {least} to {most}, got {value!r}")
        _check_rate("false_alarms", self.false_alarms)
        try:
            torch.empty(0, device=self.device or "cpu").cpu()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(f"device {self.device!r}: {str(error).splitlines()[0]}") from None

    def _fitted(self) -> Self:
        if not hasattr(self, "scorer_"):
            raise NotFittedError("this Detector is not fitted: call fit with good photographs, or load one")
        return self

    def _read(self, names: list[str], sources: list, strict: bool, skipped: list[str]) -> Iterator[tuple]:
        kind = self.photo_size_, self.grey_levels_, self.max_pixels
        return photos.read_resized(names, sources, self.input_size_, kind, strict, skipped)

    @torch.inference_mode()
    def _scored(self, images: photos.Photos, strict: bool, skipped: list[str]) -> Iterator[tuple]:
        """As `scored`, one after the other; names of those left out are added to `skipped`."""
        module, (names, sources) = self._fitted().scorer_, photos.listed(images)
        bar = tqdm(total=len(sources), desc="photographs", disable=None, leave=False)
        read = self._read(names, sources, strict, skipped)
        while batch := list(islice(read, max(1, scorer.BATCH // self.scorer_.tiles**2))):
            score, heat = module(torch.stack([image for *_, image in batch]).to(module.offset.device))
            bar.update(len(batch))
            for (name, size, _), s, h in zip(batch, score.tolist(), heat.float().cpu().numpy(), strict=True):
                yield name, size, s, h
        bar.close()

    def scored(self, images: photos.Photos, strict: bool = False) -> tuple[list[tuple], list[str]]:
        """Name, size, score and map (rows, columns) float32 at the network's places of each photograph; and the names
        of those left out. `table` and maps come from it, at the cost of one."""
        skipped: list[str] = []
        return list(self._scored(images, strict, skipped)), skipped

    def table(self, scored: Sequence[tuple], skipped: list[str]) -> pd.DataFrame:
        """The table of `score` from what `scored` gives."""
        good, threshold, rows = self.good_scores_, self.threshold(), []
        for name, (width, height), score, heat in scored:
            p_value = (1 + len(good) - np.searchsorted(good, score)) / (1 + len(good))
            verdict = "defect" if score > threshold else "good"
            rows.append({"image": name, "score": score, "p_value": p_value, "verdict": verdict})
            if heat.size > 1:
                y, x = np.unravel_index(heat.argmax(), heat.shape)
                rows[-1]["x"] = int((x + 0.5) * width / heat.shape[1])
                rows[-1]["y"] = int((y + 0.5) * height / heat.shape[0])
        table = pd.DataFrame(rows, columns=["image", "score", "p_value", "verdict", "x", "y"])
        if len(table) >= 5 and table["p_value"].quantile(0.75) <= _DRIFT:
            told = "most of the photographs look unlike the good ones: has the camera or the light changed?"
            log.warning("%s (median p-value %.3f)", told, table["p_value"].median())
        table = table.sort_values("score", ascending=False, kind="stable", ignore_index=True)
        table.attrs["skipped"] = skipped
        return table


def _file(path: str | Path) -> Path:
    """The path of a detector's file, which may not be there yet. DataError for a folder."""
    path = Path(path).expanduser()
    if path.is_dir():
        raise DataError(f"{photos.shown(path)}: is a folder; name a file")
    return path


def _check_rate(name: str, rate: float) -> None:
    if not isinstance(rate, Real) or not (rate == 0 or 1e-9 <= rate < 1):
        raise ValueError(f"{name}: must be a share from 0 to below 1, got {rate!r}")
