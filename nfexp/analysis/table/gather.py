"""All that the records below some directories say: one table of runs, and the sweep."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nfexp.analysis.contrasts import OwnContrast
from nfexp.analysis.sequential import Rounds
from nfexp.analysis.table.index import Place, read_cache, search, write_cache
from nfexp.analysis.table.reading import Reading, Vocabulary, tabulate
from nfexp.analysis.table.records import (
    PlannedRuns,
    known_versions,
    planned_runs,
    read_history,
)
from nfexp.analysis.table.rows import infer_centres, repetitions
from nfexp.analysis.table.saved import saved_rows
from nfexp.record.formats import HISTORY_FILE, RESULT, ReportError, printable
from nfexp.record.metrics import HISTORY
from nfexp.spec import is_parameter_key, usual_value

log = logging.getLogger(__name__)

# By the directory that was named, then by the folder of the sweep.
Plans = Mapping[Path, Mapping[str, PlannedRuns]]


@dataclass(frozen=True)
class Sweep:
    """What a sweep set out to do: name, centre of each target, number of jobs planned.

    `rounds` is the rule of one whose seeds come in rounds, of several the first one's; of several
    contrasts of one name the first one counts.
    """

    name: str
    centres: dict[str, dict[str, Any]]
    planned: int
    rounds: Rounds | None = None
    contrasts: tuple[OwnContrast, ...] = ()


@dataclass(frozen=True)
class Collection:
    """All that the records at or below some directories say."""

    runs: pd.DataFrame  # as of load_runs
    sweep: Sweep
    reasons: dict[str, str]  # directory to why its run did not complete
    versions: dict[str, list[str]]
    skipped: list[ReportError] = field(default_factory=list)  # what does not hold what it should


def collect(
    *dirs: str | os.PathLike[str],
    cache: str | os.PathLike[str] | None = None,
) -> Collection:
    """Read what the records at or below `dirs` say: the table of runs, the sweep, what went wrong.

    A file that does not hold what it should is skipped with one warning line. Records that the
    cache beside an earlier runs.csv holds unchanged (same inode, size and times) are taken from
    there; the table is the same without it.

    Parameters
    ----------
    cache
        The folder to read the cache from and to keep it in; None only reads those in `dirs`.

    Raises
    ------
    ReportError
        If a directory is absent or holds no readable finished run.
    """
    started = time.time_ns()
    tops = _folders(dirs)
    skipped: list[ReportError] = []
    places = {}
    for top in tops:
        places[top] = list(search(top, skipped, tops))
    caches = [*tops, Path(cache)] if cache else tops
    known = _cached(caches, places.values())
    reading = Reading(home=Path(os.path.commonpath(tops)), known=known)
    plans = {}
    for top in tops:
        plans[top] = _plans(places[top], skipped)
        reading.read_records(places[top])
        if not any(place.folder in reading.rows for place in places[top]):
            _raise_no_runs(top, [*skipped, *reading.refused.values()])
    skipped += reading.refused.values()
    for top in tops:
        for folder, plan in plans[top].items():
            reading.add_missing(folder, plan, skipped)
    skip(skipped, [])
    if cache and reading.kept.keys() != known.keys():
        write_cache(Path(cache), reading.kept, started)
    return _collection(reading, plans, skipped)


def _collection(reading: Reading, plans: Plans, skipped: list[ReportError]) -> Collection:
    """All that was read, and a warning of runs that are there twice."""
    runs = reading.table()
    repeated = repetitions(runs)
    if repeated:
        log.warning("%s", repeated)
    return Collection(
        runs=runs,
        sweep=_sweep(plans, runs),
        reasons=reading.reasons(),
        versions=known_versions(reading.records.values()),
        skipped=skipped,
    )


def _folders(dirs: Iterable[str | os.PathLike[str]]) -> list[Path]:
    named: dict[str, Path] = {}  # a folder named twice is one folder
    for name in dirs:
        named.setdefault(os.path.realpath(name), Path(os.path.abspath(name)))
    folders = list(named.values())
    if not folders:
        raise ReportError("dirs", "at least one directory", "none")
    for folder in folders:
        if not folder.is_dir():
            got = "a file" if folder.exists() else "nothing there"
            raise ReportError(folder, "a directory", got)
    return folders


def _cached(folders: Iterable[Path], places: Iterable[Iterable[Place]]) -> dict[str, str]:
    """The records of all places that a cache in one of `folders` holds, by identity."""
    wanted = set()
    for of_folder in places:
        for place in of_folder:
            if place.result:
                wanted.add(place.result)
    known: dict[str, str] = {}
    for folder in dict.fromkeys(folders):
        known |= read_cache(folder, wanted - known.keys())
    return known


def _plans(places: Iterable[Place], skipped: list[ReportError]) -> dict[str, PlannedRuns]:
    """The readable plans of `places`, by folder."""
    plans = {}
    for place in places:
        if not place.plan:
            continue
        try:
            plans[place.folder] = planned_runs(place.folder)
        except ReportError as error:
            skipped.append(error)
    return plans


def _raise_no_runs(top: Path, failures: list[ReportError]) -> None:
    """Raise the first of what went wrong, and warn of the rest."""
    skip(failures[1:], [])
    if failures:
        raise failures[0]
    raise ReportError(top, f"a finished run (a directory with {RESULT})", "none")


def skip(errors: Iterable[ReportError], skipped: list[ReportError]) -> None:
    """Warn of files that do not hold what they should, each once, and add them to `skipped`."""
    for error in errors:
        if str(error) not in map(str, skipped):
            log.warning("skipped: %s", error)
            skipped.append(error)


def _sweep(plans: Plans, runs: pd.DataFrame) -> Sweep:
    names: list[str] = []
    centres: dict[str, dict[str, Any]] = {}
    jobs = set(runs["dir"])
    rounds: Rounds | None = None
    contrasts: dict[str, OwnContrast] = {}
    for top, of_folder in plans.items():
        for folder, plan in of_folder.items():
            names.append(plan.name)
            centres = plan.centres | centres  # of two sweeps the first one counts
            rounds = rounds or plan.rounds
            for contrast in plan.contrasts:
                contrasts.setdefault(contrast.name, contrast)
            for job in plan.rows:
                jobs.add(os.path.join(folder, os.path.normpath(job)))
        if not of_folder:
            names.append(printable(top.name))
    centres = with_usual(centres, runs)
    unplanned = runs[~runs["data.name"].isin(list(centres))]
    centres = centres | infer_centres(unplanned)
    present = set(runs["data.name"])
    return Sweep(
        name=" + ".join(dict.fromkeys(names)),
        centres={target: centre for target, centre in centres.items() if target in present},
        planned=len(jobs),
        rounds=rounds,
        contrasts=tuple(contrasts.values()),
    )


def with_usual(
    centres: Mapping[str, Mapping[str, Any]],
    runs: pd.DataFrame,
) -> dict[str, dict[str, Any]]:
    """Centres with the usual value of each parameter that has a column in the table of runs."""
    complete = {}
    for target, centre in centres.items():
        usual = {}
        for column in map(str, runs):
            if is_parameter_key(column) and centre.get(column) is None:
                usual[column] = usual_value(target, column)
        complete[target] = {**centre, **usual}
    return complete


def load_runs(*dirs: str | os.PathLike[str]) -> pd.DataFrame:
    """Gather every run at or below `dirs` in one table, one row per run.

    See :func:`collect` for the rest that the records say.

    Columns: job (path inside its directory, or inside the folder that holds all of `dirs`), status,
    the configuration keys, the metrics (nats per point, data units, steps, seconds), dir (absolute
    path). A planned job without a result has the status "missing" and no metrics; divergence is a
    status too, never an exception. A run that is there twice has two rows, see :func:`distinct`.

    Raises
    ------
    ReportError
        If a directory is absent or holds no readable finished run.

    >>> load_runs("/nowhere")
    Traceback (most recent call last):
    nfexp.record.formats.ReportError: /nowhere: expected a directory; got nothing there
    """
    return collect(*dirs).runs


def load_sweep(
    dirs: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
    runs: pd.DataFrame,
) -> Sweep:
    """Read name, centres and number of planned jobs from the sweep.json files at or below `dirs`.

    Several names are joined by " + "; where two sweeps give a target different centres the first
    one counts. A target without a planned centre gets the one that :func:`infer_centres` finds in
    `runs`.

    Raises
    ------
    ReportError
        As :func:`load_runs`.
    """
    tops = _folders([dirs] if isinstance(dirs, (str, os.PathLike)) else dirs)
    skipped: list[ReportError] = []
    plans = {top: _plans(search(top, skipped, tops), skipped) for top in tops}
    skip(skipped, [])
    return _sweep(plans, runs)


def read_runs(path: str | os.PathLike[str]) -> pd.DataFrame:
    """The table of :func:`load_runs` from the runs.csv (or runs.csv.gz) of a report.

    The directories may be gone. The dir of a run is what the column dir says, relative to the
    file's folder. Without that column it is the folder beside the file that is named as the job.
    A run may be there twice, as in :func:`load_runs`: see :func:`distinct`.

    The columns are of these types: job, status, dir, data.name, data.text and the other words text
    (missing: None); seed and the counts of the configuration int64; its other numbers float64;
    train.batch_size an int or "full"; every metric float64, with NaN where it is missing, the
    counts among them too. Under a heading that this version does not know, a cell that spells a
    number is that number, and any other is text.

    Other readers of the file get the same values if they know two spellings. Text that could be
    taken for a number, a missing or truth value or a formula has a leading quote ('2024, 'NA,
    '=1+1; a quote alone is an empty text), and a job of digits stands as a path: ./0000. So
    ``pandas.read_csv`` needs no dtypes; it gives counts as float64 where one is missing.

    Raises
    ------
    ReportError
        If the file is not such a table; the message says the line.

    >>> read_runs("/no.csv")
    Traceback (most recent call last):
    nfexp.record.formats.ReportError: /no.csv: expected a readable file; got No such file or directory
    """
    words = Vocabulary()
    rows = []
    folder = os.path.dirname(os.path.abspath(path))
    for where, row in saved_rows(path):
        words.admit(where, row)
        rows.append(row | {"dir": os.path.normpath(os.path.join(folder, row["dir"]))})
    if not rows:
        raise ReportError(path, "a row for each run", "none")
    return tabulate(rows)


def load_histories(runs: pd.DataFrame, *, skipped: list[ReportError] | None = None) -> pd.DataFrame:
    """Stack the training curves of `runs`, one row per evaluation.

    Columns: job, dir, step, train_nll, val_nll (nats per point), grad_norm, lr. Runs without a
    history.csv add no rows; nor do files that are not a table of numbers under these headings,
    which are warned of and added to `skipped`.
    """
    rows: list[int] = []  # the row of the run that each evaluation belongs to
    blocks = [np.empty((0, len(HISTORY)))]
    refused = []
    for i, folder in enumerate(runs["dir"]):
        path = os.path.join(folder, HISTORY_FILE)
        if not os.path.lexists(path):
            continue
        try:
            block = read_history(path)
        except ReportError as error:
            refused.append(error)
        else:
            blocks.append(block)
            rows += [i] * len(block)
    skip(refused, [] if skipped is None else skipped)
    curves = pd.DataFrame(np.concatenate(blocks), columns=list(HISTORY))
    for position, name in enumerate(("job", "dir")):
        curves.insert(position, name, runs[name].astype(str).iloc[rows].reset_index(drop=True))
    return curves
