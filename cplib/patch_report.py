"""Tables of localisation: pixel AUC beside the paper's (table 2, section 4.2), and maps to draw."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from cplib import patch_record, pixels, report
from cplib.config import Config
from cplib.study import ExperimentError, load_patch_metrics, study_folder

PAPER = ("table2", "section4.2")
# Columns of the table: the paper's rivals, GradCAM of the image-level model, the patch model, our control
METHODS = ("fcdd", "p_svdd", "distaug_contrastive", "gradcam", "cutpaste_3way", "untrained")
_METHOD_OF = {"trained": "cutpaste_3way", "untrained": "untrained", "gradcam": "gradcam"}
METRICS = ("pixel_auc", "aupro", "image_auc")


def missing_runs(config: Config) -> list[str]:
    """Categories of `localize.categories` without complete results."""
    missing = []
    for category in config.localize.categories:
        try:
            load_patch_metrics(config, category)
        except ExperimentError:
            missing.append(category)
    return missing


def seed_metrics(config: Config) -> pd.DataFrame:
    """Metrics of all runs of localisation that are there, in percent.

    Returns:
        Columns category, patch_size, encoder, density, seed, pixel_auc, aupro, image_auc.
    """
    absent, parts = missing_runs(config), []
    for category in config.localize.categories:
        if category not in absent:
            table = load_patch_metrics(config, category)
            table.insert(0, "category", category)
            parts.append(table)
    if not parts:
        raise ExperimentError(f"study {config.study}: no run of localisation is there")
    table = pd.concat(parts, ignore_index=True)
    table[list(METRICS)] *= 100
    return table


def as_in_paper(metrics: pd.DataFrame, config: Config, patch_size: int, metric: str) -> pd.DataFrame:
    """One value for each method, category and seed: the placement of the density that section 4.2 chooses.

    Returns:
        Columns method, category, seed, auc, as `report.summarize` takes them.
    """
    placement = metrics["category"].map(config.localize.density)
    is_cam = metrics["encoder"] == "gradcam"
    rows = metrics[is_cam | ((metrics["density"] == placement) & (metrics["patch_size"] == patch_size))]
    rows = rows.assign(method=rows["encoder"].map(_METHOD_OF), auc=rows[metric])
    return rows[["method", "category", "seed", "auc"]].dropna()


def table2(metrics: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Pixel AUC of ours and the paper for each method and category, and the averages.

    Returns:
        The columns of `report.beside_paper`; rows of methods that only the paper has hold no mean.
    """
    local = replace(config, categories=config.localize.categories)
    aucs = as_in_paper(metrics, config, config.localize.patch_sizes[0], "pixel_auc")
    summary = report.summarize(aucs, local)
    groups = list(dict.fromkeys(summary["group"]))
    others = [m for m in METHODS if m not in set(_METHOD_OF.values())]
    rivals = pd.DataFrame([(m, g) for m in others for g in groups], columns=["method", "group"])
    table = report.beside_paper(pd.concat([summary, rivals], ignore_index=True), local, *PAPER)
    return table[table["mean"].notna() | table["paper"].notna()].reset_index(drop=True)


def placements(metrics: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A metric with a density per location and one shared, trained and untrained, for each category and patch
    size: mean ± standard error (number of seeds)."""
    rows = metrics[metrics["encoder"] != "gradcam"].dropna(subset=[metric])
    groups = rows.groupby(["category", "patch_size", "encoder", "density"], sort=False)[metric]
    cells = groups.apply(report.mean_and_error).unstack(["encoder", "density"])
    cells.columns = [f"{encoder}, {density.replace('_', ' ')}" for encoder, density in cells.columns]
    cells.index = pd.MultiIndex.from_tuples(
        [(category, f"{size} px") for category, size in cells.index], names=["category", "patch"]
    )
    return cells.fillna("")


def compare(metrics: pd.DataFrame, config: Config, metric: str = "pixel_auc") -> pd.DataFrame:
    """Differences of the mean of a metric in percent points that answer the questions of section 4.2, for
    patches of each size: against GradCAM and the untrained control, a density per location against a shared
    one, and the first size against the others. A row per category and question."""
    first, *others = config.localize.patch_sizes
    rows = []
    for category, part in metrics.groupby("category", sort=False):
        means = part.groupby(["encoder", "patch_size", "density"])[metric].mean()
        auc = defaultdict(lambda: np.nan, means.items())
        placement = config.localize.density(category)
        cam = part.loc[part["encoder"] == "gradcam", metric].mean()
        for p in (first, *others):
            ours, control = (auc[encoder, p, placement] for encoder in ("trained", "untrained"))
            gain = auc["trained", p, "per_location"] - auc["trained", p, "shared"]
            rows += [
                (category, f"{p} px patch model against GradCAM", ours - cam),
                (category, f"{p} px patch model against its untrained control", ours - control),
                (category, f"{p} px patches, density per location against shared", gain),
            ]
        for p in others:
            ours = part[(part["encoder"] == "trained") & (part["density"] == placement)]
            by_seed = ours.pivot(index="seed", columns="patch_size", values=metric)
            gain = by_seed[first] - by_seed[p] if {first, p} <= set(by_seed) else pd.Series(dtype=float)
            rows.append((category, f"{first} px patches against {p} px, same seeds", gain.mean()))
    return pd.DataFrame(rows, columns=["category", "question", "difference"]).dropna()


def proxy_accuracy(config: Config) -> pd.DataFrame:
    """Accuracy of the 3-way task on crops (chance 1/3) over the last tenth of the updates, mean over seeds:
    a row per category that is there, a column per patch size."""
    rows = {}
    for category in config.localize.categories:
        path = study_folder(config) / "patches" / category / "history.csv"
        if path.exists():
            table = pd.read_csv(path)
            ends = table[table["update"] > 0.9 * table["update"].max()]
            rows[category] = ends.groupby("patch_size")["accuracy"].mean()
    return pd.DataFrame(rows).T.rename_axis("category").rename_axis(columns="patch size (px)")


# --- maps and images to draw ----------------------------------------------------------------------


def pixel_maps(
    config: Config, category: str, patch_size: int, density: str, encoder: str = "trained", seed: int = 0
) -> np.ndarray:
    """Maps (m, size, size) of the test images of a finished run, float32, as its metrics measured them."""
    arrays, local = _arrays(config, category), config.localize
    maps = _load(patch_record.maps_path(arrays, patch_size, seed, encoder), density, category)
    return pixels.to_pixels(maps, patch_size, local.stride, local.sigma, local.border)


def cam_maps(config: Config, category: str, seed: int = 0) -> np.ndarray | None:
    """GradCAM (m, size, size) of the test images, at the size of the patch model's; None without captum."""
    path = patch_record.cam_path(_arrays(config, category), seed)
    if not path.exists():
        return None
    try:
        return pixels.resized(patch_record.read_cam(path, config), config.localize.image_size)
    except (OSError, KeyError):
        raise _no_maps(path, config.localize.cam_target, category) from None


def _arrays(config: Config, category: str) -> Path:
    return study_folder(config) / "arrays" / "patches" / category


def _load(path: Path, name: str, category: str) -> np.ndarray:
    try:
        with np.load(path) as file:
            return file[name]
    except (OSError, KeyError):
        raise _no_maps(path, name, category) from None


def _no_maps(path: Path, name: str, category: str) -> ExperimentError:
    command = f"python -m cplib.patch_experiment --category {category}"
    return ExperimentError(f"{path}: no maps {name}; run {command}")


def map_statistics(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """Median of normal and of anomalous pixels, and what share of the latter exceeds 99 % of the former."""
    normal, anomalous = maps[~masks], maps[masks]
    high = float(np.quantile(normal, 0.99))
    return {
        "median, normal": float(np.median(normal)),
        "99 %, normal": high,
        "median, anomalous": float(np.median(anomalous)),
        "anomalous above 99 % of normal (%)": 100 * float((anomalous > high).mean()),
    }


def hits(maps: np.ndarray, masks: np.ndarray, defects: Sequence[str]) -> pd.DataFrame:
    """Whether heat sits on the defects, by kind of defect.

    Args:
        maps: (m, height, width) of all test images.
        masks: (m, height, width) bool.
        defects: m kinds of defect, "good" for normal images.

    Returns:
        Columns defect, images; peak_inside: share of images in percent whose highest pixel lies on the mask;
        found: share in percent of the mask above 99 % of the pixels of normal images, median over images.
    """
    good = np.array([d == "good" for d in defects])
    high = float(np.quantile(maps[good], 0.99)) if good.any() else float(np.quantile(maps[~masks], 0.99))
    rows = []
    for kind in sorted(set(defects) - {"good"}):
        chosen = [k for k, d in enumerate(defects) if d == kind and masks[k].any()]
        inside = [masks[k].flat[maps[k].argmax()] for k in chosen]
        found = [(maps[k][masks[k]] > high).mean() for k in chosen]
        rows.append((kind, len(chosen), 100 * float(np.mean(inside)), 100 * float(np.median(found))))
    return pd.DataFrame(rows, columns=["defect", "images", "peak_inside", "found"])


def pixel_auc_against(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """Pixel AUC in percent with the normal pixels of either kind of image alone: what is below 100 on *normal
    images* are false alarms and misses, what is lower on *defective images* is heat beside the defects.

    Args:
        maps: (m, height, width) of all test images.
        masks: (m, height, width) bool.
    """
    defective = masks.any((1, 2))
    found, normal = maps[masks], maps[~defective].ravel()
    values = np.concatenate([found, normal])[None, None]
    is_found = (np.arange(len(found) + len(normal)) < len(found))[None, None]
    return {
        "normal images": 100 * pixels.auroc(values, is_found) if len(normal) else np.nan,
        "defective images": 100 * pixels.auroc(maps[defective], masks[defective]),
    }


def kernel_choices(config: Config, category: str, masks: np.ndarray) -> pd.DataFrame:
    """Pixel AUC in percent with other Gaussian kernels, which the paper does not state: half, once and twice
    the deviation of `localize.sigma` and the rule of FCDD, with either border; first seed and patch size.

    Args:
        masks: (m, height, width) bool.

    Returns:
        Columns category, deviation (pixels), border, trained, untrained.
    """
    arrays, local = _arrays(config, category), config.localize
    size, rule = local.patch_sizes[0], pixels.kernel_deviation(local.patch_sizes[0])
    used = local.sigma or rule
    rows = []
    for deviation in sorted({used / 2, used, 2 * used, rule}):
        for border in ("transposed", "averaged"):
            row = {"category": category, "deviation": round(deviation, 2), "border": border}
            for encoder in patch_record.ENCODERS:
                path = patch_record.maps_path(arrays, size, 0, encoder)
                maps = _load(path, local.density(category), category)
                spread = pixels.to_pixels(maps, size, local.stride, deviation, border)
                row[encoder] = 100 * pixels.auroc(spread, masks)
            rows.append(row)
    return pd.DataFrame(rows)


def cam_choices(config: Config, category: str, masks: np.ndarray) -> pd.DataFrame:
    """Pixel AUC in percent of GradCAM by what the paper does not state: its target and the ReLU; all seeds.

    Args:
        masks: (m, height, width) bool.

    Returns:
        Columns category, target, relu, seed, pixel_auc; no rows without captum.
    """
    rows = []
    for seed in range(config.localize.seeds):
        path = patch_record.cam_path(_arrays(config, category), seed)
        if not path.exists():
            continue
        with np.load(path) as file:
            targets = sorted({"density", "logit"} & set(file))  # not every density has a gradient
        for target, relu in itertools.product(targets, (False, True)):
            choice = replace(config.localize, cam_target=target, cam_relu=relu)
            found = cam_maps(replace(config, localize=choice), category, seed)
            rows.append((category, target, relu, seed, 100 * pixels.auroc(found, masks)))
    return pd.DataFrame(rows, columns=["category", "target", "relu", "seed", "pixel_auc"])


def telling_images(scores: pd.DataFrame, density: str, n: int = 10) -> list[int]:
    """Test images that show most: of each kind of defect in turn the one with the highest score, then two
    anomalous ones with the lowest and two normal ones with the highest scores.

    Args:
        scores: of one seed, encoder and patch size, a row per test image in order.
    """
    order = scores.reset_index(drop=True).sort_values(density, ascending=False)
    found, normal = order[order["label"] == 1], order[order["label"] == 0]
    rank = found.groupby("defect").cumcount()
    best = list(found.assign(rank=rank).sort_values(["rank", "defect"]).index[: max(n - 4, 1)])
    missed = [k for k in found.index[::-1] if k not in best][:2]
    return [*best, *missed, *normal.index[:2]][:n]


def typical_images(scores: pd.DataFrame, density: str) -> list[int]:
    """Of each kind of defect, and of normal test images last, the one with the median score."""
    order = scores.reset_index(drop=True).sort_values(density)
    kinds = sorted(set(order["defect"]), key=lambda kind: (kind == "good", kind))
    parts: Sequence[pd.DataFrame] = [order[order["defect"] == kind] for kind in kinds]
    return [int(part.index[len(part) // 2]) for part in parts]
