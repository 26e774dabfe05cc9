"""The paper's claims, each an estimand with a margin, and one mechanism that gives every one a verdict.

A claim says that an effect is above, below or within a margin m. The effect is a mean over seeds of differences
paired by seed (same draws, same target) with Student's t interval, or a share of runs with its exact (Clopper-Pearson)
interval. With the interval (low, high) at 95%, 2.5% on each side:

- above m ("worse by something that matters"): supported if low > m, contradicted if high < m;
- below m: supported if high < m, contradicted if low > m;
- within ±m ("alike"; two one-sided tests, TOST): supported if −m < low and high < m, contradicted if low > m or
  high < −m. A difference that is not significant is not an equality;

otherwise inconclusive. The same as p-values: `p_for` of "the claim is false", `p_against` of "it is true", each a
one-sided test (for "within" the larger of two), and the verdict needs one of them to be at most 0.025. A claim
made of k contrasts holds if all do (the largest p_for, which needs no correction) and fails if one does (k times the
smallest p_against). The row shows the contrast that decides, its interval at 95% uncorrected.

Rows are per target and then one for all. Over a claim's targets both p-values are Holm's, so that all its verdicts
together are false with a probability of at most 2.5% each way, and the row for all targets may count them, by the
sentence's quantifier. "Every": supported if supported on every target, contradicted if on one. "Some": supported if
on one, contradicted if on every. "Most": supported if on more than half, contradicted if on at least half. It shows
the target that decides and its p-values. Where any of the paper's four targets is present, the others have
uncorrected rows and no vote; nor has a target without the needed runs.

Why t decides and the bootstrap does not: false verdicts on one side, in %, where the true effect is exactly m and 2.5
are allowed; 20,000 tables each (``python -m tests.helpers.intervals``). "Arms" are differences of two equal log-normal
arms, as paired runs without an effect give them; "skewed" is a log-normal of log-sd 0.5 by itself, on its worse side.

         normal                  arms                    skewed
      n  t    percentile  BCa    t    percentile  BCa    t    percentile  BCa
      3  2.5     12.3    13.9    1.4     12.4    15.2    6.4     21.0    22.3
      5  2.5      8.2     8.2    1.3      9.0    10.6    7.8     15.9    14.9
     10  2.4      4.8     4.9    1.6      5.8     8.5    7.0     10.0     8.6

So scipy's bootstrap (`boot_low`, `boot_high`: percentile, which errs no more than BCa where arms are alike; seeded) is
shown beside and decides nothing. t holds its level where like is compared with like. Where the differences themselves
are skewed it errs about three times as often as it says towards the short side (16% at ten values of log-sd 1;
percentile 18, BCa 15): an interval that only just clears a margin is to be read with that.

`sign_verdict` is the verdict that the sign test, which is of the median, would give instead of t, with the same
margins and corrections. It decides nothing either, but says what a typical seed shows where one run in ten has a mean
that a handful of test points of next to no density has carried off by tens of nats, and with it every interval.

Divergence is never averaged away: it is counted in the note, and a claim that needs a cell that lost more than half
of its seeds stays inconclusive. The exceptions: B1 and B2 are about divergence, and in K6a a majority of diverged
runs under the fixed mask is itself the failure to converge that the paper speaks of. Everything comes from the table
of runs: a metric that it lacks is "missing".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from nfexp.analysis.claims.catalogue import CLAIMS, Claim
from nfexp.analysis.claims.measures import HARD, SIMPLE, Contrast
from nfexp.analysis.statistics import Absent, Study, holm, named, studies

ALPHA = 0.025  # on each side: what a 95% interval leaves


def verdict(p_for: float, p_against: float) -> str:
    """The verdict of two p-values; a missing one (NaN) proves nothing.

    >>> verdict(0.01, 0.99), verdict(0.2, 0.8), verdict(1.0, 0.0), verdict(math.nan, math.nan)
    ('supported', 'inconclusive', 'contradicted', 'inconclusive')
    """
    return "supported" if p_for <= ALPHA else "contradicted" if p_against <= ALPHA else "inconclusive"


def p_values(contrast: Contrast, kind: str, margin: float, *, signs: bool = False) -> tuple[float, float]:
    """The p-values of "the claim is false" and of "it is true" of one effect; 1 without data.

    >>> c = Contrast("", [-0.01, 0.0, 0.01])
    >>> [verdict(*p_values(c, kind, 0.05)) for kind in ("above", "below", "within")]
    ['contradicted', 'supported', 'supported']
    """
    at_most, at_least = (1.0 if math.isnan(p) else p for p in contrast.tails(margin, signs=signs))
    if kind == "above":
        return at_most, at_least
    if kind == "below":
        return at_least, at_most
    below, above = (1.0 if math.isnan(p) else p for p in contrast.tails(-margin, signs=signs))
    return max(below, at_least), min(at_most, above)


@dataclass(frozen=True)
class Finding:
    """What one claim comes to on one target; of a `lost` one the numbers are shown, but decide nothing."""

    claim: Claim
    target: str
    contrasts: Sequence[Contrast] = ()
    lost: bool = False
    applies: bool = True
    rows: str = ""
    note: str = ""

    def each(self, *, signs: bool = False) -> list[tuple[float, float]]:
        """p_for and p_against of each contrast."""
        margins = [self.claim.margin if c.margin is None else c.margin for c in self.contrasts]
        return [p_values(c, self.claim.kind, m, signs=signs) for c, m in zip(self.contrasts, margins, strict=True)]

    def p(self, *, signs: bool = False) -> tuple[float, float]:
        """p_for and p_against of all contrasts together, before any correction over targets."""
        if self.lost or not self.contrasts:
            return 1.0, 1.0
        found = self.each(signs=signs)
        return max(p for p, _ in found), min(1.0, len(found) * min(p for _, p in found))

    def decisive(self) -> Contrast | None:
        """The contrast that contradicts, or else the least favourable one."""
        found = sorted(zip(self.each(), range(len(self.contrasts)), strict=True), key=lambda f: (-f[0][0], f[0][1]))
        if verdict(*self.p()) == "contradicted":
            found.sort(key=lambda f: f[0][1])
        return self.contrasts[found[0][1]] if found else None


def evaluate(runs: pd.DataFrame, centres: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The verdict on every claim, per target and over all targets.

    `runs` is the table of :func:`nfexp.load_runs` or :func:`nfexp.read_runs`, `centres` the study's centre per target.
    Columns: claim, source, sentence, target, rows (the cells used), estimand, n (pairs of seeds; runs for shares),
    estimate, low, high (95%), boot_low, boot_high, margin, p_for, p_against (Holm), verdict (supported, contradicted or
    inconclusive), sign_verdict, note. Missing runs give an inconclusive row that says which, never an exception.

    >>> runs = pd.DataFrame({"data.name": "moons", "status": "completed", "seed": [0, 1, 0, 1],
    ...                      "flow.n_flows": [6, 6, 1, 1], "kl": [0.03, 0.04, 0.53, 0.54]})
    >>> table = evaluate(runs, {"moons": {"flow.n_flows": 6}})
    >>> table.loc[table["claim"] == "K1a", ["target", "verdict"]].to_numpy().tolist()
    [['moons', 'supported'], ['all', 'supported']]
    """
    by_target = studies(runs, centres)
    rows = []
    for claim in CLAIMS:
        groups: list[dict[str, Study]] = [{target: study} for target, study in by_target.items()]
        if claim.across:
            groups = [by_target]
        rows += judge(claim, [find(claim, group) for group in groups])
    return pd.DataFrame(rows)


def find(claim: Claim, group: Mapping[str, Study]) -> Finding:
    """Measure one claim on a group of studies by target: of one target, or (`across`) of all."""
    for study in group.values():
        study.used, study.notes = {}, []
    contrasts: Sequence[Contrast] = ()
    gap = ""
    try:
        contrasts = claim.contrasts(group)
    except Absent as reason:
        gap = str(reason)
    said = [text for s in group.values() for text in _labelled(claim, s, s.notes)]
    losses = [text for s in group.values() for text in _labelled(claim, s, [_losses(s)])]
    lost: list[str] = []
    if not claim.about_divergence:
        lost = [text for s in group.values() for text in _labelled(claim, s, [_half_lost(s)])]
    notes = [*([gap] if gap else []), *said, *losses, *lost]
    few = [c for c in contrasts if math.isnan(c.tails(0.0)[0])]
    if few and not gap and not lost:
        why = "no run that ended" if few[0].share else "fewer than two pairs of completed runs"
        notes.append(f"{why}{': ' * bool(few[0].label)}{few[0].label}")
    target = "all" if claim.across else next(iter(group))
    cells = dict.fromkeys(named(dict(sorted(key))) for s in group.values() for key in s.used)
    rows = " | ".join(cells) or ("" if gap else "every completed run")
    return Finding(claim, target, contrasts, bool(lost), not gap or bool(lost), rows, "; ".join(notes))


def _labelled(claim: Claim, study: Study, texts: Sequence[str]) -> list[str]:
    """The texts that say something; of a claim `across` targets with the target that they are about."""
    label = f"{study.target}: " if claim.across else ""
    return [f"{label}{text}" for text in texts if text]


def _losses(study: Study) -> str:
    """The runs of the cells used that did not complete, by status."""
    if not study.used:
        return ""
    status = pd.concat([runs["status"] for runs in study.used.values()])
    counts = [f"{k} {s}" for s in ("diverged", "failed", "missing") if (k := int((status == s).sum()))]
    return f"{', '.join(counts)} of {len(status)} runs used" if counts else ""


def _half_lost(study: Study) -> str:
    for key, runs in study.used.items():
        if (runs["status"] != "completed").mean() > 0.5:
            return f"{named(dict(sorted(key)))} lost more than half of its seeds"
    return ""


def judge(claim: Claim, found: Sequence[Finding]) -> list[dict[str, Any]]:
    """The rows of one claim: one per target, Holm over those that vote, and one for all by the quantifier."""
    if claim.across or not found:
        alone = found[0] if found else Finding(claim, "all")
        return [_row(alone, *alone.p(), verdict(*alone.p(signs=True)))]
    voting = [f for f in found if f.target in SIMPLE + HARD] or list(found)
    voting = [f for f in voting if f.applies] or voting
    others = [f for f in found if f not in voting]
    k = len(voting)
    needed = {"every": k, "some": 1, "most": k // 2 + 1}[claim.quantifier]  # targets that the sentence needs

    def weighed(signs: bool) -> tuple[dict[str, tuple[float, float]], tuple[float, float]]:
        """p_for and p_against of every target that votes, and of all."""
        yes, no = (holm(p) for p in zip(*(f.p(signs=signs) for f in voting), strict=True))
        own = {f.target: (float(y), float(n)) for f, y, n in zip(voting, yes, no, strict=True)}
        return own, (float(sorted(yes)[needed - 1]), float(sorted(no)[k - needed]))

    (corrected, (p_for, p_against)), (by_signs, all_by_signs) = weighed(False), weighed(True)
    rows = [_row(f, *corrected.get(f.target, f.p()), verdict(*by_signs.get(f.target, f.p(signs=True)))) for f in found]
    overall = verdict(p_for, p_against)
    side = int(overall == "contradicted")
    rank = k - needed if side else needed - 1
    decides = sorted(voting, key=lambda f: f.p()[side])[rank]
    counts = [sum(verdict(*p) == v for p in corrected.values()) for v in ("supported", "contradicted")]
    note = (
        f"{claim.quantifier}: supported on {counts[0]}, contradicted on {counts[1]} of {k}; shown is {decides.target}"
    )
    if others:
        note += f"; not counted: {', '.join(f.target for f in others)}"
    row = _row(decides, p_for, p_against, verdict(*all_by_signs))
    return [*rows, row | {"target": "all", "note": "; ".join(filter(None, [note, row["note"]]))}]


def _row(finding: Finding, p_for: float, p_against: float, sign_verdict: str) -> dict[str, Any]:
    claim, shown = finding.claim, finding.decisive()
    estimate, low, high = shown.interval() if shown else (math.nan,) * 3
    boot_low, boot_high = shown.bootstrap() if shown else (math.nan,) * 2
    return {
        "claim": claim.id, "source": claim.source, "sentence": claim.sentence, "target": finding.target,
        "rows": finding.rows, "estimand": f"{claim.estimand}; {claim.kind} {claim.margin:g} ({claim.why})",
        "n": len(shown.values) if shown else 0, "estimate": estimate, "low": low, "high": high,
        "boot_low": boot_low, "boot_high": boot_high,
        "margin": claim.margin if shown is None or shown.margin is None else shown.margin,
        "p_for": p_for if shown else math.nan, "p_against": p_against if shown else math.nan,
        "verdict": verdict(p_for, p_against),
        "sign_verdict": sign_verdict,
        "note": "; ".join(filter(None, [shown.label if shown else "", finding.note])),
    }  # fmt: skip
