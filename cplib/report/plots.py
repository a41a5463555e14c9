"""Figures that several notebooks show, and the look of all figures. Others are drawn where they are shown."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage

from cplib.config import Config
from cplib.runs.store import study_folder

# Okabe and Ito's palette, safe for colour-blind readers
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#7F7F7F"
WIDTH = 8.0  # inches of a figure as wide as a page


def use_style() -> None:
    """Set the look of all figures; call once at the top of a notebook."""
    looks = {"font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8}
    looks |= {"legend.fontsize": 8, "axes.linewidth": 0.8, "xtick.major.width": 0.8, "ytick.major.width": 0.8}
    looks |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    looks |= {"figure.dpi": 110, "savefig.dpi": 150, "savefig.bbox": "tight", "figure.constrained_layout.use": True}
    looks |= {"text.parse_math": False}  # names of files may hold a $
    sns.set_theme("paper", "ticks", rc=looks)


def save(figure: Figure, config: Config, name: str, dpi: int | None = None) -> Path:
    """Write results/<study>/figures/<name>.png; fewer dots per inch for many photographs."""
    path = study_folder(config) / "figures" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, metadata={"Software": None})
    if dpi:  # 256 colours do, and take a third of the bytes
        Image.open(path).convert("RGB").quantize(256, kmeans=2).save(path)  # without means rare hot colours go astray
    return path


def image_grid(rows: Sequence, row_labels: Sequence[str] = (), titles: Sequence = (), masks: Sequence = ()) -> Figure:
    """Rows of images (3, height, width), of any lengths. `titles` and `masks` are as `rows`, of texts and of masks
    (height, width) bool or None, which are outlined."""
    # inches, as all lengths here; places are computed, as the general layout takes over a second for that many axes
    gap, label, title = 0.04, 0.9 * bool(row_labels), 0.3 * bool(titles)
    columns = max(map(len, rows))
    size = min((WIDTH - label) / columns - gap, 1.6)
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
            axis.imshow(np.asarray(image).transpose(1, 2, 0), interpolation="nearest")
            if titles:
                axis.set_title(titles[i][j], pad=2, y=1)
            mask = masks[i][j] if masks else None
            if mask is not None and mask.any():  # a little outside, so that what it encloses stays visible
                margin = max(1, round(0.02 * mask.shape[0]))
                outline = ndimage.binary_dilation(mask.cpu().numpy(), iterations=margin)
                axis.contour(outline, [0.5], colors=ORANGE, linewidths=0.9)
        if row_labels:
            name = row_labels[i].replace("_", " ")
            axes[i][0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def auc_by_method(table: pd.DataFrame, methods: Sequence[str], label: str = "image AUC (%)") -> Figure:
    """AUC of each method, a panel per category or average: ours with standard error (open: one seed, which tells none),
    the paper's value, and the untrained control as a line."""
    groups, trained = list(dict.fromkeys(table["group"])), [m for m in methods if m != "untrained"]
    figure, axes = panels(len(groups), 0.6 + 0.24 * len(trained), sharex=True, sharey=True)
    for axis, group in zip(axes, groups, strict=True):
        part = table[table["group"] == group].set_index("method").reindex(methods)
        ours, y = part.loc[trained], np.arange(len(trained))
        alone = ours["mean"].where(ours["stderr"].isna())
        some = ours["mean"].where(ours["stderr"].notna())
        if some.notna().any():
            axis.errorbar(some, y, xerr=ours["stderr"], fmt="o", ms=5, color=BLUE, capsize=2, label="ours")
        if alone.notna().any():
            axis.plot(alone, y, "o", ms=5, color=BLUE, mfc="white", zorder=5, label="ours, one seed")
        if ours["paper"].notna().any():
            axis.plot(ours["paper"], y, "x", color=RED, zorder=6, label="paper")
        if "untrained" in part.index:
            axis.axvline(part.loc["untrained", "mean"], color=GREY, ls="--", lw=1, label="untrained")
        of_all = ours.index[ours["paper_categories"] == "all of MVTec AD"]
        whom = "" if len(of_all) == ours["paper"].notna().sum() else f" for {', '.join(of_all)}"
        axis.set_title(group + (f"\n(paper{whom}: all of MVTec AD)" if len(of_all) else ""))
        axis.set_yticks(y, [m.replace("_", " ") for m in trained])
        axis.set_ylim(len(trained) - 0.5, -0.5)
        axis.grid(lw=0.4)
    figure.supxlabel(label, fontsize=9)
    legend(figure, axes)
    return figure


def panels(count: int, height: float, columns: int = 4, **shared: Any) -> tuple[Figure, list[Axes]]:
    """A figure as wide as a page with `count` panels of a height in inches, row by row."""
    columns = min(columns, max(count, 2))
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, rows * height + 0.6), squeeze=False, **shared)
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    for axis in axes.flat[max(0, count - columns) : count]:
        axis.tick_params(labelbottom=True)  # the lowest of its column, where others are switched off
    return figure, list(axes.flat[:count])


def legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels, above them."""
    found: dict[str, Any] = {}
    for axis in axes:
        found |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(found.values(), found.keys(), loc="outside upper center", ncols=len(found))


def notice(text: str) -> Figure:
    """A figure that only says why there is nothing to draw."""
    figure, axis = plt.subplots(figsize=(WIDTH, 0.8))  # without axes a notebook would show nothing
    axis.set_axis_off()
    axis.text(0.5, 0.5, text, ha="center", va="center", color=GREY, fontsize=8, in_layout=False)
    return figure
