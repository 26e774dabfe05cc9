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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from nfexp.claims.catalogue import CLAIMS, Claim
from nfexp.claims.measures import HARD, SIMPLE, Contrast
from nfexp.stats import Absent, Study, studies

LEVEL = 0.95


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
