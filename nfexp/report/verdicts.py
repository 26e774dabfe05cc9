"""The verdicts on the claims, as the report lists them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from nfexp.analysis.table.records import rows_of
from nfexp.report.words import interval, number, plain
from nfexp.spec import counted

ALL = "all"  # in place of a target: the verdict over all of them


@dataclass(frozen=True)
class TargetVerdict:
    """What one target says of a claim."""

    target: str
    verdict: str
    estimate: str  # with its 95% interval
    tested: str  # what the verdict rests on besides
    n: str
    note: str
    rounds: str  # of seeds, where they came in rounds: how many, and why no more


@dataclass(frozen=True)
class ClaimVerdict:
    """A claim, the verdict over all targets, and the verdict of each."""

    claim: str
    source: str
    sentence: str
    verdict: str
    estimand: str
    margin: str
    note: str
    rows: str  # the cells of the study that were used
    rounds: str  # as of a target
    targets: list[TargetVerdict]


@dataclass(frozen=True)
class Verdicts:
    """The claims that a sweep says something about, in their order."""

    shown: list[ClaimVerdict]
    n_hidden: int  # claims without any run to judge them by


def verdicts(judged: pd.DataFrame) -> Verdicts:
    """The rows of :func:`nfexp.analysis.claims.evaluate` by claim; those with n = 0 are counted."""
    shown = []
    n_hidden = 0
    for _, rows in judged.groupby("claim", sort=False):
        if (rows["n"] == 0).all():
            n_hidden += 1
        else:
            shown.append(_claim(rows))
    return Verdicts(shown, n_hidden)


def _claim(rows: pd.DataFrame) -> ClaimVerdict:
    """One claim from its rows: one per target, then one for all of them."""
    first = rows.iloc[0]
    overall = rows.iloc[-1]
    by_target = rows[rows["target"] != ALL]
    if not len(by_target) or rows["estimate"].isna().all():
        by_target = rows.tail(1)
    note = first["note"] if len(by_target) == 1 else overall["note"]
    return ClaimVerdict(
        claim=first["claim"],
        source=first["source"],
        sentence=first["sentence"],
        verdict=overall["verdict"],
        estimand=first["estimand"],
        margin=plain(first["margin"]),
        note=note,
        rows=max(rows["rows"], key=len),
        rounds=_rounds(overall),
        targets=[_target(row) for row in rows_of(by_target)],
    )


def _target(row: Mapping[str, Any]) -> TargetVerdict:
    note = row["note"]
    has_note = note is not None and note == note
    tested = (
        f"bootstrap [{number(row['boot_low'])}, {number(row['boot_high'])}]",
        f"p = {number(row['p_for'])} for",
        f"{number(row['p_against'])} against",
        f"by signs {row['sign_verdict']}",
    )
    return TargetVerdict(
        target=row["target"],
        verdict=row["verdict"],
        estimate=interval(row["estimate"], row["low"], row["high"]),
        tested=", ".join(tested),
        n=f"{row['n']:.0f}",
        note=note if has_note else "",
        rounds=_rounds(row),
    )


def _rounds(row: Mapping[str, Any] | pd.Series) -> str:
    """How many rounds of seeds were looked at, why no more, and how many seeds are needed."""
    if "rounds" not in row:
        return ""
    n_rounds = int(row["rounds"])
    words = [counted(n_rounds, "round"), str(row["stopped"])]
    seeds = row["seeds_needed"]
    if not pd.isna(seeds):
        words.append(f"about {seeds:,.0f} seeds needed")
    return ", ".join(words)
