"""Scorers: what a run measures of its network."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from cplib import data, gde, model, synthetic, train
from cplib.config import ConfigError
from cplib.localize import patch_maps, pixels
from cplib.runs import representation
from cplib.runs.plan import Run
from cplib.runs.store import Result
from cplib.runs.trained import Trained, load_arrays, save_arrays


def _score_density(run: Run, trained: Trained) -> Result:
    """AUC by each density on embeddings, at each level (section 2.3)."""
    images, (embeddings, history) = trained.images, trained.embeddings
    levels = run.scoring.get("levels", [model.POOL])
    if unknown := [k for k in levels if k not in embeddings]:
        raise ConfigError(f"transfer.levels: {run.training.backbone} has no {unknown[0]}")
    result = Result(_accuracy(history), history=history)
    for level in levels:
        normal, test = embeddings[level]
        table = _image_table(images, level)
        for name in run.scoring["densities"]:
            density = gde.density(name).fit(normal)
            on_train = density.score_samples(normal)
            table[name] = density.score_samples(test) if len(test) else np.empty(0)
            held_out = gde.held_out_log_density(name, normal) if len(normal) >= 4 else np.nan
            result.metrics += [
                (level, name, "auc", _auc(images, table[name])),
                (level, name, "held_out_log_density", held_out),
                # of the scores of training images, by which the ensemble standardises
                (level, name, "train_mean", float(on_train.mean())),
                (level, name, "train_std", float(on_train.std(ddof=1))),
            ]
        result.scores.append(table)
    return result


def _score_maps(run: Run, trained: Trained) -> Result:
    """Pixel AUC, AUPRO and image AUC of the maps of the patch model, by placement of densities."""
    masks, images, size = trained.masks(run), trained.images, run.training.crop
    found, scoring = patch_maps_of(run, trained), run.scoring
    history = json.loads(str(found["history"]))
    result, table = Result(_accuracy(history), history=history), _image_table(images, "")
    for name in scoring["densities"]:
        table[name] = patch_maps.image_scores(found[name])
        spread = pixels.to_pixels(found[name], size, scoring["stride"], scoring["sigma"], scoring["border"])
        result.metrics += [
            ("", name, "pixel_auc", pixels.auroc(spread, masks)),
            ("", name, "aupro", pixels.aupro(spread, masks)),
            ("", name, "auc", _auc(images, table[name])),
        ]
    result.scores.append(table)
    return result


def patch_maps_of(run: Run, trained: Trained) -> dict[str, np.ndarray]:
    """Maps (m, rows, columns) of patches of the test images by placement, and the history of training."""
    path, images, device = trained.maps_path(run), trained.images, trained.device
    if found := load_arrays(path):
        return found
    net, history = trained._network
    found = patch_maps.score_maps(
        net,
        images.train.to(device),
        images.test.to(device),
        run.training.crop,
        run.scoring["stride"],
        run.training.settings,
        run.scoring["densities"],
    )
    save_arrays(path, history=json.dumps(history), **found)
    return load_arrays(path)


def _score_gradcam(run: Run, trained: Trained) -> Result:
    """Pixel AUC and AUPRO of GradCAM, by its target (feature) and with or without its ReLU (density)."""
    masks, path = trained.masks(run), trained.maps_path(run)
    found = load_arrays(path)
    if not found:
        from cplib.localize import gradcam  # captum is an optional package

        scores, fitted = {"logit": gradcam.logit_score}, gde.density(run.scoring["density"])
        if isinstance(fitted, gde.GaussianDensity):
            # in float32, as gradients are taken
            settings = run.training.settings.replace(precision="float32")
            normal = train.embed(trained.network, trained.images.train.to(trained.device), settings)
            fitted.fit(normal[model.POOL].numpy())
            scores["density"] = gradcam.density_score(fitted, trained.device)
        test = trained.images.test.to(trained.device)
        found = {name: gradcam.maps(trained.network, test, score) for name, score in scores.items()}
        save_arrays(path, **found)
    result = Result([])
    for target, cam in found.items():
        for name, values in (("raw", cam), ("relu", cam.clip(0))):
            spread = pixels.resized(values, masks.shape[1])
            result.metrics.append((target, name, "pixel_auc", pixels.auroc(spread, masks)))
            result.metrics.append((target, name, "aupro", pixels.aupro(spread, masks)))
    return result


def _score_synthetic(run: Run, trained: Trained) -> Result:
    """AUC of normal test images against the same with a synthetic defect, by kind of defect (section 5.3)."""
    images, scoring = trained.images, run.scoring
    if images.labels.all():
        raise data.DataError(f"{images.name}: no normal test images to draw defects on")
    normal = images.test[~images.labels]
    density = gde.density(scoring["density"]).fit(trained.embed(images.train))
    low, result = density.score_samples(trained.embed(normal)), Result([])
    for kind in synthetic.KINDS:
        drawn, _ = synthetic.defects(normal, images.name, kind, scoring)
        high = density.score_samples(trained.embed(drawn))
        truth = [0] * len(low) + [1] * len(high)
        auc = float(roc_auc_score(truth, np.concatenate([low, high])))
        result.metrics.append((kind, scoring["density"], "auc", auc))
    return result


def _image_table(images: data.Category, feature: str) -> pd.DataFrame:
    table = {"feature": feature, "image": images.test_files, "defect": images.defects}
    return pd.DataFrame(table | {"label": images.labels.int().tolist()})


def _auc(images: data.Category, scores: Sequence[float]) -> float:
    both = images.labels.any() and not images.labels.all()
    return float(roc_auc_score(images.labels, scores)) if both else np.nan


def _accuracy(history: Sequence[dict[str, Any]]) -> list[tuple[str, str, str, float]]:
    """Accuracy of the proxy task over the last tenth of the updates of the last phase."""
    last = [row for row in history if row["phase"] == "all"]
    ends = [row["accuracy"] for row in last if row["update"] > 0.9 * last[-1]["update"]]
    return [("", "", "accuracy", float(np.mean(ends)))] if ends else []


SCORERS: dict[str, Callable[[Run, Trained], Result]] = {
    "density": _score_density,
    "maps": _score_maps,
    "gradcam": _score_gradcam,
    "synthetic": _score_synthetic,
    "representation": representation.score,
}
