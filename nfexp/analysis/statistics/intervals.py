"""Means and shares over seeds: their intervals, the tests that belong to these, Holm's correction.

Three seeds give wide intervals (t is 4.3 at 2 degrees of freedom); an interval that holds 0 shows
no equality.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import bdtr, bdtrc, betaincinv, stdtr, stdtrit

RESAMPLES = 1999  # of a bootstrap interval


class Interval(NamedTuple):
    """An estimate and the ends of its interval, NaN where they are not known."""

    estimate: float
    low: float
    high: float


class Tails(NamedTuple):
    """The p-values of "the effect is at most the margin" and of "it is at least the margin"."""

    at_most: float
    at_least: float


def _known(values: Iterable[float]) -> np.ndarray:
    """The values that are not missing (NaN), shape (n,)."""
    x = np.asarray(list(values), dtype=float)
    return x[~np.isnan(x)]


def t_interval(mean: Any, sd: Any, n: Any, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Ends of Student's t interval, mean ± t(n − 1) sd / √n; NaN where n < 2.

    The arguments are numbers or arrays that broadcast.

    >>> low, high = t_interval(1.0, 0.5, 3)
    >>> print(f"{low:.3f} {high:.3f}")
    -0.242 2.242
    """
    n = np.asarray(n, dtype=float)
    n = np.where(n < 2, np.nan, n)
    quantile = stdtrit(n - 1, 0.5 + level / 2)  # of Student's t with n − 1 degrees of freedom
    half = quantile * np.asarray(sd, dtype=float) / np.sqrt(n)
    return mean - half, mean + half


def mean_interval(values: Iterable[float], level: float = 0.95) -> Interval:
    """The mean over seeds and the ends of its t interval (Student 1908).

    Missing values (NaN) do not count. One value has no interval (NaN ends), none has no mean
    either.

    >>> print("{:.3f} {:.3f} {:.3f}".format(*mean_interval([0.5, 1.0, 1.5])))
    1.000 -0.242 2.242
    >>> tuple(mean_interval([2.0]))
    (2.0, nan, nan)
    """
    x = _known(values)
    if len(x) == 0:
        return Interval(np.nan, np.nan, np.nan)
    if len(x) == 1:
        return Interval(float(x[0]), np.nan, np.nan)
    low, high = t_interval(x.mean(), x.std(ddof=1), len(x), level)
    return Interval(float(x.mean()), float(low), float(high))


def mean_tails(values: Iterable[float], margin: float) -> Tails:
    """p-values of "the mean is at most `margin`" and of "at least", by Student's t.

    They are the tails of :func:`mean_interval`. The 1 − 2α interval lies above the margin exactly
    where the first is below α. NaN for fewer than two values; 0 or 1 for values without any spread.

    >>> print("{:.4f} {:.4f}".format(*mean_tails([0.5, 1.0, 1.5], 0.0)))
    0.0371 0.9629
    """
    x = _known(values)
    n = len(x)
    if n < 2:
        return Tails(math.nan, math.nan)
    gap = float(x.mean()) - margin
    error = float(x.std(ddof=1)) / math.sqrt(n)
    if error == 0:
        return Tails(float(gap <= 0), float(gap >= 0))
    # P(T ≥ t) is computed as P(T ≤ −t): 1 − P(T ≤ t) would lose its digits where t is large.
    return Tails(float(stdtr(n - 1, -gap / error)), float(stdtr(n - 1, gap / error)))


def share_interval(hits: Iterable[bool], level: float = 0.95) -> Interval:
    """The share of true values and the ends of its exact interval (Clopper and Pearson 1934).

    All are NaN without values. Exact, since shares near 0 are what is asked for here: at 2% of 50
    runs the lower end of Wilson's interval exceeds the truth in 8% of samples, not in 2.5%.

    >>> print("{:.3f} {:.4f} {:.3f}".format(*share_interval([True] + [False] * 9)))
    0.100 0.0025 0.445
    """
    x = np.asarray(list(hits), dtype=bool)
    n = len(x)
    k = int(x.sum())
    if n == 0:
        return Interval(math.nan, math.nan, math.nan)
    # P(X ≥ k) for X binomial (n, p) is the regularised incomplete beta function I_p(k, n − k + 1):
    # each end is the p at which a tail is (1 − level)/2. With no hits, or nothing but hits, one
    # tail is all there is.
    tail = (1 - level) / 2
    low = float(betaincinv(k, n - k + 1, tail)) if k > 0 else 0.0
    high = float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    return Interval(k / n, low, high)


def share_tails(hits: Iterable[bool], margin: float) -> Tails:
    """p-values of "the share is at most `margin`" and of "at least", by the binomial law.

    They are the tails of :func:`share_interval`.

    >>> print("{:.4f} {:.4f}".format(*share_tails([True] * 5, 0.5)))
    0.0312 1.0000
    """
    x = np.asarray(list(hits), dtype=bool)
    n = len(x)
    k = int(x.sum())
    if n == 0:
        return Tails(math.nan, math.nan)
    # bdtrc(k − 1) is P(X > k − 1) = P(X ≥ k).
    at_least_k = float(bdtrc(k - 1, n, margin)) if k > 0 else 1.0
    at_most_k = float(bdtr(k, n, margin))
    return Tails(at_least_k, at_most_k)


def sign_tails(values: Iterable[float], margin: float) -> Tails:
    """p-values of "the median is at most `margin`" and of "at least", by the sign test.

    They are :func:`share_tails` of the values above the margin. How far off a value is does not
    count (Dixon and Mood 1946). NaN for fewer than two values.

    >>> print("{:.4f} {:.4f}".format(*sign_tails([0.1, 0.2, 0.3, 0.4, 90.0], 0.0)))
    0.0312 1.0000
    """
    x = _known(values)
    if len(x) < 2:
        return Tails(math.nan, math.nan)
    off = x[x != margin]  # a value at the margin has no sign
    if len(off) == 0:
        return Tails(1.0, 1.0)
    return share_tails(off > margin, 0.5)


def bootstrap_interval(values: Iterable[float], level: float = 0.95) -> tuple[float, float]:
    """Ends of the percentile bootstrap interval of the mean (Efron 1979).

    The same values give the same interval. Too narrow for few values: at 3, 5 and 10 normal ones it
    covers 75, 85 and 90% (``python -m tests.helpers.intervals``). NaN for fewer than two values.

    >>> print("{:.2f} {:.2f}".format(*bootstrap_interval([0.5, 1.0, 1.5])))
    0.50 1.50
    """
    x = _known(values)
    n = len(x)
    if n < 2:
        return math.nan, math.nan
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, n, size=(RESAMPLES, n))  # row r: which values sample r takes
    means = np.sort(x[drawn].mean(axis=1))
    tail = (1 - level) / 2
    return _quantile(means, tail), _quantile(means, 1 - tail)


def _quantile(ordered: np.ndarray, share: float) -> float:
    """Linear interpolation between the two ordered values next to `share` of the way."""
    rank = share * len(ordered) + (1 - share)  # from 1, for the smallest, to n
    before = int(rank) - 1
    after = min(before + 1, len(ordered) - 1)
    weight = rank % 1
    return float((1 - weight) * ordered[before] + weight * ordered[after])


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values (1979), shape (k,).

    Where those below α are rejected, any true hypothesis is among them with probability at most α.
    The smallest p-value is multiplied by k, the next one by k − 1 and so on, and each is raised to
    the one before it if it would be lower. NaN counts as 1.

    >>> holm([0.03, 0.01, 0.02]).round(3).tolist()
    [0.04, 0.03, 0.04]
    """
    known = np.nan_to_num(np.asarray(p, dtype=float), nan=1.0)
    k = len(known)
    order = np.argsort(known, kind="stable")
    factors = np.arange(k, 0, -1)
    adjusted = np.empty(k)
    adjusted[order] = np.maximum.accumulate(known[order] * factors)
    return np.minimum(adjusted, 1)
