"""Densities: equal to a direct computation, ranks as scikit-learn's, every input scored or named."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, ortho_group, rankdata
from sklearn.covariance import LedoitWolf
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

from cplib import gde
from cplib.gde import DENSITIES, DensityError, density, normalized

# More and fewer samples than dimensions
SHAPES = [(200, 8), (20, 64)]


def cloud(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Embeddings about one direction, of different lengths, correlated."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d)) / d
    return (1 + 0.3 * rng.normal(size=(n, d)) @ mixing) * rng.uniform(0.5, 2, (n, 1))


def fit_and_score(name: str, normal: np.ndarray, test: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # more components than different embeddings
        return density(name).fit(normal).score_samples(test)


# --- against a direct computation -----------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_ridge_is_the_mahalanobis_distance(n, d):
    normal, test = normalized(cloud(n, d)), normalized(cloud(30, d, 1))
    covariance = np.cov(normal, rowvar=False, bias=True) + gde.RIDGE * np.eye(d)
    distance = cdist(test, normal.mean(0)[None], "mahalanobis", VI=np.linalg.inv(covariance))[:, 0] ** 2
    np.testing.assert_allclose(fit_and_score("ridge", normal, test), distance, rtol=1e-6)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_ledoit_wolf_is_that_of_scikit_learn(n, d):
    normal, test = cloud(n, d), cloud(30, d, 1)
    expected = LedoitWolf().fit(normalized(normal)).mahalanobis(normalized(test))
    scores = fit_and_score("ledoit_wolf", normal, test)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert (rankdata(scores) == rankdata(expected)).all()


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_kernel_density_is_the_mean_of_kernels(n, d):
    normal, test = normalized(cloud(n, d)), normalized(cloud(30, d, 1))
    gamma = 10 / (normal.var() * d)
    log_kernels = -gamma * cdist(test, normal, "sqeuclidean") + d / 2 * np.log(gamma / np.pi)
    scores = fit_and_score("kde", normal, test)
    np.testing.assert_allclose(scores, np.log(n) - logsumexp(log_kernels, axis=1), rtol=1e-6)
    library = KernelDensity(bandwidth=(2 * gamma) ** -0.5).fit(normal)
    np.testing.assert_allclose(scores, -library.score_samples(test), rtol=1e-6)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_mixture_ranks_as_that_of_scikit_learn(n, d):
    normal, test = cloud(n, d), cloud(30, d, 1)
    library = GaussianMixture(4, covariance_type="diag", random_state=0, reg_covar=gde.RIDGE)
    expected = -library.fit(normalized(normal)).score_samples(normalized(test))
    assert (rankdata(fit_and_score("mixture", normal, test)) == rankdata(expected)).all()


# --- properties of every density ------------------------------------------------------------------


@pytest.mark.parametrize("name", DENSITIES)
@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 60), d=st.integers(2, 40), seed=st.integers(0, 999))
def test_the_opposite_direction_is_further_than_any_normal_image(name, n, d, seed):
    normal = 1 + 0.05 * np.random.default_rng(seed).normal(size=(n, d))
    scores = fit_and_score(name, normal, np.concatenate([normal, -np.ones((1, d))]))
    assert scores.shape == (n + 1,) and scores.dtype == np.float64 and np.isfinite(scores).all()
    assert scores[-1] > scores[:-1].max()


@pytest.mark.parametrize("name", DENSITIES)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999))
def test_length_of_an_embedding_does_not_count(name, seed):
    factors = np.random.default_rng(seed).uniform(0.01, 100, (2, 30, 1))
    normal, test = cloud(30, 10, seed), cloud(30, 10, seed + 1)
    scores = fit_and_score(name, normal, test)
    np.testing.assert_allclose(fit_and_score(name, factors[0] * normal, factors[1] * test), scores, rtol=1e-5)


@pytest.mark.parametrize("name", ["ledoit_wolf", "ridge", "kde"])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999))
def test_order_of_images_and_rotation_of_the_space_do_not_count(name, seed):
    """The Mahalanobis distance knows no axes; the kernel's bandwidth does (variance over all entries)."""
    rng = np.random.default_rng(seed)
    normal, test = cloud(30, 10, seed), cloud(30, 10, seed + 1)
    turn = ortho_group.rvs(10, random_state=seed)
    scores = fit_and_score(name, normal, test)
    np.testing.assert_allclose(fit_and_score(name, rng.permutation(normal), test), scores, rtol=1e-5)
    if name != "kde":
        np.testing.assert_allclose(fit_and_score(name, normal @ turn, test @ turn), scores, rtol=1e-5)
    np.testing.assert_allclose(fit_and_score(name, normal, test[::-1]), scores[::-1], rtol=1e-9)


@pytest.mark.parametrize("name", DENSITIES)
def test_same_embeddings_same_scores_to_the_bit(name):
    normal, test = cloud(40, 16), cloud(10, 16, 1)
    first = fit_and_score(name, normal, test)
    np.random.seed(7)
    assert np.array_equal(fit_and_score(name, normal, test), first)


@pytest.mark.parametrize("name", DENSITIES)
def test_float16_is_computed_in_float64(name):
    normal, test = cloud(20, 64).astype(np.float16), cloud(10, 64, 1).astype(np.float16)
    exact = fit_and_score(name, normal.astype(np.float64), test.astype(np.float64))
    assert np.array_equal(fit_and_score(name, normal, test), exact)


def test_embeddings_are_not_changed():
    normal = cloud(20, 8)
    before = normal.copy()
    fit_and_score("ridge", normal, normal)
    assert np.array_equal(normal, before)


def test_normalized_has_length_1_or_0():
    lengths = np.linalg.norm(normalized(np.vstack([cloud(5, 3), np.zeros((1, 3)), [[1e-5, 0, 0]]])), axis=1)
    np.testing.assert_allclose(lengths, [1] * 5 + [0, 1])


# --- degenerate and bad input ---------------------------------------------------------------------


@pytest.mark.parametrize("name", DENSITIES)
@pytest.mark.parametrize("d", [1, 3, 512])
def test_equal_embeddings(name, d):
    normal = np.ones((6, d))
    scores = fit_and_score(name, normal, np.vstack([normal[:1], -normal[:1]]))
    assert np.isfinite(scores).all() and scores[1] > scores[0]


@pytest.mark.parametrize("name", DENSITIES)
def test_zero_vectors(name):
    zeros = np.zeros((4, 5))
    assert np.isfinite(fit_and_score(name, zeros, np.eye(5))).all()
    assert np.isfinite(fit_and_score(name, np.vstack([cloud(10, 5), zeros]), zeros)).all()


@pytest.mark.parametrize("name", DENSITIES)
def test_two_images_are_enough_and_one_is_not(name):
    scores = fit_and_score(name, np.eye(5)[:2], np.eye(5))
    assert np.isfinite(scores).all() and scores[2] > scores[0]
    with pytest.raises(DensityError, match="at least 2 normal images, got 1"):
        density(name).fit(np.ones((1, 5)))
    with pytest.raises(DensityError, match="at least 2 normal images, got 0"):
        density(name).fit(np.ones((0, 5)))


@pytest.mark.parametrize("name", DENSITIES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_embeddings_that_are_not_finite_are_named(name, bad):
    broken = cloud(10, 5)
    broken[3, 2] = broken[7, 0] = bad
    with pytest.raises(DensityError, match=r"embedding 3 is not finite \(2 of 10\)"):
        density(name).fit(broken)
    with pytest.raises(DensityError, match="embedding 3 is not finite"):
        density(name).fit(cloud(10, 5)).score_samples(broken)


@pytest.mark.parametrize("name", DENSITIES)
def test_wrong_shapes_are_named(name):
    fitted = density(name).fit(cloud(10, 5))
    for wrong in (np.ones(5), np.ones((2, 5, 1)), np.ones((2, 1)), np.ones((2, 6))):
        with pytest.raises(DensityError, match=r"shape \(n, 5\), got \(" + str(wrong.shape[0])):
            fitted.score_samples(wrong)
    with pytest.raises(DensityError, match=r"shape \(n, d\), got \(5,\)"):
        density(name).fit(np.ones(5))


def test_unknown_density_is_named():
    with pytest.raises(DensityError, match="'knn'; known: ledoit_wolf, ridge, kde, mixture"):
        density("knn")


def test_every_call_gives_a_new_density():
    first, second = density("ridge").fit(cloud(20, 4)), density("ridge").fit(cloud(20, 4, 1))
    assert not np.allclose(first.score_samples(np.eye(4)), second.score_samples(np.eye(4)))


@pytest.mark.parametrize("name", ["ledoit_wolf", "ridge"])
def test_log_density_of_a_gaussian_equals_scipy(name):
    x = np.random.default_rng(0).normal(size=(40, 5))
    fitted = gde.density(name).fit(x)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    covariance = fitted.covariance.covariance_ + max(fitted.ridge, 1e-12) * np.eye(5)
    expected = multivariate_normal(fitted.covariance.location_, covariance).logpdf(unit)
    np.testing.assert_allclose(fitted.log_density(x), expected, rtol=1e-6)


def test_held_out_log_density_prefers_the_density_that_generalises():
    # far fewer images than dimensions: an unshrunk covariance knows only the directions that it has seen
    x = np.random.default_rng(0).normal(size=(30, 200)) + 1
    values = {name: gde.held_out_log_density(name, x) for name in ("ledoit_wolf", "ridge")}
    assert values["ledoit_wolf"] > values["ridge"]
