"""What a run of localisation leaves behind: scores of images, metrics of maps, from the maps of its seeds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from cplib import data, pixels
from cplib.config import Config
from cplib.record import replace_text

METHOD = "cutpaste_3way"  # the task of the patch model, and the image-level model that GradCAM explains
ENCODERS = ("trained", "untrained")  # the latter is the control
HISTORY = ["update", "learning_rate", "loss", "accuracy"]


def maps_path(arrays: Path, size: int, seed: int, encoder: str) -> Path:
    """File of the maps of patches, by density (m, rows, columns) float32."""
    return arrays / f"patch{size}-seed{seed}-{encoder}.npz"


def cam_path(arrays: Path, seed: int) -> Path:
    """File of GradCAM of an image-level model, by target (m, rows, columns) float32, before the ReLU."""
    return arrays / f"gradcam-seed{seed}.npz"


def read_cam(path: Path, config: Config) -> np.ndarray:
    """GradCAM (m, rows, columns) of `localize.cam_target`, with the ReLU if `localize.cam_relu` says so."""
    with np.load(path) as file:
        cam = file[config.localize.cam_target]
    return cam.clip(0) if config.localize.cam_relu else cam


def read_notes(folder: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """What metrics.json notes, by patch size and seed."""
    path = folder / "metrics.json"
    seeds = json.loads(path.read_text())["seeds"] if path.exists() else []
    return {(entry["patch_size"], entry["seed"]): entry for entry in seeds}


def add_note(folder: Path, size: int, seed: int, note: dict[str, Any]) -> None:
    """Note what a seed took; the seconds of steps that were done before are kept."""
    notes = read_notes(folder)
    old = notes.get((size, seed), {}).get("seconds", {})
    seconds = {**old, **note["seconds"]}
    notes[size, seed] = {"patch_size": size, "seed": seed, **note, "seconds": seconds}
    replace_text(folder / "metrics.json", json.dumps({"seeds": list(notes.values())}, indent=1))


def write_results(
    folder: Path,
    arrays: Path,
    config: Config,
    images: data.Category,
    cams: Iterable[tuple[int, np.ndarray]],
) -> None:
    """Scores, metrics and history of all patch sizes and seeds, from the arrays.

    Args:
        cams: seed and GradCAM (m, rows, columns) of image-level models.
    """
    local, masks = config.localize, images.masks.numpy()
    scores, metrics, histories, notes = [], [], [], read_notes(folder)
    for size in local.patch_sizes:
        for seed in range(local.n_seeds(size)):
            with np.load(maps_path(arrays, size, seed, "trained")) as file:
                history = pd.DataFrame(json.loads(str(file["history"])), columns=HISTORY)
                known = {"patch_size": size, "seed": seed, **notes.get((size, seed), {})}
                keys = {"fingerprint": str(file["weights"]), "maps": str(file["fingerprint"])}
                notes[size, seed] = {**known, **keys}
            history.insert(0, "seed", seed)
            history.insert(0, "patch_size", size)
            histories.append(history)
            for encoder in ENCODERS:
                table = pd.DataFrame(
                    {
                        "patch_size": size,
                        "seed": seed,
                        "encoder": encoder,
                        "image": images.test_files,
                        "defect": images.defects,
                        "label": images.labels.int().tolist(),
                    }
                )
                with np.load(maps_path(arrays, size, seed, encoder)) as file:
                    maps = {name: file[name] for name in local.densities}
                for name, found in maps.items():
                    table[name] = image_scores(found)
                    spread = pixels.to_pixels(found, size, local.stride, local.sigma, local.border)
                    row = (size, encoder, name, seed, *_measured(spread, masks))
                    metrics.append((*row, _image_auc(images, table[name])))
                scores.append(table)
    for seed, cam in cams:
        spread = pixels.resized(cam, local.image_size)
        metrics.append((0, "gradcam", config.localize.cam_target, seed, *_measured(spread, masks), np.nan))
    columns = ["patch_size", "encoder", "density", "seed", "pixel_auc", "aupro", "image_auc"]
    summary = {
        "category": images.name,
        "image_size": local.image_size,
        "stride": local.stride,
        "updates": local.updates,
        "sources": local.sources,
        "stem": local.stem,
        "train_images": len(images.train),
        "test_images": len(images.test),
        "data": images.digest,
        "seeds": list(notes.values()),
    }
    for name, table in {
        "scores": pd.concat(scores),
        "metrics": pd.DataFrame(metrics, columns=columns),
        "history": pd.concat(histories),
    }.items():
        replace_text(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.6g"))
    replace_text(folder / "metrics.json", json.dumps(summary, indent=1) + "\n")


def image_scores(maps: np.ndarray) -> np.ndarray:
    """Score (m,) of images: the highest of their patches (figure 1)."""
    return maps.reshape(len(maps), -1).max(1)


def headline(folder: Path, density: str) -> str:
    """One line: pixel AUC of each patch size, trained and untrained."""
    table = pd.read_csv(folder / "metrics.csv")
    means = table[table["density"] == density].groupby(["patch_size", "encoder"])["pixel_auc"].mean()
    return ", ".join(f"{size} px {encoder} {100 * auc:.1f}" for (size, encoder), auc in means.items()) + (
        f" pixel AUC ({density})"
    )


def _measured(maps: np.ndarray, masks: np.ndarray) -> tuple[float, float]:
    return pixels.auroc(maps, masks), pixels.aupro(maps, masks)


def _image_auc(images: data.Category, scores: pd.Series) -> float:
    both = images.labels.any() and not images.labels.all()
    return float(roc_auc_score(images.labels, scores)) if both else float("nan")
