"""Transfer from ImageNet on a category (section 4.3): pretrained and fine-tuned, all seeds, resumable.

python -m cplib.transfer --category pill
python -m cplib.transfer --category pill --curve      only the curve over lengths of fine-tuning
python -m cplib.transfer --fetch                      download the weights

Its results go to results/<study>/transfer/<category>/, as cplib.transfer_record describes; embeddings of all
levels to results/<study>/arrays/transfer/<category>/.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from cplib import (
    augment,
    backbone,
    color,
    data,
    finetune,
    gde,
    machine,
    patches,
    record,
    train,
    transfer_record,
)
from cplib import config as configuration
from cplib.backbone import BackboneError, WeightsMissingError
from cplib.config import Config, ConfigError
from cplib.study import ExperimentError, study_folder, transfer_folder

log = logging.getLogger(__name__)

ERRORS = (ConfigError, BackboneError, data.DataError, gde.DensityError, ExperimentError, train.TrainingError)
_BYTES_PER_SEED = 400 * 2**20  # EfficientNet-B4: a checkpoint with momentum, the head, the embeddings


@dataclass(frozen=True)
class _Run:
    """What all trainings of one category share."""

    config: Config
    images: data.Category
    weights: str  # digest
    folder: Path
    arrays: Path
    device: torch.device


def run(config: Config, category: str, device: torch.device | None = None, curve_only: bool = False) -> Path:
    """Embed one category with the pretrained backbone and with each fine-tuned one, and score it.

    What is finished is not done again while parameters, images, weights and sources are the same. The
    first phase of a seed is shared by all lengths of the second.

    Args:
        category: a folder below `config.data.root`.
        device: to train on; by default a GPU if there is one.
        curve_only: leave out the seeds that only the table needs, if they are not there.

    Returns:
        The folder of the results.

    Raises:
        WeightsMissingError: before any image is read.
        ConfigError, BackboneError, DataError, DensityError, ExperimentError, TrainingError: bad input,
            before or during the run.
    """
    transfer, device = config.transfer, device or train.default_device()
    for name in config.gde.densities:
        gde.density(name)
    net = backbone.build(transfer, 0, config.train.head_layers)
    unknown = sorted(set(transfer.levels) - _levels_of(net))
    if unknown:
        raise ConfigError(f"transfer.levels: {transfer.backbone} has no {unknown[0]}")
    root = configuration.data_root(config)
    images = data.load_category(root, category, transfer.image_size, config.data.cache)
    if len(images.train) < 2 or not len(images.test):
        raise data.DataError(f"{category}: needs 2 normal training images and a test image")
    folder = transfer_folder(config, category)
    arrays = study_folder(config) / "arrays" / "transfer" / category
    for path in (folder, arrays):
        path.mkdir(parents=True, exist_ok=True)
    this = _Run(config, images, backbone.digest(net), folder, arrays, device)
    if not _stands(this, "pretrained", _key(this)):
        started = time.perf_counter()
        net = net.eval().to(device)
        _save(this, net, "pretrained", _key(this), [], started)
    grid = [(n, seed) for n in transfer.curve if n for seed in range(transfer.curve_seeds)]
    if not curve_only:
        grid = [(transfer.updates, seed) for seed in range(transfer.seeds)] + grid
    for updates, seed in dict.fromkeys(grid):
        _finetune(this, updates, seed)
    _write(this)
    return folder


def _levels_of(net: backbone.TransferClassifier) -> set[str]:
    return {backbone.POOL, *(f"level{k + 1}" for k in range(len(net.backbone.blocks) + 1))}


def _key(this: _Run, seed: int | None = None, updates: int | None = None) -> str:
    """SHA-256 of all that decides pretrained embeddings (no seed), a head (no updates), or a fine-tuning."""
    modules = (augment, backbone, color, finetune, patches, train)
    head, full = finetune.phases(this.config, updates or 0)
    parts: dict[str, Any] = {
        "backbone": this.config.transfer.backbone,
        "weights": this.weights,
        "data": this.images.digest,
        "channels_last": this.config.train.channels_last,
    }
    if seed is not None:
        parts |= {"seed": seed, "augment": dataclasses.asdict(this.config.augment)}
        parts |= {"head": dataclasses.asdict(head)}
    if updates is not None:
        parts |= {"all": dataclasses.asdict(full)}
    return record.fingerprint(parts, modules)


def _name(seed: int, updates: int) -> str:
    return f"seed{seed}-{updates}"


def _stands(this: _Run, name: str, key: str) -> bool:
    """Whether a training is finished; tables of one that was made in another way go."""
    path = this.arrays / f"{name}.npz"
    if record.has_arrays(path, key):
        return True
    if path.exists():
        for table in transfer_record.TABLES:
            (this.folder / table).unlink(missing_ok=True)
    return False


def _finetune(this: _Run, updates: int, seed: int) -> None:
    """Both phases of one seed, unless they are finished; the second goes on from where it was stopped."""
    name, key, config = _name(seed, updates), _key(this, seed, updates), this.config
    if _stands(this, name, key):
        return
    record.check_disk(this.arrays, _BYTES_PER_SEED)
    started = time.perf_counter()
    log.info("%s, seed %d, %d updates, %s", this.images.name, seed, updates, this.device)
    net = backbone.build(config.transfer, seed, config.train.head_layers).to(this.device)
    normal = this.images.train.to(this.device)
    history = [{"phase": "head", **row} for row in _fit_head(this, net, normal, seed)]
    full = finetune.phases(config, updates)[1]
    checkpoint = this.arrays / f"{name}-{key[:12]}.checkpoint"
    rows = finetune.fit(
        net, normal, config.augment, full, seed, backbone=True, checkpoint=checkpoint, fingerprint=key
    )
    history += [{"phase": "all", **row} for row in rows]
    _save(this, net.eval(), name, key, history, started)
    for old in this.arrays.glob(f"{name}-*.checkpoint"):
        old.unlink()


def _fit_head(
    this: _Run, net: backbone.TransferClassifier, normal: torch.Tensor, seed: int
) -> list[dict[str, float]]:
    """First phase, or the head that it left: the backbone is not changed by it."""
    key = _key(this, seed)
    path = this.arrays / f"seed{seed}-head.safetensors"
    if record.has_weights(path, key):
        net.head.load_state_dict(safetensors.torch.load_file(path, str(this.device)))
        with safetensors.safe_open(path, "pt") as file:
            return json.loads(file.metadata()["history"])
    head = finetune.phases(this.config, 0)[0]
    checkpoint = path.with_name(f"seed{seed}-head-{key[:12]}.checkpoint")
    history = finetune.fit(
        net, normal, this.config.augment, head, seed, backbone=False, checkpoint=checkpoint, fingerprint=key
    )
    record.save_weights(path, net.head, key, history=json.dumps(history))
    for old in this.arrays.glob(f"seed{seed}-head-*.checkpoint"):
        old.unlink()
    return history


def _save(
    this: _Run,
    net: backbone.TransferClassifier,
    name: str,
    key: str,
    history: list[dict[str, Any]],
    started: float,
) -> None:
    """Embed all images and write the arrays of one training; what is volatile goes to metrics.json."""
    embedded = {}
    for split, images in (("train", this.images.train), ("test", this.images.test)):
        found = finetune.embed_levels(net, images.to(this.device), this.config.train)
        for level, values in found.items():
            if not torch.isfinite(values.half()).all():
                raise train.TrainingError(f"{name}: {level} of {split} images is not finite in float16")
            embedded[f"{split}_{level}"] = values.numpy().astype(np.float16)
    note = {
        "seconds": round(time.perf_counter() - started, 1),
        "fingerprint": key,
        "timm": importlib.metadata.version("timm"),
        **machine.facts(this.device),
    }
    record.add_note(this.folder, name, note)
    record.save_arrays(this.arrays / f"{name}.npz", key, history=json.dumps(history), **embedded)


def _write(this: _Run) -> None:
    """Tables from the arrays of all trainings that are there and stand."""
    transfer = this.config.transfer
    wanted = [(transfer.updates, seed) for seed in range(transfer.seeds)]
    wanted += [(n, seed) for n in transfer.curve if n for seed in range(transfer.curve_seeds)]
    found = {(0, 0): this.arrays / "pretrained.npz"}
    for updates, seed in wanted:
        path = this.arrays / f"{_name(seed, updates)}.npz"
        if record.has_arrays(path, _key(this, seed, updates)):
            found[updates, seed] = path
    transfer_record.write_results(this.folder, this.config, this.images, found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = configuration.command_line("cplib.transfer", __doc__)
    parser.add_argument("--category", action="append", help="default: all of the grid")
    parser.add_argument("--curve", action="store_true", help="only the curve over lengths of fine-tuning")
    parser.add_argument("--fetch", action="store_true", help="download the weights and stop")
    return configuration.run_command(parser, arguments, _command, ERRORS)


def _command(options: argparse.Namespace, config: Config) -> None:
    if options.fetch:
        log.info("weights: %s", backbone.fetch(config.transfer) or "in the cache of timm")
        return
    categories = options.category or config.categories
    for category in categories:
        data.category_folder(configuration.data_root(config), category)
    try:
        for category in categories:
            _log_result(run(config, category, curve_only=options.curve), config)
    except WeightsMissingError as error:  # for all categories alike
        log.warning("%s: %s", ", ".join(categories), error)
        for category in categories:
            transfer_record.write_not_run(config, category)


def _log_result(folder: Path, config: Config) -> None:
    means = transfer_record.aucs(config, [folder.name]).groupby("method", sort=False)["auc"].mean()
    log.info("%s: AUC %s", folder, ", ".join(f"{method} {auc:.1f}" for method, auc in means.items()))


if __name__ == "__main__":
    sys.exit(main())
