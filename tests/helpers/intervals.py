"""Which interval holds its level at few seeds: ``python -m tests.helpers.intervals``.

Samples of n paired differences with a known mean; how often each 95% interval misses it, by side. No torch, no runs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from nfexp.analysis.statistics import t_interval

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
DIFFERENCES: dict[str, Draw] = {  # all with mean 0
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "arms": lambda rng, shape: rng.lognormal(0, 1, shape) - rng.lognormal(0, 1, shape),
    "skewed": lambda rng, shape: rng.lognormal(0, 0.5, shape) - np.exp(0.125),
    "very skewed": lambda rng, shape: rng.lognormal(0, 1, shape) - np.exp(0.5),
}


def ends(x: np.ndarray, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Low and high of the 95% interval of the mean of each row of `x` (tables, n): "t", or a method of scipy's."""
    if method == "t":
        return t_interval(x.mean(1), x.std(1, ddof=1), x.shape[1])
    rng = np.random.default_rng(0)
    found = bootstrap((x,), np.mean, axis=-1, method=method, n_resamples=1999, batch=50, random_state=rng)
    return found.confidence_interval.low, found.confidence_interval.high


def misses(draw: Draw, n: int, method: str, tables: int) -> tuple[float, float]:
    """Shares of `tables` samples whose interval lies above the true mean, and below it; nominally 0.025 each.

    >>> above, below = misses(DIFFERENCES["normal"], 10, "t", 2000)
    >>> 0.01 < above < 0.04 and 0.01 < below < 0.04
    True
    """
    low, high = ends(draw(np.random.default_rng(n), (tables, n)), method)
    return float((low > 0).mean()), float((high < 0).mean())


def study(tables: int = 20_000) -> pd.DataFrame:
    """Every kind of difference, n and method: coverage and the share of misses on each side."""
    rows = []
    for kind, draw in DIFFERENCES.items():
        for n in (3, 5, 10):
            for method in ("t", "percentile", "BCa"):
                above, below = misses(draw, n, method, tables)
                cells = {"differences": kind, "n": n, "interval": method, "covered": 1 - above - below}
                rows.append(cells | {"above": above, "below": below})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    print((study().set_index(["differences", "n", "interval"]) * 100).round(1).to_string())
