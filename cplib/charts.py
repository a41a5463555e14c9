"""Charts of tables; nothing is computed here that a table would not show."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cplib.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED


def detection(table: pd.DataFrame, methods: Sequence[str], ylabel: str = "image AUC (%)") -> Figure:
    """AUC of each method, a panel per category or average: ours with standard error, the paper's
    value, and the untrained control as a line."""
    groups = list(dict.fromkeys(table["group"]))
    trained = [m for m in methods if m != "untrained"]
    figure, axes = plt.subplots(
        1, len(groups), figsize=(1.2 + 1.75 * len(groups), 3.2), sharey=True, squeeze=False
    )
    for axis, group in zip(axes[0], groups, strict=True):
        part = table[table["group"] == group].set_index("method").reindex(methods)
        x = np.arange(len(trained))
        ours = part.loc[trained]
        axis.errorbar(x, ours["mean"], ours["stderr"].fillna(0), fmt="o", color=BLUE, capsize=2, label="ours")
        axis.plot(x, ours["paper"], "x", color=RED, label="paper")
        if "untrained" in part.index:
            axis.axhline(part.loc["untrained", "mean"], color=GREY, ls="--", lw=1, label="untrained")
        of_all = (ours["paper_categories"] == "all of MVTec AD").any()
        axis.set_title(group + ("\n(paper: all of MVTec AD)" if of_all else ""), fontsize=8)
        axis.set_xticks(x, trained, rotation=90)
        axis.set_xlim(-0.6, len(trained) - 0.4)
        axis.grid(axis="y", lw=0.4)
    axes[0][0].set_ylabel(ylabel)
    axes[0][-1].legend(loc="lower left", bbox_to_anchor=(1, 0))
    return figure


def auc_against_updates(points: pd.DataFrame, paper: dict[tuple[str, str], float]) -> Figure:
    """AUC against updates of training, a row per method, a panel per category and a line per image size, with
    the deviation between seeds; 0 updates is the untrained network.

    Args:
        points: columns method, category, image_size, updates, seed, auc, as `report.curve_points` gives them.
        paper: the paper's AUC by method and category, drawn as a line where it has one.
    """
    methods, categories = (list(dict.fromkeys(points[k])) for k in ("method", "category"))
    size_of_figure = (3 * len(categories), 2.6 * len(methods) + 0.2)
    figure, axes = plt.subplots(
        len(methods), len(categories), figsize=size_of_figure, sharex=True, sharey="col", squeeze=False
    )
    colors = dict(zip(sorted(points["image_size"].unique()), (ORANGE, BLUE, GREEN, PURPLE), strict=False))
    ticks = sorted(points["updates"].unique())
    for i, method in enumerate(methods):
        for axis, category in zip(axes[i], categories, strict=True):
            part = points[(points["method"] == method) & (points["category"] == category)]
            for size, rows in part.groupby("image_size"):
                line = rows.groupby("updates")["auc"].agg(["mean", "std"])
                bars, color = line["std"].fillna(0), colors[size]
                axis.errorbar(line.index, line["mean"], bars, fmt="o-", ms=4, color=color, label=f"{size} px")
            if (method, category) in paper:
                axis.axhline(paper[method, category], color=RED, ls="--", lw=1, label="paper, 65536 updates")
            axis.set_xscale("symlog", linthresh=25)
            axis.set_xticks(ticks, [str(t) for t in ticks], rotation=90)
            axis.minorticks_off()
            axis.grid(axis="y", lw=0.4)
            axis.set_title(category if not i else "")
            axis.set_xlabel("updates" if i == len(methods) - 1 else "")
        axes[i][0].set_ylabel(f"{method.replace('_', ' ')}\nimage AUC (%)")
    axes[0][-1].legend(loc="lower left", bbox_to_anchor=(1, 0))
    return figure


def finetuning_curves(points: pd.DataFrame, paper: dict[tuple[str, str], float]) -> Figure:
    """AUC against updates of fine-tuning, a panel per category and a line per level; 0 is pretrained.

    Args:
        points: columns category, level, updates, seed, auc, as `transfer_record.curve` gives them.
        paper: the paper's fine-tuned AUC by level and category, dashed where it has one.
    """
    categories = list(dict.fromkeys(points["category"]))
    figure, axes = plt.subplots(1, len(categories), figsize=(3 * len(categories), 2.8), squeeze=False)
    for axis, category in zip(axes[0], categories, strict=True):
        part = points[points["category"] == category]
        for level, color in zip(dict.fromkeys(part["level"]), (BLUE, ORANGE, GREEN, PURPLE), strict=False):
            line = part[part["level"] == level].groupby("updates")["auc"].agg(["mean", "std"])
            bars = line["std"].fillna(0)
            axis.errorbar(line.index, line["mean"], bars, fmt="o-", ms=4, color=color, label=level)
            if (level, category) in paper:
                axis.axhline(paper[level, category], color=color, ls="--", lw=1, label=f"{level}, paper")
        axis.set_xscale("symlog", linthresh=25)
        ticks = sorted(points["updates"].unique())
        axis.set_xticks(ticks, [str(t) for t in ticks], rotation=90)
        axis.minorticks_off()
        axis.set(title=category, xlabel="updates of all layers", ylabel="image AUC (%)")
        axis.grid(axis="y", lw=0.4)
    axes[0][-1].legend(loc="lower left", bbox_to_anchor=(1, 0))
    return figure


def sensitivity(found: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """AUC against the values of a factor, a panel per factor: a line per category with the span of its seeds,
    the mean over categories, the default ringed, the paper's average dashed. Lines join numbers only.

    Args:
        found: columns factor, value, category, seed, auc, as `sensitivity.aucs` gives them.
        summary: columns factor, value, is_default, mean, paper, as `sensitivity.summary` gives them.
    """
    factors = list(dict.fromkeys(summary["factor"]))
    rows = -(-len(factors) // 4)
    figure, axes = plt.subplots(rows, 4, figsize=(11, 2.7 * rows), sharey=True, squeeze=False)
    colors = dict(zip(dict.fromkeys(found["category"]), (BLUE, ORANGE, GREEN, PURPLE) * 4, strict=False))
    for axis, factor in zip(axes.flat, factors, strict=False):
        of_all, part = summary[summary["factor"] == factor], found[found["factor"] == factor]
        values = list(of_all["value"])
        joined = "-" if pd.to_numeric(of_all["value"], errors="coerce").notna().all() else "none"
        for category, line in part.groupby("category", sort=False):
            by_value = line.groupby("value")["auc"].agg(["mean", "min", "max"]).reindex(values)
            span = [by_value["mean"] - by_value["min"], by_value["max"] - by_value["mean"]]
            axis.errorbar(
                range(len(values)),
                by_value["mean"],
                span,
                fmt="o",
                ls=joined,
                ms=3,
                lw=0.8,
                color=colors[category],
                label=category,
            )
        axis.plot(
            range(len(values)), of_all["mean"], "_", ls=joined, color="black", lw=1.6, ms=9, label="mean"
        )
        default = int(np.argmax(of_all["is_default"]))
        axis.plot(default, of_all["mean"].iloc[default], "o", mfc="none", mec="black", ms=9, label="default")
        if of_all["paper"].notna().any():
            axis.plot(range(len(values)), of_all["paper"], "x--", color=RED, lw=0.8, ms=5, label="paper")
        axis.set_xticks(range(len(values)), [v.replace("_", " ") for v in values], rotation=30)
        axis.set_title(factor.replace("_", " "), fontsize=9)
        axis.grid(axis="y", lw=0.4)
    for axis in axes.flat[len(factors) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("image AUC (%)")
    handles = {
        label: handle
        for axis in axes.flat
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right upper")
    return figure


def claims(table: pd.DataFrame) -> Figure:
    """Each claim's difference with two standard errors, a panel per study; right of 0 as the paper says.

    Args:
        table: columns claim, study, difference, stderr, paper, verdict, as `claims.read` gives them.
    """
    colors = {"reproduced": BLUE, "not reproduced": RED, "undecided": GREY}
    texts = list(dict.fromkeys(table["claim"]))
    studies = list(dict.fromkeys(table["study"]))
    height = 0.21 * len(texts) + 0.9
    figure, axes = plt.subplots(
        1, len(studies), figsize=(4 + 2.3 * len(studies), height), sharex=True, sharey=True, squeeze=False
    )
    for axis, study in zip(axes[0], studies, strict=True):
        part = table[table["study"] == study].set_index("claim").reindex(texts)
        y = np.arange(len(texts))
        for verdict, color in colors.items():
            rows = (part["verdict"] == verdict).to_numpy()
            bars = 2 * part["stderr"].fillna(0)[rows]
            axis.errorbar(
                part["difference"][rows], y[rows], xerr=bars, fmt="o", ms=4, color=color, label=verdict
            )
        axis.plot(part["paper"], y, "x", color="black", ms=4, label="paper")
        for k in np.flatnonzero(part["verdict"] == "not run"):
            axis.text(0, k, " not run", va="center", fontsize=6, color=GREY)
        axis.axvline(0, color=GREY, lw=0.8)
        axis.set(title=study, xlabel="AUC points")
        axis.grid(axis="x", lw=0.3)
    axes[0][0].set_yticks(range(len(texts)), texts, fontsize=7)
    axes[0][0].invert_yaxis()
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
