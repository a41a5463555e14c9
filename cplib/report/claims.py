"""The paper's claims, a row each: what a study's results say of them, and a verdict.

A claim is a difference in percent points that the paper says is above 0; `stats.verdict` judges ours. Its interval is
over seeds, of differences paired by seed. Where there are no seeds to pair, as for ensembles and pretrained features,
it is over test images (bootstrap).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cplib.config import Config
from cplib.files import replace_bytes
from cplib.report import aucs, sensitivity, stats, tables
from cplib.report.stats import NOT_RUN, VERDICTS  # noqa: F401 - read by notebooks
from cplib.report.tables import PRETRAINED, UNKNOWN
from cplib.runs import store

STUDIES = ("demo", "lite", "paper")
NUMBERS = ["difference", "stderr", "margin", "n", "same", "paper", "more_seeds", "core_hours"]
COLUMNS = ["claim", "source", "difference", "stderr", "margin", "interval", "n", "categories", "same", "paper"]
COLUMNS += ["more_seeds", "core_hours", "verdict"]
BLANK = {"interval": "", "categories": "", "n": 0, "verdict": NOT_RUN}
_SEEDS, _IMAGES = "seeds", "test images"
_LOSS = 2  # percent points that a factor of Tables 7 and 8 may cost


def _methods(config: Config, better: str, worse: str, table: str = "table1", *others: str) -> dict[str, Any]:
    """AUC of one method less that of another, on the average over the categories of a table of the paper."""
    part, found, trained, study = "detection", None, (better, worse), config
    if table == "table2":  # pixel AUC, with densities placed as section 4.2 chooses
        part, found = "patches", aucs.localization(config)
        config = config.replace(categories=config.localize.categories)
    elif table == "table3":
        part, found, trained = "transfer", aucs.transfer(config), ("finetuned",)
    elif table == "table6":  # kinds of defects take the place of categories
        found = aucs.synthetic(config)
        config = config.replace(categories=tuple(dict.fromkeys(found["category"])), textures=())
    elif table == "section5.4":  # of one class against the others
        part, found = "one_class", aucs.of_part(config, "one_class", config.one_class.densities[0])
        config = config.replace(categories=config.one_class.classes, textures=())
    found = aucs.detection(config) if found is None else found
    effect = tables.compare(found, config, better, worse, table, *others)
    if better == aucs.ENSEMBLE or better.endswith(PRETRAINED):
        effect |= _over_images(config, part, better, worse)
    return {"interval": _SEEDS, "core_hours": aucs.core_hours(study, part, *trained), **effect}


def _over_images(config: Config, part: str, better: str, worse: str) -> dict[str, Any]:
    """Difference of two methods, each the mean over its seeds, and its interval by a bootstrap over test images."""
    found = aucs.wins(config, part)
    if not all((m, c) in found for m in (better, worse) for c in config.categories):
        return UNKNOWN
    parts = {c: 100 * (found[better, c] - found[worse, c]) for c in config.categories}
    drawn, means = stats.bootstrap(list(parts.values())), pd.Series({c: m.mean() for c, m in parts.items()})
    told = {"difference": means.mean(), "stderr": drawn.std(), "margin": 1.96 * drawn.std()}
    told["same"] = means.reindex(tables.in_paper(config.categories)).mean()
    return {**told, "interval": _IMAGES, "n": 0, "categories": f"{(means > 0).sum()} of {len(means)}"}


def _separability(config: Config, first: str, second: str, against: str = "chance") -> dict[str, Any]:
    """AUC that tells two groups of representations apart, less the 50 of chance or that of another method."""
    table, method = aucs.of_part(config, "representation", density=""), config.tsne.method
    table = table[table["feature"] == f"{first}|{second}"]
    if against == "chance":
        own = table[table["method"] == method]
        table = pd.concat([own, own.assign(method=against, auc=50.0)])
    effect = tables.compare(table, config, method, against, "table1")
    return {"interval": _SEEDS, **effect, "paper": np.nan, "core_hours": aucs.core_hours(config, "detection", method)}


def _within(config: Config, factor: str, value: str = "") -> dict[str, Any]:
    """How far the AUC stays from a loss of `_LOSS` points when a factor leaves its default: at one value, or at the one
    that loses most, which makes chance look like a loss."""
    table = sensitivity.summary(sensitivity.read(config), config, [factor])
    table = table[~table["is_default"] & table["value"].isin([value] if value else table["value"])]
    if table.empty:
        return UNKNOWN
    worst = table.loc[table["change"].idxmin()]
    effect = {"difference": worst["change"] + _LOSS, "n": worst["n"], "paper": table["paper_change"].min() + _LOSS}
    effect |= {"stderr": worst["change_stderr"], "margin": worst["change_margin"], "interval": _SEEDS}
    return {**effect, "core_hours": aucs.core_hours(config, "sensitivity", config.sensitivity.method)}


MEASURES = {"methods": _methods, "separability": _separability, "within": _within}


def listed() -> pd.DataFrame:
    """The claims, of results/published/paper_claims.csv: columns claim, source (where it stands; "none": our controls),
    measure (of `MEASURES`) and arguments of it, separated by spaces."""
    return pd.read_csv(tables.PUBLISHED / "paper_claims.csv")


def evaluate(config: Config, sources: Sequence[str] = ()) -> pd.DataFrame:
    """Claims in one study: all, or those of some sources ("Table 1"; "none": our controls), with columns `COLUMNS`.

    The paper's difference is for those of the categories that it has, else over all of its data; `same` is ours for
    those. Of an undecided claim more_seeds says how many more seeds, at the spread seen, would bring the margin below
    half the paper's difference (ours, where it has none), and core_hours what they cost on the machine that made the
    results.
    """
    rows = []
    for text, source, measure, arguments in listed().itertuples(index=False):
        if not sources or source in sources:
            effect, more = MEASURES[measure](config, *arguments.split()), np.nan
            verdict = stats.verdict(effect["difference"], effect["margin"])
            if verdict == "undecided" and effect["interval"] == _SEEDS:
                aim = abs(effect["difference"] if np.isnan(effect["paper"]) else effect["paper"]) / 2
                more = max(0, stats.seeds_needed(effect["stderr"], effect["n"], aim) - effect["n"])
            hours = more * effect.get("core_hours", np.nan)
            own = {"claim": text, "source": source, "more_seeds": more, "core_hours": hours, "verdict": verdict}
            rows.append(effect | own)
    table = pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(NUMBERS, float))
    return table.fillna(BLANK)


def cells(rows: pd.DataFrame) -> pd.DataFrame:
    """Claims as text: differences with a sign, also for the categories that the paper has where the study has others,
    by category, over what the interval is, and what would decide them."""
    found = pd.DataFrame(index=rows.index)
    told = zip(rows["difference"], rows["stderr"], strict=True)
    found["ours"] = [tables.mean_cell(d, e, sign=True) if pd.notna(d) else "" for d, e in told]
    if (rows["same"] - rows["difference"]).abs().max() > 0:
        found["ours, in the paper"] = ["" if pd.isna(v) else f"{v:+.1f}" for v in rows["same"]]
    found["paper"] = ["" if pd.isna(v) else f"{v:+.1f}" for v in rows["paper"]]
    found["above 0 in"] = rows["categories"]
    over = [f"{n:.0f} {text}" if text == _SEEDS else text for n, text in zip(rows["n"], rows["interval"], strict=True)]
    found["interval over"], found["verdict"] = over, rows["verdict"]
    costs = [f"{n:.0f} more seeds, {h:.1f} core-hours" for n, h in rows[["more_seeds", "core_hours"]].to_numpy()]
    found["would decide"] = pd.Series(costs, rows.index).where(rows["more_seeds"].notna(), "")
    found.loc[rows["more_seeds"] == 0, "would decide"] = "the interval is as narrow as that"
    found.loc[rows["more_seeds"] > stats.MOST_SEEDS / 2, "would decide"] = "hundreds of seeds"
    return found


def write(config: Config) -> tuple[Path, pd.DataFrame]:
    """Write results/<study>/claims.csv; returns its path and the rows."""
    path, table = store.study_folder(config) / "claims.csv", evaluate(config)
    replace_bytes(path, table.to_csv(index=False, float_format="%.4f").encode())
    return path, table


def read(studies: Sequence[str] = STUDIES) -> pd.DataFrame:
    """Claims of several studies, as `write` left them: the columns of `evaluate`, and study. What is lacking there is
    *not run*."""
    known, parts = listed()[["claim", "source"]], []
    for study in studies:
        path = Path("results") / study / "claims.csv"
        table = pd.read_csv(path) if path.exists() else known
        parts.append(known.merge(table, "left", ["claim", "source"]).reindex(columns=COLUMNS).assign(study=study))
    return pd.concat(parts, ignore_index=True).astype(dict.fromkeys(NUMBERS, float)).fillna(BLANK)
