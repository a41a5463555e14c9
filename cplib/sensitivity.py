"""What a choice changes: one factor at a time around the default (tables 7 and 8, section A.3), among them
choices that the paper does not state.

python -m cplib.sensitivity --category bottle

results/<study>/sensitivity/<category>.csv              factor, value, seed, density, AUC (in [0, 1])
results/<study>/sensitivity/<category>/<factor>=<value>/    the runs; the default's is that of the grid, or if
                                                the size of the images is another, in default/
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from cplib import comparison, data, experiment, record, report
from cplib import config as configuration
from cplib.config import Config, ConfigError
from cplib.study import study_folder

log = logging.getLogger(__name__)

COLUMNS = ["factor", "value", "seed", "density", "auc"]
AUCS = ["factor", "value", "is_default", "category", "seed", "auc"]
TABLE7, TABLE8 = ("learning_rate", "updates"), ("patch_jitter", "max_area")
UNSTATED = ("density", "head_layers", "translate", "normalize")
# What the paper calls a value
_PAPER = {
    "learning_rate": "lr={:g}",
    "updates": "epochs={:.0f}",  # 256 of them by default
    "patch_jitter": "jitter={:g}",
    "max_area": "area={:g}",
}


class Variant(NamedTuple):
    """A configuration that differs from the default in one factor, or in none: then it is the default."""

    factor: str
    value: Any
    config: Config
    is_default: bool
    method: str


def variants(config: Config) -> Iterator[Variant]:
    """The untrained control, then all values of all factors of `config.sensitivity`, factor after factor.

    Raises:
        ConfigError: a list that lacks the default, or a value that no run can use.
    """
    section, augment, train = config.sensitivity, config.augment, config.train
    images = replace(config.data, image_size=section.image_size or config.data.image_size)
    base = replace(config, data=images, seeds=section.seeds, seeds_of={})
    changes = {
        "learning_rate": lambda v: {"train": replace(train, learning_rate=v)},
        "updates": lambda v: {"train": replace(train, updates=round(v * train.updates))},
        "patch_jitter": lambda v: {"augment": replace(augment, patch_jitter=v)},
        "max_area": lambda v: {"augment": replace(augment, area_ratio=(augment.area_ratio[0], v))},
        "head_layers": lambda v: {"train": replace(train, head_layers=v)},
        "translate": lambda v: {"augment": replace(augment, translate=v)},
        "normalize": lambda v: {"train": replace(train, normalize=v)},
    }
    yield Variant("control", "untrained", base, False, "untrained")
    for factor, change in changes.items():
        found = []
        for value in getattr(section, factor):
            changed = replace(base, **change(value))
            is_default = (changed.train, changed.augment) == (train, augment)
            try:
                configuration.check(changed)
            except ConfigError as error:
                raise ConfigError(f"sensitivity.{factor}: {value!r}: {error}") from None
            found.append(Variant(factor, value, changed, is_default, section.method))
        if found and not any(v.is_default for v in found):
            raise ConfigError(f"sensitivity.{factor}: lacks the default, which the others are compared with")
        yield from found


def is_shared(config: Config, variant: Variant) -> bool:
    """Whether the run of a variant is that of the grid."""
    return variant.is_default and variant.config.data == config.data


def folder(config: Config, category: str, variant: Variant) -> Path:
    """Root of the results of a variant."""
    if is_shared(config, variant):
        return study_folder(config)
    name = "default" if variant.is_default else f"{variant.factor}={variant.value}"
    return study_folder(config) / "sensitivity" / category / name


def run(config: Config, category: str) -> Path:
    """Train all variants on one category; a default that is the run of the grid is made if it is not there.

    Returns:
        The file of AUCs. Raises as `experiment.run`.
    """
    section, rows = config.sensitivity, []
    path = study_folder(config) / "sensitivity" / f"{category}.csv"
    for variant in list(variants(config)):  # bad values show before hours of training
        shared = is_shared(config, variant)
        settings = config if shared else variant.config
        if settings.n_seeds(variant.method, category) < section.seeds:
            raise ConfigError(
                f"sensitivity.seeds: {section.seeds}, but the grid has fewer seeds of {variant.method}"
            )
        options = {"keep_weights": shared, "results_suffice": True, "reuse": study_folder(config)}
        root = folder(config, category, variant)
        found = experiment.run(settings, variant.method, category, root, **options)
        table = pd.read_csv(found / "densities.csv")
        table = table[table["seed"] < section.seeds].assign(factor=variant.factor, value=str(variant.value))
        rows.append(table[COLUMNS])
        mean = 100 * table.loc[table["density"] == config.gde.density, "auc"].mean()
        log.info("%s, %s = %s: AUC %.1f", category, variant.factor, variant.value, mean)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.concat(rows) if rows else pd.DataFrame(columns=COLUMNS)
    record.replace_text(path, table.to_csv(index=False, float_format="%.6g"))
    return path


def missing(config: Config) -> list[str]:
    """Categories whose file is not there or lacks variants of the present parameters."""
    want = {(v.factor, str(v.value)) for v in variants(config)}
    return [c for c in config.sensitivity.categories if not want <= set(_read(config, c).index)]


def _read(config: Config, category: str) -> pd.DataFrame:
    path = study_folder(config) / "sensitivity" / f"{category}.csv"
    table = pd.read_csv(path, dtype={"value": str}) if path.exists() else pd.DataFrame(columns=COLUMNS)
    return table.set_index(["factor", "value"])


def aucs(config: Config) -> pd.DataFrame:
    """AUC of the density that tables show, of all variants of the present parameters that are there, the
    control among them.

    Returns:
        Columns factor, value, is_default, category, seed, auc in percent.
    """
    rows = []
    for category in config.sensitivity.categories:
        table = _read(config, category)
        for v in variants(config):
            if (v.factor, str(v.value)) not in table.index:
                continue
            part = table.loc[[(v.factor, str(v.value))]]
            part = part[(part["density"] == config.gde.density) & (part["seed"] < config.sensitivity.seeds)]
            rows += [
                (v.factor, str(v.value), v.is_default, category, seed, 100 * auc)
                for seed, auc in zip(part["seed"], part["auc"], strict=True)
            ]
    return pd.DataFrame(rows, columns=AUCS)


def densities(config: Config) -> pd.DataFrame:
    """The default run scored by other densities, as `aucs` gives it; the factor is "density"."""
    rows = []
    for category in config.sensitivity.categories:
        default = next((v for v in variants(config) if v.is_default), None)
        table = _read(config, category)
        if default is None or (default.factor, str(default.value)) not in table.index:
            continue
        part = table.loc[[(default.factor, str(default.value))]]
        part = part[part["seed"] < config.sensitivity.seeds]
        rows += [
            ("density", name, name == config.gde.density, category, seed, 100 * auc)
            for name, seed, auc in zip(part["density"], part["seed"], part["auc"], strict=True)
        ]
    return pd.DataFrame(rows, columns=AUCS)


def summary(found: pd.DataFrame, config: Config, factors: Sequence[str]) -> pd.DataFrame:
    """Mean over categories and seeds of each value, its difference from the default with the standard error
    over pairs of one seed, and the paper's mean over all of MVTec AD.

    Args:
        found: as `aucs` gives it.

    Returns:
        Columns factor, value, is_default, mean, stderr, n, change, change_stderr, change_margin (half the
        95 % confidence interval), paper, paper_change.
    """
    paper = report.published("table7", "table8")
    paper = paper[paper["group"] == "all"].set_index("method")["auc"]
    rows = []
    for factor in factors:
        part = found[found["factor"] == factor]
        if part.empty:
            continue
        wide = part.pivot(index=["value", "is_default"], columns=["seed", "category"], values="auc")
        by_seed = wide.dropna(axis=1).T.groupby(level="seed").mean().T
        base = by_seed.xs(True, level="is_default").iloc[0]
        paper_base = _paper(paper, factor, _default(part), config)
        for value in dict.fromkeys(part["value"]):
            values = by_seed.xs(value, level="value").iloc[0]
            is_default = value == _default(part)
            change, theirs = values - base, _paper(paper, factor, value, config)
            rows.append(
                {
                    "factor": factor,
                    "value": value,
                    "is_default": is_default,
                    "mean": values.mean(),
                    "stderr": report.standard_error(values),
                    "n": len(values),
                    "change": change.mean(),
                    "change_stderr": report.standard_error(change),
                    "change_margin": comparison.margin_of(change),
                    "paper": theirs,
                    "paper_change": theirs - paper_base,
                }
            )
    return pd.DataFrame(rows)


def _default(part: pd.DataFrame) -> str:
    return part.loc[part["is_default"], "value"].iloc[0]


def _paper(paper: pd.Series, factor: str, value: str, config: Config) -> float:
    if factor not in _PAPER:
        return float("nan")
    number = float(value) * (256 if factor == "updates" else 1)
    return float(paper.get(_PAPER[factor].format(number), float("nan")))


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """A summary as tables show it; the default is marked."""
    rows = {}
    for row in table.itertuples():
        name = f"{row.value} (default)" if row.is_default else row.value
        ours = report.mean_cell(row.mean, row.stderr, row.n)
        change = "" if row.is_default else report.mean_cell(row.change, row.change_stderr, sign=True)
        theirs = [
            "" if pd.isna(v) else f"{v:{f}}" for v, f in ((row.paper, ".1f"), (row.paper_change, "+.1f"))
        ]
        rows[row.factor.replace("_", " "), name] = {
            "ours": ours,
            "change": change,
            "paper": theirs[0],
            "paper, change": "" if row.is_default else theirs[1],
        }
    out = pd.DataFrame.from_dict(rows, orient="index")
    out.index = pd.MultiIndex.from_tuples(out.index, names=["factor", "value"])
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = configuration.command_line("cplib.sensitivity", __doc__)
    parser.add_argument("--category", action="append", help="default: all of sensitivity.categories")
    return configuration.run_command(parser, arguments, _command, experiment.ERRORS)


def _command(options: argparse.Namespace, config: Config) -> None:
    categories = options.category or config.sensitivity.categories
    if not categories:
        raise ConfigError("sensitivity.categories: none given")
    for category in categories:
        data.category_folder(configuration.data_root(config), category)
    for category in categories:
        log.info("%s", run(config, category))


if __name__ == "__main__":
    sys.exit(main())
