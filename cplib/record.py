"""What a run leaves behind: arrays and weights that carry a fingerprint; scores, history and metrics of all
its seeds. Each file is replaced as a whole."""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import os
import shutil
import sys
import zipfile
from collections.abc import Collection, Iterable, Sequence
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

# Tables of a run, and their significant digits. Log-densities are large and differ little: with 6 digits,
# ties moved the AUC by up to 0.03. More than 9 depend on the number of threads
_TABLES = {"scores": 9, "history": 6, "densities": 6}


def fingerprint(parts: dict[str, Any], modules: Iterable[ModuleType]) -> str:
    """SHA-256 of parameters and of the sources of modules, comments aside."""
    parts = {**parts, "sources": [source_digest(Path(m.__file__)) for m in modules]}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def source_digest(path: Path) -> str:
    """Digest of a module's code without comments, docstrings and layout, whatever the version of Python."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            node.body.pop(0)
    # as Python 3.11 writes it: 3.12 adds parameters of types to every definition, 3.13 leaves out empty lists
    text = ast.dump(tree, **({"show_empty": True} if sys.version_info >= (3, 13) else {}))
    return hashlib.sha256(text.replace(", type_params=[]", "").encode()).hexdigest()


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
    # not safetensors' own save_file: it writes to a random name first, which a killed run leaves behind
    replace_bytes(path, safetensors.torch.save(weights, metadata={"fingerprint": key, **metadata}))


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


def copy_note(source: Path, target: Path, seed: int) -> None:
    """Note of a seed what another run notes of how it was made, not of its results, which are made anew."""
    note = read_notes(source).get(seed, {})
    add_note(target, seed, {k: v for k, v in note.items() if k not in ("auc", "fingerprint", "results")})


def results_key(embeddings: str, config: Config) -> str:
    """Fingerprint of all that decides a seed's scores, given that of its embeddings."""
    return fingerprint({"embeddings": embeddings, "densities": config.gde.densities}, (gde,))


def seeds_with_results(folder: Path, keys: Sequence[str], config: Config) -> set[int]:
    """Seeds whose results are there as they would be made now, whatever became of their arrays.

    Args:
        keys: fingerprints of the embeddings of seeds 0, 1, ...
    """
    if not all((folder / f"{name}.csv").exists() for name in _TABLES):
        return set()
    notes, there = read_notes(folder), set(pd.read_csv(folder / "scores.csv", usecols=["seed"])["seed"])
    wanted = {seed: results_key(key, config) for seed, key in enumerate(keys)}
    return {s for s, key in wanted.items() if s in there and notes.get(s, {}).get("results") == key}


def write_results(
    folder: Path,
    arrays: Path,
    config: Config,
    method: str,
    images: data.Category,
    n_seeds: int,
    kept: Collection[int] = (),
) -> None:
    """Scores, history and metrics of all seeds, from the arrays; each file replaced as a whole.

    Args:
        kept: seeds whose rows are taken from the present files, as `seeds_with_results` gives them.
    """
    old = {name: pd.read_csv(folder / f"{name}.csv") for name in _TABLES} if kept else {}
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in _TABLES}
    metrics, notes = [], read_notes(folder)
    for seed in range(n_seeds):
        if seed in kept:
            metrics.append(notes[seed])
            for name, table in old.items():
                parts[name].append(table[table["seed"] == seed])
            continue
        with np.load(arrays / f"seed{seed}.npz") as file:
            normal, test = file["train"], file["test"]
            key, history = str(file["fingerprint"]), json.loads(str(file["history"]))
        scores, auc, densities = score_table(images), {}, []
        for name in config.gde.densities:
            density = gde.density(name).fit(normal)
            on_test = density.score_samples(test) if len(test) else np.empty(0)
            scores[name] = np.concatenate([density.score_samples(normal), on_test])
            if images.labels.any() and not images.labels.all():
                auc[name] = round(float(roc_auc_score(images.labels, on_test)), 6)
            held_out = gde.held_out_log_density(name, normal) if len(normal) >= 4 else np.nan
            densities.append((name, auc.get(name, np.nan), held_out))
        tables = {
            "scores": scores,
            "history": pd.DataFrame(history, columns=["update", "learning_rate", "loss", "accuracy"]),
            "densities": pd.DataFrame(densities, columns=["density", "auc", "held_out_log_density"]),
        }
        for name, table in tables.items():
            table.insert(0, "seed", seed)
            parts[name].append(table)
        made = {"auc": auc, "fingerprint": key, "results": results_key(key, config)}
        metrics.append({**notes.get(seed, {}), "seed": seed, **made})
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
    for name, digits in _TABLES.items():
        text = pd.concat(parts[name]).to_csv(index=False, float_format=f"%.{digits}g")
        replace_text(folder / f"{name}.csv", text)
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
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file as a whole: one of this name is always complete, whenever the process ends."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
