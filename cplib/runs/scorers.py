"""Scorers: what a run measures of its network."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from cplib import data, gde, model, synthetic, train
from cplib.augment import views
from cplib.config import ConfigError
from cplib.files import load_arrays, save_arrays
from cplib.localize import patch_maps, pixels
from cplib.runs import representation
from cplib.runs.plan import RESNET18, Run
from cplib.runs.store import Result
from cplib.runs.trained import Trained
from cplib.sections import AugmentConfig

_DRAWS = 2  # augmented views of each held-out image, as there are few


def _density(run: Run, trained: Trained) -> Result:
    """AUC by each density on embeddings, at each level (section 2.3)."""
    images, (embeddings, history) = trained.images, trained.embeddings
    levels, result = run.scoring.get("levels", [model.POOL]), Result(_accuracy(history), history=history)
    if (t := run.training).backbone != RESNET18:
        folded = model.is_folded(model.weights_file(t.backbone, t.weights))
        result.metrics.append(("", "", "folded_norm", float(folded)))
    if unknown := [k for k in levels if k not in embeddings]:
        raise ConfigError(f"transfer.levels: {run.training.backbone} has no {unknown[0]}")
    for level in levels:
        (normal, test), table = embeddings[level], _image_table(images, level)
        for name in run.scoring["densities"]:
            copies = trained.copies(name, run.scoring, level)
            density = gde.density(name).fit(np.concatenate([normal, *copies]))
            on_train = density.score_samples(normal)  # by which the ensemble standardises
            table[name] = density.score_samples(test) if len(test) else np.empty(0)
            found = {"auc": _auc(*(table.loc[table["label"] == k, name] for k in (0, 1)))}
            is_enough = len(normal) >= 4
            found["held_out_log_density"] = gde.held_out_log_density(name, normal, copies) if is_enough else np.nan
            found |= {"train_mean": float(on_train.mean()), "train_std": float(on_train.std(ddof=1))}
            result.metrics += [(level, name, metric, value) for metric, value in found.items()]
        if run.part not in ("sensitivity", "curve"):  # tables need their AUC alone, and the default is there many times
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
        table[name] = found[name].max((1, 2))  # of an image the highest of its patches (figure 1)
        spread = pixels.to_pixels(found[name], t.crop, scoring["stride"], scoring["sigma"], scoring["border"])
        measures = {"pixel_auc": pixels.auroc(spread, masks), "aupro": pixels.aupro(spread, masks)}
        measures["auc"] = _auc(*(table.loc[table["label"] == k, name] for k in (0, 1)))
        result.metrics += [("", name, metric, value) for metric, value in measures.items()]
    result.scores.append(table)
    return result


def _gradcam(run: Run, trained: Trained) -> Result:
    """Pixel AUC and AUPRO of GradCAM of the score of a density, with or without its ReLU."""
    masks, path, result = trained.masks(run), trained.maps_path(run), Result([])
    if not (found := load_arrays(path)):
        from cplib.localize import gradcam  # captum is an optional package

        density = gde.density(run.scoring["density"]).fit(trained.embed(trained.images.train))
        found = {"raw": gradcam.maps(trained.network, trained.images.test.to(trained.device), density)}
        save_arrays(path, **found)
    for name, values in (("raw", found["raw"]), ("relu", found["raw"].clip(0))):
        spread = pixels.resized(values, masks.shape[1])
        measures = {"pixel_auc": pixels.auroc(spread, masks), "aupro": pixels.aupro(spread, masks)}
        result.metrics += [("", name, metric, value) for metric, value in measures.items()]
    return result


def _held_out(run: Run, trained: Trained) -> Result:
    """How well normal images that training did not see tell themselves from their augmented views: by the classifier
    (accuracy and loss), and by the density of the others (AUC of each view). No test image is looked at."""
    t, scoring, (net, history) = run.training, run.scoring, trained._network
    result, (normal, held_out) = Result(_accuracy(history), history=history), trained.normal()
    generator = torch.Generator().manual_seed(t.seed)
    for phase in t.phases:
        batches = (
            views.make_batch(held_out, t.views, t.augment, generator, t.crop, phase.crop_place) for _ in range(_DRAWS)
        )
        with torch.inference_mode(), train.float32():
            found = [(net(x.to(trained.device)).cpu(), labels) for x, labels in batches]
        logits, labels = (torch.cat(part) for part in zip(*found, strict=True))
        loss, right = torch.nn.functional.cross_entropy(logits, labels), (logits.argmax(1) == labels).float().mean()
        result.metrics += [("held out", "", "accuracy", float(right)), ("held out", "", "loss", float(loss))]
    density = gde.density(scoring["density"]).fit(trained.embed(normal))
    low = density.score_samples(trained.embed(held_out))
    augment = AugmentConfig(**scoring["augment"])
    for view in scoring["task"][1:]:
        high = []
        for _ in range(_DRAWS):
            x = held_out.float() / 255
            views.VIEWS[view](x, augment, generator)
            high.extend(density.score_samples(trained.embed((255 * x).round().to(torch.uint8))))
        result.metrics.append((view, scoring["density"], "auc", _auc(low, high)))
    return result


def data_digest(run: Run, trained: Trained) -> str:
    """Digest of the images that a run looks at: with it, the key tells valid results from stale ones."""
    if run.scorer != "synthetic":
        return trained.data
    paths = run.scoring["digits_path"], run.scoring["natural_images_path"]
    return f"{trained.data}-{synthetic.fillings(*paths).digest}"


def _synthetic(run: Run, trained: Trained) -> Result:
    """AUC of normal test images against the same with a synthetic defect, by kind of defect (section 5.3)."""
    images, scoring, result = trained.images, run.scoring, Result([])
    if images.labels.all():
        raise data.DataError(f"{images.name}: no normal test images to draw defects on")
    normal = images.test[~images.labels]
    copies = trained.copies(scoring["density"], scoring)
    density = gde.density(scoring["density"]).fit(np.concatenate([trained.embed(images.train), *copies]))
    low = density.score_samples(trained.embed(normal))
    for kind in synthetic.KINDS:
        drawn, _ = synthetic.defects(normal, images.name, kind, scoring)
        high = density.score_samples(trained.embed(drawn))
        result.metrics.append((kind, scoring["density"], "auc", _auc(low, high)))
    return result


def _image_table(images: data.Category, feature: str) -> pd.DataFrame:
    table = {"feature": feature, "image": images.test_files, "defect": images.defects}
    return pd.DataFrame(table | {"label": images.labels.int().tolist()})


def _auc(normal: Sequence[float], anomalous: Sequence[float]) -> float:
    """AUC in [0, 1] of scores; NaN where there are none of a kind."""
    labels = np.repeat([0, 1], [len(normal), len(anomalous)])
    return float(roc_auc_score(labels, [*normal, *anomalous])) if len(set(labels)) == 2 else np.nan


def _accuracy(history: Sequence[dict[str, Any]]) -> list[tuple[str, str, str, float]]:
    """Accuracy of the proxy task over the last tenth of the updates of the last phase."""
    last = [row for row in history if row["phase"] == "all"]
    ends = [row["accuracy"] for row in last if row["update"] > 0.9 * last[-1]["update"]]
    return [("", "", "accuracy", float(np.mean(ends)))] if ends else []


SCORERS: dict[str, Callable[[Run, Trained], Result]] = {"density": _density, "maps": _maps, "gradcam": _gradcam}
SCORERS |= {"held_out": _held_out, "synthetic": _synthetic, "representation": representation.score}
