"""Maps of pixels cover the image and peak where the patch is; metrics equal direct ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from cplib import pixels

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("size", "expected"), [(9, 0.9533), (31, 1.4246), (32, 10.0), (64, 10.0)])
def test_deviation_follows_the_rule(size, expected):
    assert pixels.kernel_deviation(size) == pytest.approx(expected, abs=1e-4)


def test_kernel_is_a_gaussian_of_sum_1():
    kernel = pixels.gaussian_kernel(33, 5.0).double().numpy()
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert np.allclose(kernel, kernel.T) and kernel.argmax() == 33 * 16 + 16
    assert kernel[16, 16 + 5] / kernel[16, 16] == pytest.approx(np.exp(-0.5), rel=1e-5)
    assert np.array_equal(pixels.gaussian_kernel(32).numpy(), pixels.gaussian_kernel(32, 10.0).numpy())


@pytest.mark.parametrize("border", ["transposed", "averaged"])
@pytest.mark.parametrize(("size", "patch", "stride"), [(256, 64, 8), (256, 32, 4), (64, 16, 12), (48, 48, 4)])
def test_maps_have_the_size_of_the_image(size, patch, stride, border):
    side = (size - patch) // stride + 1
    assert pixels.to_pixels(np.ones((2, side, side)), patch, stride, border=border).shape == (2, size, size)


def test_a_single_hot_patch_gives_the_kernel_in_its_place():
    maps = np.zeros((2, 7, 7))
    maps[1, 2, 4] = 3
    cold, hot = pixels.to_pixels(maps, 16, 8, sigma=3)
    assert (cold == 0).all()
    # pixels of the patch, centred between the 8th and 9th
    inside = hot[16:32, 32:48]
    np.testing.assert_allclose(inside, 3 * pixels.gaussian_kernel(16, 3).numpy(), rtol=1e-6)
    assert hot.sum() == pytest.approx(inside.sum()) and hot.argmax() in {
        64 * r + c for r in (23, 24) for c in (39, 40)
    }


def test_averaging_leaves_a_constant_map_constant():
    maps = np.full((1, 7, 7), 5.0)
    np.testing.assert_allclose(pixels.to_pixels(maps, 16, 8, border="averaged"), 5, rtol=1e-5)
    narrow = pixels.to_pixels(maps, 16, 8, sigma=0.3, border="averaged")
    np.testing.assert_allclose(narrow, 5, rtol=1e-5, err_msg="weights underflow between the patches")
    assert pixels.to_pixels(maps, 16, 8)[0, 0, 0] < 5 / 64


def test_resized_maps_keep_order_and_range():
    maps = np.array([[[0.0, 1.0], [2.0, 3.0]]])
    (big,) = pixels.resized(maps, 8)
    assert big.shape == (8, 8) and big.min() == 0 and big.max() == 3
    assert big[0, 0] < big[0, -1] < big[-1, 0] < big[-1, -1]


# --- metrics --------------------------------------------------------------------------------------


def scored(seed: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    """Smooth maps (4, 24, 24) that agree somewhat with masks of several regions; one image is normal."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((4, 24, 24), bool)
    masks[0, 2:9, 3:8] = masks[0, 15:17, 15:20] = True
    masks[1, 20:23, :5] = masks[1, 19, 5] = True  # joined at a corner
    masks[2, 8:20, 8:20] = True
    maps = ndimage.gaussian_filter(rng.normal(size=masks.shape) + 0.8 * masks, (0, 1, 1)).astype(np.float32)
    return np.round(maps, 1) if ties else maps, masks


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_auroc_is_scikit_learns(seed, ties):
    maps, masks = scored(seed, ties)
    assert pixels.auroc(maps, masks) == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-9)


def slow_aupro(maps: np.ndarray, masks: np.ndarray, limit: float) -> float:
    """Threshold by threshold, region by region."""
    regions = []
    for k, mask in enumerate(masks):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        regions += [(k, labels == r) for r in range(1, count + 1)]
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        overlap = np.mean([(maps[k][region] >= threshold).mean() for k, region in regions])
        points.append(((maps[~masks] >= threshold).mean(), overlap))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("ties", [False, True])
def test_aupro_is_the_direct_one(ties, limit):
    for seed in range(3):
        maps, masks = scored(seed, ties)
        assert pixels.aupro(maps, masks, limit) == pytest.approx(slow_aupro(maps, masks, limit), abs=1e-9)


def test_perfect_and_useless_maps():
    _, masks = scored(0, False)
    assert pixels.auroc(masks, masks) == 1 and pixels.aupro(masks, masks) == pytest.approx(1)
    flat = np.zeros(masks.shape)
    assert pixels.auroc(flat, masks) == 0.5 and pixels.aupro(flat, masks) == pytest.approx(0.15)
    assert pixels.auroc(~masks, masks) == 0 and pixels.aupro(~masks, masks) == 0


def test_metrics_are_of_the_whole_set_not_of_images():
    """A map of every image scaled by itself would rank perfectly here."""
    masks = np.zeros((2, 8, 8), bool)
    masks[:, 2:4, 2:4] = True
    maps = np.stack([masks[0] * 1.0, masks[1] * 1.0 + 10])
    assert pixels.auroc(maps, masks) == pytest.approx(0.75)


@pytest.mark.parametrize("metric", [pixels.auroc, pixels.aupro])
def test_bad_input_is_named(metric):
    maps, masks = scored(0, False)
    with pytest.raises(ValueError, match="alike"):
        metric(maps[:2], masks)
    with pytest.raises(ValueError, match="normal and anomalous"):
        metric(maps, masks & False)
    maps[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        metric(maps, masks)
