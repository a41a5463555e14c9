"""Figures that several notebooks show, and the look of all figures. Others are drawn where they are shown."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage

from cplib.config import Config
from cplib.runs.store import study_folder

# Okabe and Ito's palette, safe for colour-blind readers
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#7F7F7F"


def use_style() -> None:
    """Set the look of all figures; call once at the top of a notebook."""
    looks = {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    looks |= {"figure.dpi": 80, "savefig.dpi": 150, "savefig.bbox": "tight", "figure.constrained_layout.use": True}
    looks |= {"text.parse_math": False}  # names of files may hold a $
    sns.set_theme("notebook", "ticks", font_scale=0.8, rc=looks)


def save(figure: Figure, config: Config, name: str, dpi: int | None = None) -> Path:
    """Write results/<study>/figures/<name>.png; fewer dots per inch for many photographs."""
    path = study_folder(config) / "figures" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, metadata={"Software": None})
    if dpi:  # 256 colours do, and take a third of the bytes
        Image.open(path).convert("RGB").quantize(256, kmeans=2).save(path)  # without means rare hot colours go astray
    return path


def to_array(image: Any) -> np.ndarray:
    """A tensor (3, height, width), uint8 or float in [0, 1], as an array (height, width, 3). Tables need no torch."""
    return np.asarray(image).transpose(1, 2, 0)


def image_grid(rows: Sequence, row_labels: Sequence[str] = (), titles: Sequence = (), masks: Sequence = ()) -> Figure:
    """Rows of images (3, height, width), of any lengths. `titles` and `masks` are as `rows`, of texts and of masks
    (height, width) bool or None, which are outlined."""
    columns, size = max(map(len, rows)), 1.15  # inches, as all lengths here
    # places are computed, as the general layout takes over a second for that many axes
    gap, label, title = 0.04, 0.9 * bool(row_labels), 0.3 * bool(titles)
    width, height = label + columns * (size + gap), len(rows) * (size + gap + title)
    figure = plt.figure(figsize=(width, height), layout="none")
    spaces = {"left": label / width, "right": 1, "bottom": 0, "top": 1 - title / height}
    spaces |= {"wspace": gap / size, "hspace": (gap + title) / size}
    axes = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw=spaces)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for i, row in enumerate(rows):
        for j, (axis, image) in enumerate(zip(axes[i], row, strict=False)):
            axis.imshow(to_array(image), interpolation="nearest")
            if titles:
                axis.set_title(titles[i][j], fontsize=7, pad=2, y=1)
            mask = masks[i][j] if masks else None
            if mask is not None and mask.any():  # a little outside, so that what it encloses stays visible
                margin = max(1, round(0.02 * mask.shape[0]))
                outline = ndimage.binary_dilation(mask.cpu().numpy(), iterations=margin)
                axis.contour(outline, [0.5], colors=ORANGE, linewidths=0.9)
        if row_labels:
            name = row_labels[i].replace("_", " ")
            axes[i][0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    return figure


def auc_by_method(table: pd.DataFrame, methods: Sequence[str], ylabel: str = "image AUC (%)") -> Figure:
    """AUC of each method, a panel per category or average: ours with standard error (open: one seed, which
    tells none), the paper's value, and the untrained control as a line."""
    groups, trained = list(dict.fromkeys(table["group"])), [m for m in methods if m != "untrained"]
    figure, axes = plt.subplots(1, len(groups), figsize=(1.2 + 1.75 * len(groups), 3.2), sharey=True, squeeze=False)
    for axis, group in zip(axes[0], groups, strict=True):
        part = table[table["group"] == group].set_index("method").reindex(methods)
        ours, x = part.loc[trained], np.arange(len(trained))
        axis.errorbar(x, ours["mean"], ours["stderr"], fmt="o", color=BLUE, capsize=2, label="ours")
        alone = ours["mean"].where(ours["stderr"].isna())
        if alone.notna().any():
            axis.plot(x, alone, "o", color=BLUE, mfc="white", zorder=5, label="one seed")
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
    figure, axis = plt.subplots(figsize=(9, 0.8))  # without axes a notebook would show nothing
    axis.set_axis_off()
    axis.text(0.5, 0.5, text, ha="center", va="center", color=GREY, fontsize=8, in_layout=False)
    return figure
