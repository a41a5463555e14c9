"""Maps of pixels are sums of Gaussians in the places of patches; metrics equal direct ones."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from cplib.localize import pixels

pytestmark = pytest.mark.usefixtures("one_thread")


def test_deviation_follows_the_rule_of_fcdd():
    assert [round(pixels.kernel_deviation(n), 4) for n in (9, 31, 32, 64)] == [0.9533, 1.4246, 10, 10]


@settings(deadline=None, max_examples=30)
@given(
    side=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    patch=st.integers(4, 17),
    stride=st.integers(1, 20),
    sigma=st.sampled_from([0.0, 1.0, 5.0]),
    seed=st.integers(0, 999),
)
def test_to_pixels_is_a_plain_sum_of_gaussians(side, patch, stride, sigma, seed):
    maps = np.random.default_rng(seed).normal(size=(2, *side)).astype(np.float32)
    distance = np.arange(patch) - (patch - 1) / 2
    line = np.exp(-0.5 * (distance / (sigma or pixels.kernel_deviation(patch))) ** 2)
    kernel = np.outer(line, line) / line.sum() ** 2
    expected = np.zeros((2, *((n - 1) * stride + patch for n in side)))
    weights = np.zeros(expected.shape[1:])
    for i, j in np.ndindex(side):
        place = np.s_[..., i * stride : i * stride + patch, j * stride : j * stride + patch]
        expected[place] += maps[:, i, j, None, None] * kernel
        weights[place] += kernel
    found = pixels.to_pixels(maps, patch, stride, sigma)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    averaged = pixels.to_pixels(maps, patch, stride, sigma, "averaged")
    clear = weights > 1e-3 * kernel.max()  # far below it all patches count the same
    np.testing.assert_allclose(averaged[:, clear], expected[:, clear] / weights[clear], atol=1e-3)


def test_averaging_leaves_a_constant_map_constant():
    """Also with a kernel so narrow that weights underflow between the patches."""
    for sigma in (0.0, 0.3):
        np.testing.assert_allclose(pixels.to_pixels(np.full((1, 7, 7), 5.0), 16, 8, sigma, "averaged"), 5, rtol=1e-5)


def scored(seed: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    """Smooth maps (4, 24, 24) that agree somewhat with masks of several regions; one image is normal."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((4, 24, 24), bool)
    masks[0, 2:9, 3:8] = masks[0, 15:17, 15:20] = True
    masks[1, 20:23, :5] = masks[1, 19, 5] = True  # joined at a corner
    masks[2, 8:20, 8:20] = True
    maps = ndimage.gaussian_filter(rng.normal(size=masks.shape) + 0.8 * masks, (0, 1, 1)).astype(np.float32)
    return np.round(maps, 1) if ties else maps, masks


def brute_aupro(maps: np.ndarray, masks: np.ndarray, limit: float) -> float:
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


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_auroc_is_scikit_learns_and_aupro_a_brute_force_count(ties, limit):
    for seed in range(3):
        maps, masks = scored(seed, ties)
        assert pixels.auroc(maps, masks) == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-9)
        assert pixels.aupro(maps, masks, limit) == pytest.approx(brute_aupro(maps, masks, limit), abs=1e-9)


def test_perfect_and_useless_maps():
    _, masks = scored(0, False)
    perfect = masks.astype(np.float32)
    assert pixels.auroc(perfect, masks) == 1 and pixels.aupro(perfect, masks) == pytest.approx(1)
    scaled = masks + 10 * np.arange(4)[:, None, None]  # perfect within each image, not over all of them
    flat = np.zeros(masks.shape)
    assert pixels.auroc(flat, masks) == 0.5 and pixels.aupro(flat, masks) == pytest.approx(0.15)
    assert pixels.auroc(-perfect, masks) == 0 and pixels.auroc(scaled, masks) < 0.9
