"""Rounds of seeds: which cells get the next ones, until every claim is decided (``until=decided``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nfexp.analysis.claims.looks import Course, is_out_of_reach
from nfexp.analysis.sequential import MOST_LOOKS, Rounds
from nfexp.arguments import key_of
from nfexp.spec import Spec, SpecError, Words, run_id

KEY = "until"


def rounds_of_sweep(specs: Sequence[Spec], max_seeds: int, margin: float | None) -> Rounds:
    """The rounds of a sweep whose first one these runs are.

    Raises
    ------
    SpecError
        If its cells do not all have the same seeds, two or more, or if `max_seeds` does not go with them.
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
        raise SpecError("max_seeds", f"at least the {len(first)} seeds of the first round", max_seeds)
    if max_seeds > MOST_LOOKS * len(first):
        raise SpecError("max_seeds", f"at most {MOST_LOOKS} rounds of {len(first)} seeds", max_seeds)
    return Rounds(first=first, max_seeds=max_seeds, margin=margin)


def cell_of(spec: Spec) -> str:
    """What the runs of one configuration share, whatever their seeds."""
    return run_id(replace(spec, seed=0))


def seeds_by_cell(specs: Sequence[Spec]) -> dict[str, set[int]]:
    """The seeds of each cell."""
    found: dict[str, set[int]] = {}
    for spec in specs:
        found.setdefault(cell_of(spec), set()).add(spec.seed)
    return found


@dataclass(frozen=True, kw_only=True)
class NextRound:
    """The overrides of the runs that open claims need next, and how many claims and cells that is."""

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

    Seeds are paired: the cells of a contrast get the same ones. A cell that other claims have brought further already
    gets none.

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


def _looks_wanted(
    courses: Sequence[Course], folders: Mapping[str, int], specs: Mapping[int, Spec], rounds: Rounds
) -> dict[str, int]:
    """The look that each cell is wanted for, of the cells that open claims use."""
    looks: dict[str, int] = {}
    for course in courses:
        if not course.counts:
            continue
        for finding in [course.findings[i] for i in course.open()]:
            look = finding.look + 1
            if look > len(rounds.counts) or is_out_of_reach(finding, rounds):
                continue
            for own in finding.cells.values():
                for runs in own.values():
                    for folder in runs["dir"]:
                        if folder in folders:
                            cell = cell_of(specs[folders[folder]])
                            looks[cell] = max(look, looks.get(cell, 0))
    return looks


def with_seed(overrides: Sequence[str], seed: int) -> list[str]:
    """The overrides of a job with another seed.

    >>> with_seed(["data=moons", "seed=0"], 5)
    ['data=moons', 'seed=5']
    """
    return [*(one for one in overrides if key_of(one) != "seed"), f"seed={seed}"]


def most_runs(specs: Sequence[Spec], rounds: Rounds) -> int:
    """How many runs a sweep may come to: every seed in every cell."""
    return rounds.max_seeds * len(seeds_by_cell(specs))


def _told(seeds: Sequence[int]) -> str:
    shown = ", ".join(str(seed) for seed in seeds[:4])
    return shown + ", …" * (len(seeds) > 4)
