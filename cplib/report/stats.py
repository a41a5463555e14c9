"""Whether one method beats another: differences of means, their spread over seeds, and a verdict."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def spread(sides: Sequence[tuple[float, int]]) -> dict[str, float]:
    """Spread of a difference of means, each given by its standard error and number of values.

    Returns:
        stderr, and margin: half the 95 % confidence interval by Welch's t, which weighs how few seeds there are. NaN
        where a side has one value.
    """
    variances = np.square([error for error, _ in sides])
    stderr = float(np.sqrt(variances.sum())) if sides else np.nan
    if not stderr > 0:
        return {"stderr": stderr, "margin": stderr}
    degrees = variances.sum() ** 2 / np.sum(variances**2 / [n - 1 for _, n in sides])
    return {"stderr": stderr, "margin": float(stats.t.ppf(0.975, degrees)) * stderr}


def verdict(difference: float, margin: float) -> str:
    """What a difference says of a claim that it is above 0: "reproduced" or "not reproduced" where its 95 %
    confidence interval leaves out 0, else "undecided", as without a margin; "not run" without a difference."""
    if np.isnan(difference):
        return "not run"
    if not abs(difference) > margin:
        return "undecided"
    return "reproduced" if difference > 0 else "not reproduced"
