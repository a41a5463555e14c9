"""Tables: AUC over seeds beside the paper's values, all computed from the files that runs wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from cplib.config import Config
from cplib.study import ExperimentError, load_scores, study_folder

PUBLISHED = Path("results/published/published_results.csv")
ENSEMBLE = "ensemble_3way"
GROUPS = ("texture", "object", "all")  # averages over categories, as the paper's tables show them


def published(*tables: str) -> pd.DataFrame:
    """The paper's numbers of tables: columns group, method, auc and stderr in percent."""
    rows = pd.read_csv(PUBLISHED)
    return rows[rows["table"].isin(tables)][["group", "method", "auc", "stderr"]]


def missing_runs(config: Config) -> list[str]:
    """Runs of the grid without complete results, as method-category."""
    missing = []
    for method in config.methods:
        for category in config.categories:
            try:
                load_scores(config, method, category)
            except ExperimentError:
                missing.append(f"{method}-{category}")
    return missing


def seed_aucs(config: Config, density: str | None = None) -> pd.DataFrame:
    """Image AUC of each run of the grid that is there: columns method, category, seed, auc in percent.

    Args:
        density: one of `config.gde.densities`; by default that which tables show.
    """
    density = density or config.gde.density
    absent, rows = set(missing_runs(config)), []
    # the ensemble is of the seeds that all categories have, as the averages are
    in_ensemble = min((config.n_seeds("cutpaste_3way", c) for c in config.categories), default=0)
    for method in config.methods:
        for category in config.categories:
            if f"{method}-{category}" in absent:
                continue
            scores = load_scores(config, method, category)
            by_seed = aucs_of(scores, density)
            rows += [(method, category, seed, auc) for seed, auc in by_seed.items()]
            if method == "cutpaste_3way" and len(by_seed):
                labels, values = ensemble_scores(scores[scores["seed"] < in_ensemble], density)
                rows.append((ENSEMBLE, category, 0, _auc(labels, values)))
    return pd.DataFrame(rows, columns=["method", "category", "seed", "auc"])


def aucs_of(scores: pd.DataFrame, density: str) -> pd.Series:
    """Image AUC in percent by seed; empty without normal and anomalous test images."""
    test = scores[scores["split"] == "test"]
    if test["label"].nunique() < 2:
        return pd.Series(dtype=float, index=pd.Index([], name="seed"))
    return pd.Series(
        {seed: _auc(part["label"], part[density]) for seed, part in test.groupby("seed")}
    ).rename_axis("seed")


def defect_aucs(scores: pd.DataFrame, density: str) -> pd.DataFrame:
    """Image AUC in percent of each kind of defect against all normal test images, mean over seeds."""
    test = scores[scores["split"] == "test"]
    rows = {}
    for defect in sorted(set(test["defect"]) - {"good"}):
        part = test[test["defect"].isin(["good", defect])]
        auc = aucs_of(part, density)
        rows[defect] = {"images": (part["seed"].eq(0) & part["label"].eq(1)).sum(), "AUC (%)": auc.mean()}
    return pd.DataFrame(rows).T.astype({"images": int})


def ensemble_scores(scores: pd.DataFrame, density: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores of the test images for the ensemble over seeds (section 4.1).

    The paper does not state how it combines scores. Here each model's scores are standardised by mean
    and deviation of its scores of the training images, then averaged.
    """
    parts, labels = [], np.empty(0)
    for _, part in scores.groupby("seed"):
        normal = part.loc[part["split"] == "train", density]
        test = part[part["split"] == "test"]
        parts.append((test[density].to_numpy() - normal.mean()) / max(normal.std(), 1e-12))
        labels = test["label"].to_numpy()
    return labels, np.mean(parts, axis=0)


def _auc(labels: Sequence[int], scores: Sequence[float]) -> float:
    return 100 * float(roc_auc_score(labels, scores))


def density_choice(config: Config) -> pd.DataFrame:
    """Each density averaged over the runs of the grid, a run's seeds first: AUC in percent, and the
    log-density of held-out normal training images, which chooses one without a look at test images.

    Returns:
        Columns density, runs, auc, held_out_log_density; a row per density.
    """
    absent, parts = set(missing_runs(config)), []
    for method in config.methods:
        for category in config.categories:
            if f"{method}-{category}" not in absent:
                table = pd.read_csv(study_folder(config) / "runs" / method / category / "densities.csv")
                parts.append(table.groupby("density", sort=False)[["auc", "held_out_log_density"]].mean())
    groups = pd.concat(parts).groupby("density", sort=False)
    table = groups.mean()
    table["auc"] *= 100
    table.insert(0, "runs", groups.size())
    return table.reset_index()


def standard_error(values: pd.Series) -> float:
    """Standard error of the mean; not a number for fewer than two values."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def summarize(aucs: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Mean, standard error and number of seeds of each method and category, and of the averages.

    An average over categories is taken seed by seed, over the seeds that all of them have; textures and
    objects are averaged apart where there are both.

    Args:
        aucs: columns method, category, seed, auc, as `seed_aucs` gives them.

    Returns:
        Columns method, group, mean, stderr, n; group is a category, or one of `GROUPS`.
    """
    members = {
        "texture": [c for c in config.categories if c in config.textures],
        "object": [c for c in config.categories if c not in config.textures],
        "all": list(config.categories),
    }
    if not (members["texture"] and members["object"]):  # the one there is would repeat "all"
        del members["texture"], members["object"]
    rows = []
    for method, part in aucs.groupby("method", sort=False):
        by_seed = part.pivot(index="seed", columns="category", values="auc")
        groups = {c: by_seed[c].dropna() for c in config.categories if c in by_seed}
        for name, categories in members.items():
            if set(categories) <= set(by_seed):
                groups[name] = by_seed[categories].dropna().mean(axis=1)
        rows += [
            (method, group, values.mean(), standard_error(values), len(values))
            for group, values in groups.items()
            if len(values)
        ]
    return pd.DataFrame(rows, columns=["method", "group", "mean", "stderr", "n"])


def beside_paper(summary: pd.DataFrame, config: Config, *tables: str) -> pd.DataFrame:
    """Join ours with the paper's numbers for the same categories.

    The paper's average is that of its values for the very categories that ours has; where the paper has
    none of them, its own average over all of MVTec AD stands there, marked in the column paper_categories.

    Returns:
        The columns of `summarize` and paper, paper_stderr, paper_categories.
    """
    paper = published(*tables).set_index(["method", "group"])
    known = [c for c in config.categories if c in set(paper.index.get_level_values("group"))]
    members = {
        "texture": [c for c in known if c in config.textures],
        "object": [c for c in known if c not in config.textures],
        "all": known,
    }
    rows = []
    for method, group in zip(summary["method"], summary["group"], strict=True):
        value, error, of = float("nan"), float("nan"), ""
        if group in members and members[group] and (method, members[group][0]) in paper.index:
            value = float(np.mean([paper.loc[(method, c), "auc"] for c in members[group]]))
            of = "same"
        elif group in GROUPS and (method, group) in paper.index:
            value, error = paper.loc[(method, group), ["auc", "stderr"]]
            of = "all of MVTec AD"
        elif (method, group) in paper.index:
            value, error = paper.loc[(method, group), ["auc", "stderr"]]
            of = "same"
        rows.append((value, error, of))
    columns = ["paper", "paper_stderr", "paper_categories"]
    return pd.concat([summary, pd.DataFrame(rows, columns=columns, index=summary.index)], axis=1)


def minus_untrained(summary: pd.DataFrame) -> pd.Series:
    """What training adds: each row's mean less that of the untrained control in the same group."""
    control = summary[summary["method"] == "untrained"].set_index("group")["mean"]
    return summary["mean"] - summary["group"].map(control)


def layout(table: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """The table as the paper prints it: a column per method; per group a row ours and a row paper.

    Ours reads mean ± standard error (number of seeds), in percent.
    """
    rows = {}
    for group, part in table.groupby("group", sort=False):
        part = part.set_index("method")
        ours = part[part["mean"].notna()]
        rows[group, "ours"] = {m: mean_cell(*ours.loc[m, ["mean", "stderr", "n"]]) for m in ours.index}
        for of, paper in part[part["paper"].notna()].groupby("paper_categories", sort=False):
            source = "paper" if of == "same" else f"paper, {of}"
            rows[group, source] = {
                m: mean_cell(*paper.loc[m, ["paper", "paper_stderr"]]) for m in paper.index
            }
    cells = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=list(methods)).fillna("")
    cells.index = pd.MultiIndex.from_tuples(cells.index, names=["category", ""])
    return cells


def mean_cell(mean: float, stderr: float = float("nan"), n: float | None = None, sign: bool = False) -> str:
    """Mean ± standard error (number of values), as tables show it; a sign for differences."""
    text = f"{mean:+.1f}" if sign else f"{mean:.1f}"
    text = text if np.isnan(stderr) else f"{text} ± {stderr:.1f}"
    return text if n is None else f"{text} ({n:.0f})"


def to_markdown(cells: pd.DataFrame) -> str:
    """A table of cells in Markdown, its index as leading columns, each group's name written once."""
    flat = cells.reset_index()
    if isinstance(cells.index, pd.MultiIndex):
        flat.iloc[:, 0] = flat.iloc[:, 0].where(~flat.iloc[:, 0].duplicated(), "")
    return flat.to_markdown(index=False, disable_numparse=True)


def save(table: pd.DataFrame, cells: pd.DataFrame, config: Config, name: str) -> None:
    """Write results/<study>/tables/<name>.csv, numbers in full, and .md, cells as shown."""
    folder = study_folder(config) / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / f"{name}.csv", index=False, float_format="%.4f")
    (folder / f"{name}.md").write_text(to_markdown(cells) + "\n")


def mean_and_error(values: pd.Series) -> str:
    """Mean ± standard error (number of values), as tables show it."""
    return mean_cell(values.mean(), standard_error(values), len(values)) if len(values) else ""
