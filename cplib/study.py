"""A study's folder: where its runs are, which there are, and what they hold.

results/<study>/runs/<method>/<category>/scores.csv     seed, split, image, defect, label, score per density
results/<study>/runs/<method>/<category>/history.csv    seed, update, learning rate, loss, accuracy
results/<study>/runs/<method>/<category>/densities.csv  seed, density, AUC, held-out log-density
results/<study>/runs/<method>/<category>/auc.json       mean over seeds, for `dvc exp show`
results/<study>/runs/<method>/<category>/metrics.json   per seed: AUC, and what it takes to believe it
results/<study>/arrays/<method>/<category>/             per seed: embeddings (.npz), weights (.safetensors)
results/<study>/patches/<category>/metrics.csv          patch size, encoder, density, seed, pixel AUC, AUPRO
results/<study>/patches/<category>/scores.csv           image scores; also history.csv and metrics.json
results/<study>/arrays/patches/<category>/              per patch size and seed: weights, maps; GradCAM (.npz)
results/<study>/curve/<size>px-<updates>/               the same, for the curves of AUC against updates
results/<study>/transfer/<category>/                    transfer from ImageNet, as cplib.transfer describes
results/<study>/sensitivity/                            tables 7 and 8, as cplib.sensitivity describes
results/<study>/synthetic/scores.csv                    synthetic defects, as cplib.synthetic describes
results/<study>/one_class/<class>/                      section 5.4, as cplib.one_class describes
results/<study>/claims.csv                              the paper's claims, as cplib.claims describes
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from cplib.config import Config


class ExperimentError(RuntimeError):
    """A run cannot start or cannot be read; the message says why."""


def study_folder(config: Config) -> Path:
    """Folder of a study's results, relative to the repository."""
    return Path("results") / config.study


def curve_runs(config: Config) -> Iterator[tuple[Config, str, str, Path]]:
    """Runs of the curves of AUC against updates, cheapest first: configuration, method, category, root."""
    grid = [(int(s), u) for s, updates in config.curve.updates.items() for u in updates]
    for size, updates in sorted(grid, key=lambda point: point[0] ** 2 * point[1]):
        # without training the methods are one
        for method in config.curve.methods if updates else ["untrained"]:
            for category in config.categories:
                point = replace(
                    config,
                    data=replace(config.data, image_size=size),
                    train=replace(config.train, updates=updates),
                    # untrained networks cost seconds: as many seeds as the grid has
                    seeds=config.curve.seeds if updates else config.n_seeds(method, category),
                    seeds_of={},
                )
                root = study_folder(config) / "curve" / f"{size}px-{updates}"
                yield point, method, category, root


def transfer_folder(config: Config, category: str) -> Path:
    """Folder of the results of transfer on one category."""
    return study_folder(config) / "transfer" / category


def load_embeddings(root: Path, method: str, category: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (n, 512) of the training and (m, 512) of the test images, float16, of a finished seed."""
    path = root / "arrays" / method / category / f"seed{seed}.npz"
    if not path.exists():
        raise ExperimentError(f"{path}: not there; run the experiment first")
    with np.load(path) as file:
        return file["train"], file["test"]


def load_patch_metrics(config: Config, category: str) -> pd.DataFrame:
    """Metrics of one run of localisation: columns patch_size, encoder, density, seed, pixel_auc, aupro,
    image_auc, in [0, 1]. GradCAM has patch_size 0, encoder "gradcam" and its target as density.

    Raises:
        ExperimentError: the run is not there or lacks what `config.localize` lists; says how to get it.
    """
    path = study_folder(config) / "patches" / category / "metrics.csv"
    command = f"python -m cplib.patch_experiment --category {category}"
    if not path.exists():
        raise ExperimentError(f"{path}: not there; run {command}")
    table, local = pd.read_csv(path), config.localize
    have = set(table[["patch_size", "density", "seed"]].itertuples(index=False, name=None))
    grid = {(p, d, s) for p in local.patch_sizes for d in local.densities for s in range(local.n_seeds(p))}
    if missing := sorted(grid - have):
        raise ExperimentError(f"{path}: lacks {missing[0]} (patch size, density, seed); run {command}")
    return table[table["patch_size"].isin([0, *local.patch_sizes])]


def load_scores(config: Config, method: str, category: str) -> pd.DataFrame:
    """Anomaly scores of one run, a row per seed and image.

    Raises:
        ExperimentError: the run is not there or lacks seeds of the grid; says how to get it.
    """
    path = study_folder(config) / "runs" / method / category / "scores.csv"
    command = f"python -m cplib.experiment --method {method} --category {category}"
    if not path.exists():
        raise ExperimentError(f"{path}: not there; run {command}")
    scores = pd.read_csv(path)
    n_seeds = config.n_seeds(method, category)
    if scores["seed"].nunique() < n_seeds:
        raise ExperimentError(f"{path}: holds fewer than {n_seeds} seeds; run {command}")
    return scores[scores["seed"] < n_seeds]
