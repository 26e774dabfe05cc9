"""The claims of a study whose seeds come in rounds: each gets the verdict of its first look.

After each round one looks, so every p-value is a sequential one (:mod:`nfexp.analysis.sequential`),
and what holds of verdicts elsewhere holds here: Holm over targets, 2.5% on each side. A claim goes
on to the next look with the targets that are open, once every run of that round that they need has
ended; a target, and a claim, that is decided stays so, whatever else its cells are trained for. All
of it follows from the table of runs and the rule of the rounds: reports, and sweeps that go on,
come to the same verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from nfexp.analysis.claims import Claim, Finding, PValues, find, judge, verdicts, voters
from nfexp.analysis.claims.findings import ALPHA
from nfexp.analysis.claims.forecast import seeds_to_tell
from nfexp.analysis.claims.images import claims_of_sources
from nfexp.analysis.claims.measures import Contrast
from nfexp.analysis.claims.own import claims_of, gap_of
from nfexp.analysis.contrasts import OwnContrast
from nfexp.analysis.sequential import Rounds, level_at, sequential_p
from nfexp.analysis.statistics import Study, Tails, named, studies
from nfexp.analysis.statistics.ablations import Centres
from nfexp.analysis.statistics.studies import Key

OPEN = "inconclusive"
DECIDED = "decided"
EXHAUSTED = "max_seeds"
UNMEASURED = "not measured"
WAITING = "no further round"
OUT_OF_REACH = "out of reach"

Cells = Mapping[Key, pd.DataFrame]


@dataclass(frozen=True)
class SequentialContrast(Contrast):
    """A contrast at one of several looks: its p-values allow for all of them."""

    look: int = 1
    counts: tuple[int, ...] = (1,)  # seeds at each look

    def tails(self, margin: float, *, signs: bool = False) -> Tails:
        plain = super().tails(margin, signs=signs)
        at_most = sequential_p(plain.at_most, self.look, self.counts)
        at_least = sequential_p(plain.at_least, self.look, self.counts)
        return Tails(at_most, at_least)


@dataclass(frozen=True)
class SequentialFinding(Finding):
    """What one claim comes to on one target at one look; its p-values never rise again."""

    look: int = 1
    earlier: Finding | None = None
    cells: Mapping[str, Cells] = field(default_factory=dict)  # what it rests on, by target

    def p(self, *, signs: bool = False) -> PValues:
        now = super().p(signs=signs)
        if self.earlier is None:
            return now
        before = self.earlier.p(signs=signs)
        return PValues(min(now.p_for, before.p_for), min(now.p_against, before.p_against))


@dataclass(frozen=True)
class Course:
    """How one claim went over the looks, to the last one that it had."""

    claim: Claim
    findings: Sequence[SequentialFinding]
    verdicts: Sequence[str]  # of each finding, then, unless the claim is across targets, of all
    counts: bool = True  # whether the rounds go on until it is decided

    @property
    def is_decided(self) -> bool:
        return self.verdicts[-1] != OPEN

    def voting(self) -> list[int]:
        """The positions of the findings that the verdict over all targets is of."""
        targets = {finding.target for finding in self.findings}
        if not self.claim.across:
            targets = {finding.target for finding in voters(self.findings)}
        positions = []
        for i, finding in enumerate(self.findings):
            if finding.applies and finding.target in targets:
                positions.append(i)
        return positions

    def open(self) -> list[int]:
        """The positions of the findings that more seeds could decide; none of a decided claim."""
        if self.is_decided:
            return []
        return [i for i in self.voting() if self.verdicts[i] == OPEN]


class Looks:
    """The studies of a table of runs as they were at each look."""

    def __init__(self, by_target: Mapping[str, Study], rounds: Rounds) -> None:
        self.by_target = by_target
        self.rounds = rounds
        self._known: dict[tuple[str, int], Study] = {}

    def study(self, target: str, look: int) -> Study:
        """A study with the seeds of the rounds up to a look."""
        if (target, look) not in self._known:
            seeds = self.rounds.seeds(look)
            whole = self.by_target[target]
            cells = {}
            for key, runs in whole.cells.items():
                counted = runs[runs["seed"].isin(seeds)]
                if len(counted):
                    cells[key] = counted
            self._known[target, look] = replace(whole, cells=cells, used={}, notes=[])
        return self._known[target, look]

    def find(
        self, claim: Claim, targets: Sequence[str], look: int, earlier: Finding | None = None
    ) -> SequentialFinding | None:
        """Measure a claim at a look; None where there is none yet.

        At the first look what there is of an unfinished round is shown, but decides nothing.
        """
        if look > len(self.rounds.counts):
            return None
        group = {target: self.study(target, look) for target in targets}
        finding = find(claim, group)
        cells = {}
        is_whole = True
        for target, study in group.items():
            cells[target] = dict(study.used or study.cells)
            for runs in cells[target].values():
                is_whole = is_whole and self._is_whole(runs, look)
        if not is_whole and look > 1:
            return None
        contrasts = []
        for contrast in finding.contrasts:
            as_dict = vars(contrast)
            contrasts.append(SequentialContrast(**as_dict, look=look, counts=self.rounds.counts))
        waits = finding.applies and not is_whole
        notes = [finding.note, "the first round is not finished"] if waits else [finding.note]
        return SequentialFinding(
            claim=claim,
            target=finding.target,
            contrasts=contrasts,
            lost=finding.lost or waits,
            applies=finding.applies,
            rows=finding.rows,
            note="; ".join(note for note in notes if note),
            look=look,
            earlier=earlier,
            cells=cells,
        )

    def _is_whole(self, runs: pd.DataFrame, look: int) -> bool:
        """Whether a cell has a run that has ended for every seed of the rounds up to a look."""
        ended = runs.loc[runs["status"] != "missing", "seed"]
        return set(self.rounds.seeds(look)) <= set(ended.tolist())

    def first(self, claim: Claim, targets: Sequence[str]) -> SequentialFinding:
        """The first look at which there is something to measure, or the last look that there is."""
        finding = self.find(claim, targets, 1)
        assert finding is not None
        while not finding.applies:
            later = self.find(claim, targets, finding.look + 1, finding)
            if later is None:
                break
            finding = later
        return finding

    def course(self, claim: Claim, *, counts: bool = True) -> Course:
        """Look at a claim until it is decided or a round that it needs is not there."""
        groups = [[*self.by_target]] if claim.across else [[target] for target in self.by_target]
        findings = [self.first(claim, targets) for targets in groups]
        while True:
            course = Course(claim, findings, verdicts(claim, findings), counts)
            later: dict[int, SequentialFinding] = {}
            for i in course.open():
                finding = findings[i]
                new = self.find(claim, groups[i], finding.look + 1, finding)
                if new is not None:
                    later[i] = new
                elif not is_out_of_reach(finding, self.rounds):
                    return course
            if not later:
                return course
            findings = [later.get(i, finding) for i, finding in enumerate(findings)]


def is_out_of_reach(finding: SequentialFinding, rounds: Rounds) -> bool:
    """Whether shares that are 0 or 1 so far would need more than `max_seeds`.

    That no seed ever diverges takes hundreds of calm ones: they are not trained for it.
    """
    for contrast in finding.contrasts:
        if not contrast.share or len(set(contrast.values.tolist())) != 1:
            return False  # a mean, or a share that is neither 0 nor 1 so far
    if not finding.contrasts:
        return False
    return min(_seeds_needed(finding, rounds, 1)) > rounds.max_seeds


def courses(
    by_target: Mapping[str, Study],
    rounds: Rounds,
    contrasts: Iterable[OwnContrast] = (),
) -> list[Course]:
    """How every claim of the sources went, about vectors or about images, and every one of the study's own.

    These are its contrasts and, with a margin, one for each cell. The rounds go on for them alone
    where there are any.
    """
    looks = Looks(by_target, rounds)
    of_study = claims_of(contrasts)
    is_of_sources = rounds.margin is None and not of_study
    all_courses = []
    centres = {target: study.centre for target, study in by_target.items()}
    for claims, targets in claims_of_sources(centres):
        group = Looks({target: by_target[target] for target in targets}, rounds)
        all_courses += [group.course(claim, counts=is_of_sources) for claim in claims]
    all_courses += [looks.course(claim) for claim in of_study]
    if rounds.margin is not None:
        all_courses += [looks.course(claim) for claim in own_claims(by_target, rounds.margin)]
    return all_courses


def own_claims(by_target: Mapping[str, Study], margin: float) -> list[Claim]:
    """One claim for each cell beside the centre: that it is within the margin of it, either way."""
    keys: dict[frozenset[tuple[str, Any]], None] = {}  # each once, in the order they come
    for study in by_target.values():
        keys |= dict.fromkeys(study.cells)
    keys.pop(frozenset(), None)  # the centre
    claims = []
    for number, key in enumerate(keys, start=1):
        changes = dict(sorted(key))
        name = named(changes)
        claim = Claim(
            id=f"S{number}",
            source="this study",
            sentence=f"{name} is as good as the centre.",
            estimand=f"KL({name}) − KL(centre), nats (NLL where no density is known, bits/dim of images)",
            measure=gap_of(changes, {}),
            kind="within",
            margin=margin,
            why="as the command says",
            everywhere=True,
        )
        claims.append(claim)
    return claims


def evaluate_in_rounds(
    runs: pd.DataFrame,
    centres: Centres,
    rounds: Rounds,
    contrasts: Iterable[OwnContrast] = (),
) -> pd.DataFrame:
    """The table of :func:`nfexp.analysis.claims.evaluate` for seeds that came in rounds.

    It has three more columns.

    rounds: looks at the claim, or at it on the target. stopped: "decided"; "max_seeds"; "out of
    reach" of a share of none or all that would take more; "no further round" where one was possible
    and has not been trained; "not measured" where the study lacks what the claim is about.
    seeds_needed: how many would decide an open one, if estimates and spreads stayed. Runs with
    other seeds than those of the rounds do not count. `p_for` and `p_against` allow for all looks
    that there may be.
    """
    rows: list[Mapping[str, Any]] = []
    for course in courses(studies(runs, centres), rounds, contrasts):
        rows += _rows(course, rounds)
    return pd.DataFrame(rows).astype({"seeds_needed": "Int64"})


def _rows(course: Course, rounds: Rounds) -> Iterator[Mapping[str, Any]]:
    """The rows of `judge` with what the rounds add."""
    rows = judge(course.claim, course.findings)
    n_open = max(1, len(course.open()))
    needed = [_seeds_needed(finding, rounds, n_open) for finding in course.findings]
    for i, finding in enumerate(course.findings):
        stopped = _why(finding, course.verdicts[i], rounds)
        seeds = math.inf if stopped in (UNMEASURED, DECIDED) else min(needed[i])
        if stopped == WAITING and course.is_decided:
            stopped = "the claim is decided"
        yield {**rows[i], "rounds": finding.look, "stopped": stopped, "seeds_needed": _known(seeds)}
    if len(rows) == len(course.findings):
        return
    stopped = UNMEASURED
    seeds = math.inf
    if course.is_decided:
        stopped = DECIDED
    elif course.open():
        whys = [_why(course.findings[i], OPEN, rounds) for i in course.open()]
        stopped = next(why for why in (WAITING, EXHAUSTED, OUT_OF_REACH) if why in whys)
        seeds = _seeds_overall(course, needed)
    last = max((course.findings[i].look for i in course.voting()), default=1)
    yield {**rows[-1], "rounds": last, "stopped": stopped, "seeds_needed": _known(seeds)}


def _why(finding: SequentialFinding, verdict: str, rounds: Rounds) -> str:
    """Why the looks at a claim on one target ended."""
    if not finding.applies:
        return UNMEASURED
    if verdict != OPEN:
        return DECIDED
    if finding.look == len(rounds.counts):
        return EXHAUSTED
    return OUT_OF_REACH if is_out_of_reach(finding, rounds) else WAITING


def _seeds_needed(finding: SequentialFinding, rounds: Rounds, n_open: int) -> tuple[float, float]:
    """Seeds that would tell that a claim holds on a target, and that it fails.

    Holm asks more of each of the `n_open` targets that are open.
    """
    if not finding.contrasts or not finding.applies:
        return math.inf, math.inf
    last = len(rounds.counts)
    level = level_at(ALPHA / n_open, last, rounds.counts)
    level_of_any = level_at(ALPHA / n_open / len(finding.contrasts), last, rounds.counts)
    n_seeds = rounds.counts[finding.look - 1]
    holds = 0.0
    fails = math.inf
    for contrast in finding.contrasts:
        each = n_seeds / max(1, len(contrast.values))  # seeds a value, which may be below 1
        margin = finding.margin(contrast)
        to_hold, _ = seeds_to_tell(contrast, finding.claim.kind, margin, level)
        _, to_fail = seeds_to_tell(contrast, finding.claim.kind, margin, level_of_any)
        holds = max(holds, to_hold * each)
        fails = min(fails, to_fail * each)
    return max(holds, n_seeds + 1), max(fails, n_seeds + 1)


def _seeds_overall(course: Course, needed: Sequence[tuple[float, float]]) -> float:
    """Seeds that would decide a claim over its targets: of the target that the quantifier needs."""
    hold = []
    fail = []
    voting = course.voting()
    for i in voting:
        verdict = course.verdicts[i]
        holds, fails = needed[i]
        hold.append({"supported": 0.0, OPEN: holds}.get(verdict, math.inf))
        fail.append({"contradicted": 0.0, OPEN: fails}.get(verdict, math.inf))
    k = len(voting)
    n_to_hold = {"every": k, "some": 1, "most": k // 2 + 1}[course.claim.quantifier]
    return min(sorted(hold)[n_to_hold - 1], sorted(fail)[k - n_to_hold])


def _known(seeds: float) -> float:
    """A whole number of seeds, or NaN where none is enough."""
    return math.ceil(seeds) if math.isfinite(seeds) else math.nan
