"""What a choice changes, one factor at a time (tables 7 and 8, and choices that the paper does not state)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cplib.config import Config
from cplib.report import aucs, stats, tables
from cplib.runs.plan import sensitivity_values

TABLE7, TABLE8 = ("learning_rate", "updates"), ("patch_jitter", "max_area")
UNSTATED = ("density", "head_layers", "translate", "normalize")
SUMMARY = ["factor", "value", "is_default", "mean", "stderr", "n"]
SUMMARY += ["change", "change_stderr", "change_margin", "paper", "paper_change"]
# What the paper calls a value
_PAPER = dict(zip(TABLE7 + TABLE8, ("lr={:g}", "epochs={:.0f}", "jitter={:g}", "area={:g}"), strict=True))


def read(config: Config) -> pd.DataFrame:
    """AUC of all values of all factors, of the control (factor "control"), and of the default by other densities
    (factor "density"): columns factor, value, is_default, category, seed, auc in percent."""
    found, values = aucs.of_part(config, "sensitivity", density=""), list(sensitivity_values(config))
    parts = found["variant"].str.split("=", n=1, expand=True).reindex(columns=[0, 1])
    defaults = {f"{factor}={value}" for factor, value, _, is_default in values if is_default}
    found = found.assign(factor=parts[0], value=parts[1], is_default=found["variant"].isin(defaults))
    shown = found["density"] == config.gde.density
    # every factor's list holds the default, so its rows of one factor are all of it
    default = found[found["is_default"] & (found["factor"] == (values[0][0] if values else ""))]
    densities = default.assign(factor="density", value=default["density"], is_default=shown)
    return pd.concat([found[shown], densities], ignore_index=True)[[*SUMMARY[:3], "category", "seed", "auc"]]


def summary(found: pd.DataFrame, config: Config, factors: Sequence[str]) -> pd.DataFrame:
    """Of what `read` gives, the mean of each value over categories and seeds, and its change from the default over
    pairs of one seed: columns `SUMMARY`. change_margin is half the 95 % interval; paper is over all of MVTec AD."""
    paper, rows = tables.published("table7", "table8").query("group == 'all'").set_index("method")["auc"], []
    for factor in [f for f in factors if f in set(found["factor"])]:
        part = found[found["factor"] == factor]
        # seeds of all categories alone: others would be means over other categories
        wide = part.pivot(index=["value", "seed"], columns="category", values="auc")
        by_seed = wide.reindex(columns=list(config.sensitivity.categories)).dropna().mean(axis=1)
        default = part.loc[part["is_default"], "value"].iloc[0]
        unit = 256 if factor == "updates" else 1  # the paper's epochs by default
        known = by_seed.index.unique("value")
        is_theirs = factor in _PAPER and (factor != "learning_rate" or config.train.optimizer == "sgd")
        names = {v: _PAPER[factor].format(float(v) * unit) for v in known if is_theirs}
        theirs = {v: float(paper.get(names.get(v), np.nan)) for v in known}
        for value in [v for v in dict.fromkeys(part["value"]) if v in known and default in known]:
            values, change = by_seed[value], (by_seed[value] - by_seed[default]).dropna()
            spread = stats.t_interval(change)
            ours = (values.mean(), values.sem(), len(values), change.mean(), spread["stderr"], spread["margin"])
            rows.append((factor, value, value == default, *ours, theirs[value], theirs[value] - theirs[default]))
    return pd.DataFrame(rows, columns=SUMMARY)
