"""Whether one method beats another: how sure a difference is, and a verdict."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

VERDICTS = ("reproduced", "not reproduced", "undecided", "no interval")
NOT_RUN = "not run"
MOST_SEEDS = 1000  # beyond which `seeds_needed` does not count


def t_interval(values: Sequence[float]) -> dict[str, float]:
    """Standard error of the mean of some values, and margin: half its 95 % confidence interval by Student's t, which
    weighs how few values there are. NaN for one value."""
    n = len(values)
    stderr = float(np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else np.nan
    return {"stderr": stderr, "margin": float(stats.t.ppf(0.975, n - 1)) * stderr if n > 1 else np.nan}


def wins(normal: np.ndarray, anomalous: np.ndarray) -> np.ndarray:
    """Matrix (anomalous, normal) of 1 where the anomalous image scores higher, 1/2 at a tie. Its mean is the AUC."""
    return (np.sign(anomalous[:, None] - normal) + 1) / 2


def bootstrap(matrices: Sequence[np.ndarray], draws: int = 2000) -> np.ndarray:
    """Means (draws,) over matrices of `wins`, or of differences of two, under a stratified bootstrap over test images:
    normal and anomalous ones are each drawn with replacement, in each matrix (a category) by themselves."""
    rng, found = np.random.default_rng(0), []
    for matrix in matrices:
        rows, columns = (rng.multinomial(n, np.full(n, 1 / n), draws) / n for n in matrix.shape)
        found.append(((rows @ matrix) * columns).sum(1))
    return np.mean(found, axis=0)


def seeds_needed(stderr: float, n: int, margin: float) -> float:
    """How many seeds, at the spread that n of them show, would bring the margin below another; at most `MOST_SEEDS`."""
    seeds = np.arange(2, MOST_SEEDS)
    fits = stats.t.ppf(0.975, seeds - 1) * stderr * np.sqrt(n / seeds) < margin
    return float(seeds[fits.argmax()] if fits.any() else MOST_SEEDS)


def verdict(difference: float, margin: float) -> str:
    """What a difference says of a claim that it is above 0: "reproduced" or "not reproduced" where its 95 % confidence
    interval leaves out 0, else "undecided"; "no interval" without a margin, "not run" without a difference."""
    if np.isnan(difference):
        return NOT_RUN
    if np.isnan(margin):
        return "no interval"
    if not abs(difference) > margin:
        return "undecided"
    return "reproduced" if difference > 0 else "not reproduced"
