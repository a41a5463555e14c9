"""What a run leaves behind: arrays and weights that carry a fingerprint; scores, history and metrics of all
its seeds. Each file is replaced as a whole."""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
from sklearn.metrics import roc_auc_score
from torch import nn

from cplib import data, gde
from cplib.config import Config
from cplib.study import ExperimentError

log = logging.getLogger(__name__)


def fingerprint(parts: dict[str, Any], modules: Iterable[ModuleType]) -> str:
    """SHA-256 of parameters and of the sources of modules, comments aside."""
    parts = {**parts, "sources": [_source_digest(Path(m.__file__)) for m in modules]}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _source_digest(path: Path) -> str:
    """Digest of a module's code without comments, docstrings and layout."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            node.body.pop(0)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def has_arrays(path: Path, key: str) -> bool:
    """Whether a file of arrays (.npz) is there and carries this fingerprint."""
    if not path.exists():
        return False
    try:
        with np.load(path) as file:
            return str(file["fingerprint"]) == key
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        log.warning("%s: damaged, made anew (%s)", path, error)
        return False


def has_weights(path: Path, key: str) -> bool:
    """Whether a file of weights (.safetensors) is there and carries this fingerprint."""
    if not path.exists():
        return False
    try:
        with safetensors.safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("fingerprint") == key
    except safetensors.SafetensorError as error:
        log.warning("%s: damaged, made anew (%s)", path, error)
        return False


def save_weights(path: Path, net: nn.Module, key: str, **metadata: str) -> None:
    weights = {k: v.cpu().contiguous() for k, v in net.state_dict().items()}
    partial = path.with_name(path.name + ".partial")
    safetensors.torch.save_file(weights, partial, metadata={"fingerprint": key, **metadata})
    os.replace(partial, path)


def save_arrays(path: Path, key: str, **arrays: Any) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, fingerprint=key, **arrays)
    os.replace(partial, path)


def check_disk(folder: Path, needed: int) -> None:
    """Raise ExperimentError where fewer bytes than a seed needs are free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ExperimentError(f"{folder}: {free >> 20} MiB free on its disk, a seed needs {needed >> 20} MiB")


def read_notes(folder: Path) -> dict[int | str, dict[str, Any]]:
    """What metrics.json notes of each seed, by seed; by name where a seed has more than one training."""
    path = folder / "metrics.json"
    seeds = json.loads(path.read_text())["seeds"] if path.exists() else []
    return {entry["seed"]: entry for entry in seeds}


def add_note(folder: Path, seed: int | str, note: dict[str, Any]) -> None:
    notes = {**read_notes(folder), seed: {"seed": seed, **note}}
    replace_text(folder / "metrics.json", json.dumps({"seeds": list(notes.values())}, indent=1))


def write_results(
    folder: Path, arrays: Path, config: Config, method: str, images: data.Category, n_seeds: int
) -> None:
    """Scores, history and metrics of all seeds, from the arrays; each file replaced as a whole."""
    scores, histories, densities, metrics, notes = [], [], [], [], read_notes(folder)
    for seed in range(n_seeds):
        with np.load(arrays / f"seed{seed}.npz") as file:
            normal, test = file["train"], file["test"]
            key, history = str(file["fingerprint"]), json.loads(str(file["history"]))
        table = score_table(images)
        table.insert(0, "seed", seed)
        auc = {}
        for name in config.gde.densities:
            density = gde.density(name).fit(normal)
            on_test = density.score_samples(test) if len(test) else np.empty(0)
            table[name] = np.concatenate([density.score_samples(normal), on_test])
            if images.labels.any() and not images.labels.all():
                auc[name] = round(float(roc_auc_score(images.labels, on_test)), 6)
            held_out = gde.held_out_log_density(name, normal) if len(normal) >= 4 else np.nan
            densities.append((seed, name, auc.get(name, np.nan), held_out))
        scores.append(table)
        rows = pd.DataFrame(history, columns=["update", "learning_rate", "loss", "accuracy"])
        rows.insert(0, "seed", seed)
        histories.append(rows)
        metrics.append({**notes.get(seed, {}), "seed": seed, "auc": auc, "fingerprint": key})
    summary = {
        "method": method,
        "category": images.name,
        "updates": config.train.updates,
        "sources": config.train.sources,
        "image_size": config.data.image_size,
        "source_size": list(images.source_size),
        "train_images": len(images.train),
        "test_images": len(images.test),
        "data": images.digest,
        "seeds": metrics,
    }
    # Log-densities are large and differ little: with 6 digits, ties moved the AUC by up to 0.03. More
    # than 9 depend on the number of threads
    replace_text(folder / "scores.csv", pd.concat(scores).to_csv(index=False, float_format="%.9g"))
    replace_text(folder / "history.csv", pd.concat(histories).to_csv(index=False, float_format="%.6g"))
    columns = ["seed", "density", "auc", "held_out_log_density"]
    table = pd.DataFrame(densities, columns=columns)
    replace_text(folder / "densities.csv", table.to_csv(index=False, float_format="%.6g"))
    replace_text(folder / "metrics.json", json.dumps(summary, indent=1) + "\n")


def score_table(images: data.Category) -> pd.DataFrame:
    """Columns split, image, defect and label: a row per training image, then per test image."""
    normal, test = len(images.train), len(images.test)
    return pd.DataFrame(
        {
            "split": ["train"] * normal + ["test"] * test,
            "image": [*images.train_files, *images.test_files],
            "defect": ["good"] * normal + list(images.defects),
            "label": [0] * normal + images.labels.int().tolist(),
        }
    )


def replace_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)
