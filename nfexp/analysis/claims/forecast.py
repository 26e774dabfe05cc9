"""How many seeds an open question would take, if its estimate and its spread stayed as they are."""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy.special import betainc, stdtr

from nfexp.analysis.claims.measures import Contrast

MOST = 2**40  # seeds; beyond that the estimate is as good as at its margin


def seeds_to_tell(
    contrast: Contrast,
    kind: str,
    margin: float,
    level: float,
) -> tuple[float, float]:
    """Seeds that would tell that a claim of one contrast holds, and that it fails.

    Infinite for what the estimate leans against. `kind` and `margin` are the claim's, `level` is
    what its one-sided p-value must not exceed.

    >>> import numpy as np
    >>> seeds_to_tell(Contrast("", np.array([0.1, 0.3, 0.5])), "above", 0.0, 0.025)
    (5, inf)
    """
    above = _seeds(contrast, margin, 1, level)
    below = _seeds(contrast, margin, -1, level)
    if kind == "above":
        return above, below
    if kind == "below":
        return below, above
    above_low = _seeds(contrast, -margin, 1, level)
    below_low = _seeds(contrast, -margin, -1, level)
    return max(above_low, below), min(above, below_low)


def _seeds(contrast: Contrast, margin: float, side: int, level: float) -> float:
    """Seeds that would tell that the effect is above the margin (`side` 1) or below it (−1)."""
    n = len(contrast.values)
    if n < 2:
        return math.inf
    mean = float(contrast.values.mean())
    gap = side * (mean - margin)
    if gap <= 0:
        return math.inf
    if contrast.share:
        return _least(lambda m: _share_p(mean, margin, side, m), level)
    sd = float(contrast.values.std(ddof=1))
    if sd == 0:
        return n
    return _least(lambda m: float(stdtr(m - 1, -gap / sd * math.sqrt(m))), level)


def _share_p(share: float, margin: float, side: int, n: int) -> float:
    """The binomial tail of k = share·n hits among n, for a k that need not be whole."""
    k = share * n
    if side == 1:
        return float(betainc(k, n - k + 1, margin))  # P(X ≥ k)
    return float(betainc(n - k, k + 1, 1 - margin))  # P(X ≤ k)


def _least(p_of: Callable[[int], float], level: float) -> float:
    """The least number from 2 on whose p-value is at most `level`; p-values fall."""
    high = 2
    while p_of(high) > level:
        high *= 2
        if high > MOST:
            return math.inf
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if p_of(middle) > level:
            low = middle
        else:
            high = middle
    return high
