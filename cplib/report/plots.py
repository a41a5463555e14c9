"""Figures that several notebooks show, and the look of all figures. Others are drawn where they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from scipy import ndimage

from cplib.config import Config
from cplib.runs.store import study_folder

if TYPE_CHECKING:  # tables are drawn without torch
    from torch import Tensor

    from cplib.data import Category

# Okabe and Ito's palette, safe for colour-blind readers
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#7F7F7F"


def use_style() -> None:
    """Set the look of all figures; call once at the top of a notebook."""
    sns.set_theme("notebook", "ticks", font_scale=0.8)
    looks = {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    looks |= {"figure.dpi": 80, "savefig.dpi": 150, "savefig.bbox": "tight", "figure.constrained_layout.use": True}
    plt.rcParams.update(looks)


def save(figure: Figure, config: Config, name: str, dpi: int | None = None) -> Path:
    """Write results/<study>/figures/<name>.png; fewer dots per inch for many photographs."""
    path = study_folder(config) / "figures" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, metadata={"Software": None})
    return path


def to_array(image: Tensor) -> np.ndarray:
    """Image (3, height, width), uint8 or float in [0, 1], as an array (height, width, 3)."""
    return image.cpu().numpy().transpose(1, 2, 0)


def image_grid(
    rows: Sequence[Sequence[Tensor]],
    row_labels: Sequence[str] = (),
    titles: Sequence[Sequence[str]] = (),
    masks: Sequence[Sequence[Tensor | None]] = (),
    size: float = 1.15,
) -> Figure:
    """Images in rows, with labels, titles and outlines of masks.

    Args:
        rows: lists of images (3, height, width); they may differ in length.
        titles, masks: as `rows`; a mask is (height, width) bool or None.
        size: width of an image in inches.
    """
    columns = max(map(len, rows))
    # places are computed, as the general layout takes over a second for that many axes
    gap, label, title = 0.04, 0.9 * bool(row_labels), 0.3 * bool(titles)  # inches
    width, height = label + columns * (size + gap), len(rows) * (size + gap + title)
    figure = plt.figure(figsize=(width, height), layout="none")
    spaces = {"left": label / width, "right": 1, "bottom": 0, "top": 1 - title / height}
    spaces |= {"wspace": gap / size, "hspace": (gap + title) / size}
    axes = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw=spaces)
    for i, row in enumerate(rows):
        for j, axis in enumerate(axes[i]):
            axis.set(xticks=[], yticks=[])
            axis.set_axis_off()
            if j >= len(row):
                continue
            axis.imshow(to_array(row[j]), interpolation="nearest")
            if titles:
                axis.set_title(titles[i][j], fontsize=7, pad=2, y=1)
            if masks and masks[i][j] is not None and masks[i][j].any():
                axis.contour(_around(masks[i][j]), [0.5], colors=ORANGE, linewidths=0.9)
        if row_labels:
            axes[i][0].set_axis_on()
            axes[i][0].spines[:].set_visible(False)
            label = row_labels[i].replace("_", " ")
            axes[i][0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    return figure


def _around(mask: Tensor) -> np.ndarray:
    """A mask (height, width) with a margin, whose outline leaves visible what it encloses, however thin."""
    margin = max(1, round(0.02 * mask.shape[0]))
    return ndimage.binary_dilation(mask.cpu().numpy(), iterations=margin).astype(float)


def category_examples(images: Category, per_kind: int = 6) -> Figure:
    """Normal training images, then test images of each kind of defect, the masks outlined."""
    chosen = np.linspace(0, len(images.train) - 1, min(per_kind, len(images.train))).astype(int)
    rows, labels = [[images.train[i] for i in chosen]], ["normal (train)"]
    masks: list[list[Tensor | None]] = [[None] * len(chosen)]
    for defect in sorted(set(images.defects) - {"good"}):
        found = [i for i, d in enumerate(images.defects) if d == defect][:per_kind]
        rows.append([images.test[i] for i in found])
        masks.append([None if images.masks is None else images.masks[i] for i in found])
        labels.append(defect)
    return image_grid(rows, labels, masks=masks)


def auc_by_method(table: pd.DataFrame, methods: Sequence[str], ylabel: str = "image AUC (%)") -> Figure:
    """AUC of each method, a panel per category or average: ours with standard error (open: one seed, which
    tells none), the paper's value, and the untrained control as a line."""
    groups = list(dict.fromkeys(table["group"]))
    trained = [m for m in methods if m != "untrained"]
    figure, axes = plt.subplots(1, len(groups), figsize=(1.2 + 1.75 * len(groups), 3.2), sharey=True, squeeze=False)
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


def notice(text: str) -> Figure:
    """A figure that only says why there is nothing to draw."""
    figure = plt.figure(figsize=(4, 0.8))
    figure.add_axes([0, 0, 1, 1]).set_axis_off()
    figure.text(0.5, 0.5, text, ha="center", va="center", color=GREY)
    return figure
