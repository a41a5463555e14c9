"""A training with what it leaves: images, network, embeddings, maps; each made when first asked for."""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, lru_cache
from hashlib import file_digest
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cplib import classes, data, model, train
from cplib.augment import views
from cplib.files import digest, load_arrays, save_arrays
from cplib.runs.plan import RESNET18, Run, Training
from cplib.sections import JITTERED

log = logging.getLogger(__name__)

History = list[dict[str, Any]]  # rows of phase, update, learning_rate, loss and accuracy
_SECOND_PHASE = 2**11  # the second phase draws from another stream of updates than the first


class Trained:
    """A training, its images, and the network and embeddings that it leaves, made when first asked for."""

    def __init__(self, training: Training, study: Path, cache: str, device: torch.device, keep: bool = False) -> None:
        self.training, self.study, self.cache, self.device = training, study, cache, device
        self.keep_weights = keep  # whether a network trained now is kept on disk

    @property
    def images(self) -> data.Category:
        """Images at the size of the training."""
        return self.images_at(self.training.image_size)

    def images_at(self, size: int) -> data.Category:
        """Images at some size in pixels. Raises DataError, also for fewer than 2 normal ones."""
        return _images(self.training.source, self.training.category, size, self.training.classes, self.cache)

    def normal(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Normal images to train on, and those that are held out, every fifth if `held_out` is set."""
        images = self.images.train
        is_out = (torch.arange(len(images)) % 5 == 4) & self.training.held_out
        return images[~is_out], images[is_out]

    @cached_property
    def data(self) -> str:
        """Digest of the images, and of the file of pretrained weights."""
        t = self.training
        path = model.weights_file(t.backbone, t.weights) if t.backbone != RESNET18 else None
        weights = _file_digest(path, path.stat().st_mtime_ns) if path else t.weights
        return "-".join(part for part in (self.images.digest[:16], weights) if part)

    @property
    def made_on(self) -> str:
        """What `train.made_on` tells of this machine for the training."""
        t = self.training
        return train.made_on(self.device, t.phases[-1] if t.phases else t.settings, bool(t.phases))

    @cached_property
    def key(self) -> str:
        return digest({"training": self.training.identity(), "data": self.data, "made_on": self.made_on})

    @cached_property
    def folder(self) -> Path:
        """Folder of the arrays. Its name has the digest of what made them: other parameters, another folder."""
        t = self.training
        return self.study / "arrays" / f"{t.task}-{t.category}-{t.seed}-{self.key[:8]}"

    def files(self, run: Run) -> list[Path]:
        """Arrays that figures and other parts read: maps, or weights where a part keeps them."""
        if run.scorer in ("maps", "gradcam"):
            return [self.maps_path(run)]
        return [self.folder / "weights.npz"] if run.part == "detection" and self.training.phases else []

    def maps_path(self, run: Run) -> Path:
        names = ("stride", "densities", "density")  # kernel and border come after
        return self.folder / f"{run.scorer}-{digest({k: run.scoring.get(k) for k in names})[:8]}.npz"

    @cached_property
    def _network(self) -> tuple[model.ProxyClassifier, History]:
        t, phases, is_pretrained = self.training, self.training.phases, self.training.backbone != RESNET18
        head = (len(t.views), t.seed, t.settings.head_layers)
        if is_pretrained:
            net = model.build_pretrained(t.backbone, t.weights, *head)
        else:
            net = model.build(*head, t.settings.normalize, t.settings.stem)
        net = net.to(self.device, memory_format=train.layout(t.settings)).eval()
        if not phases:
            return net, []
        path, checkpoint = self.folder / "weights.npz", self.folder / "checkpoint"
        if found := load_arrays(path):
            history = json.loads(str(found.pop("history")))
            net.load_state_dict({name: torch.from_numpy(value) for name, value in found.items()})
            return net, history
        history = []
        if len(phases) > 1:
            first = replace(t, phases=phases[:-1])
            net, history = Trained(first, self.study, self.cache, self.device, keep=True)._network
        net.learn(encoder=not is_pretrained or len(phases) > 1)
        seed, images = t.seed + _SECOND_PHASE * (len(phases) - 1), self.normal()[0].to(self.device)
        log.info("training %s on %s, seed %d, %s", t.task, self.images.name, seed, self.device)
        rows = train.fit(net, images, t.views, t.augment, phases[-1], seed, t.crop, checkpoint, self.key)
        phase = "head" if is_pretrained and len(phases) == 1 else "all"
        history = [*history, *({"phase": phase, **row} for row in rows)]
        if self.keep_weights:
            weights = {name: value.cpu().numpy() for name, value in net.state_dict().items()}
            save_arrays(path, history=json.dumps(history), **weights)
            checkpoint.unlink(missing_ok=True)
        return net, history

    @property
    def network(self) -> model.ProxyClassifier:
        """The trained network in evaluation mode; it is trained first where its weights are not here."""
        return self._network[0]

    def embed(self, images: torch.Tensor) -> np.ndarray:
        """Pooled embeddings (n, d) float32 of images (n, 3, size, size) uint8."""
        return train.embed(self.network, images.to(self.device), self.training.settings)[model.POOL].numpy()

    @cached_property
    def embeddings(self) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], History]:
        """By level, embeddings of the training and of the test images, float32; and the history of training."""
        path = self.folder / "embeddings.npz"
        if not (found := load_arrays(path)):
            net, history = self._network
            found = {"history": json.dumps(history)}
            for split in ("train", "test"):
                images = getattr(self.images, split).to(self.device)
                for level, values in train.embed(net, images, self.training.settings).items():
                    found[f"{split} {level}"] = values.numpy()
            save_arrays(path, **found)
            (self.folder / "checkpoint").unlink(missing_ok=True)
        levels = [name.removeprefix("train ") for name in found if name.startswith("train ")]
        return {k: (found[f"train {k}"], found[f"test {k}"]) for k in levels}, json.loads(str(found["history"]))

    def copies(self, density: str, scoring: Mapping[str, Any], level: str = model.POOL) -> list[np.ndarray]:
        """Embeddings of copies of the training images that a density is also fitted to: none, or one with `jitter`."""
        if not density.endswith(JITTERED):
            return []
        jitter, t = scoring["jitter"], self.training
        path = self.folder / f"jittered-{jitter:g}.npz"
        if not (found := load_arrays(path)):
            augment, generator = t.augment.replace(jitter=jitter, translate=0), torch.Generator().manual_seed(t.seed)
            x = (255 * views.augment_input(self.images.train, augment, generator)).round().to(torch.uint8)
            levels = train.embed(self.network, x.to(self.device), t.settings)
            save_arrays(path, **(found := {name: values.numpy() for name, values in levels.items()}))
        return [found[level]]

    def masks(self, run: Run) -> np.ndarray:
        """Masks (m, size, size) bool of the test images, at the size of the patch model; DataError without any."""
        images = self.images_at(run.scoring.get("image_size", run.training.image_size))
        if images.masks is None or not images.masks.any():
            advice = f"leave {images.name} out of localize.categories (python -m cplib detect maps without masks)"
            raise data.DataError(f"{data.find(run.training.source) / images.name / 'ground_truth'}: no masks; {advice}")
        return images.masks.numpy()


@lru_cache(maxsize=8)
def _images(source: str, category: str, size: int, limits: tuple[int, int] | None, cache: str) -> data.Category:
    if limits is None:
        images = data.load_category(data.find(source), category, size, cache)
    else:
        images = classes.load_classes(source, category, size, *limits)
    if len(images.train) < 2:
        raise data.DataError(f"{category}: {len(images.train)} normal training image; a density needs at least 2")
    return images


@lru_cache
def _file_digest(path: Path, mtime: int) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()[:8]
