"""Charts of tables; nothing is computed here that a table would not show."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cplib.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED


def detection(table: pd.DataFrame, methods: Sequence[str], ylabel: str = "image AUC (%)") -> Figure:
    """AUC of each method, a panel per category or average: ours with standard error (open: one seed, which
    tells none), the paper's value, and the untrained control as a line."""
    groups = list(dict.fromkeys(table["group"]))
    trained = [m for m in methods if m != "untrained"]
    figure, axes = plt.subplots(
        1, len(groups), figsize=(1.2 + 1.75 * len(groups), 3.2), sharey=True, squeeze=False
    )
    for axis, group in zip(axes[0], groups, strict=True):
        part = table[table["group"] == group].set_index("method").reindex(methods)
        x = np.arange(len(trained))
        ours = part.loc[trained]
        axis.errorbar(x, ours["mean"], ours["stderr"], fmt="o", color=BLUE, capsize=2, label="ours")
        alone = ours["stderr"].isna().to_numpy()
        if alone.any():
            axis.plot(x[alone], ours["mean"][alone], "o", color=BLUE, mfc="white", zorder=5, label="one seed")
        axis.plot(x, ours["paper"], "x", color=RED, label="paper")
        if "untrained" in part.index:
            axis.axhline(part.loc["untrained", "mean"], color=GREY, ls="--", lw=1, label="untrained")
        of_all = ours.index[ours["paper_categories"] == "all of MVTec AD"]
        whom = "" if len(of_all) == ours["paper"].notna().sum() else f" for {', '.join(of_all)}"
        axis.set_title(group + (f"\n(paper{whom}: all of MVTec AD)" if len(of_all) else ""), fontsize=8)
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
        points: columns method, category, image_size, updates, seed, auc: `experiment.curve_points`.
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
        axis.set(xlim=(-5, 1.3 * max(ticks)), ylim=(None, min(101, axis.get_ylim()[1])))
        axis.grid(axis="y", lw=0.4)
    axes[0][-1].legend(loc="lower left", bbox_to_anchor=(1, 0))
    return figure


def sensitivity(found: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """AUC against the values of a factor, a panel per factor: a line per category with the span of its seeds,
    the mean over categories, the default ringed, the paper's average dashed, the untrained control of a
    category dotted. Lines join numbers only.

    Args:
        found: columns factor, value, category, seed, auc, as `sensitivity.aucs` gives them.
        summary: columns factor, value, is_default, mean, paper, as `sensitivity.summary` gives them.
    """
    factors = list(dict.fromkeys(summary["factor"]))
    control = found[found["factor"] == "control"].groupby("category", sort=False)["auc"].mean()
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
        for number, (category, auc) in enumerate(control.items()):
            label = "untrained" if number == 0 else None
            axis.axhline(auc, ls=":", lw=0.8, color=colors[category], label=label, zorder=0)
        if part["category"].nunique() > 1:
            axis.plot(
                range(len(values)), of_all["mean"], "_", ls=joined, color="black", lw=1.6, ms=9, label="mean"
            )
        default = int(np.argmax(of_all["is_default"]))
        axis.plot(default, of_all["mean"].iloc[default], "o", mfc="none", mec="black", ms=9, label="default")
        if of_all["paper"].notna().any():
            axis.plot(range(len(values)), of_all["paper"], "x--", color=RED, lw=0.8, ms=5, label="paper")
        axis.set_xticks(range(len(values)), [v.replace("_", " ") for v in values], rotation=30)
        title = "updates (share of the default)" if factor == "updates" else factor.replace("_", " ")
        axis.set_title(title, fontsize=9)
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


def one_class(table: pd.DataFrame, control: str, with_paper: bool) -> Figure:
    """AUC with each class as the normal one and their average, a panel per density and a colour per method.

    Args:
        table: columns density, method, group, mean, stderr, paper, as `one_class.table` gives them.
        control: the method without training, in grey.
        with_paper: also mark the paper's averages.
    """
    groups, methods, densities = (list(dict.fromkeys(table[k])) for k in ("group", "method", "density"))
    trained = [m for m in methods if m != control]
    colors = dict(zip(trained, (ORANGE, BLUE, GREEN, PURPLE, RED) * 4, strict=False)) | {control: GREY}
    size_of_figure = (2.5 + 0.75 * len(groups), 2.4 * len(densities))
    figure, axes = plt.subplots(len(densities), 1, figsize=size_of_figure, sharex=True, squeeze=False)
    for axis, density in zip(axes[:, 0], densities, strict=True):
        for k, method in enumerate(methods):
            rows = table[(table["density"] == density) & (table["method"] == method)]
            rows = rows.set_index("group").reindex(groups)
            x = np.arange(len(groups)) + 0.16 * (k - (len(methods) - 1) / 2)
            color, mean, error = colors[method], rows["mean"], rows["stderr"]
            axis.errorbar(x, mean, error, fmt="o", ms=4, capsize=2, color=color, label=method)
            if with_paper:
                axis.plot(x[-1], rows["paper"].iloc[-1], "x", color=color)
        axis.axhline(50, color=GREY, ls="--", lw=0.8, label="chance")
        if with_paper:
            axis.plot([], [], "x", color="black", label="paper")
        axis.axvline(len(groups) - 1.5, color=GREY, lw=0.8)
        axis.set(title=density, ylabel="AUC (%)")
        axis.grid(axis="y", lw=0.4)
    axes[-1][0].set_xticks(range(len(groups)), groups, rotation=30)
    axes[0][0].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def representations(places: dict[str, dict[str, np.ndarray]]) -> Figure:
    """t-SNE of the representations, a panel per category, a colour per group.

    Args:
        places: by category, points (n, 2) of each group, as `representation.tsne` gives them.
    """
    looks = dict(zip(("normal", "anomalous", "cutpaste", "cutpaste_scar"), "o^sD", strict=True))
    colors = dict(zip(looks, (BLUE, RED, GREEN, PURPLE), strict=True))
    n = max(len(places), 1)
    figure, axes = plt.subplots(1, n, figsize=(3.2 * n, 3.2), squeeze=False)
    for axis, (category, points) in zip(axes[0], places.items(), strict=False):
        for group, found in points.items():
            label = f"{group.replace('_', ' ')} ({len(found)})"
            style = {"color": colors[group], "marker": looks[group], "label": label}
            axis.scatter(*found.T, s=9, alpha=0.75, lw=0, **style)
        axis.set(title=category, xticks=[], yticks=[])
        axis.legend(fontsize=6, loc="upper left", bbox_to_anchor=(0, -0.02), ncols=2)
    return figure


def claims(table: pd.DataFrame) -> Figure:
    """Each claim's difference with its 95 % confidence interval, a panel per study that has results; right
    of 0 as the paper says. Open: one seed on a side, which tells no spread.

    Args:
        table: columns claim, study, difference, margin, paper, verdict, as `claims.read` gives them.
    """
    colors = {"reproduced": BLUE, "not reproduced": RED, "undecided": GREY}
    texts = list(dict.fromkeys(table["claim"]))
    studies = [s for s, part in table.groupby("study", sort=False) if part["difference"].notna().any()]
    height = 0.21 * len(texts) + 0.9
    figure, axes = plt.subplots(
        1, max(len(studies), 1), figsize=(4 + 2.6 * len(studies), height), sharey=True, squeeze=False
    )
    y = np.arange(len(texts))
    for axis, study in zip(axes[0], studies, strict=False):
        part = table[table["study"] == study].set_index("claim").reindex(texts)
        for verdict, color in colors.items():
            rows = (part["verdict"] == verdict).to_numpy()
            x, margin = part["difference"][rows], part["margin"][rows]
            axis.errorbar(x, y[rows], xerr=margin, fmt="o", ms=4, color=color, label=verdict)
            alone = margin.isna().to_numpy()
            axis.plot(x[alone], y[rows][alone], "o", ms=4, color=color, mfc="white", zorder=5)
        axis.plot([], [], "o", ms=4, color=GREY, mfc="white", label="one seed")
        axis.plot(part["paper"], y + 0.3, "x", color="black", ms=4, label="paper")
        for k in np.flatnonzero(part["verdict"] == "not run"):
            axis.text(0, k, " not run", va="center", fontsize=6, color=GREY)
        axis.axvline(0, color=GREY, lw=0.8)
        # two seeds make intervals wider than any panel: the dots decide what is shown
        most = 1.15 * np.nanmax(np.abs(part[["difference", "paper"]].to_numpy()))
        axis.set(title=study, xlabel="AUC points", xlim=(-most, most))
        axis.grid(axis="x", lw=0.3)
    axes[0][0].set_yticks(y, texts, fontsize=7)
    axes[0][0].invert_yaxis()
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure
