"""Stage 2: densities on embeddings of normal images; the score is high where an image is anomalous
(section 2.3, equation 2).

All work on L2-normalised embeddings, as the authors' earlier public code does. The paper does not state
its regularisation, which decides the result where there are fewer images than dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from sklearn.covariance import EmpiricalCovariance, LedoitWolf
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import KFold
from sklearn.neighbors import KernelDensity

RIDGE = 1e-6


class Density(Protocol):
    """A density on embeddings, (n, d) arrays of float."""

    def fit(self, embeddings: np.ndarray) -> Density:
        """Fit to the embeddings of normal images; needs at least 2 of them, all finite."""
        ...

    def score_samples(self, embeddings: np.ndarray) -> np.ndarray:
        """Anomaly scores (n,), float64, higher where more anomalous. Not a log-likelihood."""
        ...

    def log_density(self, embeddings: np.ndarray) -> np.ndarray:
        """Natural logarithm of the density (n,), float64: comparable between densities."""
        ...


class DensityError(ValueError):
    """Embeddings from which no density can be fitted or scored."""


def normalized(embeddings: np.ndarray, dimension: int | None = None) -> np.ndarray:
    """Embeddings in float64, scaled to length 1; an embedding of length 0 stays 0."""
    x = np.asarray(embeddings, dtype=np.float64)
    if x.ndim != 2 or dimension not in (None, x.shape[1]):
        raise DensityError(f"expected embeddings of shape (n, {dimension or 'd'}), got {x.shape}")
    bad = ~np.isfinite(x).all(axis=1)
    if bad.any():
        raise DensityError(f"embedding {int(bad.argmax())} is not finite ({bad.sum()} of {len(x)})")
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _training(embeddings: np.ndarray) -> np.ndarray:
    x = normalized(embeddings)
    if len(x) < 2:
        raise DensityError(f"a density needs at least 2 normal images, got {len(x)}")
    return x


class GaussianDensity:
    """Gaussian density; the score is the squared Mahalanobis distance (equation 2).

    Args:
        covariance: an estimator of scikit-learn such as `EmpiricalCovariance` or `LedoitWolf`.
        ridge: added to the diagonal of the covariance.
    """

    def __init__(self, covariance: EmpiricalCovariance, ridge: float = 0.0) -> None:
        self.covariance = covariance
        self.ridge = ridge

    def fit(self, embeddings: np.ndarray) -> GaussianDensity:
        x = _training(embeddings)
        self.covariance.fit(x)
        # The smallest double that keeps the factorisation possible if all embeddings are equal
        ridge = max(self.ridge, 1e-12)
        matrix = self.covariance.covariance_ + ridge * np.eye(x.shape[1])
        self._factor = cho_factor(matrix, lower=True)
        return self

    @property
    def mean(self) -> np.ndarray:
        """Mean (d,) of the normalised embeddings."""
        return self.covariance.location_

    @property
    def precision(self) -> np.ndarray:
        """Inverse (d, d) of the regularised covariance."""
        return cho_solve(self._factor, np.eye(len(self.mean)))

    def score_samples(self, embeddings: np.ndarray) -> np.ndarray:
        difference = normalized(embeddings, len(self.covariance.location_)) - self.covariance.location_
        return np.einsum("nd,dn->n", difference, cho_solve(self._factor, difference.T))

    def log_density(self, embeddings: np.ndarray) -> np.ndarray:
        diagonal = np.diag(self._factor[0])
        constant = 2 * np.log(diagonal).sum() + len(diagonal) * np.log(2 * np.pi)
        return -0.5 * (self.score_samples(embeddings) + constant)


class KernelDensityScore:
    """Kernel density with a Gaussian kernel exp(-gamma |x - y|^2), gamma = 10 / (variance * d), as in
    the authors' earlier work (section 5.4); the score is the negative log-density."""

    def fit(self, embeddings: np.ndarray) -> KernelDensityScore:
        x = _training(embeddings)
        gamma = 10 / max(x.var() * x.shape[1], 1e-12)
        self._density = KernelDensity(bandwidth=float(np.sqrt(0.5 / gamma))).fit(x)
        return self

    def score_samples(self, embeddings: np.ndarray) -> np.ndarray:
        return -self.log_density(embeddings)

    def log_density(self, embeddings: np.ndarray) -> np.ndarray:
        return self._density.score_samples(normalized(embeddings, self._density.n_features_in_))


class MixtureDensity:
    """Mixture of Gaussians with diagonal covariances; the score is the negative log-density."""

    def __init__(self, n_components: int = 4, random_state: int = 0) -> None:
        self.n_components = n_components
        self.random_state = random_state

    def fit(self, embeddings: np.ndarray) -> MixtureDensity:
        x = _training(embeddings)
        self._mixture = GaussianMixture(
            min(self.n_components, len(x)),
            covariance_type="diag",
            reg_covar=RIDGE,
            random_state=self.random_state,
        ).fit(x)
        return self

    def score_samples(self, embeddings: np.ndarray) -> np.ndarray:
        return -self.log_density(embeddings)

    def log_density(self, embeddings: np.ndarray) -> np.ndarray:
        return self._mixture.score_samples(normalized(embeddings, self._mixture.n_features_in_))


DENSITIES: dict[str, Callable[[], Density]] = {
    "ledoit_wolf": lambda: GaussianDensity(LedoitWolf(store_precision=False)),
    "ridge": lambda: GaussianDensity(EmpiricalCovariance(store_precision=False), ridge=RIDGE),
    "kde": KernelDensityScore,
    "mixture": MixtureDensity,
}


def density(name: str) -> Density:
    """A new density by its name in `DENSITIES`."""
    if name not in DENSITIES:
        raise DensityError(f"unknown density {name!r}; known: {', '.join(DENSITIES)}")
    return DENSITIES[name]()


def held_out_log_density(name: str, embeddings: np.ndarray, folds: int = 5) -> float:
    """Mean log-density of normal images that the density was not fitted to, by cross-validation.

    It compares densities on training images alone: the one that is higher describes normal images better.
    Each fold needs at least 2 images to fit.
    """
    parts = KFold(min(folds, len(embeddings)), shuffle=True, random_state=0).split(embeddings)
    logs = [density(name).fit(embeddings[a]).log_density(embeddings[b]) for a, b in parts]
    return float(np.concatenate(logs).mean())
