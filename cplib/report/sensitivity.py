"""What a choice changes, one factor at a time (tables 7 and 8, and choices that the paper does not state)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cplib.config import Config
from cplib.report import aucs, stats, tables
from cplib.runs.plan import sensitivity_values

TABLE7, TABLE8 = ("learning_rate", "updates"), ("patch_jitter", "max_area")
UNSTATED = ("density", "head_layers", "translate", "normalize")
# What the paper calls a value
_PAPER = {
    "learning_rate": "lr={:g}",
    "updates": "epochs={:.0f}",  # 256 of them by default
    "patch_jitter": "jitter={:g}",
    "max_area": "area={:g}",
}
COLUMNS = ["factor", "value", "is_default", "category", "seed", "auc"]
SUMMARY = [*COLUMNS[:3], "mean", "stderr", "n", "change", "change_stderr", "change_margin", "paper", "paper_change"]


def read(config: Config) -> pd.DataFrame:
    """AUC of all values of all factors, of the control (factor "control"), and of the default by other densities.

    Returns:
        Columns factor, value, is_default, category, seed, auc in percent.
    """
    found = aucs.of_part(config, "sensitivity", density="")
    parts = found["variant"].str.split("=", n=1, expand=True).reindex(columns=[0, 1])
    found = found.assign(factor=parts[0], value=parts[1])
    values = list(sensitivity_values(config))
    defaults = {(factor, str(value)) for factor, value, _, is_default in values if is_default}
    is_default = [key in defaults for key in zip(found["factor"], found["value"], strict=True)]
    found = found.assign(is_default=is_default)
    shown = found[found["density"] == config.gde.density]
    # every factor's list holds the default, so its rows of one factor are all of it
    first = found[found["is_default"] & (found["factor"] == (values[0][0] if values else ""))]
    densities = first.assign(
        factor="density", value=first["density"], is_default=first["density"] == config.gde.density
    )
    return pd.concat([shown, densities], ignore_index=True)[COLUMNS]


def summary(found: pd.DataFrame, config: Config, factors: Sequence[str]) -> pd.DataFrame:
    """Mean over categories and seeds of each value, and its difference from the default over pairs of one seed.

    Args:
        found: as `read` gives it.

    Returns:
        Columns factor, value, is_default, mean, stderr, n, change, change_stderr, change_margin (half the 95 %
        confidence interval), paper (its mean over all of MVTec AD), paper_change.
    """
    paper = tables.published("table7", "table8")
    paper = paper[paper["group"] == "all"].set_index("method")["auc"]
    rows = []
    for factor in factors:
        part = found[found["factor"] == factor]
        if part.empty:
            continue
        wide = part.pivot(index="value", columns=["seed", "category"], values="auc").dropna(axis=1)
        by_seed = wide.T.groupby(level="seed").mean().T
        default = part.loc[part["is_default"], "value"].iloc[0]
        theirs_base = _paper(paper, factor, default, config)
        for value in dict.fromkeys(part["value"]):
            values, theirs = by_seed.loc[value], _paper(paper, factor, value, config)
            change = values - by_seed.loc[default]
            spread = (change.mean(), stats.standard_error(change), stats.margin_of(change))
            ours = (values.mean(), stats.standard_error(values), len(values))
            rows.append((factor, value, value == default, *ours, *spread, theirs, theirs - theirs_base))
    return pd.DataFrame(rows, columns=SUMMARY)


def _paper(paper: pd.Series, factor: str, value: str, config: Config) -> float:
    if factor not in _PAPER:
        return np.nan
    number = float(value) * (256 if factor == "updates" else 1)
    return float(paper.get(_PAPER[factor].format(number), np.nan))
