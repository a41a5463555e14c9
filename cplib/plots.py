"""Figures of images, maps and scores, and the look of all figures; `cplib.charts` draws tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib import colormaps
from matplotlib.colors import LogNorm, SymLogNorm
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from cplib.config import Config
from cplib.data import Category
from cplib.study import study_folder

# Okabe and Ito's palette, safe for colour-blind readers
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#7F7F7F"
NORMAL, ANOMALOUS = BLUE, RED


def use_style() -> None:
    """Set the look of all figures; call once at the top of a notebook."""
    sns.set_theme("notebook", "ticks", font_scale=0.8)
    plt.rcParams.update(
        {
            "figure.dpi": 80,
            "savefig.dpi": 150,
            "savefig.bbox": "tight",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "figure.constrained_layout.use": True,
        }
    )


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


def training_curves(history: pd.DataFrame, n_classes: int) -> Figure:
    """Loss and accuracy of the proxy task against updates, a line per seed, chance dashed."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.4))
    chance = {"loss": np.log(n_classes), "accuracy": 1 / n_classes}
    for axis, name in zip(axes, chance, strict=True):
        for seed, part in history.groupby("seed"):
            axis.plot(part["update"], part[name], lw=1, label=f"seed {seed}")
        axis.axhline(chance[name], color=GREY, ls="--", lw=0.8, label="chance")
        axis.set(xlabel="update", ylabel=name)
    axes[1].legend(loc="lower right")
    return figure


def score_histograms(scores: pd.DataFrame, density: str) -> Figure:
    """For each seed the scores of normal and anomalous test images, and one panel of ROC curves."""
    test = scores[scores["split"] == "test"]
    seeds = sorted(test["seed"].unique())
    figure, axes = plt.subplots(1, len(seeds) + 1, figsize=(2.3 * (len(seeds) + 1), 2.3), squeeze=False)
    roc = axes[0][-1]
    for axis, seed in zip(axes[0], seeds, strict=False):
        part = test[test["seed"] == seed]
        # distances spread over orders of magnitude; log-densities have either sign
        scale = "log" if part[density].min() > 0 else "linear"
        space = np.geomspace if scale == "log" else np.linspace
        bins = space(part[density].min(), part[density].max(), 25)
        for label, color, name in ((0, NORMAL, "normal"), (1, ANOMALOUS, "anomalous")):
            values = part.loc[part["label"] == label, density]
            axis.hist(values, bins, color=color, alpha=0.6, label=name)
        auc = roc_auc_score(part["label"], part[density])
        axis.set(title=f"seed {seed}: AUC {100 * auc:.1f}", xlabel="anomaly score", xscale=scale, yticks=[])
        ends = [float(f"{v:.3g}") for v in bins[[0, -1]]]
        axis.set_xticks(ends, [f"{v:g}" for v in ends])  # those of a log axis overlap
        axis.minorticks_off()
        roc.plot(*roc_curve(part["label"], part[density])[:2], lw=1, label=f"seed {seed}")
    axes[0][0].legend()
    roc.plot([0, 1], [0, 1], color=GREY, ls="--", lw=0.8)
    roc.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC", aspect="equal")
    return figure


def ranked_images(images: Category, scores: pd.DataFrame, density: str, seed: int = 0, n: int = 8) -> Figure:
    """Test images by score, the mistakes of a ranking: normal ones that look most anomalous, anomalous
    ones that look most normal, and the clearest of both; without labels the highest and the lowest."""
    part = scores[(scores["split"] == "test") & (scores["seed"] == seed)].reset_index(drop=True)
    order = part[density].sort_values().index
    rank = pd.Series(np.arange(1, len(part) + 1), index=order)
    labels = part["label"].unique()
    names = {1: "anomalous", 0: "normal"} if len(labels) == 2 else dict.fromkeys(labels, "test")
    kinds = {name: [i for i in order if part.loc[i, "label"] == k] for k, name in names.items()}
    rows = {f"{name},\nhighest scores": kind[::-1][:n] for name, kind in kinds.items()}
    rows |= {f"{name},\nlowest scores": kind[:n] for name, kind in kinds.items()}
    return image_grid(
        [[images.test[i] for i in row] for row in rows.values()],
        list(rows),
        [[f"{part.loc[i, 'defect']}\nrank {rank[i]}/{len(part)}" for i in row] for row in rows.values()],
        [[None if images.masks is None else images.masks[i] for i in row] for row in rows.values()],
    )


def detected(images: Tensor, table: pd.DataFrame, heat: np.ndarray | None = None, n: int = 8) -> Figure:
    """The images that look most and least anomalous, and what `heated` makes of them below.

    Args:
        images: (m, 3, height, width) uint8.
        table: columns image, score and good_above, sorted by score; its index tells the rows of `images`.
        heat: (m, height, width) as `strength` returns it, where there are maps.
    """
    told = "anomalous\n(score; share of\ngood ones above)"
    ends = {f"most {told}": table[:n], f"least {told}": table[n:][::-1][:n]}  # no image twice
    rows, titles = {}, []
    for label, part in ends.items():
        if not len(part):
            continue
        rows[label] = [images[i] for i in part.index]
        titles.append(
            [
                f"{Path(row.image).stem[-18:]}\n{row.score:.1f}; {100 * row.good_above:.0f} %"
                for row in part.itertuples()
            ]
        )
        if heat is not None:
            warm = [heated(to_array(images[i]), heat[i]).transpose(2, 0, 1) for i in part.index]
            rows[f"{label.split()[0]}, with heat\n(yellow 1, red 5)"] = [
                torch.from_numpy(image.copy()) for image in warm
            ]
            titles.append([""] * len(part))
    return image_grid(list(rows.values()), list(rows), titles)


def strength(maps: np.ndarray) -> np.ndarray:
    """Maps in standard deviations from what good images reach, as strengths in [0, 1] to draw: heat begins at
    1 and is strongest from 5 on, in every folder."""
    return ((maps - 1) / 4).clip(0, 1).astype(np.float32)


def heated(photo: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """A photograph (height, width, 3) uint8 with heat on it: `strength` (rows, columns), stretched."""
    size = photo.shape[1::-1]
    full = np.asarray(Image.fromarray(strength).resize(size, Image.Resampling.BILINEAR))
    levels = (255 * full).astype(np.uint8)
    # of each level its share of the pixel, more than linear as weak heat is to be seen too, and its colour
    share = (0.6 * np.sqrt(np.linspace(0, 1, 256, dtype=np.float32)))[:, None]
    colour = share * colormaps["autumn_r"](np.arange(256))[:, :3].astype(np.float32) * 255
    return (photo * (1 - share)[levels] + colour[levels]).astype(np.uint8)


def heat_maps(
    images: Category, chosen: Sequence[int], maps: Mapping[str, np.ndarray], titles: Sequence[str]
) -> Figure:
    """Test images in columns; rows: input, outline of the mask, and maps by name.

    Each kind of map has one colour scale, taken from all test images of the category and logarithmic, as the
    distances of defects differ by orders of magnitude: from their median on, or, for maps with values of both
    signs, in both directions from the median of their size on.

    Args:
        chosen: indices of test images.
        maps: (m, height, width) of all test images, by name of the row; the size of the images.
        titles: one for each column.
    """
    n = len(chosen)
    figure, axes = plt.subplots(
        2 + len(maps), n, figsize=(1.15 * n + 1, 1.2 * (2 + len(maps))), squeeze=False
    )
    for row, name in zip(axes, ["input", "mask", *maps], strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        for axis, k in zip(row, chosen, strict=True):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if name not in maps:
                axis.imshow(to_array(images.test[k]), interpolation="nearest")
            if name != "input" and images.masks is not None and images.masks[k].any():
                axis.contour(_around(images.masks[k]), [0.5], colors=ORANGE, linewidths=0.9)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=7, pad=2)
    for row, values in zip(axes[2:], maps.values(), strict=True):
        low, middle, high = np.quantile(values, [0.01, 0.5, 0.999])
        if low < 0:
            most, middle = max(-low, high, 1e-12), max(np.median(np.abs(values)), 1e-12)
            norm = SymLogNorm(middle, vmin=-most, vmax=most, clip=True)
        else:
            middle = max(middle, 1e-12)
            norm = LogNorm(middle, max(high, 1.01 * middle), clip=True)
        for axis, k in zip(row, chosen, strict=True):
            shown = axis.imshow(values[k], norm=norm, cmap="RdBu_r" if low < 0 else "viridis")
        bar = figure.colorbar(shown, ax=list(row), pad=0.01, aspect=12)
        if low < 0:  # the decades around 0 would run into it
            power = int(np.floor(np.log10(most)))
            names = [f"$-10^{{{power}}}$", "0", f"$10^{{{power}}}$"]
            bar.set_ticks([-(10.0**power), 0, 10.0**power], labels=names)
        bar.ax.tick_params(labelsize=6, which="both")
    return figure


def notice(text: str) -> Figure:
    """A figure that only says why there is nothing to draw."""
    figure = plt.figure(figsize=(4, 0.8))
    figure.text(0.5, 0.5, text, ha="center", va="center", color=GREY)
    return figure
