"""One run of localisation: the patch model on a category, all seeds, trained and untrained, and GradCAM.

python -m cplib.patch_experiment --params params/lite.yaml --category bottle

Its results go to the folder of the study, as cplib.study describes. It can be stopped at any moment and goes
on from there; what is finished is not made again while parameters, images and sources are the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import logging
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn

from cplib import (
    augment,
    data,
    experiment,
    gde,
    localize,
    machine,
    model,
    patch_record,
    pixels,
    record,
    train,
)
from cplib import config as configuration
from cplib.config import Config
from cplib.patch_record import ENCODERS, METHOD, maps_path
from cplib.patches import REFERENCE_SIZE
from cplib.study import study_folder

log = logging.getLogger(__name__)

_BYTES_PER_SEED = 200 * 2**20  # weights, a checkpoint and maps, generously


def run(config: Config, category: str, root: Path | None = None, device: torch.device | None = None) -> Path:
    """Train the patch model, score all patches and compare with the masks; all patch sizes and seeds.

    Args:
        config: its section `localize` says what is done.
        category: a folder below `config.data.root` that has masks.
        root: folder for results; by default that of the study.
        device: to train on; by default a GPU if there is one.

    Returns:
        The folder of scores.csv, metrics.csv, history.csv and metrics.json.

    Raises:
        ConfigError, DataError, DensityError, ExperimentError, TrainingError: bad input, before or during
            the run.
    """
    root, device = root or study_folder(config), device or train.default_device()
    images = load_images(config, category)
    folder, arrays = root / "patches" / category, root / "arrays" / "patches" / category
    folder.mkdir(parents=True, exist_ok=True)
    arrays.mkdir(parents=True, exist_ok=True)
    local, training = config.localize, training_of(config)
    normal, test = images.train.to(device), images.test.to(device)
    # What would stop the run after hours shows at once
    for size in local.patch_sizes:
        augment_of(config, size)
        if (deviation := local.sigma or pixels.kernel_deviation(size)) < local.stride / 2:
            text = "localize.sigma: %.2g px for %d px patches at every %d px: their maps are dots"
            log.warning(text, deviation, size, local.stride)
        # oneDNN's gradients of a convolution with stride 2 are garbage there (torch 2.14)
        if size <= 4 * model.STEMS[local.stem]:
            text = (
                "localize.stem: %s shrinks %d px patches to a pixel before the last stage: in bfloat16 on a "
            )
            log.warning(text + "CPU the loss may not stay finite; take 3x3_stride2", local.stem, size)
    is_gaussian = isinstance(gde.density(config.gde.density), gde.GaussianDensity)
    if importlib.util.find_spec("captum") and local.cam_target == "density" and not is_gaussian:
        raise configuration.ConfigError(
            f"gde.density: {config.gde.density} has no gradient for GradCAM; take ledoit_wolf or ridge, or "
            "localize.cam_target: logit"
        )
    for size in local.patch_sizes:
        for seed in range(local.n_seeds(size)):
            key = weights_key(config, images.digest, size, seed)
            keys = {e: maps_key(key, config, e) for e in ENCODERS}
            paths = {e: maps_path(arrays, size, seed, e) for e in ENCODERS}
            wanted = [e for e in ENCODERS if not record.has_arrays(paths[e], keys[e])]
            if not wanted:
                continue
            record.check_disk(arrays, _BYTES_PER_SEED)
            note = patch_record.read_notes(folder).get((size, seed), {})
            if note.get("maps", keys["trained"]) != keys["trained"]:
                for stale in ("scores.csv", "metrics.csv"):  # of other parameters: none of what is made now
                    (folder / stale).unlink(missing_ok=True)
            started, seconds = time.perf_counter(), {}
            trained, history, is_new = trained_network(config, images, size, seed, root, device)
            if is_new:
                seconds["train"] = time.perf_counter() - started
            for encoder in wanted:
                net = trained
                if encoder == "untrained":
                    net = experiment.build_network(training, METHOD, seed, device)
                started = time.perf_counter()
                maps = localize.score_maps(
                    net, normal, test, size, local.stride, training, sorted(local.densities)
                )
                record.save_arrays(paths[encoder], keys[encoder], **maps, history=history, weights=key)
                seconds[encoder] = time.perf_counter() - started
            rounded = {k: round(v, 1) for k, v in seconds.items()}
            patch_record.add_note(folder, size, seed, {"seconds": rounded, **machine.facts(device)})
    cams = _gradcam(config, images, root, arrays, device)
    patch_record.write_results(folder, arrays, config, images, cams)
    return folder


def trained_network(
    config: Config,
    images: data.Category,
    size: int,
    seed: int,
    root: Path | None = None,
    device: torch.device | None = None,
) -> tuple[nn.Module, str, bool]:
    """The patch model of a seed; it is trained first where it is not there yet.

    Args:
        images: of size `config.localize.image_size`; masks and test images are not needed.
        size: of the patches, in pixels.
        root: folder for results; by default that of the study.
        device: by default a GPU if there is one.

    Returns:
        The network in evaluation mode, the history of its training as JSON, and whether it was trained now.

    Raises:
        ConfigError, ExperimentError, TrainingError: as `run`.
    """
    root, device = root or study_folder(config), device or train.default_device()
    arrays = root / "arrays" / "patches" / images.name
    path, key = arrays / f"patch{size}-seed{seed}.safetensors", weights_key(config, images.digest, size, seed)
    is_new = not record.has_weights(path, key)
    if is_new:
        arrays.mkdir(parents=True, exist_ok=True)
        record.check_disk(arrays, _BYTES_PER_SEED)
        n = config.localize.n_seeds(size)
        log.info("%s, %d px patches, seed %d of %d, %s", images.name, size, seed, n, device)
        _train(config, images.train.to(device), path, key, size, seed)
    net = experiment.build_network(training_of(config), METHOD, seed, device)
    net.load_state_dict(safetensors.torch.load_file(path))
    with safetensors.safe_open(path, "pt") as file:
        return net, file.metadata()["history"], is_new


def load_images(config: Config, category: str) -> data.Category:
    """Images of a category at the size of `config.localize`.

    Raises:
        DataError: no such category, or one that localisation cannot be measured on.
    """
    root, size = configuration.data_root(config), config.localize.image_size
    images = data.load_category(root, category, size, config.data.cache)
    if images.masks is None or not images.masks.any():
        raise data.DataError(
            f"{root / category / 'ground_truth'}: no masks; leave {category} out of localize.categories "
            "(maps need none: python -m cplib.detect --method patch_model)"
        )
    if len(images.train) < 2:
        raise data.DataError(
            f"{category}: {len(images.train)} normal training image; a density needs at least 2"
        )
    return images


def training_of(config: Config) -> configuration.TrainConfig:
    """Parameters of training: those of `train`, but for what `localize` states itself."""
    own = {k: getattr(config.localize, k) for k in ("updates", "sources", "learning_rate", "stem")}
    return replace(config.train, **own)


def augment_of(config: Config, size: int) -> configuration.AugmentConfig:
    """Parameters of augmentation of a patch model: scars are no longer than fits into the crop at any angle.

    The paper's fit as they are, into its smallest crops too.

    Raises:
        ConfigError: scars as wide as the crop.
    """
    # a pixel less, as lengths are rounded to pixels
    crop, widest = (size - 1) * REFERENCE_SIZE / config.localize.image_size, config.augment.scar_width[1]
    if widest >= crop:
        raise configuration.ConfigError(
            f"augment.scar_width: must be below {crop:g} for the {size} px patches of "
            f"localize.patch_sizes, got {widest:g}"
        )
    longest = math.sqrt(crop**2 - widest**2)
    low, high = config.augment.scar_length
    return replace(config.augment, scar_length=(min(low, longest), min(high, longest)))


def weights_key(config: Config, digest: str, size: int, seed: int) -> str:
    """Fingerprint of all that decides the weights of a patch model."""
    parts = {
        "task": augment.TASKS[METHOD],
        "augment": dataclasses.asdict(augment_of(config, size)),
        "train": dataclasses.asdict(training_of(config)),
        "data": digest,
        "crop": size,
        "seed": seed,
    }
    return record.fingerprint(parts, experiment.TRAINING_MODULES)


def maps_key(weights: str, config: Config, encoder: str) -> str:
    """Fingerprint of all that decides the maps of an encoder."""
    local = config.localize
    parts = {
        "weights": weights,
        "encoder": encoder,
        "stride": local.stride,
        "densities": sorted(local.densities),
    }
    return record.fingerprint(parts, (localize,))


def _train(config: Config, normal: torch.Tensor, path: Path, key: str, size: int, seed: int) -> None:
    """Train the patch model of a seed and keep its weights, with the history of training."""
    checkpoint = path.with_name(f"patch{size}-seed{seed}-{key[:12]}.checkpoint")
    task, training = augment.TASKS[METHOD], training_of(config)
    changes = augment_of(config, size)
    net, history = train.fit(normal, task, changes, training, seed, checkpoint, key, crop=size)
    record.save_weights(path, net, key, history=json.dumps(history))
    for old in path.parent.glob(f"patch{size}-seed{seed}-*.checkpoint"):
        old.unlink()


def _gradcam(
    config: Config, images: data.Category, root: Path, arrays: Path, device: torch.device
) -> list[tuple[int, np.ndarray]]:
    """Seed and GradCAM (m, rows, columns) of as many image-level 3-way models as patch models; these
    are trained if need be. Files hold GradCAM of every target, so that tables can compare them."""
    if importlib.util.find_spec("captum") is None:
        log.warning("GradCAM left out: it needs captum (pip install captum); run again to add it")
        return []
    from cplib import gradcam

    image_level = data.load_category(
        configuration.data_root(config), images.name, config.data.image_size, config.data.cache
    )
    folder, found = root / "arrays" / METHOD / images.name, []
    keys = [
        experiment.fingerprint(config, METHOD, image_level.digest, seed)
        for seed in range(min(config.n_seeds(METHOD, images.name), config.localize.seeds))
    ]
    if not all(record.has_weights(folder / f"seed{s}.safetensors", k) for s, k in enumerate(keys)):
        experiment.run(config, METHOD, images.name, root, device)
    for seed, weights in enumerate(keys):
        path = patch_record.cam_path(arrays, seed)
        key = record.fingerprint({"weights": weights, "density": config.gde.density}, (gradcam, gde))
        if not record.has_arrays(path, key):
            net = experiment.load_network(config, METHOD, image_level, seed, root, device)
            scores = {"logit": gradcam.logit_score}
            fitted = gde.density(config.gde.density)
            if isinstance(fitted, gde.GaussianDensity):
                in_float32 = replace(config.train, precision="float32")  # as gradients are taken
                normal = train.embed(net, image_level.train.to(device), in_float32)
                scores["density"] = gradcam.density_score(fitted.fit(normal.numpy()), device)
            test = image_level.test.to(device)
            record.save_arrays(path, key, **{k: gradcam.maps(net, test, v) for k, v in scores.items()})
        found.append((seed, patch_record.read_cam(path, config)))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = configuration.command_line("cplib.patch_experiment", __doc__)
    parser.add_argument("--category", action="append", help="default: all of localize.categories")
    return configuration.run_command(parser, arguments, _command, experiment.ERRORS)


def _command(options: argparse.Namespace, config: Config) -> None:
    categories = options.category or config.localize.categories
    if not categories:
        raise configuration.ConfigError("localize.categories: none given")
    for category in categories:
        load_images(config, category)  # bad input shows before hours of training
    for category in categories:
        folder = run(config, category)
        shown = patch_record.headline(folder, config.localize.density(category))
        log.info("%s: %s", folder, shown)


if __name__ == "__main__":
    sys.exit(main())
