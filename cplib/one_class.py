"""One class normal, all others anomalous (section 5.4): runs and their table.

python -m cplib.one_class --class airplane

results/<study>/one_class/<class>/{runs,arrays}/<method>/<class>/    one run, as cplib.study describes
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from cplib import config as configuration
from cplib import experiment, one_class_data, report
from cplib.config import Config, ConfigError, GdeConfig
from cplib.study import study_folder

log = logging.getLogger(__name__)

CONTROL = "untrained"
# fmt: off
CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)
# fmt: on
AUCS = ["method", "category", "seed", "density", "auc"]
SUMMARY = ["density", "method", "group", "mean", "stderr", "n", "paper"]


def settings(config: Config) -> Config:
    """The configuration of these runs: what `one_class` holds in place of the study's, all else as it is."""
    section = config.one_class
    train = replace(
        config.train,
        updates=section.updates,
        sources=section.sources,
        learning_rate=section.learning_rate,
        stem=section.stem,
    )
    return replace(
        config,
        data=replace(config.data, image_size=section.image_size),
        train=train,
        gde=GdeConfig(section.densities[0], section.densities),
        seeds=section.seeds,
        seeds_of={},
    )


def methods(config: Config) -> tuple[str, ...]:
    """Methods of `one_class`, and the untrained control."""
    return tuple(dict.fromkeys([*config.one_class.methods, CONTROL]))


def folder(config: Config, class_name: str) -> Path:
    """Folder of the runs with one class as the normal one."""
    return study_folder(config) / "one_class" / class_name


def check(config: Config, classes: Sequence[str]) -> None:
    """Raise ConfigError or DataError for what would stop a later run after hours."""
    if not classes:
        raise ConfigError("one_class.classes: none given")
    for method in methods(config):
        if method not in experiment.METHODS:
            known = ", ".join(experiment.METHODS)
            raise ConfigError(f"one_class.methods: {method!r}: unknown; known: {known}")
    with one_class_data.open_source(config) as source:
        for name in classes:
            source.check_class(name)


def run(config: Config, class_name: str) -> None:
    """Train and score all methods and the control with one class as the normal one; resumable.

    Raises as `one_class_data.load` and `experiment.run`.
    """
    images, root = one_class_data.load(config, class_name), folder(config, class_name)
    options = {"keep_weights": False, "results_suffice": True, "images": images}
    for method in methods(config):
        experiment.run(settings(config), method, class_name, root, **options)


def aucs(config: Config) -> pd.DataFrame:
    """AUC of each run that is there with all its seeds and densities.

    Returns:
        Columns method, category (the normal class), seed, density, auc in percent.
    """
    section, rows = config.one_class, []
    for method in methods(config):
        for name in section.classes:
            path = folder(config, name) / "runs" / method / name / "scores.csv"
            scores = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["seed"])
            scores = scores[scores["seed"] < section.seeds]
            if scores["seed"].nunique() < section.seeds or not set(section.densities) <= set(scores):
                continue
            for density in section.densities:
                by_seed = report.aucs_of(scores, density)
                rows += [(method, name, seed, density, auc) for seed, auc in by_seed.items()]
    return pd.DataFrame(rows, columns=AUCS)


def missing(config: Config) -> list[str]:
    """Runs that `aucs` lacks, as method-class."""
    there = set(aucs(config)[["method", "category"]].itertuples(index=False, name=None))
    grid = [(method, name) for method in methods(config) for name in config.one_class.classes]
    return ["-".join(run) for run in grid if run not in there]


def proxy_accuracy(config: Config) -> pd.DataFrame:
    """`experiment.proxy_accuracy` of all methods, over the classes."""
    grid = [(method, name) for method in methods(config) for name in config.one_class.classes]
    return experiment.proxy_accuracy((m, folder(config, name) / "runs" / m / name) for m, name in grid)


def table(found: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Mean of each class over seeds, and of the classes seed by seed ("all"), beside the paper's mean.

    Args:
        found: as `aucs` gives it.

    Returns:
        Columns density, method, group (a class or "all"), mean, stderr, n, paper.
    """
    classes = replace(config, categories=config.one_class.classes, textures=())
    parts = [
        report.summarize(part, classes).assign(density=density)
        for density, part in found.groupby("density", sort=False)
    ]
    rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=SUMMARY)
    paper = report.published("section5.4").set_index(["group", "method"])["auc"]
    rows["paper"] = [paper.get(key, np.nan) for key in zip(rows["group"], rows["method"], strict=True)]
    return rows[SUMMARY]


def cells(rows: pd.DataFrame, group: str = "all") -> pd.DataFrame:
    """A group of a table as it is shown: a row per method, a column per density, and the paper's value."""
    rows = rows[rows["group"] == group]
    shown = [report.mean_cell(*row) for row in rows[["mean", "stderr", "n"]].itertuples(index=False)]
    order = {k: list(dict.fromkeys(rows[k])) for k in ("method", "density")}
    out = rows.assign(cell=shown).pivot(index="method", columns="density", values="cell")
    out = out.loc[order["method"], order["density"]].fillna("")
    paper = rows.drop_duplicates("method").set_index("method")["paper"]
    return out.assign(paper=paper.map(lambda v: "" if pd.isna(v) else f"{v:.1f}")).rename_axis(columns=None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = configuration.command_line("cplib.one_class", __doc__)
    parser.add_argument(
        "--class", action="append", dest="classes", help="normal class; default: all of one_class.classes"
    )
    return configuration.run_command(parser, arguments, _command, experiment.ERRORS)


def _command(options: argparse.Namespace, config: Config) -> None:
    classes = options.classes or config.one_class.classes
    check(config, classes)
    for name in classes:
        run(config, name)
        found = aucs(replace(config, one_class=replace(config.one_class, classes=(name,))))
        for key, part in found.groupby(["method", "density"], sort=False):
            log.info("%s, %s, %s: AUC %s", name, *key, report.mean_and_error(part["auc"]))


if __name__ == "__main__":
    sys.exit(main())
