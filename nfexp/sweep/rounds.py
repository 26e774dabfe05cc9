"""Rounds of seeds, until every claim is decided: which cells get the next ones."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nfexp.analysis.claims.findings import EVERY_RUN
from nfexp.analysis.claims.looks import Course, SequentialFinding, courses, is_out_of_reach
from nfexp.analysis.claims.own import claims_of
from nfexp.analysis.contrasts import OwnContrast
from nfexp.analysis.sequential import MOST_LOOKS, Rounds
from nfexp.analysis.statistics import Absent, Study, studies
from nfexp.analysis.statistics.ablations import Centres
from nfexp.analysis.table import collect
from nfexp.analysis.table.cells import config_row
from nfexp.analysis.table.gather import with_usual
from nfexp.analysis.table.reading import tabulate
from nfexp.arguments import key_of
from nfexp.record import outcome
from nfexp.record.metrics import METRICS
from nfexp.record.plan import Plan
from nfexp.spec import Spec, SpecError, Words, counted, flatten, run_id
from nfexp.sweep.dry_run import spell_time
from nfexp.sweep.planning import total_cost

KEY = "until"

log = logging.getLogger(__name__)


def rounds_of_sweep(specs: Sequence[Spec], max_seeds: int, margin: float | None) -> Rounds:
    """The rounds of a sweep whose first one these runs are.

    Raises
    ------
    SpecError
        If its cells do not all have the same seeds, two or more, or if `max_seeds` does not go with
        them.
    """
    by_cell = seeds_by_cell(specs)
    kinds = sorted({tuple(sorted(seeds)) for seeds in by_cell.values()})
    if len(kinds) > 1:
        got = Words(f"seeds {_told(kinds[0])} in one and {_told(kinds[1])} in another")
        raise SpecError(KEY, "the same seeds in every cell of the first round", got)
    first = kinds[0]
    if len(first) < 2:
        got = Words(f"seed {first[0]} alone; say seed=range(5)")
        raise SpecError(KEY, "two or more seeds in the first round", got)
    if max_seeds < len(first):
        expected = f"at least the {len(first)} seeds of the first round"
        raise SpecError("max_seeds", expected, max_seeds)
    if max_seeds > MOST_LOOKS * len(first):
        expected = f"at most {MOST_LOOKS} rounds of {len(first)} seeds"
        raise SpecError("max_seeds", expected, max_seeds)
    return Rounds(first=first, max_seeds=max_seeds, margin=margin)


def cell_of(spec: Spec) -> str:
    """What the runs of one configuration share, whatever their seeds."""
    return run_id(replace(spec, seed=0))


def seeds_by_cell(specs: Sequence[Spec]) -> dict[str, set[int]]:
    """The seeds of each cell."""
    seeds: dict[str, set[int]] = {}
    for spec in specs:
        seeds.setdefault(cell_of(spec), set()).add(spec.seed)
    return seeds


@dataclass(frozen=True, kw_only=True)
class NextRound:
    """The overrides of the runs that open claims need next, and how many claims and cells."""

    overrides: list[list[str]]
    n_open: int
    n_claims: int
    n_cells: int


def next_round(
    courses: Sequence[Course],
    folders: Mapping[str, int],
    specs: Mapping[int, Spec],
    overrides: Mapping[int, Sequence[str]],
    rounds: Rounds,
) -> NextRound:
    """The runs of the next round, of every cell that an open claim uses on an open target.

    Seeds are paired: the cells of a contrast get the same ones. A cell that other claims have
    brought further already gets none.

    Parameters
    ----------
    courses
        How each claim went, of the study as it stands.
    folders
        The number of each job by its folder, as the column `dir` of the table of runs has it.
    specs, overrides
        Of the jobs so far, by number.
    """
    looks = _looks_wanted(courses, folders, specs, rounds)
    jobs_of: dict[str, list[int]] = {}
    for number, spec in specs.items():
        jobs_of.setdefault(cell_of(spec), []).append(number)
    added = []
    n_cells = 0
    for cell, numbers in jobs_of.items():
        if cell not in looks:
            continue
        present = {specs[number].seed for number in numbers}
        lacking = [seed for seed in rounds.seeds(looks[cell]) if seed not in present]
        for seed in lacking:
            added.append(with_seed(overrides[numbers[-1]], seed))
        n_cells += bool(lacking)
    counted = [course for course in courses if course.counts and course.voting()]
    n_open = sum(bool(course.open()) for course in counted)
    return NextRound(overrides=added, n_open=n_open, n_claims=len(counted), n_cells=n_cells)


def judged_round(
    folder: Path,
    run_folders: Mapping[int, str],
    specs: Mapping[int, Spec],
    overrides: Mapping[int, Sequence[str]],
    rounds: Rounds,
    *,
    fail_fast: bool,
) -> NextRound | None:
    """Judge a sweep after a round and say what comes next; None if the round is not finished.

    `run_folders` holds the folder of each job, from that of the sweep, by number, as `specs` and
    `overrides` do.
    """
    for run_folder in run_folders.values():
        end = outcome(folder / run_folder)
        if end is None or (fail_fast and end.status == "failed"):
            return None
    collected = collect(folder)
    folders = {}
    for number, run_folder in run_folders.items():
        folders[os.path.abspath(folder / run_folder)] = number
    sweep = collected.sweep
    judged = courses(studies(collected.runs, sweep.centres), rounds, sweep.contrasts)
    following = next_round(judged, folders, specs, overrides, rounds)
    seeds = len({spec.seed for spec in specs.values()})
    n_decided = following.n_claims - following.n_open
    decided = f"{n_decided} of {following.n_claims} claims are decided at {seeds} seeds"
    if following.overrides:
        what = f"{counted(len(following.overrides), 'run')} more of {counted(following.n_cells, 'cell')}"
        log.info(f"{decided}; the next round: {what}")
    elif following.n_open:
        log.info(f"{decided}; no further seeds for the others")
    else:
        log.info(decided)
    return following


def is_in_time(
    new: Sequence[Spec],
    trained: Sequence[Spec],
    elapsed: float,
    budget: float | None,
) -> bool:
    """Whether runs would end within a budget of minutes, if `trained` took `elapsed` seconds."""
    if budget is None:
        return True
    expected = elapsed
    if trained:
        expected += elapsed * total_cost(new) / total_cost(trained)
    if expected <= 60 * budget:
        return True
    log.info(f"time_budget={budget:g}: the next round would end after {spell_time(expected)}")
    return False


def _looks_wanted(
    courses: Sequence[Course], folders: Mapping[str, int], specs: Mapping[int, Spec], rounds: Rounds
) -> dict[str, int]:
    """The look that each cell is wanted for, of the cells that open claims use."""
    looks: dict[str, int] = {}
    for course in courses:
        if not course.counts:
            continue
        for i in course.open():
            finding = course.findings[i]
            look = finding.look + 1
            if look > len(rounds.counts) or is_out_of_reach(finding, rounds):
                continue
            for cell in _cells_used(finding, folders, specs):
                looks[cell] = max(look, looks.get(cell, 0))
    return looks


def _cells_used(
    finding: SequentialFinding, folders: Mapping[str, int], specs: Mapping[int, Spec]
) -> set[str]:
    """The cells of this sweep whose runs a finding compares."""
    cells = set()
    for cells_of_target in finding.cells.values():
        for runs in cells_of_target.values():
            for folder in runs["dir"]:
                if folder in folders:
                    cells.add(cell_of(specs[folders[folder]]))
    return cells


def with_seed(overrides: Sequence[str], seed: int) -> list[str]:
    """The overrides of a job with another seed.

    >>> with_seed(["data=moons", "seed=0"], 5)
    ['data=moons', 'seed=5']
    """
    others = [override for override in overrides if key_of(override) != "seed"]
    return [*others, f"seed={seed}"]


def most(specs: Sequence[Spec], rounds: Rounds, rate: float) -> str:
    """What a sweep with this first round may come to at most: every seed in every cell.

    `rate` is how many seconds of estimated work (:func:`total_cost`) are done in one.
    """
    n_cells = len(seeds_by_cell(specs))
    seconds = total_cost(specs) / rate * rounds.max_seeds / len(rounds.first)
    n_runs = n_cells * rounds.max_seeds
    first = f"a first round of {len(rounds.first)} seeds in {counted(n_cells, 'cell')}"
    largest = f"at most {counted(len(rounds.counts), 'round')}, {n_runs} runs, about {spell_time(seconds)}"
    return f"{first}, then more until every claim is decided: {largest}"


def check_claims(
    specs: Sequence[Spec],
    centres: Centres,
    rounds: Rounds,
    contrasts: Sequence[OwnContrast] = (),
) -> None:
    """Raise unless there is something to decide: a claim that compares cells of this sweep."""
    for course in courses(planned_studies(specs, centres), rounds, contrasts):
        for finding in course.findings:
            n_cells = max((len(runs) for runs in finding.cells.values()), default=0)
            if course.counts and finding.applies and n_cells > 1 and finding.rows != EVERY_RUN:
                return
    if rounds.margin is None:
        expected = "cells that a claim compares, or margin=… to compare each with the centre"
        raise SpecError(KEY, expected, Words("a sweep without"))
    raise SpecError(KEY, "the centre of the study and other cells", Words("a sweep without"))


def planned_studies(specs: Sequence[Spec], centres: Centres) -> dict[str, Study]:
    """The studies of a sweep before any run is trained: every run of it is missing."""
    rows = []
    for spec in specs:
        config = config_row("the plan", flatten(spec))
        rows.append({"job": "", "status": "missing", **config, **dict.fromkeys(METRICS), "dir": ""})
    planned = tabulate(rows)
    return studies(planned, with_usual(centres, planned))


def check_contrasts(
    specs: Sequence[Spec],
    centres: Centres,
    contrasts: Sequence[OwnContrast],
) -> None:
    """Raise for a contrast whose cells the sweep does not have, on any target."""
    if not contrasts:
        return
    by_target = planned_studies(specs, centres)
    for claim in claims_of(contrasts):
        lacking = []
        for target, study in by_target.items():
            try:
                claim.contrasts({target: study})
            except Absent as reason:
                lacking.append(str(reason))
        if len(lacking) == len(by_target):
            got = lacking[0]
            if not any(frozenset() in study.cells for study in by_target.values()):
                hint = "what all runs share belongs below defaults or on the command line, not below hydra.sweeper"
                got += f", and no run at the centre of the study ({hint})"
            expected = "two cells that the sweep has on one target at least"
            raise SpecError(f"contrasts.{claim.id}", expected, Words(got))


def check_same_rule(
    folder: Path,
    old: Plan | None,
    rounds: Rounds | None,
    contrasts: Sequence[OwnContrast] = (),
) -> None:
    """Raise if a sweep's folder was begun with another rule: the levels hold for one alone."""
    if old is None:
        return
    written = rounds.written() if rounds else {}
    if written != old.rounds:
        expected = f"the rule that it was begun with, {_rule(old.rounds)}"
        raise SpecError(str(folder), expected, Words(_rule(written)))
    asked = {contrast.name: contrast.written() for contrast in contrasts}
    if rounds is not None and asked != old.contrasts:
        expected = "the contrasts that it was begun with, for its rounds are about those"
        raise SpecError(str(folder), expected, Words("others"))


def _rule(written: Mapping[str, Any]) -> str:
    """A rule as the command line spells it."""
    if not written:
        return "until=null"
    words = f"until=decided max_seeds={written['max_seeds']}"
    if written["margin"] is not None:
        words += f" margin={written['margin']}"
    return f"{words} after seeds {_told(written['first'])}"


def _told(seeds: Sequence[int]) -> str:
    shown = ", ".join(str(seed) for seed in seeds[:4])
    return shown + ", …" * (len(seeds) > 4)
