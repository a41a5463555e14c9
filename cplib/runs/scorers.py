"""Scorers: what a run measures of its network."""

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


def _density(run: Run, trained: Trained) -> Result:
    """AUC by each density on embeddings, at each level (section 2.3)."""
    images, (embeddings, history) = trained.images, trained.embeddings
    levels, result = run.scoring.get("levels", [model.POOL]), Result(_accuracy(history), history=history)
    if unknown := [k for k in levels if k not in embeddings]:
        raise ConfigError(f"transfer.levels: {run.training.backbone} has no {unknown[0]}")
    for level in levels:
        (normal, test), table = embeddings[level], _image_table(images, level)
        for name in run.scoring["densities"]:
            density = gde.density(name).fit(normal)
            on_train = density.score_samples(normal)  # by which the ensemble standardises
            table[name] = density.score_samples(test) if len(test) else np.empty(0)
            found = {"auc": _auc(images, table[name])}
            found["held_out_log_density"] = gde.held_out_log_density(name, normal) if len(normal) >= 4 else np.nan
            found |= {"train_mean": float(on_train.mean()), "train_std": float(on_train.std(ddof=1))}
            result.metrics += [(level, name, metric, value) for metric, value in found.items()]
        result.scores.append(table)
    return result


def _maps(run: Run, trained: Trained) -> Result:
    """Pixel AUC, AUPRO and image AUC of the maps of the patch model, by placement of densities."""
    masks, path, images = trained.masks(run), trained.maps_path(run), trained.images
    t, scoring = run.training, run.scoring
    if not (found := load_arrays(path)):
        net, history = trained._network
        both = [x.to(trained.device) for x in (images.train, images.test)]
        found = patch_maps.score_maps(net, *both, t.crop, scoring["stride"], t.settings, scoring["densities"])
        found["history"] = json.dumps(history)
        save_arrays(path, **found)
    history = json.loads(str(found["history"]))
    result, table = Result(_accuracy(history), history=history), _image_table(images, "")
    for name in scoring["densities"]:
        table[name] = patch_maps.image_scores(found[name])
        spread = pixels.to_pixels(found[name], t.crop, scoring["stride"], scoring["sigma"], scoring["border"])
        measures = {"pixel_auc": pixels.auroc(spread, masks), "aupro": pixels.aupro(spread, masks)}
        measures["auc"] = _auc(images, table[name])
        result.metrics += [("", name, metric, value) for metric, value in measures.items()]
    result.scores.append(table)
    return result


def _gradcam(run: Run, trained: Trained) -> Result:
    """Pixel AUC and AUPRO of GradCAM, by its target (feature) and with or without its ReLU (density)."""
    masks, path, result = trained.masks(run), trained.maps_path(run), Result([])
    if not (found := load_arrays(path)):
        from cplib.localize import gradcam  # captum is an optional package

        scores, fitted = {"logit": gradcam.logit_score}, gde.density(run.scoring["density"])
        if isinstance(fitted, gde.GaussianDensity):
            settings = run.training.settings.replace(precision="float32")  # as gradients are taken
            normal = train.embed(trained.network, trained.images.train.to(trained.device), settings)
            fitted.fit(normal[model.POOL].numpy())
            scores["density"] = gradcam.density_score(fitted, trained.device)
        test = trained.images.test.to(trained.device)
        found = {name: gradcam.maps(trained.network, test, score) for name, score in scores.items()}
        save_arrays(path, **found)
    for target, cam in found.items():
        for name, values in (("raw", cam), ("relu", cam.clip(0))):
            spread = pixels.resized(values, masks.shape[1])
            result.metrics.append((target, name, "pixel_auc", pixels.auroc(spread, masks)))
            result.metrics.append((target, name, "aupro", pixels.aupro(spread, masks)))
    return result


def _synthetic(run: Run, trained: Trained) -> Result:
    """AUC of normal test images against the same with a synthetic defect, by kind of defect (section 5.3)."""
    images, scoring, result = trained.images, run.scoring, Result([])
    if images.labels.all():
        raise data.DataError(f"{images.name}: no normal test images to draw defects on")
    normal = images.test[~images.labels]
    density = gde.density(scoring["density"]).fit(trained.embed(images.train))
    low = density.score_samples(trained.embed(normal))
    for kind in synthetic.KINDS:
        drawn, _ = synthetic.defects(normal, images.name, kind, scoring)
        high = density.score_samples(trained.embed(drawn))
        auc = roc_auc_score(np.repeat([0, 1], [len(low), len(high)]), np.concatenate([low, high]))
        result.metrics.append((kind, scoring["density"], "auc", float(auc)))
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


SCORERS: dict[str, Callable[[Run, Trained], Result]] = {"density": _density, "maps": _maps, "gradcam": _gradcam}
SCORERS |= {"synthetic": _synthetic, "representation": representation.score}
