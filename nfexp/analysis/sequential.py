"""Seeds in rounds, and what a p-value is worth that is looked at after every round.

A test at 2.5% that is repeated after every round is false far more often than in 2.5% of studies.
So the level α is spent over the looks by a rule that is fixed before the first run: by the look
that knows a share t of all seeds, α·t is spent (Lan and DeMets 1983). At look k the test then needs
p ≤ c_k(α), where the c_k are such that a true hypothesis is rejected at look k, and at none before,
with probability α·(t_k − t_{k−1}).

The levels are exact for t tests of normal differences, at any number of seeds. With U = Σx / √(n
Σx²), so that t = √(n−1)·U/√(1−U²), the values of U after n and after n + m seeds are tied by

    U' = √(n/(n+m))·√B·U + √(m/(n+m))·√(1−B)·V,    B ~ Beta(n/2, m/2),

with U, B and V (the same statistic of the m new seeds alone) independent, of the earlier looks too:
Σx² is sufficient for the scale and complete, and the U of all looks are free of it (Basu 1955). So
U is a Markov chain, and one integral a look gives what is left below the boundary (Jennison and
Turnbull 1991 for repeated t tests, 2000, chapter 19, for normal ones). Levels for normal increments
would be too generous here: with looks at 5, 10, 15 and 20 seeds, true hypotheses are then rejected
in 2.7% of studies instead of 2.5.

:func:`sequential_p` turns a p-value at look k into the level α at which it would just have been
significant (Liu and Anderson 2008). The smallest of these over the looks is a p-value again,
whenever one stops and for whatever reason, and goes into Holm's correction as any other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from scipy.special import betainc, betaincinv, ndtr, stdtrit

MOST_LOOKS = 50
LEVELS = np.geomspace(1e-5, 0.95, 60)  # the α whose c_k(α) is computed
EDGES = np.linspace(-6, 6.5, 301)  # of the cells that the chain is in: p-values as normal deviates
NODES = 32  # of the integral over B


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """How the seeds of a study come: a first round, then rounds as large, to `max_seeds` in all.

    `margin`, in nats, asks whether each cell is within it of the centre; without it the claims of
    the sources decide.

    >>> rounds = Rounds(first=(0, 1, 2), max_seeds=8)
    >>> rounds.counts, rounds.seeds(2), rounds.seeds(3)
    ((3, 6, 8), (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5, 6, 7))
    """

    first: tuple[int, ...]  # ascending
    max_seeds: int
    margin: float | None = None

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """The number of seeds at each look."""
        size = len(self.first)
        return (*range(size, self.max_seeds, size), self.max_seeds)

    def seeds(self, look: int) -> tuple[int, ...]:
        """The seeds of all rounds up to a look; looks are counted from 1."""
        n_more = self.counts[look - 1] - len(self.first)
        start = self.first[-1] + 1
        return (*self.first, *range(start, start + n_more))

    def sequential_p(self, p: float, look: int) -> float:
        """:func:`sequential_p` at one of these looks."""
        return sequential_p(p, look, self.counts)

    def written(self) -> dict[str, Any]:
        """As it stands in `sweep.json`."""
        return {
            "first": list(self.first),
            "max_seeds": self.max_seeds,
            "spending": "linear",
            "margin": self.margin,
        }


def rounds_of(written: Mapping[str, Any]) -> Rounds:
    """The rounds that :meth:`Rounds.written` wrote.

    Raises
    ------
    ValueError
        If it is no such rule; the message says what is expected.
    """
    first = written.get("first")
    most = written.get("max_seeds")
    margin = written.get("margin")
    if not isinstance(first, list) or not all(_is_seed(seed) for seed in first):
        raise ValueError("rounds.first: a list of seeds")
    if len(first) < 2 or first != sorted(set(first)):
        raise ValueError("rounds.first: two or more ascending seeds")
    if type(most) is not int or not len(first) <= most <= MOST_LOOKS * len(first):
        raise ValueError(f"rounds.max_seeds: the seeds of 1 to {MOST_LOOKS} rounds")
    if written.get("spending") != "linear":
        raise ValueError("rounds.spending: linear")
    if margin is not None and not (type(margin) in (int, float) and 0 < margin < math.inf):
        raise ValueError("rounds.margin: a number > 0 or null")
    return Rounds(first=tuple(first), max_seeds=most, margin=margin)


def _is_seed(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62


def sequential_p(p: float, look: int, counts: tuple[int, ...]) -> float:
    """The level α whose boundary c_k(α) a one-sided p-value just meets at look k.

    Looks are counted from 1. With a single look it is the p-value itself. What would need an α
    above 0.95 is 1; NaN stays NaN.

    >>> round(sequential_p(0.01, 1, (5, 10, 15, 20)), 4), sequential_p(0.01, 1, (10,))
    (0.04, 0.01)
    """
    if len(counts) == 1 or math.isnan(p):
        return p
    levels = _levels_at(counts)[:, look - 1]
    if p >= levels[-1]:
        return 1.0
    if p <= levels[0]:  # rarer than any level of interest
        return float(p * LEVELS[0] / levels[0])
    return math.exp(np.interp(math.log(p), np.log(levels), np.log(LEVELS)))


def level_at(alpha: float, look: int, counts: tuple[int, ...]) -> float:
    """c_k(α): what a p-value at look k must not exceed; the inverse of :func:`sequential_p`.

    >>> [round(level_at(0.025, k, (5, 10, 15, 20)), 4) for k in (1, 2, 3, 4)]
    [0.0063, 0.0073, 0.0091, 0.0113]
    """
    if len(counts) == 1:
        return alpha
    levels = _levels_at(counts)[:, look - 1]
    if alpha <= LEVELS[0]:
        return float(alpha * levels[0] / LEVELS[0])
    return math.exp(np.interp(math.log(alpha), np.log(LEVELS), np.log(levels)))


@lru_cache
def _levels_at(counts: tuple[int, ...]) -> np.ndarray:
    times = np.array(counts) / counts[-1]
    return nominal_levels(counts, np.outer(LEVELS, times))


def nominal_levels(counts: Sequence[int], spent: np.ndarray) -> np.ndarray:
    """c_k for looks at so many seeds: one-sided levels of t tests, shape (A, K).

    Parameters
    ----------
    counts
        Seeds at each look, shape (K,), ascending from 2 or more.
    spent
        The probability of a rejection at or before each look, shape (A, K), for A rules at once.
    """
    n_rules, n_looks = spent.shape
    width = EDGES[1] - EDGES[0]
    levels = np.empty((n_rules, n_looks))
    # Probabilities to be beyond each edge at this look, and within the boundary at all before
    beyond = np.tile(ndtr(-EDGES), (n_rules, 1))  # (A, cells + 1)
    # and to be in each cell, within every boundary so far
    mass = np.empty((n_rules, len(EDGES) - 1))
    for k in range(n_looks):
        if k > 0:
            beyond = mass @ _step(counts[k - 1], counts[k] - counts[k - 1])
        before = spent[:, k - 1] if k > 0 else np.zeros(n_rules)
        height = -np.log(np.maximum(beyond, 1e-300))  # increases along the edges
        for a in range(n_rules):
            boundary = np.interp(-np.log(spent[a, k] - before[a]), height[a], EDGES)
            levels[a, k] = ndtr(-boundary)
            below = np.clip((boundary - EDGES[:-1]) / width, 0, 1)  # share of each cell
            mass[a] = (beyond[a, :-1] - beyond[a, 1:]) * below
    return levels


def _step(n: int, m: int) -> np.ndarray:
    """P(U' beyond each edge | U in the middle of each cell): (cells, cells + 1).

    U is after n seeds, U' after m more.
    """
    b = betaincinv(n / 2, m / 2, (np.arange(NODES) + 0.5) / NODES)
    here = _cosine((EDGES[1:] + EDGES[:-1]) / 2, n)[:, None]
    there = _cosine(EDGES, n + m)
    # The law of V: (1 + V)/2 ~ Beta((m−1)/2, (m−1)/2), and ±1 where there is one new seed
    grid = np.linspace(-1, 1, 4001)
    if m > 1:
        below = betainc((m - 1) / 2, (m - 1) / 2, (1 + grid) / 2)
    else:
        below = 0.5 * (grid > -1) + 0.5 * (grid == 1)
    chance = np.zeros((len(EDGES) - 1, len(EDGES)))
    for node in b:
        v = (math.sqrt((n + m) / m) * there - math.sqrt(n * node / m) * here) / math.sqrt(1 - node)
        chance += 1 - np.interp(v, grid, below)
    return chance / NODES


def _cosine(z: np.ndarray, n: int) -> np.ndarray:
    """U = t/√(n − 1 + t²) of the t of n values whose p-value is that of the normal deviate z."""
    t = -np.sign(z) * stdtrit(n - 1, ndtr(-np.abs(z)))
    return t / np.sqrt(n - 1 + t * t)
