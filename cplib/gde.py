"""Stage 2: densities on embeddings of normal images; the score is high where an image is anomalous (section 2.3).

A density has, of embeddings (n, d):
    fit             to those of normal images, at least 2
    score_samples   anomaly scores (n,) float64, higher where more anomalous; not a log-likelihood
    log_density     natural logarithm of the density (n,) float64, comparable between densities

All work on embeddings of length 1, as the authors' earlier public code does. The paper does not state its
regularisation, which decides the result where there are fewer images than dimensions.
"""

from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from sklearn.covariance import EmpiricalCovariance, LedoitWolf
from sklearn.model_selection import KFold
from sklearn.neighbors import KernelDensity
from sklearn.utils import check_array

from cplib.sections import JITTERED

RIDGE = 1e-6


class DensityError(ValueError):
    """Embeddings from which no density can be fitted or scored."""


def normalized(embeddings: np.ndarray, least: int = 0) -> np.ndarray:
    """Embeddings (n, d) in float64, scaled to length 1; one of length 0 stays 0. DensityError for fewer than `least` or
    values that are not finite."""
    try:
        x = check_array(embeddings, dtype=np.float64, ensure_min_samples=least)
    except ValueError as error:
        raise DensityError(f"embeddings of images: {error}") from None
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


class GaussianDensity:
    """Gaussian of a mean (d,) and a covariance by an estimator of scikit-learn, with `ridge` added to its diagonal; the
    score is the squared Mahalanobis distance (equation 2)."""

    def __init__(self, covariance: EmpiricalCovariance, ridge: float = 0.0) -> None:
        self.covariance = covariance
        self.ridge = max(ridge, 1e-12)  # keeps the factorisation possible if all embeddings are equal

    def fit(self, embeddings: np.ndarray) -> Self:
        found = self.covariance.fit(normalized(embeddings, least=2))
        self.mean = found.location_
        self._factor = cho_factor(found.covariance_ + self.ridge * np.eye(len(self.mean)), lower=True)
        return self

    @property
    def precision(self) -> np.ndarray:
        """Inverse (d, d) of the regularised covariance."""
        return cho_solve(self._factor, np.eye(len(self.mean)))

    def score_samples(self, embeddings: np.ndarray) -> np.ndarray:
        difference = normalized(embeddings) - self.mean
        return np.einsum("nd,dn->n", difference, cho_solve(self._factor, difference.T))

    def log_density(self, embeddings: np.ndarray) -> np.ndarray:
        diagonal = np.diag(self._factor[0])
        constant = 2 * np.log(diagonal).sum() + len(diagonal) * np.log(2 * np.pi)
        return -0.5 * (self.score_samples(embeddings) + constant)


class KernelDensityScore:
    """Kernel density with a Gaussian kernel exp(-gamma |x - y|^2), gamma = 10 / (variance * d), as in the authors'
    earlier work (section 5.4); the score is the negative log-density."""

    def fit(self, embeddings: np.ndarray) -> Self:
        x = normalized(embeddings, least=2)
        gamma = 10 / max(x.var() * x.shape[1], 1e-12)
        self._density = KernelDensity(bandwidth=float(np.sqrt(0.5 / gamma))).fit(x)
        return self

    def score_samples(self, embeddings: np.ndarray) -> np.ndarray:
        return -self.log_density(embeddings)

    def log_density(self, embeddings: np.ndarray) -> np.ndarray:
        return self._density.score_samples(normalized(embeddings))


Density = GaussianDensity | KernelDensityScore

DENSITIES: dict[str, Callable[[], Density]] = {
    "ledoit_wolf": lambda: GaussianDensity(LedoitWolf(store_precision=False)),
    "ridge": lambda: GaussianDensity(EmpiricalCovariance(store_precision=False), ridge=RIDGE),
    "kde": KernelDensityScore,
}


def density(name: str) -> Density:
    """A new density by its name in `DENSITIES`, with or without `JITTERED`, which says what to fit it to."""
    return DENSITIES[name.removesuffix(JITTERED)]()


def held_out_log_density(name: str, embeddings: np.ndarray, copies: Sequence[np.ndarray] = ()) -> float:
    """Mean log-density of normal images that the density was not fitted to, by cross-validation in five folds. `copies`
    of the embeddings (n, d), row by row of the same images, are fitted to as well.

    It compares densities on training images alone: the one that is higher describes normal images better.
    """
    folds = KFold(min(5, len(embeddings)), shuffle=True, random_state=0).split(embeddings)
    fitted = ((density(name).fit(np.concatenate([x[a] for x in (embeddings, *copies)])), b) for a, b in folds)
    logs = [found.log_density(embeddings[b]) for found, b in fitted]
    return float(np.concatenate(logs).mean())
