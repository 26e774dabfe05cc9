"""The paper's claims, each an estimand with a margin, and one mechanism that gives every one a verdict.

A claim says that an effect is above, below or within a margin m. With the interval (low, high) of the effect over
seeds (95% Student t, paired by seed: same draws, same target):

- above m ("worse by something that matters"): supported if low > m, contradicted if high < m;
- below m: supported if high < m, contradicted if low > m;
- within ±m ("alike"): supported if −m < low and high < m, contradicted if low > m or high < −m;

otherwise inconclusive. A difference that is not significant is not an equality. A claim made of k contrasts is
supported if all of them are and contradicted if one is, each at the level 1 − 0.05/k (Bonferroni); the row shows the
least favourable. Intervals of three seeds are wide, and a row is one of many: expect about one false verdict in forty.

Divergence is never averaged away: it is counted in the note, and a claim that needs a cell that lost more than half
of its seeds stays inconclusive. The exceptions: B1 and B2 are about divergence, and in K6a a majority of diverged
runs under the fixed mask is itself the failure to converge that the paper speaks of.

Rows are per target (each interval on its own) and then one for all, by the sentence's quantifier. "Every": supported
if supported on every target with the needed runs (all must hold, so no correction), contradicted if on one at the
level 1 − 0.05/targets and supported on none (a mixed result is inconclusive). "Some": supported if supported on one
at that level, contradicted if contradicted on every target. "Most": supported if supported on more than
half, contradicted if contradicted on at least half. The row shows the target least favourable to the claim ("some":
the most favourable). Where any of the paper's four targets is present, the others have rows but no vote.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from nfexp.stats import Absent, Study, mean_interval, share_gap, studies, wilson
from nfexp.table import ReportError, load_arrays

SIMPLE, HARD = ("moons", "spiral2"), ("circles", "spiral4")
FLOWS, DEPTH, WIDTH = "flow.n_flows", "flow.hidden_depth", "flow.hidden_width"
SAMPLES, NOISE, LR, BATCH = "data.n_samples", "data.noise", "train.lr", "train.batch_size"
ALTERNATING = {"flow.mask": "alternating"}
LEVEL = 0.95


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


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence of a source, what is measured for it, and the margin with its reason."""

    id: str
    source: str
    sentence: str
    estimand: str
    measure: Callable[..., Sequence[Contrast]]
    kind: str = "above"
    margin: float = 0.0
    why: str = "the sign decides"
    quantifier: str = "every"
    across: bool = False
    about_divergence: bool = False


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
    right = steps = runs = 0
    for cell in study.cells.values():
        for folder in cell.loc[cell["status"] == "completed", "dir"] if "dir" in cell else ():
            moved = coordinates_moved(folder)
            right, steps, runs = right + int((moved == 1).sum()), steps + len(moved), runs + (len(moved) > 0)
    if not steps:
        raise Absent("missing: a run that stored its walk (record.walk)")
    share = right / steps
    study.notes.append(f"{right} of {steps} coupling steps in {runs} runs; exact, not an interval")
    return [Contrast("", runs, lambda level: (share, share, share))]


def coordinates_moved(folder: str) -> np.ndarray:
    """How many of the two coordinates each coupling of a stored walk moved, (steps,); empty without a walk."""
    try:
        arrays = load_arrays(folder, only=("walk", "walk_names"))
    except ReportError:
        return np.empty(0)
    walk, names = arrays.get("walk"), arrays.get("walk_names")
    if walk is None or names is None or walk.ndim != 3 or walk.shape[2] != 2 or names.shape != walk.shape[:1]:
        return np.empty(0)
    moved = (np.abs(np.diff(walk, axis=0)) > 1e-6 * (1 + np.abs(walk[1:]))).any(axis=1).sum(axis=1)
    return moved[[str(name).startswith("coupling") for name in names[1:]]]


PAPER, BLOG = "Kataria, section III", "tutorial blog"
CLAIMS = (
    Claim(
        id="K1a", source=PAPER, sentence="One flow is not enough on any target.", margin=0.05,
        why="the spread between good recipes at the same budget",
        estimand="KL(1 flow) − KL(centre), nats", measure=versus({FLOWS: 1}, {}),
    ),
    Claim(
        id="K1b", source=PAPER, sentence="Nor is one very complex flow.", margin=0.05, why="as K1a",
        estimand="KL(best single flow deeper or wider than the centre, by mean) − KL(centre), nats",
        measure=one_complex_flow,
    ),
    Claim(
        id="K1c", source=PAPER, sentence="Simple targets (moons, spiral2) need fewer flows.", across=True,
        estimand="flows needed (smallest number within 0.05 nats of the seed's lowest KL on the flows axis): mean of "
        "circles and spiral4 − mean of moons and spiral2, flows", measure=flows_needed,
    ),
    Claim(
        id="K1d", source=PAPER, sentence="Six flows are the optimum most of the time.", kind="below", margin=0.02,
        why="less would be the noise of a test set", quantifier="most",
        estimand="KL(6 flows) − KL(n flows) for every other n, nats: no n is better by more",
        measure=six_against_each,
    ),
    Claim(
        id="K2a", source=PAPER, sentence="More complexity of each flow makes no huge change.", kind="within",
        margin=0.1, why="'huge': twice what matters in K1",
        estimand="KL(depth d) − KL(depth 2) for every d above 2, nats", measure=deeper,
    ),
    Claim(
        id="K2b", source=PAPER, sentence="Concatenation matters more than the complexity of each flow.",
        estimand="range (max − min) of KL over the flows axis − range over the depth axis, nats", measure=ranges,
    ),
    Claim(
        id="K3a", source=PAPER, sentence="More samples cost more time.",
        estimand="seconds(most samples) − seconds(fewest), full batch, seconds", measure=time_by_samples,
    ),
    Claim(
        id="K3b", source=PAPER, sentence="With more samples the model converges in fewer steps.", kind="below",
        estimand="steps until the validation NLL is within 0.05 nats of the run's lowest: (most samples) − (fewest, "
        "from 100), steps", measure=extremes(SAMPLES, "steps_to_converge", 100),
    ),
    Claim(
        id="K3c", source=PAPER, sentence="With more samples fewer flows sometimes suffice (4 for moons).",
        kind="below", margin=0.02, why="as K1d", quantifier="some",
        estimand="KL(4 flows) − KL(6 flows), both at the most samples, nats", measure=fewer_flows,
    ),
    Claim(
        id="K4a", source=PAPER, sentence="More noise makes the underlying (noise-free) distribution harder to get.",
        estimand="clean_distance(highest noise) − clean_distance(lowest), data units",
        measure=extremes(NOISE, "clean_distance"),
    ),
    Claim(
        id="K4b", source=PAPER, sentence="Most of the time the result matches the noisy distribution.", kind="below",
        margin=0.1, why="a match by eye, as K2a", quantifier="most", estimand="KL at the highest noise, nats",
        measure=kl_at_most_noise,
    ),
    Claim(
        id="K4c", source=PAPER, sentence="With too much noise no complexity recovers the underlying distribution.",
        estimand="smallest clean_distance of any architecture at the highest noise, per seed − the centre's, data "
        "units", measure=best_under_noise,
    ),
    Claim(
        id="K5a", source=PAPER, sentence="ReLU and leaky ReLU are alike.", kind="within", margin=0.05, why="as K1a",
        estimand="KL(leaky ReLU) − KL(ReLU), nats",
        measure=versus({"flow.activation": "leaky_relu"}, {"flow.activation": "relu"}),
    ),
    Claim(
        id="K5b", source=PAPER, sentence="Models with tanh do not converge that well.",
        estimand="KL(tanh) − KL(ReLU), nats",
        measure=versus({"flow.activation": "tanh"}, {"flow.activation": "relu"}),
    ),
    Claim(
        id="K6a", source=PAPER, sentence="Masks that always pass the same dimension do not converge.", margin=0.1,
        why="a failure to see by eye, as K2a", estimand="KL(fixed mask) − KL(alternating), nats",
        measure=fixed_mask,
    ),
    Claim(
        id="K6b", source=PAPER, sentence="Masks that cover both dimensions generally converge.", kind="below",
        margin=0.1, why="as K6a", quantifier="most",
        estimand="KL(mask changed once) − KL(alternating), nats", measure=covering_masks,
    ),
    Claim(
        id="B1", source=BLOG, sentence="Training sometimes ends in NaN.", quantifier="some", about_divergence=True,
        estimand="share of diverged runs over the lr axis (Wilson interval; no number of runs can refute 'sometimes')",
        measure=divergence,
    ),
    Claim(
        id="B2", source=BLOG, sentence="A lower learning rate helps against NaN.", about_divergence=True,
        estimand="share of diverged runs at the highest lr − at the lowest (Newcombe interval)",
        measure=divergence_by_lr,
    ),
    Claim(
        id="B3", source=BLOG, sentence="Batch norm helps, but flattens the data in one dimension.", kind="below",
        estimand="KL(batch norm) − KL(none), nats: 'helps' only, flattening is not measured here",
        measure=versus({"flow.norm": "batchnorm"}, {"flow.norm": "none"}),
    ),
    Claim(
        id="B4", source=BLOG, sentence="Each coupling moves one coordinate only.", margin=0.999, why="exact",
        estimand="share of the coupling steps of stored walks in which exactly one coordinate moved",
        measure=one_coordinate,
    ),
    Claim(
        id="N1", source="NICE 2014, RealNVP 2016", sentence="Affine coupling beats additive coupling.",
        estimand="KL(additive) − KL(affine), nats",
        measure=versus({"flow.coupling": "additive"}, {"flow.coupling": "affine"}),
    ),
)  # fmt: skip


def verdict(kind: str, margin: float, low: float, high: float) -> str:
    """The verdict on an effect with the interval (low, high); see the module's text.

    >>> verdict("above", 0.05, 0.06, 0.2), verdict("within", 0.05, -0.06, 0.01), verdict("below", 0.0, 0.1, 0.2)
    ('supported', 'inconclusive', 'contradicted')
    """
    yes, no = {
        "above": (low > margin, high < margin),
        "below": (high < margin, low > margin),
        "within": (-margin < low and high < margin, low > margin or high < -margin),
    }[kind]
    return "supported" if yes else "contradicted" if no else "inconclusive"


@dataclass(frozen=True)
class Finding:
    """What one claim comes to on one target; `fixed` is a verdict that no interval decides."""

    claim: Claim
    target: str
    contrasts: Sequence[Contrast] = ()
    fixed: str | None = None
    applies: bool = True
    note: str = ""

    def verdict(self, corrected: int = 1) -> str:
        """The verdict, each of the contrasts at the level 1 − 0.05 / (contrasts · corrected)."""
        if self.fixed:
            return self.fixed
        level = 1 - (1 - LEVEL) / (len(self.contrasts) * corrected)
        ends = [c.interval(level)[1:] for c in self.contrasts]
        # The least in the alphabet: contradicted < inconclusive < supported
        return min(verdict(self.claim.kind, self.claim.margin, *e) for e in ends)

    def shown(self) -> tuple[float, float, float, int, str]:
        """Estimate, low, high, n and label of the contrast that decides: the least favourable to the claim."""
        claim, level = self.claim, 1 - (1 - LEVEL) / max(len(self.contrasts), 1)
        rows = [(*c.interval(level), c.n, c.label) for c in self.contrasts]
        rows.sort(key=lambda r: (verdict(claim.kind, claim.margin, *r[1:3]), -against(claim.kind, *r[1:3])))
        return rows[0] if rows else (math.nan, math.nan, math.nan, 0, "")


def against(kind: str, low: float, high: float) -> float:
    """How far an interval reaches on the side against the claim; an unknown one counts as far off."""
    value = {"above": -low, "below": high, "within": max(abs(low), abs(high))}[kind]
    return -math.inf if math.isnan(value) else value


def evaluate(runs: pd.DataFrame, centres: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The verdict on every claim, per target and over all targets.

    `runs` is the table of :func:`nfexp.table.load_runs`, `centres` the study's centre per target. Columns: claim,
    source, sentence, target, estimand, estimate, low, high, n (pairs of seeds; runs for B1, B2 and B4), margin,
    verdict (supported, contradicted or inconclusive), note. Missing runs give an inconclusive row that says which,
    never an exception.

    >>> runs = pd.DataFrame({"data.name": "moons", "status": "completed", "seed": [0, 1, 0, 1],
    ...                      "flow.n_flows": [6, 6, 1, 1], "kl": [0.03, 0.04, 0.53, 0.54]})
    >>> table = evaluate(runs, {"moons": {"flow.n_flows": 6}})
    >>> table.loc[table["claim"] == "K1a", ["target", "verdict"]].to_numpy().tolist()
    [['moons', 'supported'], ['all', 'supported']]
    """
    by_target = studies(runs, centres)
    rows = []
    for claim in CLAIMS:
        found = [_find(claim, s) for s in ([by_target] if claim.across else by_target.values())]
        rows += [_row(f) for f in found]
        if not claim.across:
            rows.append(_overall(claim, found) if found else _row(Finding(claim, "all", (), "inconclusive")))
    return pd.DataFrame(rows)


def _find(claim: Claim, subject: Study | Mapping[str, Study]) -> Finding:
    group = subject if claim.across else {subject.target: subject}
    for study in group.values():
        study.used, study.notes, study.excused = {}, [], None
    contrasts: Sequence[Contrast] = ()
    gap = ""
    try:
        contrasts = claim.measure(subject)
    except Absent as reason:
        gap = str(reason)
    target = "all" if claim.across else subject.target
    label = (lambda s, text: f"{s.target}: {text}") if claim.across else (lambda s, text: text)
    notes = [gap] if gap else []
    notes += [label(s, text) for s in group.values() for text in s.notes]
    notes += [label(s, text) for s in group.values() if (text := _losses(s))]
    lost = [label(s, text) for s in group.values() if (text := _half_lost(s))]
    fixed = None if contrasts else "inconclusive"
    if lost and not claim.about_divergence:
        fixed = "inconclusive"
        notes += lost
    elif any(s.excused is not None for s in group.values()):
        fixed = "supported"
        notes.append("most runs under the fixed mask diverged, which is the claim")
    elif not gap and (few := [c for c in contrasts if math.isnan(c.interval(LEVEL)[1])]):
        notes.append(f"fewer than two pairs of completed runs{': ' * bool(few[0].label)}{few[0].label}")
    return Finding(claim, target, contrasts, fixed, not gap or bool(lost), "; ".join(notes))


def _losses(study: Study) -> str:
    """The runs of the cells used that did not complete, by status."""
    if not study.used:
        return ""
    status = pd.concat(study.used.values())["status"]
    counts = [f"{k} {s}" for s in ("diverged", "failed", "missing") if (k := int((status == s).sum()))]
    return f"{', '.join(counts)} of {len(status)} runs used" if counts else ""


def _half_lost(study: Study) -> str:
    for key, runs in study.used.items():
        names = ", ".join(f"{k}={v}" for k, v in sorted(key, key=str)) or "the centre"
        if key != study.excused and (runs["status"] != "completed").mean() > 0.5:
            return f"{names} lost more than half of its seeds"
    return ""


def _row(finding: Finding) -> dict[str, Any]:
    claim = finding.claim
    estimate, low, high, n, label = finding.shown()
    measured = f"{claim.estimand}; {claim.kind} {claim.margin:g} ({claim.why})"
    return {
        "claim": claim.id, "source": claim.source, "sentence": claim.sentence, "target": finding.target,
        "estimand": measured, "estimate": estimate, "low": low, "high": high, "n": n, "margin": claim.margin,
        "verdict": finding.verdict(), "note": "; ".join(filter(None, [label, finding.note])),
    }  # fmt: skip


def _overall(claim: Claim, found: Sequence[Finding]) -> dict[str, Any]:
    """The row for all targets: see the module's text for the rule."""
    voting = [f for f in found if f.target in SIMPLE + HARD] or list(found)
    voting = [f for f in voting if f.applies] or voting
    verdicts, k = [f.verdict() for f in voting], len(voting)
    strict = [f.verdict(k) for f in voting]
    yes, no = verdicts.count("supported"), verdicts.count("contradicted")
    supported, contradicted = {
        "every": (yes == k, yes == 0 and "contradicted" in strict),
        "some": ("supported" in strict, no == k),
        "most": (2 * yes > k, 2 * no >= k and no > 0),
    }[claim.quantifier]
    overall = "supported" if supported else "contradicted" if contradicted else "inconclusive"
    pick = max if claim.quantifier == "some" else min
    shown = pick(voting, key=lambda f: (f.verdict(), -against(claim.kind, *f.shown()[1:3])))
    note = f"{claim.quantifier}: supported on {yes}, contradicted on {no} of {k}; shown is {shown.target}"
    if absent := [f.target for f in found if f not in voting]:
        note += f"; not counted: {', '.join(absent)}"
    row = _row(shown)
    return row | {"target": "all", "verdict": overall, "note": "; ".join(filter(None, [note, row["note"]]))}
