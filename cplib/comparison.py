"""Whether one method beats another: differences of means, their spread over seeds, and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import stats

from cplib import report
from cplib.config import Config

PRETRAINED = "_pretrained"  # end of the names of methods without training, whose features know no seed


def compare(aucs: pd.DataFrame, config: Config, better: str, worse: str, *tables: str) -> dict[str, object]:
    """Whether one method beats another on the average over the study's categories.

    Returns:
        difference of the means in percent points, its stderr, margin (half its 95 % confidence interval, by
        Welch's t), the paper's difference for the same categories (else over all of MVTec AD), and the
        verdict. One seed on a side tells no spread: stderr and margin are NaN then.
    """
    rows = report.beside_paper(report.summarize(aucs, config), config, *tables)
    rows = rows[rows["group"] == "all"].set_index("method")
    if better not in rows.index or worse not in rows.index:
        return dict.fromkeys(("difference", "stderr", "margin", "paper"), np.nan) | {"verdict": "not run"}
    a, b = rows.loc[better], rows.loc[worse]
    # Pretrained features have no seed, so no spread: it is that of the other side
    sides = [(row["stderr"], row["n"]) for row in (a, b) if not row.name.endswith(PRETRAINED)]
    found = {"difference": a["mean"] - b["mean"], **_spread(sides), "paper": a["paper"] - b["paper"]}
    if a["paper_categories"] != b["paper_categories"]:  # one is known for our categories, the other is not
        paper = report.published(*tables).query("group == 'all'").set_index("method")["auc"]
        found["paper"] = paper.get(better, np.nan) - paper.get(worse, np.nan)
    return found | {"verdict": verdict(found["difference"], found["margin"])}


def _spread(sides: Sequence[tuple[float, int]]) -> dict[str, float]:
    """Standard error of a sum or difference of means, and `margin`, half its 95 % confidence interval by
    Welch's t, which weighs how few seeds there are.

    Args:
        sides: standard error and number of values of each mean.
    """
    variances = np.square([error for error, _ in sides])
    stderr = float(np.sqrt(variances.sum())) if sides else np.nan
    if np.isnan(stderr) or not stderr:
        return {"stderr": stderr, "margin": stderr}
    degrees = variances.sum() ** 2 / np.sum(variances**2 / [n - 1 for _, n in sides])
    return {"stderr": stderr, "margin": float(stats.t.ppf(0.975, degrees)) * stderr}


def margin_of(values: pd.Series) -> float:
    """Half the 95 % confidence interval of the mean of values."""
    return _spread([(report.standard_error(values), len(values))])["margin"]


def comparison_cells(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of `compare` as tables show them: differences with a sign, the error without."""
    cells = table.drop(columns="margin").map(
        lambda v: v if isinstance(v, str) else "" if pd.isna(v) else f"{v:+.1f}"
    )
    return cells.assign(stderr=["" if pd.isna(e) else f"{e:.1f}" for e in table["stderr"]])


def verdict(difference: float, margin: float) -> str:
    """Whether a difference is above 0: "holds" or "does not hold" where its 95 % confidence interval leaves
    out 0, else "undecided", as without a margin."""
    if not abs(difference) > margin:
        return "undecided"
    return "holds" if difference > 0 else "does not hold"


def compare_by_category(
    aucs: pd.DataFrame, config: Config, better: str, worse: str, table: str
) -> pd.DataFrame:
    """`compare` for each category alone, and for their average where there are several; a row each."""
    groups = {c: (c,) for c in config.categories}
    if len(groups) > 1:
        groups["all"] = config.categories
    rows = {}
    for group, categories in groups.items():
        of_group = aucs[aucs["category"].isin(categories)]
        rows[group] = compare(of_group, replace(config, categories=categories), better, worse, table)
    return pd.DataFrame(rows).T.rename_axis("category")


def compare_kinds(aucs: pd.DataFrame, config: Config, better: str, worse: str) -> dict[str, object]:
    """`compare` on synthetic defects, on the average over their kinds and over the categories (table 6).

    Args:
        aucs: columns method, category, seed, kind, auc in percent.
    """
    wide = aucs.pivot_table(index=["method", "kind", "seed"], columns="category", values="auc", sort=False)
    by_kind = wide.dropna().mean(axis=1).rename("auc").reset_index()  # seeds that all categories have
    as_categories = replace(config, categories=tuple(dict.fromkeys(by_kind["kind"])), textures=())
    return compare(by_kind.rename(columns={"kind": "category"}), as_categories, better, worse, "table6")
