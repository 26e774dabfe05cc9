"""What the claims measure: functions of a study that return contrasts, or say that their runs are absent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from nfexp.stats import Absent, Study, mean_interval, share_gap, wilson
from nfexp.table import ReportError, load_arrays

SIMPLE, HARD = ("moons", "spiral2"), ("circles", "spiral4")
FLOWS, DEPTH, WIDTH = "flow.n_flows", "flow.hidden_depth", "flow.hidden_width"
SAMPLES, NOISE, LR, BATCH = "data.n_samples", "data.noise", "train.lr", "train.batch_size"
ALTERNATING = {"flow.mask": "alternating"}
LOOKED_AT = 200  # archives per target that a claim about stored samples opens


@dataclass(frozen=True)
class Contrast:
    """One effect: its number of pairs, runs or steps, and `interval(level)` giving estimate, low, high."""

    label: str
    n: int
    interval: Callable[[float], tuple[float, float, float]]


def mean_of(label: str, values: pd.Series) -> Contrast:
    values = values.dropna()
    return Contrast(label, len(values), partial(mean_interval, values.to_numpy(dtype=float)))


Measure = Callable[[Study], Sequence[Contrast]]


def versus(a: Mapping[str, Any], b: Mapping[str, Any], metric: str = "kl") -> Measure:
    """The measure metric(a) − metric(b) of two cells, given by their differences from the centre."""
    return lambda study: [mean_of("", study.gap(a, b, metric))]


def one_complex_flow(study: Study) -> list[Contrast]:
    """KL of the best single flow that is deeper or wider than the centre, minus the centre's."""
    found = []
    for key in study.cells:
        own = dict(key)
        larger = any(own.get(c, 0) > study.centre.get(c, math.inf) for c in (DEPTH, WIDTH))
        if own.get(FLOWS) == 1 and own.keys() <= {FLOWS, DEPTH, WIDTH} and larger:
            found.append((study.values("kl", own).mean(), own))
    if not found:
        raise Absent("missing: flow.n_flows=1 with more depth or width than the centre")
    best = min(found, key=lambda pair: math.inf if math.isnan(pair[0]) else pair[0])[1]
    label = ", ".join(f"{k}={v}" for k, v in sorted(best.items()))
    study.notes.append(f"best of {len(found)} single-flow cells")
    return [mean_of(label, study.gap(best, {}))]


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


def ranges(study: Study) -> list[Contrast]:
    study.ends(FLOWS), study.ends(DEPTH)
    table = {c: pd.DataFrame({v: study.values("kl", {c: v}) for v in study.axis(c)}).dropna() for c in (FLOWS, DEPTH)}
    flows, depth = (kl.max(axis=1) - kl.min(axis=1) for kl in table.values())
    return [mean_of("", flows - depth)]


def time_by_samples(study: Study) -> list[Contrast]:
    full = {BATCH: "full"}
    if len(study.axis(SAMPLES, full)) < 2:
        raise Absent(
            "not identifiable here: mini-batches make a step cost the same at every n, and seconds is a share of a "
            "stack; needs runs with train.batch_size=full at two sample counts"
        )
    low, high = study.ends(SAMPLES, fixed=full)
    return [mean_of(f"n={high} against n={low}", study.gap(full | {SAMPLES: high}, full | {SAMPLES: low}, "seconds"))]


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


def best_under_noise(study: Study) -> list[Contrast]:
    noise = study.ends(NOISE)[1]
    found = [dict(k) for k in study.cells if dict(k).get(NOISE, study.centre.get(NOISE)) == noise]
    found = [own for own in found if own.keys() <= {NOISE, FLOWS, DEPTH, WIDTH}]
    if len(found) < 2:
        raise Absent(f"missing: data.noise={noise:g} with another number of flows, depth or width")
    distances = pd.DataFrame({i: study.values("clean_distance", own) for i, own in enumerate(found)}).dropna()
    gap = distances.min(axis=1) - study.values("clean_distance", {})
    return [mean_of(f"noise {noise:g}, best of {len(found)} architectures", gap)]


def fixed_mask(study: Study) -> list[Contrast]:
    runs = study.cell({"flow.mask": "fixed"})
    if (runs["status"] == "diverged").mean() > 0.5:
        study.excused = study.key({"flow.mask": "fixed"})
    return versus({"flow.mask": "fixed"}, ALTERNATING)(study)


def covering_masks(study: Study) -> list[Contrast]:
    key = study.key({"flow.mask": "random"})
    if key in study.cells:  # looked at without `cell`: the verdict does not need it
        runs = study.cells[key]
        gap = runs[runs["status"] == "completed"].set_index("seed")["kl"] - study.values("kl", ALTERNATING)
        mean, low, high = mean_interval(gap)
        study.notes.append(f"random masks: {mean:.3g} [{low:.3g}, {high:.3g}], {gap.count()} of {len(runs)} runs")
    return versus({"flow.mask": "once"}, ALTERNATING)(study)


def diverged(runs: pd.DataFrame) -> tuple[int, int]:
    """How many runs diverged, of those that either completed or diverged."""
    return int((runs["status"] == "diverged").sum()), int(runs["status"].isin(["completed", "diverged"]).sum())


def divergence(study: Study) -> list[Contrast]:
    k, n = diverged(pd.concat([study.cell({LR: lr}) for lr in study.axis(LR)] or [study.cell({})]))
    study.notes.append(f"{k} of {n} runs diverged")
    return [Contrast("", n, partial(wilson, k, n))]


def divergence_by_lr(study: Study) -> list[Contrast]:
    low, high = study.ends(LR)
    counts = *diverged(study.cell({LR: high})), *diverged(study.cell({LR: low}))
    if counts[0] + counts[2] == 0:
        raise Absent(f"no run diverged at lr {high:g} or {low:g}: nothing to help against")
    return [Contrast(f"lr {high:g} against {low:g}", min(counts[1], counts[3]), partial(share_gap, *counts))]


def one_coordinate(study: Study) -> list[Contrast]:
    done = pd.concat([cell[cell["status"] == "completed"] for cell in study.cells.values()] or [pd.DataFrame()])
    folders = done.sort_values(["seed", "dir"])["dir"] if "dir" in done else ()
    looked = [moved for folder in folders[:LOOKED_AT] if len(moved := coordinates_moved(folder))]
    if not looked:
        raise Absent("missing: a run that stored its walk (record.walk)")
    moved = np.concatenate(looked)
    right, runs = int((moved == 1).sum()), len(looked)
    among = f" (of {len(folders)}, the first {LOOKED_AT} by seed were looked at)" if len(folders) > LOOKED_AT else ""
    study.notes.append(f"{right} of {len(moved)} coupling steps in {runs} runs{among}; exact, not an interval")
    return [Contrast("", runs, lambda level: (right / len(moved),) * 3)]


def coordinates_moved(folder: str) -> np.ndarray:
    """How many of the two coordinates each coupling of a stored walk moved, (steps,); empty without a walk."""
    try:
        arrays = load_arrays(folder, only=("walk", "walk_names"))
    except ReportError:
        return np.empty(0)
    walk, names = arrays.get("walk"), arrays.get("walk_names")
    if walk is None or names is None or walk.ndim != 3 or walk.shape[2] != 2 or names.shape != walk.shape[:1]:
        return np.empty(0)
    if walk.dtype.kind != "f" or not len(walk) or not (np.abs(walk) < 1e30).all():
        return np.empty(0)
    moved = (np.abs(np.diff(walk, axis=0)) > 1e-6 * (1 + np.abs(walk[1:]))).any(axis=1).sum(axis=1)
    return moved[np.char.startswith(names[1:].astype(str), "coupling")]
