"""The paper's claims, a row each: what a study's results say of them, and a verdict.

A claim is a difference in percent points that the paper says is above 0. `stats.verdict` judges ours: *reproduced* or
*not reproduced* where its 95 % confidence interval over seeds (Welch's t) lies above or below 0, else *undecided*.
Notebooks of tables show the rows of their table.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cplib.config import Config
from cplib.report import aucs, sensitivity, stats, tables
from cplib.report.tables import EFFECT, UNKNOWN
from cplib.runs import store

STUDIES = ("demo", "lite", "paper")
VERDICTS = ("reproduced", "not reproduced", "undecided")
NOT_RUN = "not run"
COLUMNS = ["claim", "source", *EFFECT, "verdict"]


def _methods(config: Config, better: str, worse: str, table: str = "table1", *others: str) -> dict[str, float]:
    """AUC of one method less that of another, on the average over the categories of a table of the paper."""
    if table == "table2":  # pixel AUC, with densities placed as section 4.2 chooses
        found, config = aucs.localization(config), config.replace(categories=config.localize.categories)
    elif table == "table3":
        found = aucs.transfer(config)
    elif table == "table6":  # kinds of synthetic defects, averaged over categories, take the place of these
        found = aucs.of_part(config, "synthetic")
        found = found.pivot_table("auc", ["method", "feature", "seed"], "category", sort=False).dropna().mean(axis=1)
        found = found.rename("auc").rename_axis(["method", "category", "seed"]).reset_index()
        config = config.replace(categories=tuple(dict.fromkeys(found["category"])), textures=())
    elif table == "section5.4":  # of one class against the others
        found = aucs.of_part(config, "one_class", config.one_class.densities[0])
        config = config.replace(categories=config.one_class.classes, textures=())
    else:
        found = aucs.detection(config)
    return tables.compare(found, config, better, worse, table, *others)


def _separability(config: Config, first: str, second: str, control: bool = False) -> dict[str, float]:
    """AUC that tells two groups of representations apart, less the 50 of chance or that of random weights: mean over
    categories, of one seed, which tells no spread."""
    table = aucs.of_part(config, "representation", density="")
    table = table[table["feature"] == f"{first}|{second}"]
    by_method = table.pivot(index="category", columns="method", values="auc").dropna()
    by_method = by_method.reindex(columns=list({config.tsne.method, "untrained"}))
    values = by_method[config.tsne.method] - (by_method["untrained"] if control else 50)
    return UNKNOWN | {"difference": values.mean()}


def _within(config: Config, factor: str, margin: float, value: str = "") -> dict[str, float]:
    """How far the AUC stays from a loss of `margin` points when a factor leaves its default: at one value, or at the
    one that loses most, which makes chance look like a loss."""
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
    ("patch maps beat GradCAM", "4.2", _methods, "cutpaste_3way", "gradcam", "table2", "section4.2"),
    ("patch maps beat those of random weights (our control)", "none", _methods, "cutpaste_3way", "untrained", "table2"),
    ("fine-tuning helps the pretrained network", "Table 3", _methods, "pool_finetuned", "pool_pretrained", "table3"),
    ("early features beat pooled ones", "Table 3", _methods, "level7_pretrained", "pool_pretrained", "table3"),
    ("Cutout: the image's mean beats grey", "Table 4", _methods, "cutout_mean", "cutout", "table4"),
    ("Cutout: a random colour beats the mean", "Table 4", _methods, "cutout_color", "cutout_mean", "table4"),
    ("Confetti beats coloured Cutout", "Table 4", _methods, "confetti", "cutout_color", "table4"),
    ("CutPaste beats Confetti", "Table 4", _methods, "cutpaste", "confetti", "table4"),
    ("the union beats CutPaste-Scar alone", "Table 5", _methods, "union", "cutpaste_scar", "table5"),
    ("3-way beats the union", "Table 5", _methods, "cutpaste_3way", "union", "table5"),
    ("3-way beats Cutout on synthetic defects", "Table 6", _methods, "cutpaste_3way", "cutout", "table6"),
    ("defects lie apart from normal images", "Figure 3", _separability, "normal", "anomalous"),
    ("defects lie apart from CutPaste", "Figure 3", _separability, "anomalous", "cutpaste"),
    (f"{_FURTHER} (our control)", "none", _separability, "normal", "anomalous", True),
    ("one class against others: rotation beats CutPaste", "5.4", _methods, "rotation", "cutpaste", "section5.4"),
    ("one class against others: CutPaste beats Cutout", "5.4", _methods, "cutpaste", "cutout", "section5.4"),
    ("no learning rate of Table 7 loses 2 points", "Table 7", _within, "learning_rate", 2),
    ("half of the updates lose less than 2 points", "Table 7", _within, "updates", 2, "0.5"),
    ("no strength of jitter loses 2 points", "Table 8", _within, "patch_jitter", 2),
    ("no size of the patch loses 2 points", "Table 8", _within, "max_area", 2),
)


def evaluate(config: Config, sources: Sequence[str] = ()) -> pd.DataFrame:
    """Claims in one study: all, or those of some sources ("Table 1"; "none": our controls), with columns `COLUMNS`. The
    paper's difference is that for the same categories where it has them, else over all of its data."""
    rows = []
    for text, source, measure, *arguments in CLAIMS:
        if not sources or source in sources:
            effect = measure(config, *arguments)
            verdict = stats.verdict(effect["difference"], effect["margin"])
            rows.append((text, source, *(effect[k] for k in EFFECT), verdict))
    return pd.DataFrame(rows, columns=COLUMNS)


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
        table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=COLUMNS)
        table = known.merge(table, "left", ["claim", "source"]).astype(dict.fromkeys(EFFECT, float))
        parts.append(table.fillna({"verdict": NOT_RUN}).assign(study=study))
    return pd.concat(parts, ignore_index=True)
