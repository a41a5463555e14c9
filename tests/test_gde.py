"""Densities: equal to a direct computation, whatever the input; what cannot be fitted or scored is named."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import multivariate_normal, ortho_group
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import KernelDensity

from cplib import gde
from cplib.gde import DENSITIES, DensityError, density, normalized

examples = settings(max_examples=20, deadline=None)


def cloud(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Embeddings about one direction, of different lengths, correlated."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d)) / d
    return (1 + 0.3 * rng.normal(size=(n, d)) @ mixing) * rng.uniform(0.5, 2, (n, 1))


def score(name: str, normal: np.ndarray, test: np.ndarray) -> np.ndarray:
    return density(name).fit(normal).score_samples(test)


@pytest.mark.parametrize(("n", "d"), [(200, 8), (20, 64)])  # more and fewer samples than dimensions
def test_scores_are_those_of_scikit_learn(n, d):
    normal, test = cloud(n, d), cloud(30, d, 1)
    x, y = normalized(normal), normalized(test)
    np.testing.assert_allclose(score("ledoit_wolf", normal, test), LedoitWolf().fit(x).mahalanobis(y), rtol=1e-5)
    inverse = np.linalg.inv(np.cov(x, rowvar=False, bias=True) + gde.RIDGE * np.eye(d))
    ridge = cdist(y, x.mean(0)[None], "mahalanobis", VI=inverse)[:, 0] ** 2
    np.testing.assert_allclose(score("ridge", normal, test), ridge, rtol=1e-6)
    gamma = 10 / (x.var() * d)
    kernels = KernelDensity(bandwidth=(2 * gamma) ** -0.5).fit(x)
    np.testing.assert_allclose(score("kde", normal, test), -kernels.score_samples(y), rtol=1e-6)


@pytest.mark.parametrize("name", ["ledoit_wolf", "ridge"])
def test_log_density_of_a_gaussian_is_that_of_scipy(name):
    x = np.random.default_rng(0).normal(size=(40, 5))
    fitted = density(name).fit(x)
    gaussian = multivariate_normal(fitted.mean, np.linalg.inv(fitted.precision))
    np.testing.assert_allclose(fitted.log_density(x), gaussian.logpdf(normalized(x)), rtol=1e-6)


@pytest.mark.parametrize("name", DENSITIES)
@examples
@given(n=st.integers(2, 60), d=st.integers(2, 40), seed=st.integers(0, 999))
def test_the_opposite_direction_is_further_than_any_normal_image(name, n, d, seed):
    normal = 1 + 0.05 * np.random.default_rng(seed).normal(size=(n, d))
    scores = score(name, normal, np.concatenate([normal, -np.ones((1, d))]))
    assert scores.dtype == np.float64 and np.isfinite(scores).all() and scores[-1] > scores[:-1].max()


@pytest.mark.parametrize("name", DENSITIES)
@examples
@given(seed=st.integers(0, 999))
def test_neither_length_nor_order_nor_direction_of_the_axes_counts(name, seed):
    rng = np.random.default_rng(seed)
    normal, test = cloud(30, 10, seed), cloud(30, 10, seed + 1)
    scores = score(name, normal, test)
    factors = rng.uniform(0.01, 100, (2, 30, 1))
    np.testing.assert_allclose(score(name, factors[0] * normal, factors[1] * test), scores, rtol=1e-5)
    np.testing.assert_allclose(score(name, rng.permutation(normal), test), scores, rtol=1e-5)
    np.testing.assert_allclose(score(name, normal, test[::-1]), scores[::-1], rtol=1e-9)
    if name != "kde":  # the kernel's bandwidth knows axes: it is of the variance over all entries
        turn = ortho_group.rvs(10, random_state=seed)
        np.testing.assert_allclose(score(name, normal @ turn, test @ turn), scores, rtol=1e-5)


@pytest.mark.parametrize("name", DENSITIES)
@pytest.mark.parametrize("d", [1, 3, 512])
def test_equal_embeddings_and_zeros_are_scored(name, d):
    same, zeros = np.ones((6, d)), np.zeros((4, d))
    scores = score(name, same, np.vstack([same[:1], -same[:1]]))
    assert np.isfinite(scores).all() and scores[1] > scores[0]
    assert np.isfinite(score(name, zeros, same)).all() and np.isfinite(score(name, cloud(10, d), zeros)).all()


@pytest.mark.parametrize("name", DENSITIES)
def test_what_cannot_be_fitted_or_scored_is_named(name):
    fitted = density(name).fit(cloud(10, 5))
    assert np.isfinite(score(name, np.eye(5)[:2], np.eye(5))).all()  # two images are enough
    with pytest.raises(DensityError, match=r"1 sample.* minimum of 2"):
        density(name).fit(np.ones((1, 5)))
    with pytest.raises(ValueError):
        fitted.score_samples(np.ones((2, 6)))
    for wrong in (np.ones(5), np.ones((2, 5, 1))):
        with pytest.raises(DensityError, match=r"dim|2D"):
            fitted.score_samples(wrong)
    for bad in (np.nan, np.inf):
        for use in (density(name).fit, fitted.score_samples):
            with pytest.raises(DensityError, match=r"contains (NaN|infinity)"):
                use(np.vstack([cloud(9, 5), np.full(5, bad)]))
