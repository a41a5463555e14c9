"""AUC and other measures of runs, read from what they stored. In percent."""

import numpy as np
import pandas as pd

from cplib.augment.tasks import METHODS
from cplib.config import Config
from cplib.report import stats
from cplib.runs import store
from cplib.runs.plan import GRADCAM, THREE_WAY

ENSEMBLE = "ensemble_3way"
AUCS = ["method", "category", "seed", "auc", "made_on"]


def of_part(config: Config, part: str, density: str | None = None) -> pd.DataFrame:
    """AUC of each run of a part that has valid results, by a density ("": all; by default that of the tables): columns
    method, category, variant, seed, feature, density, auc, made_on."""
    table, density = store.read(config, part), config.gde.density if density is None else density
    table = table[(table["metric"] == "auc") & ((table["density"] == density) | (density == ""))]
    return table.assign(auc=100 * table["value"])[[*store.ID, "feature", "density", "auc", "made_on"]]


def detection(config: Config, density: str | None = None) -> pd.DataFrame:
    """Image AUC of the runs of Table 1 and of the ensemble: columns `AUCS`."""
    density = density or config.gde.density
    return pd.concat([of_part(config, "detection", density)[AUCS], ensemble(config, density)], ignore_index=True)


def ensemble(config: Config, density: str) -> pd.DataFrame:
    """Image AUC of the ensemble of 3-way models over seeds (section 4.1): columns `AUCS`, a row per category."""
    found = of_part(config, "detection", density)
    made = found[found["method"] == THREE_WAY].groupby("category")["made_on"].agg(_joined)
    rows = [(ENSEMBLE, c, 0, 100 * m.mean(), made[c]) for c, m in _ensemble_wins(config, density).items()]
    return pd.DataFrame(rows, columns=AUCS)


def _ensemble_wins(config: Config, density: str) -> dict[str, np.ndarray]:
    """By category, `stats.wins` of the ensemble, of the seeds that all categories have, as the averages are.

    The paper does not state how it combines scores. Here each model's scores are standardised by mean and std of its
    scores of the training images, then averaged.
    """
    scores, metrics = store.read(config, "detection", "scores"), store.read(config, "detection")
    scores = scores[scores["method"] == THREE_WAY]
    metrics = metrics[(metrics["method"] == THREE_WAY) & (metrics["density"] == density)]
    of_train = metrics.pivot(index=["category", "seed"], columns="metric", values="value")
    common, found = scores.groupby("category")["seed"].nunique().min(), {}
    for category, part in scores[scores["seed"] < common].groupby("category", sort=False) if common > 1 else ():
        standardised = []
        for seed, test in part.groupby("seed"):
            mean, std = of_train.loc[(category, seed), ["train_mean", "train_std"]]
            standardised.append((test[density].to_numpy() - mean) / max(std, 1e-12))
        if test["label"].nunique() == 2:
            is_bad, score = test["label"].to_numpy() == 1, np.mean(standardised, axis=0)
            found[category] = stats.wins(score[~is_bad], score[is_bad])
    return found


def wins(config: Config, part: str = "detection") -> dict[tuple[str, str], np.ndarray]:
    """By method and category, `stats.wins` of the test images, mean over seeds, and those of the ensemble; methods of
    the part transfer are named as `transfer` does."""
    scores, density, found = store.read(config, part, "scores"), config.gde.density, {}
    if part == "transfer":
        scores = scores[scores["variant"].isin(["0", str(config.transfer.updates)])]
        scores = scores.assign(method=scores["feature"] + "_" + scores["method"])
    for name, rows in scores.groupby(["method", "category"], sort=False):
        if rows["label"].nunique() == 2:
            by_label = [[test.loc[test["label"] == k, density] for _, test in rows.groupby("seed")] for k in (0, 1)]
            pairs = zip(*by_label, strict=True)
            found[name] = np.mean([stats.wins(n.to_numpy(), a.to_numpy()) for n, a in pairs], axis=0)
    if part == "detection":
        found |= {(ENSEMBLE, c): matrix for c, matrix in _ensemble_wins(config, density).items()}
    return found


def core_hours(config: Config, part: str, *methods: str) -> float:
    """What one more seed of some methods costs on the machine that made the results, over all categories."""
    table = store.read(config, part, "machine")
    table = table[table["method"].isin(methods)]
    return float(table.groupby(["method", "category"])["seconds"].mean().sum() / 3600)


def transfer(config: Config) -> pd.DataFrame:
    """Image AUC of Table 3: columns `AUCS`. Methods are named pool_pretrained, level7_finetuned and so on."""
    table, section = of_part(config, "transfer"), config.transfer
    table = table[table["variant"].isin(["0", str(section.updates)]) & (table["seed"] < section.seeds)]
    return table.assign(method=table["feature"] + "_" + table["method"])[AUCS]


def synthetic(config: Config) -> pd.DataFrame:
    """AUC of Table 6: columns `AUCS`, with the kind of defect as category; the mean over categories, of the seeds that
    all of them have."""
    found = of_part(config, "synthetic")
    groups = found.groupby(["method", "feature", "seed"], sort=False)
    mean = groups.agg(auc=("auc", "mean"), n=("auc", "size"), made_on=("made_on", _joined)).reset_index()
    return mean[mean["n"] == found["category"].nunique()].rename(columns={"feature": "category"})[AUCS]


def _joined(made_on: pd.Series) -> str:
    """What several runs were made on, where their mean stands for one: precisions joined as `tables.summarize` does."""
    precisions = sorted(set(made_on.str.split("-").str[1].dropna()))
    return made_on.iloc[0] if len(precisions) < 2 else f"mixed-{' and '.join(precisions)}"


def localization_metrics(config: Config) -> pd.DataFrame:
    """Metrics of all runs of localisation: columns method (cutpaste_3way: the patch model; untrained; gradcam),
    category, patch_size in pixels (0 for GradCAM), density (placement), seed, made_on, pixel_auc, aupro, image_auc."""
    table, local, measures = store.read(config, "patches"), config.localize, ["pixel_auc", "aupro", "auc"]
    is_shown = table["density"] == ("relu" if local.cam_relu else "raw")
    table = table[table["metric"].isin(measures) & ((table["method"] != GRADCAM) | is_shown)]
    index = ["method", "category", "variant", "density", "seed", "made_on"]
    wide = 100 * table.pivot(index=index, columns="metric", values="value").reindex(columns=measures)
    wide = wide.reset_index().rename(columns={"auc": "image_auc", "variant": "patch_size"}).rename_axis(columns=None)
    wide["patch_size"] = pd.to_numeric(wide["patch_size"].str.removesuffix("px")).fillna(0).astype(int)
    return wide


def localization(config: Config) -> pd.DataFrame:
    """Pixel AUC of Table 2, columns `AUCS`: patches of the first size, densities placed as section 4.2 chooses."""
    table = localization_metrics(config)
    placement = table["category"].map(config.localize.placement)
    is_ours = (table["density"] == placement) & (table["patch_size"] == config.localize.patch_sizes[0])
    return table[(table["method"] == GRADCAM) | is_ours].rename(columns={"pixel_auc": "auc"})[AUCS].dropna()


def proxy_accuracy(config: Config, part: str = "detection") -> pd.DataFrame:
    """How well methods solve their proxy tasks at the end of training, on augmented training images: a row per trained
    method; by category (mean over the last tenth of the updates, and seeds), accuracy (their mean) and chance, in
    [0, 1]."""
    table = store.read(config, part).query("metric == 'accuracy'")
    found = table.pivot_table("value", "method", "category", sort=False).rename_axis(columns=None)
    return found.assign(accuracy=found.mean(axis=1), chance=[1 / len(METHODS[m]) for m in found.index])
