"""The paper's claims in a row each: what the studies' result files say of them, and a verdict.

A claim is a difference in percent points that the paper says is above 0. Ours is *reproduced* or *not
reproduced* where its 95 % confidence interval over seeds (Welch's t) lies above or below 0, else *undecided*,
as with one seed on a side; *not run* without results. Everything is computed from the files that runs wrote.

python -m cplib.claims                              writes results/<study>/claims.csv
python -m cplib.claims --params params/lite.yaml
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cplib import comparison, one_class, patch_report, record, report, sensitivity, transfer_record
from cplib import config as configuration
from cplib.config import Config
from cplib.study import ExperimentError, study_folder

log = logging.getLogger(__name__)

STUDIES = ("demo", "lite", "paper")
VERDICTS = {"holds": "reproduced", "does not hold": "not reproduced", "undecided": "undecided"}
NOT_RUN = "not run"


class Effect(NamedTuple):
    """A difference in percent points, its standard error, half of its 95 % confidence interval, and the
    paper's difference; NaN where unknown."""

    difference: float = np.nan
    stderr: float = np.nan
    margin: float = np.nan
    paper: float = np.nan


Measure = Callable[[Config], Effect]


class Claim(NamedTuple):
    """A statement of the paper, where it stands, and what measures it in a study."""

    text: str
    source: str
    measure: Measure


def _methods(better: str, worse: str, table: str = "table1") -> Measure:
    """Image AUC of one method less that of another, on the average over the categories of the study."""

    def measure(config: Config) -> Effect:
        wanted = {better, worse, *(["cutpaste_3way"] if report.ENSEMBLE in (better, worse) else [])}
        methods = tuple(m for m in config.methods if m in wanted)
        return _compare(report.seed_aucs(replace(config, methods=methods)), config, better, worse, table)

    return measure


def _compare(aucs: pd.DataFrame, config: Config, better: str, worse: str, *tables: str) -> Effect:
    return _effect(comparison.compare(aucs, config, better, worse, *tables))


def _effect(found: dict[str, Any]) -> Effect:
    return Effect(*(found[name] for name in Effect._fields))


def _localization(better: str, worse: str) -> Measure:
    """Pixel AUC, with the density that section 4.2 chooses for each category."""

    def measure(config: Config) -> Effect:
        local = replace(config, categories=config.localize.categories)
        size = config.localize.patch_sizes[0]
        aucs = patch_report.as_in_paper(patch_report.seed_metrics(config), config, size, "pixel_auc")
        return _compare(aucs, local, better, worse, *patch_report.PAPER)

    return measure


def _transfer(better: str, worse: str) -> Measure:
    def measure(config: Config) -> Effect:
        return _compare(transfer_record.aucs(config), config, better, worse, "table3")

    return measure


def _synthetic(better: str, worse: str) -> Measure:
    def measure(config: Config) -> Effect:
        table = pd.read_csv(study_folder(config) / "synthetic" / "scores.csv")
        return _effect(comparison.compare_kinds(table.assign(auc=100 * table["auc"]), config, better, worse))

    return measure


def _separability(first: str, second: str, control: bool = False) -> Measure:
    """AUC that tells two groups of representations apart, less the 50 of chance or that of random weights;
    mean over categories, of one seed, which tells no spread."""

    def measure(config: Config) -> Effect:
        table = pd.read_csv(study_folder(config) / "tables" / "figure3_separability.csv")
        pair = table[(table["first"] == first) & (table["second"] == second)]
        by_method = pair.pivot(index="method", columns="category", values="auc").dropna(axis=1)
        if config.tsne.method not in by_method.index or (control and "untrained" not in by_method.index):
            return Effect()
        values = by_method.loc[config.tsne.method] - (by_method.loc["untrained"] if control else 50)
        return Effect(values.mean())

    return measure


def _one_class(better: str, worse: str) -> Measure:
    def measure(config: Config) -> Effect:
        found, section = one_class.aucs(config), config.one_class
        aucs = found[found["density"] == section.densities[0]]
        classes = replace(config, categories=section.classes, textures=())
        return _compare(aucs, classes, better, worse, "section5.4")

    return measure


def _within(factor: str, margin: float, value: str = "") -> Measure:
    """How far the AUC stays from a loss of `margin` points when a factor leaves its default: at one value, or
    at the one that loses most, which makes chance look like a loss."""

    def measure(config: Config) -> Effect:
        table = sensitivity.summary(sensitivity.aucs(config), config, [factor])
        if table.empty:
            return Effect()
        table = table[~table["is_default"]]
        table = table[table["value"] == value] if value else table
        if table.empty:
            return Effect()
        worst = table.loc[table["change"].idxmin()]
        spread = worst["change_stderr"], worst["change_margin"]
        return Effect(worst["change"] + margin, *spread, table["paper_change"].min() + margin)

    return measure


CLAIMS = (
    Claim("CutPaste beats rotation prediction", "Table 1", _methods("cutpaste", "rotation")),
    Claim("CutPaste beats Cutout", "Table 1", _methods("cutpaste", "cutout")),
    Claim("CutPaste-Scar beats Scar of a random colour", "Table 1", _methods("cutpaste_scar", "scar")),
    Claim("CutPaste-Scar beats CutPaste", "Table 1", _methods("cutpaste_scar", "cutpaste")),
    Claim("3-way beats CutPaste alone", "Table 1", _methods("cutpaste_3way", "cutpaste")),
    Claim("3-way beats CutPaste-Scar alone", "Table 1", _methods("cutpaste_3way", "cutpaste_scar")),
    Claim("the ensemble beats a single model", "Table 1", _methods(report.ENSEMBLE, "cutpaste_3way")),
    Claim("training beats random weights (our control)", "none", _methods("cutpaste_3way", "untrained")),
    Claim("patch maps beat GradCAM", "4.2", _localization("cutpaste_3way", "gradcam")),
    Claim(
        "patch maps beat those of random weights (our control)",
        "none",
        _localization("cutpaste_3way", "untrained"),
    ),
    Claim(
        "fine-tuning helps the pretrained network", "Table 3", _transfer("pool_finetuned", "pool_pretrained")
    ),
    Claim("early features beat pooled ones", "Table 3", _transfer("level7_pretrained", "pool_pretrained")),
    Claim("Cutout: the image's mean beats grey", "Table 4", _methods("cutout_mean", "cutout", "table4")),
    Claim(
        "Cutout: a random colour beats the mean", "Table 4", _methods("cutout_color", "cutout_mean", "table4")
    ),
    Claim("Confetti beats coloured Cutout", "Table 4", _methods("confetti", "cutout_color", "table4")),
    Claim("CutPaste beats Confetti", "Table 4", _methods("cutpaste", "confetti", "table4")),
    Claim("the union beats CutPaste-Scar alone", "Table 5", _methods("union", "cutpaste_scar", "table5")),
    Claim("3-way beats the union", "Table 5", _methods("cutpaste_3way", "union", "table5")),
    Claim("3-way beats Cutout on synthetic defects", "Table 6", _synthetic("cutpaste_3way", "cutout")),
    Claim("defects lie apart from normal images", "Figure 3", _separability("normal", "anomalous")),
    Claim("defects lie apart from CutPaste", "Figure 3", _separability("anomalous", "cutpaste")),
    Claim(
        "defects lie further from normal images than with random weights (our control)",
        "none",
        _separability("normal", "anomalous", control=True),
    ),
    Claim("one class against others: rotation beats CutPaste", "5.4", _one_class("rotation", "cutpaste")),
    Claim("one class against others: CutPaste beats Cutout", "5.4", _one_class("cutpaste", "cutout")),
    Claim("no learning rate of Table 7 loses 2 points", "Table 7", _within("learning_rate", 2)),
    Claim("half of the updates lose less than 2 points", "Table 7", _within("updates", 2, "0.5")),
    Claim("no strength of jitter loses 2 points", "Table 8", _within("patch_jitter", 2)),
    Claim("no size of the patch loses 2 points", "Table 8", _within("max_area", 2)),
)


def evaluate(config: Config) -> pd.DataFrame:
    """All claims in one study.

    Returns:
        Columns claim, source, those of `Effect`, verdict; paper is the paper's difference for
        the same categories where it has them, else over all of its data.
    """
    rows = []
    for claim in CLAIMS:
        try:
            effect = claim.measure(config)
        except (ExperimentError, FileNotFoundError):
            effect = Effect()
        verdict = NOT_RUN
        if not np.isnan(effect.difference):
            verdict = VERDICTS[comparison.verdict(effect.difference, effect.margin)]
        rows.append((claim.text, claim.source, *effect, verdict))
    return pd.DataFrame(rows, columns=["claim", "source", *Effect._fields, "verdict"])


def path(study: str) -> Path:
    """File of a study's claims."""
    return Path("results") / study / "claims.csv"


def read(studies: Sequence[str] = STUDIES) -> pd.DataFrame:
    """Claims of several studies, as `main` wrote them: the columns of `evaluate`, and study. A claim that a
    study's file lacks, since it is older, is *not run* there."""
    known = pd.DataFrame([(c.text, c.source) for c in CLAIMS], columns=["claim", "source"])
    parts = [known.merge(pd.read_csv(path(s)), "left", ["claim", "source"]).assign(study=s) for s in studies]
    table = pd.concat(parts, ignore_index=True)
    return table.assign(verdict=table["verdict"].fillna(NOT_RUN))


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """A row per claim and a column per study: difference ± standard error, verdict.

    Args:
        table: as `read` gives it.
    """
    shown = table.assign(
        cell=[
            NOT_RUN if v == NOT_RUN else f"{report.mean_cell(d, e, sign=True)}, {v}"
            for d, e, v in zip(table["difference"], table["stderr"], table["verdict"], strict=True)
        ]
    )
    wide = shown.pivot(index="claim", columns="study", values="cell")
    wide = wide.loc[list(dict.fromkeys(table["claim"])), list(dict.fromkeys(table["study"]))]
    wide.insert(0, "where", shown.drop_duplicates("claim").set_index("claim")["source"])
    return wide


def by_verdict(table: pd.DataFrame) -> dict[str, dict[str, list[str]]]:
    """Names of the claims by study and verdict, but for those not run; as `read` gives the table."""
    found = {}
    for study, part in table[table["verdict"] != NOT_RUN].groupby("study", sort=False):
        names = part.groupby("verdict", sort=False)["claim"].apply(list)
        found[study] = {verdict: names[verdict] for verdict in VERDICTS.values() if verdict in names}
    return found


def count(table: pd.DataFrame) -> pd.DataFrame:
    """Number of claims by study and verdict; as `read` gives the table."""
    order = [*VERDICTS.values(), NOT_RUN]
    counted = table.groupby(["study", "verdict"], sort=False).size().unstack(fill_value=0)
    return counted.reindex(columns=order, fill_value=0).loc[list(dict.fromkeys(table["study"]))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = configuration.command_line("cplib.claims", __doc__)
    return configuration.run_command(parser, arguments, _command, ())


def _command(options: argparse.Namespace, config: Config) -> None:
    target, table = path(config.study), evaluate(config)
    target.parent.mkdir(parents=True, exist_ok=True)
    record.replace_text(target, table.to_csv(index=False, float_format="%.4f"))
    log.info("%s: %s", target, table["verdict"].value_counts().to_dict())


if __name__ == "__main__":
    sys.exit(main())
