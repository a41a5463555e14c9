"""Synthetic defects scored by runs of the grid (section 5.3, table 6).

python -m cplib.synthetic

results/<study>/synthetic/scores.csv    method, category, seed, kind, AUC (in [0, 1])

The AUC is that of normal test images against the same with a defect, the same for all methods and seeds.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm import tqdm

from cplib import config as configuration
from cplib import data, experiment, gde, record, report, train
from cplib.config import Config
from cplib.study import study_folder
from cplib.synthetic_drawing import KINDS, Fillings, draw

log = logging.getLogger(__name__)

COLUMNS = ["method", "category", "seed", "kind", "auc"]
CONTROL = "untrained"
AVERAGE = "average"


def methods(config: Config) -> list[str]:
    """Methods that score the defects: those of `config.synthetic`, and the control if the grid has it."""
    return [*config.synthetic.methods, *([CONTROL] if CONTROL in config.methods else [])]


def defects(
    config: Config, category: str, normal: Tensor, kind: str, fillings: Fillings
) -> tuple[Tensor, Tensor]:
    """Each normal test image `synthetic.per_image` times with a defect, and the masks.

    Args:
        normal: (n, 3, size, size) uint8, normal test images of the category, in order from the first.
    """
    repeats = range(config.synthetic.per_image)
    keys = [f"{config.synthetic.seed} {category} {k} {r}" for r in repeats for k in range(len(normal))]
    return draw(normal.repeat(len(repeats), 1, 1, 1), kind, config.augment, fillings, keys)


def run(config: Config, fillings: Fillings | None = None) -> pd.DataFrame:
    """Draw the defects and score them with all runs.

    Args:
        fillings: by default those that `config.synthetic` names.

    Returns:
        Columns method, category, seed, kind, auc in percent.

    Raises:
        ExperimentError: a run without weights; says how to get them. DataError: an unreadable file.
    """
    section, rows = config.synthetic, []
    fillings = fillings or Fillings(section.digits, section.natural_images)
    bar = tqdm(config.categories, "synthetic defects", disable=None)
    for category in bar:
        root = configuration.data_root(config)
        images = data.load_category(root, category, config.data.image_size, config.data.cache)
        if images.labels.all():
            raise data.DataError(f"{root / category}: no normal test images to draw defects on")
        normal = images.test[~images.labels]
        drawn = {kind: defects(config, category, normal, kind, fillings)[0] for kind in KINDS}
        for method in methods(config):
            for seed in range(min(config.n_seeds(method, category), section.seeds)):
                net = experiment.load_network(config, method, images, seed)
                density = gde.density(config.gde.density)
                density.fit(train.embed(net, images.train, config.train).numpy())
                low, high = (
                    density.score_samples(train.embed(net, x, config.train).numpy())
                    for x in (normal, torch.cat(list(drawn.values())))
                )
                high = high.reshape(len(KINDS), -1)
                for kind, scores in zip(drawn, high, strict=True):
                    truth = [0] * len(low) + [1] * len(scores)
                    auc = float(roc_auc_score(truth, np.concatenate([low, scores])))
                    rows.append((method, category, seed, kind, auc))
    table = pd.DataFrame(rows, columns=COLUMNS)
    path = study_folder(config) / "synthetic" / "scores.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    record.replace_text(path, table.to_csv(index=False, float_format="%.6g"))
    return table.assign(auc=100 * table["auc"])


def table6(aucs: pd.DataFrame) -> pd.DataFrame:
    """Ours and the paper's for each kind of defect and their average, over all categories.

    Args:
        aucs: as `run` gives them.

    Returns:
        Columns method, group (a kind, or "average"), mean, stderr, n, paper.
    """
    paper, rows = report.published("table6").set_index(["method", "group"])["auc"], []
    by_seed = (
        aucs.groupby(["method", "kind", "seed", "category"], sort=False)["auc"].mean().unstack("category")
    )
    for method in dict.fromkeys(aucs["method"]):
        # over the seeds that all categories have
        of_method = by_seed.loc[method].dropna().mean(axis=1).unstack("kind")
        of_method[AVERAGE] = of_method.mean(axis=1)
        for kind in (*KINDS, AVERAGE):
            values = of_method[kind]
            theirs = float(paper.get((method, kind), np.nan))
            error = report.standard_error(values)
            rows.append((method, kind, values.mean(), error, len(values), theirs))
    return pd.DataFrame(rows, columns=["method", "group", "mean", "stderr", "n", "paper"])


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """Table 6 as the paper prints it: a column per kind; per method a row ours and a row paper."""
    rows = {}
    for method, part in table.groupby("method", sort=False):
        part = part.set_index("group")
        rows[method, "ours"] = {
            k: report.mean_cell(*part.loc[k, ["mean", "stderr", "n"]]) for k in part.index
        }
        if part["paper"].notna().any():
            rows[method, "paper"] = {k: f"{v:.1f}" for k, v in part["paper"].items()}
    out = pd.DataFrame.from_dict(rows, orient="index")[[*KINDS, AVERAGE]]
    out.index = pd.MultiIndex.from_tuples(out.index, names=["method", ""])
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = configuration.command_line("cplib.synthetic", __doc__)
    return configuration.run_command(parser, arguments, _command, experiment.ERRORS)


def _command(options: argparse.Namespace, config: Config) -> None:
    for method, auc in run(config).groupby("method", sort=False)["auc"].mean().items():
        log.info("%s: AUC %.1f on the average over kinds, categories and seeds", method, auc)


if __name__ == "__main__":
    sys.exit(main())
