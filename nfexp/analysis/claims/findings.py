"""What one claim comes to on one target: contrasts, their p-values, and the runs that were lost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from nfexp.analysis.claims.catalogue import Claim
from nfexp.analysis.claims.measures import Contrast
from nfexp.analysis.statistics import Absent, Study, cell_name

ALPHA = 0.025  # on each side: what a 95% interval leaves


class PValues(NamedTuple):
    """The p-values of "the claim is false" and of "the claim is true"."""

    p_for: float
    p_against: float


EVERY_RUN = "every completed run"  # the rows of a claim that is about no cell in particular
UNKNOWN = PValues(1.0, 1.0)  # without data nothing is proved


def verdict(p_for: float, p_against: float) -> str:
    """The verdict of two p-values; a missing one (NaN) proves nothing.

    >>> verdict(0.01, 0.99), verdict(0.2, 0.8), verdict(1.0, 0.0), verdict(math.nan, math.nan)
    ('supported', 'inconclusive', 'contradicted', 'inconclusive')
    """
    if p_for <= ALPHA:
        return "supported"
    if p_against <= ALPHA:
        return "contradicted"
    return "inconclusive"


def p_values(contrast: Contrast, kind: str, margin: float, *, signs: bool = False) -> PValues:
    """The p-values of "the claim is false" and of "it is true" of one effect; 1 without data.

    >>> c = Contrast("", [-0.01, 0.0, 0.01])
    >>> [verdict(*p_values(c, kind, 0.05)) for kind in ("above", "below", "within")]
    ['contradicted', 'supported', 'supported']
    """
    at_most, at_least = _known_tails(contrast, margin, signs)
    if kind == "above":
        return PValues(at_most, at_least)
    if kind == "below":
        return PValues(at_least, at_most)
    # Two one-sided tests (TOST, Schuirmann 1987): it is within if both "at most −m" and "at least
    # m" are refuted, and not within if "at most m" or "at least −m" is.
    at_most_lower, at_least_lower = _known_tails(contrast, -margin, signs)
    return PValues(max(at_most_lower, at_least), min(at_most, at_least_lower))


def _known_tails(contrast: Contrast, margin: float, signs: bool) -> list[float]:
    """The p-values of `Contrast.tails`, 1 where one is missing."""
    return [1.0 if math.isnan(p) else p for p in contrast.tails(margin, signs=signs)]


@dataclass(frozen=True)
class Finding:
    """What one claim comes to on one target.

    The numbers of a finding that is `lost` are shown, but decide nothing.
    """

    claim: Claim
    target: str
    contrasts: Sequence[Contrast] = ()
    lost: bool = False  # a cell that it needs lost more than half of its seeds
    applies: bool = True  # the study has the runs that it needs
    rows: str = ""
    note: str = ""

    def margin(self, contrast: Contrast) -> float:
        """The margin that a contrast is tested with."""
        return self.claim.margin if contrast.margin is None else contrast.margin

    def each(self, *, signs: bool = False) -> list[PValues]:
        """p_for and p_against of each contrast."""
        of_contrasts = []
        for contrast in self.contrasts:
            of_contrasts.append(
                p_values(contrast, self.claim.kind, self.margin(contrast), signs=signs)
            )
        return of_contrasts

    def p(self, *, signs: bool = False) -> PValues:
        """p_for and p_against of all contrasts together, before any correction over targets."""
        if self.lost or not self.contrasts:
            return UNKNOWN
        of_contrasts = self.each(signs=signs)
        # The claim holds if all contrasts do: an intersection-union test (Berger 1982), which needs
        # no correction. One contrast that fails contradicts it: Bonferroni's correction.
        p_for = max(p.p_for for p in of_contrasts)
        p_against = min(1.0, len(of_contrasts) * min(p.p_against for p in of_contrasts))
        return PValues(p_for, p_against)

    def decisive(self) -> Contrast | None:
        """The contrast that contradicts, or else the least favourable one."""
        if not self.contrasts:
            return None
        of_contrasts = self.each()
        positions = range(len(of_contrasts))
        if verdict(*self.p()) == "contradicted":
            chosen = min(
                positions, key=lambda i: (of_contrasts[i].p_against, -of_contrasts[i].p_for)
            )
        else:
            chosen = min(
                positions, key=lambda i: (-of_contrasts[i].p_for, of_contrasts[i].p_against)
            )
        return self.contrasts[chosen]


def find(claim: Claim, group: Mapping[str, Study]) -> Finding:
    """Measure one claim on a group of studies by target: of one target, or (`across`) of all."""
    for study in group.values():
        study.used = {}
        study.notes = []
    contrasts: Sequence[Contrast] = ()
    absent = ""
    try:
        contrasts = claim.contrasts(group)
    except Absent as reason:
        absent = str(reason)
    said: list[str] = []
    losses: list[str] = []
    lost: list[str] = []
    for study in group.values():
        said += _labelled(claim, study, study.notes)
        losses += _labelled(claim, study, [_losses(study)])
        if not claim.about_divergence:
            lost += _labelled(claim, study, [_half_lost(study)])
    notes = [absent] if absent else []
    notes += said + losses + lost
    if not absent and not lost:
        notes += _too_few(contrasts)
    return Finding(
        claim=claim,
        target="all" if claim.across else next(iter(group)),
        contrasts=contrasts,
        lost=bool(lost),
        applies=not absent or bool(lost),
        rows=_cells(group) or ("" if absent else EVERY_RUN),
        note="; ".join(notes),
    )


def _labelled(claim: Claim, study: Study, texts: Sequence[str]) -> list[str]:
    """The texts that say something, each with its target if the claim is `across` targets."""
    label = f"{study.target}: " if claim.across else ""
    return [label + text for text in texts if text]


def _losses(study: Study) -> str:
    """The runs of the cells used that did not complete, by status."""
    if not study.used:
        return ""
    status = pd.concat([runs["status"] for runs in study.used.values()])
    counts = []
    for name in ("diverged", "failed", "missing"):
        count = int((status == name).sum())
        if count:
            counts.append(f"{count} {name}")
    return f"{', '.join(counts)} of {len(status)} runs used" if counts else ""


def _half_lost(study: Study) -> str:
    """The first cell used that lost more than half of its runs, in words; "" if none did."""
    for key, runs in study.used.items():
        if (runs["status"] != "completed").mean() > 0.5:
            return f"{cell_name(key)} lost more than half of its seeds"
    return ""


def _too_few(contrasts: Sequence[Contrast]) -> list[str]:
    """The reason why a contrast cannot be tested, of the first such one; none if all can be."""
    for contrast in contrasts:
        if math.isnan(contrast.tails(0.0).at_most):
            why = "fewer than two pairs of completed runs"
            if contrast.share:
                why = "no run that ended"
            return [f"{why}: {contrast.label}" if contrast.label else why]
    return []


def _cells(group: Mapping[str, Study]) -> str:
    """The cells that were used, each once."""
    names: dict[str, None] = {}
    for study in group.values():
        names |= dict.fromkeys(cell_name(key) for key in study.used)
    return " | ".join(names)
