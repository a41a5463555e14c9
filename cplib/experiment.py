"""One run: a method on a category, all seeds; training, embeddings, scores, resumable at any moment.

python -m cplib.experiment --method cutpaste_3way --category bottle

Its results go to the folder of the study, as cplib.study describes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from torch import nn

from cplib import augment, color, data, gde, machine, model, patches, record, report, train
from cplib import config as configuration
from cplib.config import Config, ConfigError, TrainConfig
from cplib.study import ExperimentError, curve_runs, study_folder

log = logging.getLogger(__name__)

# "untrained" is the control: the same network and density with random weights.
METHODS: dict[str, tuple[str, ...]] = {**augment.TASKS, "untrained": ("normal",)}
ERRORS = (ConfigError, data.DataError, gde.DensityError, ExperimentError, train.TrainingError)
TRAINING_MODULES = (color, patches, augment, model, train)  # whose sources decide what is trained
_BYTES_PER_SEED = 60 * 2**20  # weights, embeddings and a checkpoint's momentum, generously


def run(
    config: Config,
    method: str,
    category: str,
    root: Path | None = None,
    device: torch.device | None = None,
    keep_weights: bool = True,
    results_suffice: bool = False,
    reuse: Path | None = None,
    images: data.Category | None = None,
) -> Path:
    """Train, embed and score all seeds of one method on one category.

    A seed whose embeddings are there is not trained again, with or without its weights, while the parameters
    of training, the images and the sources of the modules that made it are the same. An interrupted seed goes
    on from its checkpoint.

    Args:
        method: a name in `METHODS`.
        category: a folder below `config.data.root`.
        root: folder for results; by default that of the study.
        device: to train on; by default a GPU if there is one.
        keep_weights: also save each seed's weights.
        results_suffice: do not train a seed again whose results are there but whose arrays are not, as in a
            fresh clone: git has the former alone.
        reuse: folder like `root` that may hold seeds trained in just this way; they are copied.
        images: in place of those of the folder, of size `config.data.image_size`.

    Returns:
        The folder of scores.csv, history.csv, densities.csv and metrics.json.

    Raises:
        ConfigError, DataError, DensityError, ExperimentError, TrainingError: bad input, before or during
            the run.
    """
    if method not in METHODS:
        raise ConfigError(f"method {method!r}: unknown; known: {', '.join(METHODS)}")
    for name in config.gde.densities:
        gde.density(name)
    root = root or study_folder(config)
    device = device or train.default_device()
    if images is None:
        root_of_data, size = configuration.data_root(config), config.data.image_size
        images = data.load_category(root_of_data, category, size, config.data.cache)
    if len(images.train) < 2:
        raise data.DataError(
            f"{category}: {len(images.train)} normal training image; a density needs at least 2"
        )
    config = settings(config, method)
    folder, arrays = (root / kind / method / category for kind in ("runs", "arrays"))
    folder.mkdir(parents=True, exist_ok=True)
    arrays.mkdir(parents=True, exist_ok=True)
    keys = [fingerprint(config, method, images.digest, s) for s in range(config.n_seeds(method, category))]
    kept = record.seeds_with_results(folder, keys, config) if results_suffice else set()
    for seed, key in enumerate(keys):
        path = arrays / f"seed{seed}.npz"
        if seed in kept or record.has_arrays(path, key):
            continue
        if record.read_notes(folder).get(seed, {}).get("fingerprint", key) != key:
            # the scores are of other parameters: none of what is made now
            (folder / "scores.csv").unlink(missing_ok=True)
        if reuse is not None:
            found = reuse / "arrays" / method / category / path.name
            if record.has_arrays(found, key):
                record.copy_note(reuse / "runs" / method / category, folder, seed)
                shutil.copyfile(found, path.with_suffix(".partial"))
                os.replace(path.with_suffix(".partial"), path)
                continue
        record.check_disk(arrays, _BYTES_PER_SEED)
        log.info("%s on %s, seed %d of %d, %s", method, category, seed, len(keys), device)
        note = _train_seed(config, method, images, seed, key, path, device, keep_weights)
        record.add_note(folder, seed, note)
        os.replace(path.with_suffix(".partial"), path)
        for old in arrays.glob(f"seed{seed}-*.checkpoint"):
            old.unlink()
    record.write_results(folder, arrays, config, method, images, len(keys), kept)
    return folder


def run_curve(config: Config) -> None:
    """Do all runs of `curve_runs`, resumable; those that the grid of the study holds are not repeated."""
    for point, method, category, root in curve_runs(config):
        options = {"keep_weights": False, "results_suffice": True, "reuse": study_folder(config)}
        run(point, method, category, root, **options)


def curve_points(config: Config) -> pd.DataFrame:
    """AUC of the runs of the curves that are there: method, category, image_size, updates, seed, auc (%).

    Every method starts from the untrained network, at 0 updates.
    """
    rows = []
    for point, method, category, root in curve_runs(config):
        path = root / "runs" / method / category / "scores.csv"
        if not path.exists():
            continue
        by_seed = report.aucs_of(pd.read_csv(path), config.gde.density)
        size, updates = point.data.image_size, point.train.updates
        methods = [method] if updates else config.curve.methods
        rows += [(m, category, size, updates, seed, auc) for m in methods for seed, auc in by_seed.items()]
    return pd.DataFrame(rows, columns=["method", "category", "image_size", "updates", "seed", "auc"])


def settings(config: Config, method: str) -> Config:
    """The configuration of a method: the control is not trained."""
    return replace(config, train=replace(config.train, updates=0)) if method == "untrained" else config


def fingerprint(config: Config, method: str, digest: str, seed: int) -> str:
    """SHA-256 of all that decides a seed's embeddings: parameters, images, sources (comments aside)."""
    config = settings(config, method)
    parts = {
        "task": METHODS[method],
        "augment": dataclasses.asdict(config.augment),
        "train": dataclasses.asdict(config.train),
        "data": digest,
        "seed": seed,
    }
    return record.fingerprint(parts, TRAINING_MODULES)


def build_network(
    settings: TrainConfig, method: str, seed: int, device: torch.device | None = None
) -> nn.Module:
    """The network of a method as training starts from it, in evaluation mode."""
    options = (settings.head_layers, settings.normalize, settings.stem)
    net = model.build(len(METHODS[method]), seed, *options).to(device)
    return (net.to(memory_format=torch.channels_last) if settings.channels_last else net).eval()


def load_network(
    config: Config,
    method: str,
    images: data.Category,
    seed: int,
    root: Path | None = None,
    device: torch.device | None = None,
) -> nn.Module:
    """The network that a finished run left, in evaluation mode.

    A density that scores what it embeds must be fitted on what the same network embeds on the same machine,
    not on stored embeddings: these may be of the other precision of `train.precision: auto`, which parts the
    same images nearly as well as a defect does.

    Args:
        images: that the run was trained on.
        root: folder of results; by default that of the study.

    Raises:
        ExperimentError: no such weights, or of other parameters, images or sources; says how to get them.
    """
    path = (root or study_folder(config)) / "arrays" / method / images.name / f"seed{seed}.safetensors"
    if not record.has_weights(path, fingerprint(config, method, images.digest, seed)):
        found = "made with other parameters, images or sources" if path.exists() else "not there"
        command = f"run python -m cplib.experiment --method {method} --category {images.name}"
        if (embeddings := path.with_suffix(".npz")).exists():  # from another machine, without weights
            command = f"remove {embeddings} and {command}"
        raise ExperimentError(f"{path}: {found}; {command}")
    net = build_network(config.train, method, seed, device)
    net.load_state_dict(safetensors.torch.load_file(path))
    return net


def proxy_accuracy(runs: Iterable[tuple[str, Path]]) -> pd.DataFrame:
    """How well methods solve their proxy tasks at the end of training, on augmented training images.

    Args:
        runs: method and folder of each run, the folder as `run` returns it; those not there are left out.

    Returns:
        Columns accuracy (mean over the last tenth of the updates, runs and seeds) and chance, in [0, 1]; a
        row per trained method.
    """
    ends: dict[str, list[pd.Series]] = {}
    for method, folder in runs:
        if (folder / "history.csv").exists():
            history = pd.read_csv(folder / "history.csv")
            end = history.loc[history["update"] > 0.9 * history["update"].max(), "accuracy"]
            ends.setdefault(method, []).append(end)
    rows = {m: (pd.concat(e).mean(), 1 / len(METHODS[m])) for m, e in ends.items() if sum(map(len, e))}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["accuracy", "chance"]).rename_axis("method")


def _train_seed(
    config: Config,
    method: str,
    images: data.Category,
    seed: int,
    key: str,
    path: Path,
    device: torch.device,
    keep_weights: bool,
) -> dict[str, Any]:
    """Train one seed and write its arrays, the embeddings under the name `path` with suffix .partial.

    Returns:
        What it takes to believe the numbers. Volatile facts, so they are kept out of the arrays.
    """
    started = time.perf_counter()
    # The name holds the fingerprint: what was begun with other parameters is no obstacle
    checkpoint = path.with_name(f"seed{seed}-{key[:12]}.checkpoint")
    normal = images.train.to(device)
    net, history = train.fit(normal, METHODS[method], config.augment, config.train, seed, checkpoint, key)
    embeddings = {
        "train": train.embed(net, normal, config.train),
        "test": train.embed(net, images.test.to(device), config.train),
    }
    for split, values in embeddings.items():
        if not torch.isfinite(values.half()).all():
            raise train.TrainingError(f"seed {seed}: embeddings of {split} images are not finite in float16")
    if keep_weights:
        record.save_weights(path.with_suffix(".safetensors"), net, key)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez_compressed(
            file,
            fingerprint=key,
            history=json.dumps(history),
            **{k: v.numpy().astype(np.float16) for k, v in embeddings.items()},
        )
    with train.autocast(device, config.train.precision):
        precision = "bfloat16" if torch.is_autocast_enabled(device.type) else "float32"
    seconds = round(time.perf_counter() - started, 1)
    return {"seconds": seconds, "precision": precision, **machine.facts(device)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = configuration.command_line("cplib.experiment", __doc__)
    parser.add_argument("--method", action="append", choices=METHODS, help="default: all of the grid")
    parser.add_argument("--category", action="append", help="default: all of the grid")
    parser.add_argument("--curve", action="store_true", help="the runs of AUC against updates")
    return configuration.run_command(parser, arguments, _command, ERRORS)


def _command(options: argparse.Namespace, config: Config) -> None:
    if options.curve:
        _check_grid(config, config.curve.methods, config.categories)
        run_curve(config)
        return
    methods, categories = options.method or config.methods, options.category or config.categories
    _check_grid(config, methods, categories)
    for category in categories:
        for method in methods:
            _log_result(run(config, method, category), config.gde.density)


def _check_grid(config: Config, methods: Sequence[str], categories: Sequence[str]) -> None:
    """Raise at once for what would stop the last run of a grid after hours."""
    for name, values in {"methods": methods, "categories": categories}.items():
        if not values:
            raise ConfigError(f"{name}: none given")
    if unknown := [m for m in methods if m not in METHODS]:
        raise ConfigError(f"method {unknown[0]!r}: unknown; known: {', '.join(METHODS)}")
    for category in categories:
        data.category_folder(configuration.data_root(config), category)


def _log_result(folder: Path, density: str) -> None:
    seeds = json.loads((folder / "metrics.json").read_text())["seeds"]
    aucs = [100 * s["auc"][density] for s in seeds if density in s["auc"]]
    shown = f"AUC {np.mean(aucs):.1f} (n = {len(aucs)}, {density})" if aucs else "no labelled test set"
    log.info("%s: %s", folder, shown)


if __name__ == "__main__":
    sys.exit(main())
