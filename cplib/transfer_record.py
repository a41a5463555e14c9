"""Tables of transfer from ImageNet, written by its runs and read by notebooks.

results/<study>/transfer/<category>/ holds

status.json     whether it ran ("done" or "not run: ..."), backbone and weights
scores.csv      state (pretrained, finetuned), seed, level, split, image, defect, label, score per density
metrics.csv     state, seed, level, density, AUC (in [0, 1])
curve.csv       updates of the second phase (0: pretrained), seed, level, density, AUC (in [0, 1])
history.csv     updates, seed, phase (head, all), update, learning rate, loss, accuracy
metrics.json    per training: seconds, device, versions; volatile

Pretrained features do not depend on a seed; their rows carry seed 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from cplib import data, gde, record
from cplib.config import Config
from cplib.study import ExperimentError, study_folder, transfer_folder

NOT_RUN = "not run: weights missing"
TABLES = ("status.json", "scores.csv", "metrics.csv", "curve.csv", "history.csv")
_METRICS = ["state", "seed", "level", "density", "auc"]
_CURVE = ["updates", "seed", "level", "density", "auc"]
_HISTORY = ["updates", "seed", "phase", "update", "learning_rate", "loss", "accuracy"]


def write_results(
    folder: Path, config: Config, images: data.Category, found: Mapping[tuple[int, int], Path]
) -> None:
    """Scores, metrics, curve and history from arrays; each file replaced as a whole.

    Args:
        found: arrays by updates of the second phase (0: pretrained) and seed.
    """
    transfer, scores, metrics, curve, histories = config.transfer, [], [], [], []
    for (updates, seed), path in found.items():
        with np.load(path) as file:
            history = json.loads(str(file["history"]))
            levels = {k: (file[f"train_{k}"], file[f"test_{k}"]) for k in transfer.levels}
        histories += [{"updates": updates, "seed": seed, **row} for row in history]
        state = "finetuned" if updates else "pretrained"
        of_table = not updates or (updates == transfer.updates and seed < transfer.seeds)
        of_curve = not updates or (updates in transfer.curve and seed < transfer.curve_seeds)
        for level, (normal, test) in levels.items():
            table, aucs = _score(config, images, normal, test)
            if of_table:
                scores.append(table.assign(state=state, seed=seed, level=level))
                metrics += [(state, seed, level, density, auc) for density, auc in aucs.items()]
            if of_curve:
                curve += [(updates, seed, level, density, auc) for density, auc in aucs.items()]
    _write(folder, config, "done", scores, metrics, curve, histories)


def write_not_run(config: Config, category: str) -> None:
    """Leave files that say that this was not run, so that a pipeline goes on; results that are there stay.

    Raises:
        ExperimentError: there are results, which need the weights to be brought up to date.
    """
    folder = transfer_folder(config, category)
    if (folder / "metrics.csv").exists() and len(pd.read_csv(folder / "metrics.csv")):
        raise ExperimentError(f"{folder}: holds results; without the weights they cannot be renewed")
    for path in (folder, study_folder(config) / "arrays" / "transfer" / category):
        path.mkdir(parents=True, exist_ok=True)
    _write(folder, config, NOT_RUN)


def _score(
    config: Config, images: data.Category, normal: np.ndarray, test: np.ndarray
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Scores of all images by each density, and AUC where the test set has both kinds."""
    table, aucs, labels = record.score_table(images), {}, images.labels
    for name in config.gde.densities:
        density = gde.density(name).fit(normal)
        on_test = density.score_samples(test)
        table[name] = np.concatenate([density.score_samples(normal), on_test])
        if labels.any() and not labels.all():
            aucs[name] = float(roc_auc_score(labels, on_test))
    return table, aucs


def _write(
    folder: Path,
    config: Config,
    status: str,
    scores: Sequence[pd.DataFrame] = (),
    metrics: Sequence[tuple] = (),
    curve: Sequence[tuple] = (),
    histories: Sequence[dict] = (),
) -> None:
    columns = ["state", "seed", "level", "split", "image", "defect", "label", *config.gde.densities]
    tables = {
        "metrics": pd.DataFrame(metrics, columns=_METRICS),
        "curve": pd.DataFrame(curve, columns=_CURVE).sort_values(["updates", "seed"], kind="stable"),
        "history": pd.DataFrame(histories, columns=_HISTORY),
        "scores": pd.concat(scores)[columns] if scores else pd.DataFrame(columns=columns),
    }
    for name, table in tables.items():
        text = table.to_csv(index=False, float_format="%.9g" if name == "scores" else "%.6g")
        record.replace_text(folder / f"{name}.csv", text)
    about = {
        "status": status,
        "backbone": config.transfer.backbone,
        "weights": config.transfer.weights,
        "image_size": config.transfer.image_size,
    }
    record.replace_text(folder / "status.json", json.dumps(about, indent=1) + "\n")


def status(config: Config, category: str) -> str:
    """ "done", or why there are no results of this category."""
    path = transfer_folder(config, category) / "status.json"
    if not path.exists():
        return f"not run: python -m cplib.transfer --category {category}"
    return json.loads(path.read_text())["status"]


def aucs(config: Config, categories: Sequence[str] | None = None) -> pd.DataFrame:
    """AUC of the table, as `report.summarize` takes it: columns method, category, seed, auc in percent.

    A method is named as in results/published: pool_pretrained, level7_finetuned and so on.
    """
    table = _read(config, categories or config.categories, "metrics.csv", _METRICS)
    table["method"] = table["level"] + "_" + table["state"]
    return table[["method", "category", "seed", "auc"]].reset_index(drop=True)


def curve(config: Config) -> pd.DataFrame:
    """AUC against the length of fine-tuning: columns category, level, updates, seed, auc in percent."""
    table = _read(config, config.categories, "curve.csv", _CURVE)
    return table[["category", "level", "updates", "seed", "auc"]].reset_index(drop=True)


def history(config: Config) -> pd.DataFrame:
    """Loss and accuracy of all trainings: category, and the columns of history.csv."""
    return _read(config, config.categories, "history.csv", _HISTORY)


def _read(config: Config, categories: Sequence[str], name: str, columns: Sequence[str]) -> pd.DataFrame:
    parts = [pd.DataFrame(columns=["category", *columns])]
    for category in categories:
        path = transfer_folder(config, category) / name
        part = pd.read_csv(path) if path.exists() else pd.DataFrame()
        if len(part):
            parts.append(part.assign(category=category))
    table = pd.concat(parts[1:] or parts, ignore_index=True)
    if "density" in table:
        table = table[table["density"] == config.gde.density].assign(
            auc=lambda t: 100 * t["auc"].astype(float)
        )
    return table
