"""How often a study in rounds of seeds is wrong: ``python -m tests.helpers.looks``.

Many studies at once of an effect that is exactly at its margin, with the real stopping rule: each ends at the first
look whose p-value is small enough, on either side, or at the last one. No torch, no runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import bdtr, bdtrc, stdtr

from nfexp.analysis.sequential import Rounds, level_at
from tests.helpers.intervals import DIFFERENCES

ALPHA = 0.025
PLANS = {"3 to 20": (3, 20), "5 to 20": (5, 20), "10 to 50": (10, 50)}
SHARES = (0.01, 0.05, 0.5)


def rounds_of_plan(plan: str) -> Rounds:
    size, most = PLANS[plan]
    return Rounds(first=tuple(range(size)), max_seeds=most)


def mean_tails(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """p-values of "the mean is at most 0" and of "at least" of each row of `x` (studies, n)."""
    n = x.shape[1]
    t = x.mean(1) / x.std(1, ddof=1) * np.sqrt(n)
    return stdtr(n - 1, -t), stdtr(n - 1, t)


def share_tails(x: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """The same of a share, by its exact binomial tails."""
    n = x.shape[1]
    k = x.sum(1)
    at_most = np.where(k > 0, bdtrc(k - 1, n, margin), 1.0)
    return at_most, bdtr(k, n, margin)


def verdicts(tails: Sequence[tuple[np.ndarray, np.ndarray]], levels: Sequence[float]) -> np.ndarray:
    """1 where a study ends above the margin, −1 where below, 0 where at neither: of (p above, p below) at each look."""
    ended = np.zeros(len(tails[0][0]), dtype=int)
    for (above, below), level in zip(tails, levels, strict=True):
        new = np.where(above <= level, 1, np.where(below <= level, -1, 0))
        ended = np.where(ended == 0, new, ended)
    return ended


def false_rates(tails: Sequence[tuple[np.ndarray, np.ndarray]], levels: Sequence[float]) -> tuple[float, float]:
    """The shares of studies that end above their margin and below it; at most 0.025 each are allowed.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((4000, 20))
    >>> levels = [level_at(ALPHA, look, (5, 10, 15, 20)) for look in (1, 2, 3, 4)]
    >>> above, below = false_rates([mean_tails(x[:, :n]) for n in (5, 10, 15, 20)], levels)
    >>> 0.017 < above < 0.033 and 0.017 < below < 0.033
    True
    """
    ended = verdicts(tails, levels)
    return float((ended == 1).mean()), float((ended == -1).mean())


def study(studies: int = 100_000) -> pd.DataFrame:
    """Every plan and kind of effect: false verdicts by side under the rule, and with 2.5% at every look."""
    rows = []
    for plan in PLANS:
        rounds = rounds_of_plan(plan)
        counts = rounds.counts
        levels = [level_at(ALPHA, look, counts) for look in range(1, len(counts) + 1)]
        cases: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        for kind, draw in DIFFERENCES.items():
            x = draw(np.random.default_rng(1), (studies, counts[-1]))
            cases[kind] = [mean_tails(x[:, :n]) for n in counts]
        for share in SHARES:
            hits = np.random.default_rng(2).random((studies, counts[-1])) < share
            cases[f"share {share}"] = [share_tails(hits[:, :n], share) for n in counts]
        for kind, tails in cases.items():
            above, below = false_rates(tails, levels)
            naive_above, naive_below = false_rates(tails, [ALPHA] * len(counts))
            rows.append({"seeds": plan, "effect": kind, "above": above, "below": below,
                         "above at 2.5%": naive_above, "below at 2.5%": naive_below})  # fmt: skip
    return pd.DataFrame(rows)


if __name__ == "__main__":
    print((study().set_index(["seeds", "effect"]) * 100).round(1).to_string())
