"""From maps of patches to maps of pixels, and how well these agree with masks (sections 2.4 and 4.2).

Scores are compared as they are, over all test images of a category: no image is rescaled by itself.
"""

import math

import numpy as np
import torch
from scipy import ndimage
from sklearn.metrics import roc_auc_score, roc_curve
from torch.nn import functional


def kernel_deviation(size: int) -> float:
    """Std in pixels of the Gaussian kernel of a size, by the rule of FCDD (Liznerski et al. 2021), on which the paper
    builds; the paper states none."""
    return math.log10(0.45 * size + 1) + 0.25 if size < 32 else 10.0


def to_pixels(
    maps: np.ndarray, patch_size: int, stride: int, sigma: float = 0.0, border: str = "transposed"
) -> np.ndarray:
    """Scores of patches spread over the pixels of the image: a transposed convolution with a Gaussian kernel of the
    size of the patch (section 2.4, "receptive field upsampling").

    Args:
        maps: (n, rows, columns), an entry per patch, of a size and stride in pixels.
        sigma: std of the kernel in pixels, 0 for `kernel_deviation`.
        border: "transposed" as the paper has it: scores fall off where fewer patches overlap, at the border;
            "averaged" divides by the sum of the weights, so that each pixel has a mean of patches.

    Returns:
        (n, height, width) float32, height (rows - 1) stride + patch_size: all pixels that patches cover.
    """
    distance = torch.arange(patch_size) - (patch_size - 1) / 2
    line = torch.exp(-0.5 * (distance / (sigma or kernel_deviation(patch_size))).square().double())
    line = line / line.sum()
    kernel = torch.outer(line, line).float()[None, None]  # its sum is 1
    values, weight = torch.from_numpy(np.asarray(maps, np.float32))[:, None], torch.ones(1)
    if border == "averaged":  # far from the middle of a narrow kernel the weights would be 0, and their sum
        kernel = kernel.clamp_min(1e-9 * float(kernel.max()))
        weight = functional.conv_transpose2d(torch.ones_like(values[:1]), kernel, stride=stride)
    height, width = ((n - 1) * stride + patch_size for n in maps.shape[1:])
    out = np.empty((len(maps), height, width), np.float32)
    for k in range(len(maps)):  # one by one: the convolution's buffers are many times its result
        out[k] = (functional.conv_transpose2d(values[k : k + 1], kernel, stride=stride) / weight)[0, 0].numpy()
    return out


def resized(maps: np.ndarray, size: int) -> np.ndarray:
    """Maps (n, rows, columns) interpolated bilinearly to (n, size, size), float32: for GradCAM."""
    values = torch.from_numpy(np.asarray(maps, np.float32))[:, None]
    return functional.interpolate(values, size=(size, size), mode="bilinear", align_corners=False)[:, 0].numpy()


def auroc(maps: np.ndarray, masks: np.ndarray) -> float:
    """Area under the ROC curve over all pixels of all images, in [0, 1], of maps (n, height, width), higher where more
    anomalous, and masks alike, bool, of both kinds."""
    return float(roc_auc_score(masks.ravel(), maps.ravel()))


def aupro(maps: np.ndarray, masks: np.ndarray, limit: float = 0.3) -> float:
    """Area under the per-region overlap up to a false positive rate over the normal pixels of all images, divided by
    this limit (Bergmann et al., IJCV 2021). Every connected region of a mask counts the same, however large; pixels
    that touch at a corner are one. Maps and masks as `auroc`; in no table of the paper."""
    weights = np.ones(masks.shape)
    for mask, weight in zip(masks, weights, strict=True):
        inside = ndimage.label(mask, np.ones((3, 3)))[0][mask]
        weight[mask] = 1 / np.bincount(inside)[inside]  # every region weighs 1 in all
    total = int((~masks).sum())
    kept = min(math.ceil(limit * total) + 1, total)
    # normal pixels that score lower come after the limit, and would take most of the time
    chosen = masks | (maps >= np.partition(maps[~masks], -kept)[-kept])
    false, found, _ = roc_curve(masks[chosen], maps[chosen], sample_weight=weights[chosen])
    false *= (~masks[chosen]).sum() / total
    within = false < limit
    x, y = np.append(false[within], limit), np.append(found[within], np.interp(limit, false, found))
    return float(np.trapezoid(y, x) / limit)
