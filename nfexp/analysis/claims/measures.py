"""What the claims measure: functions of a study that return contrasts, or say that their runs are absent.

No contrast is chosen by looking at the values that it is then tested with: a "best of" becomes one contrast per
candidate, so that noise alone cannot make the best one good.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nfexp.analysis.statistics import (
    Absent,
    Study,
    bootstrap_interval,
    mean_interval,
    mean_tails,
    named,
    share_interval,
    share_tails,
    sign_tails,
)

SIMPLE, HARD = ("moons", "spiral2"), ("circles", "spiral4")
FLOWS, DEPTH, WIDTH = "flow.n_flows", "flow.hidden_depth", "flow.hidden_width"
SAMPLES, NOISE, LR, BATCH = "data.n_samples", "data.noise", "train.lr", "train.batch_size"
ALTERNATING, FIXED = {"flow.mask": "alternating"}, {"flow.mask": "fixed"}


@dataclass(frozen=True)
class Contrast:
    """One effect: the mean of paired differences over seeds, or (`share`) the share of runs that something is true of.

    `margin` replaces the claim's where the effect is another quantity than the claim's estimand.
    """

    label: str
    values: np.ndarray  # (n,)
    share: bool = False
    margin: float | None = None

    def interval(self, level: float = 0.95) -> tuple[float, float, float]:
        """Estimate, low, high."""
        return (share_interval if self.share else mean_interval)(self.values, level)

    def tails(self, margin: float, *, signs: bool = False) -> tuple[float, float]:
        """p-values of "the effect is at most `margin`" and of "at least"; of the mean, or of the median by signs."""
        return (share_tails if self.share else sign_tails if signs else mean_tails)(self.values, margin)

    def bootstrap(self, level: float = 0.95) -> tuple[float, float]:
        """Ends of the bootstrap interval, which decides nothing."""
        return bootstrap_interval(self.values, level)


def mean_of(label: str, values: pd.Series) -> Contrast:
    return Contrast(label, values.dropna().to_numpy(dtype=float))


def share_of(label: str, hits: pd.Series, margin: float | None = None) -> Contrast:
    return Contrast(label, hits.to_numpy(dtype=float), True, margin)


Measure = Callable[[Study], list[Contrast]]


@dataclass(frozen=True)
class Across:
    """A measure of the studies of all targets at once."""

    of: Callable[[Mapping[str, Study]], list[Contrast]]


def versus(a: Mapping[str, Any], b: Mapping[str, Any], *metrics: str) -> Measure:
    """The measure metric(a) − metric(b) of two cells, given by their differences from the centre; KL if not said."""
    return lambda study: [mean_of(m if metrics else "", study.gap(a, b, m)) for m in metrics or ("kl",)]


def each_complex_flow(study: Study) -> list[Contrast]:
    """KL of each single flow that is deeper or wider than the centre, minus the centre's."""
    found = []
    for key in study.cells:
        own = dict(sorted(key))
        larger = any(own.get(c, 0) > study.centre.get(c, math.inf) for c in (DEPTH, WIDTH))
        if own.get(FLOWS) == 1 and own.keys() <= {FLOWS, DEPTH, WIDTH} and larger:
            found.append(mean_of(named(own), study.gap(own, {})))
    if not found:
        raise Absent("missing: flow.n_flows=1 with more depth or width than the centre")
    return sorted(found, key=lambda c: c.label)


def flows_needed(studies: Mapping[str, Study]) -> list[Contrast]:
    """Flows needed on hard targets minus on simple ones, per seed."""
    needed = {}
    for target, study in studies.items():
        if target in SIMPLE + HARD and len(study.axis(FLOWS)) > 1:
            kl = pd.DataFrame({n: study.values("kl", {FLOWS: n}) for n in study.axis(FLOWS)}).dropna()
            needed[target] = kl.le(kl.min(axis=1) + 0.05, axis=0).idxmax(axis=1).astype(float)
            study.notes.append(f"needed {needed[target].mean():.2g}" if len(kl) else "no seed has the whole axis")
    sides = [[needed[t] for t in side if t in needed] for side in (HARD, SIMPLE)]
    if not all(sides):
        raise Absent("missing: a flows axis on a simple and on a hard target")
    hard, simple = (pd.concat(side, axis=1).dropna().mean(axis=1) for side in sides)
    return [mean_of("", hard - simple)]


def six_against_each(study: Study) -> list[Contrast]:
    others = [n for n in study.axis(FLOWS) if n != 6]
    if not others:
        raise Absent("missing: a flows axis")
    return [mean_of(f"against {n} flows", study.gap({FLOWS: 6}, {FLOWS: n})) for n in others]


def deeper(study: Study) -> list[Contrast]:
    depths = [d for d in study.axis(DEPTH) if d > 2]
    if not depths:
        raise Absent("missing: a depth above 2")
    return [mean_of(f"depth {d}", study.gap({DEPTH: d}, {DEPTH: 2})) for d in depths]


def time_by_samples(study: Study) -> list[Contrast]:
    full = {BATCH: "full"}
    if len(study.axis(SAMPLES, full)) < 2:
        raise Absent(
            "not identifiable here: mini-batches make a step cost the same at every n, and seconds is a share of a "
            "stack; needs runs with train.batch_size=full at two sample counts"
        )
    low, high = study.ends(SAMPLES, fixed=full)
    gap = study.gap(full | {SAMPLES: high}, full | {SAMPLES: low}, "seconds")
    stacks = gap[~gap.round(3).duplicated()]  # runs of one stack share its time: they are one measurement
    study.notes.append(f"{len(gap)} runs in {len(stacks)} pairs of stacks")
    return [mean_of(f"n={high} against n={low}", stacks)]


def extremes(column: str, metric: str, at_least: float = -math.inf) -> Measure:
    """The measure metric(highest) − metric(lowest) along an axis."""

    def measure(study: Study) -> list[Contrast]:
        low, high = study.ends(column, at_least)
        gap = study.gap({column: high}, {column: low}, metric)
        return [mean_of(f"{column}: {high:g} against {low:g}", gap)]

    return measure


def fewer_flows(study: Study) -> list[Contrast]:
    sizes = set(study.axis(SAMPLES, {FLOWS: 4})) & set(study.axis(SAMPLES, {FLOWS: 6}))
    if not sizes:
        raise Absent("missing: flow.n_flows=4 at a sample count of the 6-flow runs")
    n = max(sizes)
    return [mean_of(f"n={n}", study.gap({FLOWS: 4, SAMPLES: n}, {FLOWS: 6, SAMPLES: n}))]


def kl_at_most_noise(study: Study) -> list[Contrast]:
    noise = study.ends(NOISE)[1]
    return [mean_of(f"noise {noise:g}", study.values("kl", {NOISE: noise}))]


def each_under_noise(study: Study) -> list[Contrast]:
    """clean_distance of each architecture at the highest noise, minus the centre's."""
    noise = study.ends(NOISE)[1]
    found = [dict(sorted(k)) for k in study.cells if dict(k).get(NOISE, study.centre.get(NOISE)) == noise]
    found = [own for own in found if own.keys() <= {NOISE, FLOWS, DEPTH, WIDTH}]
    if len(found) < 2:
        raise Absent(f"missing: data.noise={noise:g} with another number of flows, depth or width")
    contrasts = [mean_of(named(own), study.gap(own, {}, "clean_distance")) for own in found]
    return sorted(contrasts, key=lambda c: c.label)


def fixed_mask(study: Study) -> list[Contrast]:
    """KL(fixed) − KL(alternating); where most runs under the fixed mask diverged, the share that did."""
    lost = diverged(study.cells.get(study.key(FIXED), pd.DataFrame({"status": [], "seed": []})))
    if lost.mean() > 0.5:
        study.cell(ALTERNATING)
        return [share_of("share of runs under the fixed mask that diverged, which is the claim", lost, 0.5)]
    return versus(FIXED, ALTERNATING)(study)


def covering_masks(study: Study) -> list[Contrast]:
    key = study.key({"flow.mask": "random"})
    if key in study.cells:  # looked at without `cell`: the verdict does not need it
        runs = study.cells[key]
        gap = runs[runs["status"] == "completed"].set_index("seed")["kl"] - study.values("kl", ALTERNATING)
        mean, low, high = mean_interval(gap)
        study.notes.append(f"random masks: {mean:.3g} [{low:.3g}, {high:.3g}], {gap.count()} of {len(runs)} runs")
    return versus({"flow.mask": "once"}, ALTERNATING)(study)


def diverged(runs: pd.DataFrame) -> pd.Series:
    """Whether each run diverged, of those that either completed or diverged, by seed."""
    ended = runs[runs["status"].isin(["completed", "diverged"])]
    return ended["status"].eq("diverged").set_axis(ended["seed"])


def divergence(study: Study) -> list[Contrast]:
    lost = diverged(pd.concat([study.cell({LR: lr}) for lr in study.axis(LR)] or [study.cell({})]))
    study.notes.append(f"{lost.sum()} of {len(lost)} runs diverged")
    return [share_of("", lost.groupby(level=0).any())]  # runs of one seed share draws and initialisation


def divergence_by_lr(study: Study) -> list[Contrast]:
    low, high = study.ends(LR)
    lost = pd.concat({lr: diverged(study.cell({LR: lr})) for lr in (high, low)}, axis=1, join="inner").astype(bool)
    if not lost.to_numpy().any():
        raise Absent(f"no run diverged at lr {high:g} or {low:g}: nothing to help against")
    study.notes.append(f"of {len(lost)} seeds {lost[high].sum()} diverged at lr {high:g}, {lost[low].sum()} at {low:g}")
    one = lost[lost[high] != lost[low]]
    if one.empty:
        raise Absent(f"every seed diverged at lr {high:g} and at {low:g}: nothing to compare")
    return [share_of(f"lr {high:g} against {low:g}", one[high])]


def more_than_one_moved(study: Study) -> list[Contrast]:
    done = [
        r.loc[r["status"] == "completed", "coordinates_moved"] for r in study.cells.values() if "coordinates_moved" in r
    ]
    moved = pd.concat(done).dropna() if done else pd.Series(dtype=float)
    if moved.empty:
        raise Absent("missing: coordinates_moved")
    return [share_of(f"{int((moved > 1).sum())} of {len(moved)} runs", moved > 1)]
