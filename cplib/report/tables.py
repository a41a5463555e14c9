"""Tables: averages over categories and seeds, beside the paper's values. AUC in percent."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cplib.config import Config
from cplib.files import replace_bytes
from cplib.report import stats
from cplib.runs import store

PUBLISHED = Path("results/published")  # the paper's numbers and claims
UNKNOWN = dict.fromkeys(["difference", "stderr", "margin", "paper"], np.nan)
UNKNOWN |= {"n": 0, "categories": "", "interval": ""}
MIXED = "†"  # a mean over runs some of which were trained in bfloat16, some in float32
PRETRAINED = "_pretrained"  # end of the names of methods without training, whose features know no seed


def published(*tables: str) -> pd.DataFrame:
    """The paper's numbers of tables: columns group, method, auc and stderr."""
    rows = pd.read_csv(PUBLISHED / "published_results.csv")
    return rows[rows["table"].isin(tables)][["group", "method", "auc", "stderr"]]


def in_paper(categories: Sequence[str]) -> list[str]:
    """Those of some categories for which the paper has numbers."""
    known = set(published("table1")["group"])
    return [c for c in categories if c in known]


def _averages(config: Config) -> dict[str, list[str]]:
    """Averages over categories, and the categories of each. Textures and objects are averaged separately where there
    are both, and so are those that the paper has where it lacks others."""
    textures, known = [c for c in config.categories if c in config.textures], in_paper(config.categories)
    groups = {"texture": textures, "object": [c for c in config.categories if c not in textures]}
    groups = {"in the paper": known, **(groups if all(groups.values()) else {})}
    proper = {k: v for k, v in groups.items() if 0 < len(v) < len(config.categories)}
    return {**proper, "all": list(config.categories)}


def summarize(found: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Mean, standard error and number of seeds of each method and category, and of the averages.

    An average over categories is taken seed by seed, over the seeds that all of them have. From columns method,
    category, seed, auc and made_on to columns method, group, mean, stderr, n, precisions; a group is a category, or
    "texture", "object", "in the paper" or "all"; precisions are those of the training, joined by " and ".
    """
    groups, rows = {c: [c] for c in config.categories} | _averages(config), []
    for method, part in found.groupby("method", sort=False):
        by_seed = part.pivot(index="seed", columns="category", values="auc")
        for group, categories in groups.items():
            values = by_seed.reindex(columns=categories).dropna().mean(axis=1)
            made = part[part["seed"].isin(values.index) & part["category"].isin(categories)]["made_on"]
            precisions = " and ".join(sorted(set(made.str.split("-").str[1].dropna())))
            if len(values):
                rows.append((method, group, values.mean(), values.sem(), len(values), precisions))
    return pd.DataFrame(rows, columns=["method", "group", "mean", "stderr", "n", "precisions"])


def beside_paper(summary: pd.DataFrame, config: Config, *tables: str, methods: Sequence[str] = ()) -> pd.DataFrame:
    """Add the paper's numbers for the same categories: columns paper, paper_stderr, paper_categories.

    The paper's average is that of its values for the very categories that ours has ("same"). Where the paper has none
    of the study's categories, its own average over all of MVTec AD stands there, marked in the column paper_categories.
    `methods`: the rows are of these, also where the paper alone has numbers.
    """
    if methods:
        groups = [*config.categories, *_averages(config)]
        every = pd.DataFrame([(m, g) for g in groups for m in methods], columns=["method", "group"])
        summary = every.merge(summary, "left")
    paper = published(*tables).set_index(["method", "group"])
    averages, known, rows = _averages(config), in_paper(config.categories), []
    for method, group in zip(summary["method"], summary["group"], strict=True):
        value, error, of, names = np.nan, np.nan, "", averages.get(group, [])
        if names and all((method, c) in paper.index for c in names):
            value, of = float(np.mean([paper.loc[(method, c), "auc"] for c in names])), "same"
        elif (method, group) in paper.index and (not names or not known or (method, known[0]) not in paper.index):
            value, error = paper.loc[(method, group), ["auc", "stderr"]]
            of = "all of MVTec AD" if names else "same"
        rows.append((value, error, of))
    columns = ["paper", "paper_stderr", "paper_categories"]
    both = pd.concat([summary, pd.DataFrame(rows, columns=columns, index=summary.index)], axis=1)
    return both[both[["mean", "paper"]].notna().any(axis=1)].reset_index(drop=True)


def layout(table: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """The table as the paper prints it: a column per method; per group a row ours and a row paper, each cell mean ±
    standard error (number of seeds) in percent. `MIXED` marks means over runs of different precisions."""
    rows = {}
    for group, part in table.set_index("method").groupby("group", sort=False):
        ours = part[part["mean"].notna()]
        marks = ours["precisions"].str.contains(" and ").map({True: f" {MIXED}", False: ""})
        rows[group, "ours"] = {m: mean_cell(*ours.loc[m, ["mean", "stderr", "n"]]) + marks[m] for m in ours.index}
        for of, paper in part[part["paper"].notna()].groupby("paper_categories", sort=False):
            source = "paper" if of == "same" else f"paper, {of}"
            rows[group, source] = {m: mean_cell(*paper.loc[m, ["paper", "paper_stderr"]]) for m in paper.index}
    cells = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=list(methods)).fillna("")
    cells.index = pd.MultiIndex.from_tuples(cells.index, names=["category", ""])
    return cells


def mean_cell(mean: float, stderr: float = np.nan, n: float | None = None, sign: bool = False) -> str:
    """Mean ± standard error (number of values), as tables show it; a sign for differences."""
    text = f"{mean:+.1f}" if sign else f"{mean:.1f}"
    text += "" if np.isnan(stderr) else f" ± {stderr:.1f}"
    return text if n is None else f"{text} ({n:.0f})"


def mean_and_error(values: pd.Series) -> str:
    """The cell of some values."""
    return mean_cell(values.mean(), values.sem(), len(values)) if len(values) else ""


def to_markdown(cells: pd.DataFrame) -> str:
    """A table of cells in Markdown, its index as leading columns, each group's name written once."""
    flat = cells.reset_index()
    if isinstance(cells.index, pd.MultiIndex):
        flat.iloc[:, 0] = flat.iloc[:, 0].where(~flat.iloc[:, 0].duplicated(), "")
    text = flat.to_markdown(index=False, disable_numparse=True)
    return f"{text}\n\n{MIXED} mean over trainings in bfloat16 and in float32" if MIXED in text else text


def save(table: pd.DataFrame, cells: pd.DataFrame, config: Config, name: str) -> None:
    """Write results/<study>/tables/<name>.csv, numbers in full, and .md, cells as shown."""
    folder = store.study_folder(config) / "tables"
    replace_bytes(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.4f").encode())
    replace_bytes(folder / f"{name}.md", f"{to_markdown(cells)}\n".encode())


def compare(found: pd.DataFrame, config: Config, better: str, worse: str, *tables: str) -> dict[str, Any]:
    """How far one method is above another, on the average over the study's categories; `found` as for `summarize`.

    Differences are paired: a seed fixes initial weights and source images of all methods. Pretrained features, which
    know no seed, are compared with each seed of the other side. Returns difference in percent points, stderr and margin
    (`stats.t_interval` over n common seeds), categories (in how many of them the mean is above 0), same (the difference
    over those that the paper has), and paper (from some tables, over the same, else over all of MVTec AD). NaN where
    unknown.
    """
    sides = (found[found["method"] == m].pivot(index="seed", columns="category", values="auc") for m in (better, worse))
    a, b = (side.reindex(columns=list(config.categories)).dropna() for side in sides)
    if worse.endswith(PRETRAINED) and len(b):
        b = pd.DataFrame([b.iloc[0]] * len(a), index=a.index)
    difference = (a - b).dropna()
    if difference.empty:
        return UNKNOWN
    mean, by_seed, names = difference.mean(), difference.mean(axis=1), in_paper(config.categories)
    paper = published(*tables).pivot_table("auc", "group", "method").reindex(columns=[better, worse])
    known = paper.reindex(names).dropna()
    paper = known if len(known) else paper.reindex(["all"])
    told = {"difference": by_seed.mean(), **stats.t_interval(by_seed), "n": len(by_seed)}
    told |= {"categories": f"{(mean > 0).sum()} of {len(mean)}", "same": mean.reindex(names).mean()}
    return {**told, "paper": (paper[better] - paper[worse]).mean()}
