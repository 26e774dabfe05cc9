"""The claims of the sources, and one mechanism that gives every one a verdict.

`catalogue` holds the claims, `measures` what is measured for them, `findings` the p-values on one
target; here they become the rows of `claims.csv`. The rules, and why Student's t decides, are in
docs/claims.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nfexp.analysis.claims.catalogue import CLAIMS, Claim
from nfexp.analysis.claims.findings import Finding, PValues, find, p_values, verdict
from nfexp.analysis.claims.measures import HARD, SIMPLE
from nfexp.analysis.statistics import Interval, holm, studies

__all__ = [
    "CLAIMS",
    "Claim",
    "Finding",
    "PValues",
    "evaluate",
    "find",
    "judge",
    "p_values",
    "verdict",
    "verdicts",
    "voters",
]


def evaluate(
    runs: pd.DataFrame,
    centres: Mapping[str, Mapping[str, Any]],
    claims: Sequence[Claim] = CLAIMS,
) -> pd.DataFrame:
    """The verdict on every claim, per target and over all targets.

    `runs` is the table of :func:`nfexp.load_runs` or :func:`nfexp.read_runs`, `centres` the study's
    centre per target. Columns: claim, source, sentence, target, rows (the cells used), estimand, n
    (pairs of seeds; runs for shares), estimate, low, high (95%), boot_low, boot_high, margin,
    p_for, p_against (Holm), verdict (supported, contradicted or inconclusive), sign_verdict, note.
    The claims are those of the catalogue, or other ones (:mod:`nfexp.analysis.claims.images`).
    Missing runs give an inconclusive row that says which, never an exception.

    >>> runs = pd.DataFrame({"data.name": "moons", "status": "completed", "seed": [0, 1, 0, 1],
    ...                      "flow.n_flows": [6, 6, 1, 1], "kl": [0.03, 0.04, 0.53, 0.54]})
    >>> table = evaluate(runs, {"moons": {"flow.n_flows": 6}})
    >>> table.loc[table["claim"] == "K1a", ["target", "verdict"]].to_numpy().tolist()
    [['moons', 'supported'], ['all', 'supported']]
    """
    by_target = studies(runs, centres)
    rows = []
    for claim in claims:
        if claim.across:
            findings = [find(claim, by_target)]
        else:
            findings = [find(claim, {target: study}) for target, study in by_target.items()]
        rows += judge(claim, findings)
    return pd.DataFrame(rows)


def judge(claim: Claim, findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The rows of one claim: one per target, and one for all."""
    if claim.across or not findings:
        alone = findings[0] if findings else Finding(claim, "all")
        return [_row(alone, alone.p(), verdict(*alone.p(signs=True)))]
    voting = voters(findings)
    votes = _count(claim, voting, signs=False)
    sign_votes = _count(claim, voting, signs=True)
    rows = []
    for finding in findings:
        p = votes.corrected.get(finding.target, finding.p())
        sign_p = sign_votes.corrected.get(finding.target, finding.p(signs=True))
        rows.append(_row(finding, p, verdict(*sign_p)))
    decides = _decisive(votes, voting)
    overall = _row(decides, votes.overall, verdict(*sign_votes.overall))
    overall["target"] = "all"
    overall["note"] = _joined(_summary(claim, votes, decides, findings), overall["note"])
    return [*rows, overall]


def verdicts(claim: Claim, findings: Sequence[Finding]) -> list[str]:
    """The verdicts of the rows of :func:`judge`, without all that the rows show."""
    if claim.across or not findings:
        return [verdict(*finding.p()) for finding in findings] or ["inconclusive"]
    votes = _count(claim, voters(findings), signs=False)
    of_findings = [
        verdict(*votes.corrected.get(finding.target, finding.p())) for finding in findings
    ]
    return [*of_findings, verdict(*votes.overall)]


def voters(findings: Sequence[Finding]) -> list[Finding]:
    """The findings that count.

    Those on the paper's targets, if any is present and the claim is not about any target, and of
    these the ones with the needed runs, if any has them.
    """
    of_paper = [f for f in findings if f.target in SIMPLE + HARD and not f.claim.everywhere]
    voting = of_paper or list(findings)
    return [finding for finding in voting if finding.applies] or voting


@dataclass(frozen=True)
class _Votes:
    """What the targets that vote say together."""

    corrected: dict[str, PValues]  # by target
    overall: PValues
    needed: int  # targets that the sentence needs

    @property
    def enough_against(self) -> int:
        """How many targets are enough to contradict: fewer than `needed` are then left."""
        return len(self.corrected) - self.needed + 1


def _count(claim: Claim, voting: Sequence[Finding], *, signs: bool) -> _Votes:
    """The votes: p-values of every target, corrected by Holm, and of all by the quantifier.

    A sentence that needs m of k targets is supported once the m-th smallest corrected p_for is
    small enough, and contradicted once fewer than m targets are left: at the (k − m + 1)-th
    smallest p_against.
    """
    uncorrected = np.array([finding.p(signs=signs) for finding in voting])  # (k, 2)
    p_for = holm(uncorrected[:, 0]).tolist()
    p_against = holm(uncorrected[:, 1]).tolist()
    corrected = {}
    for finding, own_for, own_against in zip(voting, p_for, p_against, strict=True):
        corrected[finding.target] = PValues(own_for, own_against)
    k = len(voting)
    needed = {"every": k, "some": 1, "most": k // 2 + 1}[claim.quantifier]
    overall = PValues(sorted(p_for)[needed - 1], sorted(p_against)[k - needed])
    return _Votes(corrected, overall, needed)


def _decisive(votes: _Votes, voting: Sequence[Finding]) -> Finding:
    """The finding that the verdict over all targets rests on: its p-value is the overall one."""
    if verdict(*votes.overall) == "contradicted":
        ordered = sorted(voting, key=lambda finding: finding.p().p_against)
        return ordered[votes.enough_against - 1]
    ordered = sorted(voting, key=lambda finding: finding.p().p_for)
    return ordered[votes.needed - 1]


def _summary(claim: Claim, votes: _Votes, decides: Finding, findings: Sequence[Finding]) -> str:
    """How the targets voted, and which of them is shown."""
    verdicts = [verdict(*p) for p in votes.corrected.values()]
    text = f"{claim.quantifier}: supported on {verdicts.count('supported')}"
    text += f", contradicted on {verdicts.count('contradicted')} of {len(verdicts)}"
    text += f"; shown is {decides.target}"
    others = [finding.target for finding in findings if finding.target not in votes.corrected]
    if others:
        text += f"; not counted: {', '.join(others)}"
    return text


def _joined(*texts: str) -> str:
    return "; ".join(text for text in texts if text)


def _row(finding: Finding, p: PValues, sign_verdict: str) -> dict[str, Any]:
    """A row of claims.csv: what a finding shows, under p-values that may be corrected."""
    claim = finding.claim
    shown = finding.decisive()
    estimated = shown.interval() if shown else Interval(math.nan, math.nan, math.nan)
    boot_low, boot_high = shown.bootstrap() if shown else (math.nan, math.nan)
    return {
        "claim": claim.id,
        "source": claim.source,
        "sentence": claim.sentence,
        "target": finding.target,
        "rows": finding.rows,
        "estimand": f"{claim.estimand}; {claim.kind} {claim.margin:g} ({claim.why})",
        "n": len(shown.values) if shown else 0,
        "estimate": estimated.estimate,
        "low": estimated.low,
        "high": estimated.high,
        "boot_low": boot_low,
        "boot_high": boot_high,
        "margin": finding.margin(shown) if shown else claim.margin,
        "p_for": p.p_for if shown else math.nan,
        "p_against": p.p_against if shown else math.nan,
        "verdict": verdict(*p),
        "sign_verdict": sign_verdict,
        "note": _joined(shown.label if shown else "", finding.note),
    }
