"""Tables: averages over categories and seeds, beside the paper's values. AUC in percent."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cplib.config import Config
from cplib.report import stats
from cplib.runs import store

PUBLISHED = Path("results/published/published_results.csv")
EFFECT = ("difference", "stderr", "margin", "paper")  # what `compare` tells
UNKNOWN = dict.fromkeys(EFFECT, np.nan)
PRETRAINED = "_pretrained"  # end of the names of methods without training, whose features know no seed


def published(*tables: str) -> pd.DataFrame:
    """The paper's numbers of tables: columns group, method, auc and stderr."""
    rows = pd.read_csv(PUBLISHED)
    return rows[rows["table"].isin(tables)][["group", "method", "auc", "stderr"]]


def _averages(config: Config, categories: Sequence[str]) -> dict[str, list[str]]:
    """Averages over categories that the paper's tables show, and the categories of each."""
    textures = [c for c in categories if c in config.textures]
    return {"texture": textures, "object": [c for c in categories if c not in textures], "all": list(categories)}


def summarize(found: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Mean, standard error and number of seeds of each method and category, and of the averages.

    An average over categories is taken seed by seed, over the seeds that all of them have; textures and objects are
    averaged separately where there are both. From columns method, category, seed, auc to columns method, group, mean,
    stderr, n; a group is a category, or "texture", "object" or "all".
    """
    groups = {c: [c] for c in config.categories} | _averages(config, config.categories)
    if not (groups["texture"] and groups["object"]):  # the one there is would repeat "all"
        del groups["texture"], groups["object"]
    rows = []
    for method, part in found.groupby("method", sort=False):
        by_seed = part.pivot(index="seed", columns="category", values="auc")
        for group, categories in groups.items():
            values = by_seed.reindex(columns=categories).dropna().mean(axis=1)
            if len(values):
                rows.append((method, group, values.mean(), values.sem(), len(values)))
    return pd.DataFrame(rows, columns=["method", "group", "mean", "stderr", "n"])


def beside_paper(summary: pd.DataFrame, config: Config, *tables: str) -> pd.DataFrame:
    """Add the paper's numbers for the same categories: columns paper, paper_stderr, paper_categories.

    The paper's average is that of its values for the very categories that ours has; where the paper has none of them,
    its own average over all of MVTec AD stands there, marked in the column paper_categories.
    """
    paper = published(*tables).set_index(["method", "group"])
    known = [c for c in config.categories if c in set(paper.index.get_level_values("group"))]
    averages, rows = _averages(config, known), []
    for method, group in zip(summary["method"], summary["group"], strict=True):
        value, error, of = np.nan, np.nan, ""
        if averages.get(group) and (method, averages[group][0]) in paper.index:
            value, of = float(np.mean([paper.loc[(method, c), "auc"] for c in averages[group]])), "same"
        elif (method, group) in paper.index:
            value, error = paper.loc[(method, group), ["auc", "stderr"]]
            of = "all of MVTec AD" if group in averages else "same"
        rows.append((value, error, of))
    columns = ["paper", "paper_stderr", "paper_categories"]
    return pd.concat([summary, pd.DataFrame(rows, columns=columns, index=summary.index)], axis=1)


def layout(table: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """The table as the paper prints it: a column per method; per group a row ours and a row paper, each cell mean ±
    standard error (number of seeds) in percent."""
    rows = {}
    for group, part in table.set_index("method").groupby("group", sort=False):
        ours = part[part["mean"].notna()]
        rows[group, "ours"] = {m: mean_cell(*ours.loc[m, ["mean", "stderr", "n"]]) for m in ours.index}
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
    return flat.to_markdown(index=False, disable_numparse=True)


def save(table: pd.DataFrame, cells: pd.DataFrame, config: Config, name: str) -> None:
    """Write results/<study>/tables/<name>.csv, numbers in full, and .md, cells as shown."""
    folder = store.study_folder(config) / "tables"
    store.replace_bytes(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.4f").encode())
    store.replace_bytes(folder / f"{name}.md", f"{to_markdown(cells)}\n".encode())


def compare(found: pd.DataFrame, config: Config, better: str, worse: str, *tables: str) -> dict[str, float]:
    """How far one method is above another, on the average over the study's categories; `found` as for `summarize`.

    Returns:
        difference of the means in percent points, its stderr, margin (half its 95 % confidence interval) and, from some
        tables, the paper's difference for the same categories, else over all of MVTec AD. NaN where unknown: one seed
        on a side tells no spread.
    """
    rows = beside_paper(summarize(found, config), config, *tables)
    rows = rows[rows["group"] == "all"].set_index("method")
    if not {better, worse} <= set(rows.index):
        return UNKNOWN
    a, b = rows.loc[better], rows.loc[worse]
    # Pretrained features have no seed, so no spread: it is that of the other side
    sides = [(row["stderr"], row["n"]) for row in (a, b) if not row.name.endswith(PRETRAINED)]
    theirs = a["paper"] - b["paper"]
    if a["paper_categories"] != b["paper_categories"]:  # one is known for our categories, the other is not
        paper = published(*tables).query("group == 'all'").set_index("method")["auc"]
        theirs = paper.get(better, np.nan) - paper.get(worse, np.nan)
    return {"difference": a["mean"] - b["mean"], **stats.spread(sides), "paper": theirs}


def difference_cells(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of `compare` and their verdicts as tables show them: differences with a sign, the error without."""
    cells = table.drop(columns="margin").map(lambda v: v if isinstance(v, str) else "" if pd.isna(v) else f"{v:+.1f}")
    return cells.assign(stderr=["" if pd.isna(e) else f"{e:.1f}" for e in table["stderr"]])
