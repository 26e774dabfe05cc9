"""What the claims measure: functions of a study that return contrasts, or raise Absent.

No contrast is chosen by looking at the values that it is then tested with: a "best of" becomes one
contrast per candidate, so that noise alone cannot make the best one good.
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
    Interval,
    Study,
    Tails,
    bootstrap_interval,
    changes_of,
    mean_interval,
    mean_tails,
    named,
    share_interval,
    share_tails,
    sign_tails,
)
from nfexp.spec import counted

SIMPLE = ("moons", "spiral2")
HARD = ("circles", "spiral4")
FLOWS = "flow.n_flows"
DEPTH = "flow.hidden_depth"
WIDTH = "flow.hidden_width"
SAMPLES = "data.n_samples"
NOISE = "data.noise"
LR = "train.lr"
BATCH = "train.batch_size"
ALTERNATING = {"flow.mask": "alternating"}
FIXED = {"flow.mask": "fixed"}
# Nats above the lowest KL of a seed: how far good recipes lie apart, see the catalogue.
GOOD_ENOUGH = 0.05


@dataclass(frozen=True)
class Contrast:
    """One effect: a mean of paired differences over seeds, or a share of runs (`share`).

    `margin` replaces the claim's where the effect is another quantity than the claim's estimand.
    """

    label: str
    values: np.ndarray  # (n,)
    share: bool = False
    margin: float | None = None

    def interval(self, level: float = 0.95) -> Interval:
        """Estimate, low, high."""
        if self.share:
            return share_interval(self.values, level)
        return mean_interval(self.values, level)

    def tails(self, margin: float, *, signs: bool = False) -> Tails:
        """p-values of "the effect is at most `margin`" and of "at least".

        By `signs` the effect is the median, else the mean.
        """
        if self.share:
            return share_tails(self.values, margin)
        if signs:
            return sign_tails(self.values, margin)
        return mean_tails(self.values, margin)

    def bootstrap(self, level: float = 0.95) -> tuple[float, float]:
        """Ends of the bootstrap interval, which decides nothing."""
        return bootstrap_interval(self.values, level)


def mean_of(label: str, values: pd.Series) -> Contrast:
    return Contrast(label, values.dropna().to_numpy(dtype=float))


def share_of(label: str, hits: pd.Series, margin: float | None = None) -> Contrast:
    return Contrast(label, hits.to_numpy(dtype=float), share=True, margin=margin)


Measure = Callable[[Study], list[Contrast]]


@dataclass(frozen=True)
class Across:
    """A measure of the studies of all targets at once."""

    of: Callable[[Mapping[str, Study]], list[Contrast]]


def versus(a: Mapping[str, Any], b: Mapping[str, Any], metric: str = "kl") -> Measure:
    """The measure metric(a) − metric(b) of two cells, given by their differences from the centre."""
    return lambda study: [mean_of("", study.gap(a, b, metric))]


def versus_each(a: Mapping[str, Any], b: Mapping[str, Any], *metrics: str) -> Measure:
    """The measure metric(a) − metric(b) of two cells, one contrast for each of several metrics."""
    return lambda study: [mean_of(metric, study.gap(a, b, metric)) for metric in metrics]


def extremes(column: str, metric: str, at_least: float = -math.inf) -> Measure:
    """The measure metric(highest) − metric(lowest) along an axis."""

    def measure(study: Study) -> list[Contrast]:
        low, high = study.ends(column, at_least)
        gap = study.gap({column: high}, {column: low}, metric)
        return [mean_of(f"{column}: {high:g} against {low:g}", gap)]

    return measure


def each_complex_flow(study: Study) -> list[Contrast]:
    """KL of each single flow that is deeper or wider than the centre, minus the centre's."""
    contrasts = []
    for key in study.cells:
        changes = changes_of(key)
        is_deeper = changes.get(DEPTH, 0) > study.centre.get(DEPTH, math.inf)
        is_wider = changes.get(WIDTH, 0) > study.centre.get(WIDTH, math.inf)
        if (
            changes.get(FLOWS) == 1
            and changes.keys() <= {FLOWS, DEPTH, WIDTH}
            and (is_deeper or is_wider)
        ):
            contrasts.append(mean_of(named(changes), study.gap(changes, {})))
    if not contrasts:
        raise Absent("missing: flow.n_flows=1 with more depth or width than the centre")
    return sorted(contrasts, key=lambda contrast: contrast.label)


def flows_needed(studies: Mapping[str, Study]) -> list[Contrast]:
    """Flows needed on hard targets minus on simple ones, per seed."""
    hard = []
    simple = []
    for target, study in studies.items():
        numbers = study.axis(FLOWS)
        if target not in SIMPLE + HARD or len(numbers) < 2:
            continue
        # Rows are the seeds that have the whole axis, columns the numbers of flows, rising.
        kl = pd.DataFrame({n: study.values("kl", {FLOWS: n}) for n in numbers}).dropna()
        is_enough = kl.le(kl.min(axis=1) + GOOD_ENOUGH, axis=0)
        needed = is_enough.idxmax(axis=1).astype(float)  # the first column that is true
        if len(kl):
            study.notes.append(f"needed {needed.mean():.2g}")
        else:
            study.notes.append("no seed has the whole axis")
        if target in HARD:
            hard.append(needed)
        else:
            simple.append(needed)
    if not hard or not simple:
        raise Absent("missing: a flows axis on a simple and on a hard target")
    return [mean_of("", _seed_means(hard) - _seed_means(simple))]


def _seed_means(columns: list[pd.Series]) -> pd.Series:
    """The mean over targets, for each seed that all of them have."""
    means: pd.Series = pd.concat(columns, axis=1).dropna().mean(axis=1)
    return means


def six_against_each(study: Study) -> list[Contrast]:
    """KL of six flows minus that of every other number."""
    contrasts = []
    for n in study.axis(FLOWS):
        if n != 6:
            contrasts.append(mean_of(f"against {n} flows", study.gap({FLOWS: 6}, {FLOWS: n})))
    if not contrasts:
        raise Absent("missing: a flows axis")
    return contrasts


def deeper(study: Study) -> list[Contrast]:
    """KL of every depth above 2 minus that of depth 2."""
    contrasts = []
    for depth in study.axis(DEPTH):
        if depth > 2:
            contrasts.append(mean_of(f"depth {depth}", study.gap({DEPTH: depth}, {DEPTH: 2})))
    if not contrasts:
        raise Absent("missing: a depth above 2")
    return contrasts


def time_by_samples(study: Study) -> list[Contrast]:
    """Seconds at the most samples minus at the fewest, with full batches."""
    full = {BATCH: "full"}
    if len(study.axis(SAMPLES, full)) < 2:
        raise Absent(
            "not identifiable here: mini-batches make a step cost the same at every n, and seconds "
            "is a share of a stack; needs runs with train.batch_size=full at two sample counts"
        )
    low, high = study.ends(SAMPLES, fixed=full)
    gap = study.gap(full | {SAMPLES: high}, full | {SAMPLES: low}, "seconds")
    # Runs of one stack share its time: they are one measurement.
    stacks = gap[~gap.round(3).duplicated()]
    study.notes.append(f"{counted(len(gap), 'run')} in {counted(len(stacks), 'pair')} of stacks")
    if len(stacks) < 2:
        study.notes.append("time is measured once a stack: each round of until=decided adds one")
    return [mean_of(f"n={high} against n={low}", stacks)]


def fewer_flows(study: Study) -> list[Contrast]:
    """KL of four flows minus that of six, both at the most samples that both have."""
    sizes = set(study.axis(SAMPLES, {FLOWS: 4})) & set(study.axis(SAMPLES, {FLOWS: 6}))
    if not sizes:
        raise Absent("missing: flow.n_flows=4 at a sample count of the 6-flow runs")
    n = max(sizes)
    return [mean_of(f"n={n}", study.gap({FLOWS: 4, SAMPLES: n}, {FLOWS: 6, SAMPLES: n}))]


def kl_at_most_noise(study: Study) -> list[Contrast]:
    """KL at the highest noise."""
    _, noise = study.ends(NOISE)
    return [mean_of(f"noise {noise:g}", study.values("kl", {NOISE: noise}))]


def each_under_noise(study: Study) -> list[Contrast]:
    """clean_distance of each architecture at the highest noise, minus the centre's."""
    _, noise = study.ends(NOISE)
    under_noise = []
    for key in study.cells:
        changes = changes_of(key)
        at_most_noise = changes.get(NOISE, study.centre.get(NOISE)) == noise
        if at_most_noise and changes.keys() <= {NOISE, FLOWS, DEPTH, WIDTH}:
            under_noise.append(changes)
    if len(under_noise) < 2:
        raise Absent(f"missing: data.noise={noise:g} with another number of flows, depth or width")
    contrasts = []
    for changes in under_noise:
        contrasts.append(mean_of(named(changes), study.gap(changes, {}, "clean_distance")))
    return sorted(contrasts, key=lambda contrast: contrast.label)


def fixed_mask(study: Study) -> list[Contrast]:
    """KL(fixed) − KL(alternating), or the share of fixed runs that diverged, if most did."""
    nothing = pd.DataFrame({"status": [], "seed": []})
    lost = diverged(study.cells.get(study.key(FIXED), nothing))
    if lost.mean() > 0.5:  # false for NaN, the mean of no runs
        study.cell(ALTERNATING)  # marks the cell as used, so that the runs it lost count too
        label = "share of runs under the fixed mask that diverged, which is the claim"
        return [share_of(label, lost, margin=0.5)]
    return versus(FIXED, ALTERNATING)(study)


def covering_masks(study: Study) -> list[Contrast]:
    """KL(mask changed once) − KL(alternating).

    A note says how random masks do, which need not cover both coordinates.
    """
    key = study.key({"flow.mask": "random"})
    if key in study.cells:  # not `cell`, which marks it as used: the verdict does not need it
        runs = study.cells[key]
        done = runs[runs["status"] == "completed"]
        gap = done.set_index("seed")["kl"] - study.values("kl", ALTERNATING)
        mean, low, high = mean_interval(gap)
        counted = f"{gap.count()} of {len(runs)} runs"
        study.notes.append(f"random masks: {mean:.3g} [{low:.3g}, {high:.3g}], {counted}")
    return versus({"flow.mask": "once"}, ALTERNATING)(study)


def diverged(runs: pd.DataFrame) -> pd.Series:
    """Whether each run diverged, of those that either completed or diverged, by seed."""
    ended = runs[runs["status"].isin(["completed", "diverged"])]
    return ended["status"].eq("diverged").set_axis(ended["seed"])


def divergence(study: Study) -> list[Contrast]:
    """The share of seeds of which a run diverged, at any learning rate."""
    cells = [study.cell({LR: lr}) for lr in study.axis(LR)] or [study.cell({})]
    lost = diverged(pd.concat(cells))
    study.notes.append(f"{lost.sum()} of {len(lost)} runs diverged")
    # Runs of one seed share draws and initialisation: one trial.
    of_seed = lost.groupby(level=0).any()
    return [share_of("", of_seed)]


def divergence_by_lr(study: Study) -> list[Contrast]:
    """Of the seeds that diverged at one of two learning rates, the share at the higher.

    The exact test of it is McNemar's (1947).
    """
    low, high = study.ends(LR)
    columns = {lr: diverged(study.cell({LR: lr})) for lr in (high, low)}
    # Rows are the seeds that ended at both.
    lost = pd.concat(columns, axis=1, join="inner").astype(bool)
    if not lost.to_numpy().any():
        raise Absent(f"no run diverged at lr {high:g} or {low:g}: nothing to help against")
    n_high = lost[high].sum()
    n_low = lost[low].sum()
    study.notes.append(f"of {len(lost)} seeds {n_high} diverged at lr {high:g}, {n_low} at {low:g}")
    discordant = lost[lost[high] != lost[low]]  # only these say which is worse
    if discordant.empty:
        raise Absent(f"every seed diverged at lr {high:g} and at {low:g}: nothing to compare")
    return [share_of(f"lr {high:g} against {low:g}", discordant[high])]


def more_than_one_moved(study: Study) -> list[Contrast]:
    """The share of completed runs in which some coupling moved more than one coordinate."""
    columns = []
    for runs in study.cells.values():
        if "coordinates_moved" in runs:
            columns.append(runs.loc[runs["status"] == "completed", "coordinates_moved"])
    moved = pd.concat(columns).dropna() if columns else pd.Series(dtype=float)
    if moved.empty:
        raise Absent("missing: coordinates_moved")
    several = moved > 1
    return [share_of(f"{int(several.sum())} of {len(moved)} runs", several)]
