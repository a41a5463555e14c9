"""The paper's claims, a row each: what a study's results say of them, and a verdict.

A claim is a difference in percent points that the paper says is above 0. `stats.verdict` judges ours: *reproduced* or
*not reproduced* where its 95 % confidence interval over seeds (Welch's t) lies above or below 0, else *undecided*.
Notebooks of tables show the rows of their table.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cplib.config import Config
from cplib.report import aucs, sensitivity, stats, tables
from cplib.runs import store

STUDIES = ("demo", "lite", "paper")
VERDICTS = ("reproduced", "not reproduced", "undecided")
NOT_RUN = "not run"
EFFECT = ("difference", "stderr", "margin", "paper")
UNKNOWN = dict.fromkeys(EFFECT, np.nan)


# --- measures: of a study, a difference in percent points, its stderr, half of its 95 % interval, the paper's ---


def _methods(config: Config, better: str, worse: str, table: str = "table1") -> dict[str, float]:
    """Image AUC of one method less that of another, on the average over the categories of the study."""
    return tables.compare(aucs.detection(config), config, better, worse, table)


def _localization(config: Config, better: str, worse: str) -> dict[str, float]:
    """Pixel AUC, with densities placed as section 4.2 chooses."""
    local = config.replace(categories=config.localize.categories)
    return tables.compare(aucs.localization(config), local, better, worse, "table2", "section4.2")


def _transfer(config: Config, better: str, worse: str) -> dict[str, float]:
    return tables.compare(aucs.transfer(config), config, better, worse, "table3")


def _synthetic(config: Config, better: str, worse: str) -> dict[str, float]:
    """AUC on synthetic defects, on the average over their kinds and over the categories."""
    found = aucs.of_part(config, "synthetic")
    wide = found.pivot_table(index=["method", "feature", "seed"], columns="category", values="auc", sort=False)
    kinds = wide.dropna().mean(axis=1).rename("auc").reset_index().rename(columns={"feature": "category"})
    as_categories = config.replace(categories=tuple(dict.fromkeys(kinds["category"])), textures=())
    return tables.compare(kinds, as_categories, better, worse, "table6")


def _separability(config: Config, first: str, second: str, control: bool = False) -> dict[str, float]:
    """AUC that tells two groups of representations apart, less the 50 of chance or that of random weights.

    Mean over categories, of one seed, which tells no spread.
    """
    table = aucs.of_part(config, "representation", density="")
    pair = table[table["feature"] == f"{first}|{second}"]
    by_method = pair.pivot(index="method", columns="category", values="auc").dropna(axis=1)
    if not {config.tsne.method, *(["untrained"] if control else [])} <= set(by_method.index):
        return UNKNOWN
    values = by_method.loc[config.tsne.method] - (by_method.loc["untrained"] if control else 50)
    return UNKNOWN | {"difference": values.mean()}


def _one_class(config: Config, better: str, worse: str) -> dict[str, float]:
    found = aucs.of_part(config, "one_class", config.one_class.densities[0])
    of_classes = config.replace(categories=config.one_class.classes, textures=())
    return tables.compare(found, of_classes, better, worse, "section5.4")


def _within(config: Config, factor: str, margin: float, value: str = "") -> dict[str, float]:
    """How far the AUC stays from a loss of `margin` points when a factor leaves its default.

    At one value, or at the one that loses most, which makes chance look like a loss.
    """
    table = sensitivity.summary(sensitivity.read(config), config, [factor])
    table = table[~table["is_default"] & table["value"].isin([value] if value else table["value"])]
    if table.empty:
        return UNKNOWN
    worst = table.loc[table["change"].idxmin()]
    found = (worst["change"] + margin, worst["change_stderr"], worst["change_margin"])
    return dict(zip(EFFECT, (*found, table["paper_change"].min() + margin), strict=True))


_FURTHER = "defects lie further from normal images than with random weights"
# Text, where it stands ("none": our controls), and what measures it with which arguments
CLAIMS: tuple[tuple, ...] = (
    ("CutPaste beats rotation prediction", "Table 1", _methods, "cutpaste", "rotation"),
    ("CutPaste beats Cutout", "Table 1", _methods, "cutpaste", "cutout"),
    ("CutPaste-Scar beats Scar of a random colour", "Table 1", _methods, "cutpaste_scar", "scar"),
    ("CutPaste-Scar beats CutPaste", "Table 1", _methods, "cutpaste_scar", "cutpaste"),
    ("3-way beats CutPaste alone", "Table 1", _methods, "cutpaste_3way", "cutpaste"),
    ("3-way beats CutPaste-Scar alone", "Table 1", _methods, "cutpaste_3way", "cutpaste_scar"),
    ("the ensemble beats a single model", "Table 1", _methods, aucs.ENSEMBLE, "cutpaste_3way"),
    ("training beats random weights (our control)", "none", _methods, "cutpaste_3way", "untrained"),
    ("patch maps beat GradCAM", "4.2", _localization, "cutpaste_3way", "gradcam"),
    ("patch maps beat those of random weights (our control)", "none", _localization, "cutpaste_3way", "untrained"),
    ("fine-tuning helps the pretrained network", "Table 3", _transfer, "pool_finetuned", "pool_pretrained"),
    ("early features beat pooled ones", "Table 3", _transfer, "level7_pretrained", "pool_pretrained"),
    ("Cutout: the image's mean beats grey", "Table 4", _methods, "cutout_mean", "cutout", "table4"),
    ("Cutout: a random colour beats the mean", "Table 4", _methods, "cutout_color", "cutout_mean", "table4"),
    ("Confetti beats coloured Cutout", "Table 4", _methods, "confetti", "cutout_color", "table4"),
    ("CutPaste beats Confetti", "Table 4", _methods, "cutpaste", "confetti", "table4"),
    ("the union beats CutPaste-Scar alone", "Table 5", _methods, "union", "cutpaste_scar", "table5"),
    ("3-way beats the union", "Table 5", _methods, "cutpaste_3way", "union", "table5"),
    ("3-way beats Cutout on synthetic defects", "Table 6", _synthetic, "cutpaste_3way", "cutout"),
    ("defects lie apart from normal images", "Figure 3", _separability, "normal", "anomalous"),
    ("defects lie apart from CutPaste", "Figure 3", _separability, "anomalous", "cutpaste"),
    (f"{_FURTHER} (our control)", "none", _separability, "normal", "anomalous", True),
    ("one class against others: rotation beats CutPaste", "5.4", _one_class, "rotation", "cutpaste"),
    ("one class against others: CutPaste beats Cutout", "5.4", _one_class, "cutpaste", "cutout"),
    ("no learning rate of Table 7 loses 2 points", "Table 7", _within, "learning_rate", 2),
    ("half of the updates lose less than 2 points", "Table 7", _within, "updates", 2, "0.5"),
    ("no strength of jitter loses 2 points", "Table 8", _within, "patch_jitter", 2),
    ("no size of the patch loses 2 points", "Table 8", _within, "max_area", 2),
)


def evaluate(config: Config, sources: Sequence[str] = ()) -> pd.DataFrame:
    """Claims in one study.

    Args:
        sources: only those that stand there, such as "Table 1"; "none" for our controls.

    Returns:
        Columns claim, source, difference, stderr, margin, paper, verdict. The paper's difference is that for the same
        categories where it has them, else over all of its data.
    """
    rows = []
    for text, source, measure, *arguments in CLAIMS:
        if not sources or source in sources:
            effect = measure(config, *arguments)
            verdict = stats.verdict(effect["difference"], effect["margin"])
            rows.append((text, source, *(effect[k] for k in EFFECT), verdict))
    return pd.DataFrame(rows, columns=["claim", "source", *EFFECT, "verdict"])


def shown(config: Config, *sources: str) -> pd.DataFrame:
    """Claims of some tables as their notebooks show them: a row each, cells as text."""
    return tables.difference_cells(evaluate(config, sources).drop(columns="source").set_index("claim"))


def write(config: Config) -> tuple[Path, pd.DataFrame]:
    """Write results/<study>/claims.csv; returns its path and the rows."""
    path, table = store.study_folder(config) / "claims.csv", evaluate(config)
    store.replace_bytes(path, table.to_csv(index=False, float_format="%.4f").encode())
    return path, table


def read(studies: Sequence[str] = STUDIES) -> pd.DataFrame:
    """Claims of several studies, as `write` left them: the columns of `evaluate`, and study.

    A claim that a study's file lacks is *not run* there.
    """
    known = pd.DataFrame([row[:2] for row in CLAIMS], columns=["claim", "source"])
    parts = []
    for study in studies:
        path = Path("results") / study / "claims.csv"
        table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["claim", "source", *EFFECT, "verdict"])
        parts.append(known.merge(table, "left", ["claim", "source"]).assign(study=study))
    table = pd.concat(parts, ignore_index=True)
    numbers = table[list(EFFECT)].astype(float)
    return table.assign(verdict=table["verdict"].fillna(NOT_RUN), **numbers)
