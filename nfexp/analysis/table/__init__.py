"""From run directories to one tidy DataFrame: every file is checked here, once, and none is executed.

A file that does not hold what it should is skipped with one warning line; the rest stands.
"""

from __future__ import annotations

import csv
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nfexp.analysis.table.index import CACHE, Place, identity, read_cache, search, write_cache
from nfexp.analysis.table.records import (
    CONFIG,
    COUNTS,
    HISTORY,
    METRICS,
    STATUSES,
    Plan,
    ReportError,
    cannot_write,
    check_record,
    is_config,
    known_versions,
    load_arrays,
    printable,
    read_bounded,
    read_history,
    read_plan,
)
from nfexp.analysis.table.saved import inert, inert_path, inert_value, saved_rows
from nfexp.files import replacing

__all__ = [
    "CACHE", "CONFIG", "COUNTS", "HISTORY", "METRICS", "STATUSES", "Collection", "ReportError", "Sweep", "cannot_write",
    "collect",
    "config_columns", "distinct", "infer_centres", "load_arrays", "load_histories", "load_runs", "load_sweep",
    "printable", "read_runs", "repetitions", "skip", "write_csv", "write_runs",
]  # fmt: skip
_RANK = {status: i for i, status in enumerate(STATUSES)}  # a missing run comes after them
MANY = 64  # targets, and configuration keys unknown here, of one table: each is a panel or a column

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sweep:
    """What a sweep set out to do: its name, the centre of each target and the number of jobs planned."""

    name: str
    centres: dict[str, dict[str, Any]]
    planned: int


@dataclass(frozen=True)
class Collection:
    """All that the records at or below some directories say."""

    runs: pd.DataFrame  # as of load_runs
    sweep: Sweep
    reasons: dict[str, str]  # directory to why its run did not complete
    versions: dict[str, list[str]]
    skipped: list[ReportError] = field(default_factory=list)  # files that do not hold what they should


def _folders(dirs: Iterable[str | os.PathLike[str]]) -> list[Path]:
    named: dict[str, Path] = {}  # a folder named twice is one folder
    for d in dirs:
        named.setdefault(os.path.realpath(d), Path(os.path.abspath(d)))
    folders = [*named.values()]
    if not folders:
        raise ReportError("dirs", "at least one directory", "none")
    for folder in folders:
        if not folder.is_dir():
            raise ReportError(folder, "a directory", "a file" if folder.exists() else "nothing there")
    return folders


def skip(errors: Iterable[ReportError], skipped: list[ReportError]) -> None:
    """Warn of files that do not hold what they should, each once, and add them to `skipped`."""
    for error in errors:
        if str(error) not in map(str, skipped):
            log.warning("skipped: %s", error)
            skipped.append(error)


def _plans(places: Iterable[Place], skipped: list[ReportError]) -> dict[str, Plan]:
    """The readable plans of `places`, by folder."""
    found = {}
    for place in places:
        if place.plan:
            try:
                found[place.folder] = read_plan(place.folder)
            except ReportError as error:
                skipped.append(error)
    return found


class _Vocabulary:
    """Refuses what brings too many targets or unknown configuration keys into one table."""

    def __init__(self) -> None:
        self.seen: dict[str, set[str]] = {"targets": set(), "unknown configuration keys": set()}

    def admit(self, where: object, row: Mapping[str, Any]) -> None:
        extra = row.keys() - {*CONFIG, *METRICS, "status", "job"}
        for kind, new in (("targets", {row["data.name"]}), ("unknown configuration keys", extra)):
            if len(self.seen[kind] | new) > MANY:
                raise ReportError(where, f"at most {MANY} {kind} in one table", f"{min(new - self.seen[kind])!r} more")
        for kind, new in (("targets", {row["data.name"]}), ("unknown configuration keys", extra)):
            self.seen[kind] |= new


def collect(*dirs: str | os.PathLike[str], cache: str | os.PathLike[str] | None = None) -> Collection:
    """Read what the records at or below `dirs` say: the table of runs, the sweep, what went wrong.

    A file that does not hold what it should is skipped with one warning line. Records that the cache beside an earlier
    runs.csv holds unchanged (same inode, size and times) are taken from there; the table is the same without it.

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
    home = Path(os.path.commonpath(tops))
    skipped: list[ReportError] = []
    places = {top: list(search(top, skipped, tops)) for top in tops}
    wanted = {p.result for own in places.values() for p in own if p.result}
    known: dict[str, str] = {}
    for top in dict.fromkeys([*tops, *([Path(cache)] if cache else [])]):
        known |= read_cache(top, wanted - known.keys())
    plans: dict[Path, dict[str, Plan]] = {}
    rows: dict[str, dict[str, Any]] = {}
    records: dict[str, dict[str, Any]] = {}  # by directory
    kept: dict[str, dict[str, Any]] = {}  # by identity
    refused: dict[str, ReportError] = {}  # by directory
    words = _Vocabulary()
    for top in tops:
        plans[top] = _plans(places[top], skipped)
        for place in places[top]:
            if place.result and place.folder not in rows and place.folder not in refused:
                try:
                    key, record, row = _record(place, known)
                    words.admit(os.path.join(place.folder, "result.json"), row)
                except ReportError as error:
                    refused[place.folder] = error
                else:
                    rows[place.folder] = {"job": _job(place.folder, home)} | row
                    records[place.folder] = kept[key] = record
        if not any(place.folder in rows for place in places[top]):
            failures = [*skipped, *refused.values()]
            skip(failures[1:], [])
            raise failures[0] if failures else ReportError(top, "a finished run (a directory with result.json)", "none")
    skipped += refused.values()
    for top in tops:
        for folder, (_, _, plan) in plans[top].items():
            for job, row in plan.items():
                path = os.path.join(folder, os.path.normpath(job))
                if path not in rows:
                    try:
                        words.admit(os.path.join(folder, "sweep.json"), row)
                    except ReportError as error:
                        skipped.append(error)
                        break
                    rows[path] = {"job": _job(path, home), "status": "missing"} | row
    skip(skipped, [])
    if cache and kept.keys() != known.keys():
        write_cache(Path(cache), kept, started)
    table = _tabulate(row | {"dir": folder} for folder, row in rows.items())
    table = table.sort_values("dir", kind="stable", ignore_index=True)
    if said := repetitions(table):
        log.warning("%s", said)
    reasons = {f: printable(r["reason"], 300) for f, r in records.items() if isinstance(r.get("reason"), str)}
    reasons |= dict.fromkeys(refused, "skipped: not a readable record")
    return Collection(table, _sweep(plans, table), reasons, known_versions(records.values()), skipped)


def _tabulate(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(list(rows))
    extra = [c for c in table if c not in ("job", "status", *CONFIG, *METRICS, "dir")]
    return table[["job", "status", *CONFIG, *extra, *METRICS, "dir"]]


def _record(place: Place, known: Mapping[str, str]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The identity, the record and the row of a place, from what is known of its file or else from the file."""
    path = os.path.join(place.folder, "result.json")
    if place.result is not None and place.result in known:
        return place.result, *check_record(path, known[place.result])
    raw, status = read_bounded(path)
    return identity(status), *check_record(path, raw)


def _job(folder: str, top: Path) -> str:
    """A name that no other run of the table has: the path from the folder that is read, or that all of them are in."""
    inside = folder.removeprefix(str(top)).replace(os.sep, "/").lstrip("/")
    return printable(inside or top.name, 1000)


def load_runs(*dirs: str | os.PathLike[str]) -> pd.DataFrame:
    """Gather every run at or below `dirs` in one table, one row per run; see :func:`collect` for the rest they say.

    Columns: job (path inside its directory, or inside the folder that holds all of `dirs`), status, the configuration
    keys, the metrics (nats per point, data units, steps, seconds), dir (absolute path). A planned job without a result
    has the status "missing" and no metrics; divergence is a status too, never an exception. A run that is there twice
    has two rows, see :func:`distinct`.

    Raises
    ------
    ReportError
        If a directory is absent or holds no readable finished run.

    >>> load_runs("/nowhere")
    Traceback (most recent call last):
    nfexp.analysis.table.records.ReportError: /nowhere: expected a directory; got nothing there
    """
    return collect(*dirs).runs


def read_runs(path: str | os.PathLike[str]) -> pd.DataFrame:
    """The table of :func:`load_runs` from the runs.csv (or runs.csv.gz) of a report; the directories may be gone.

    The dir of a run is what the file's column dir says, from the file's folder on, and without that column its job
    beside the file. A run may be there twice, as in :func:`load_runs`: see :func:`distinct`.

    The columns are of these types: job, status, dir, data.name, data.text and the other words text (missing: None);
    seed and the counts of the configuration int64; its other numbers float64; train.batch_size an int or "full"; every
    metric float64, with NaN where it is missing, the counts among them too. Under a heading that this version does not
    know a number is a number and a text a text.

    Other readers of the file get the same values if they know two spellings. Text that could be taken for a number, a
    missing or truth value or a formula has a leading quote ('2024, 'NA, '=1+1; a quote alone is an empty text), and a
    job of digits stands as a path: ./0000. So ``pandas.read_csv`` needs no dtypes; it gives counts as float64 where one
    is missing.

    Raises
    ------
    ReportError
        If the file is not such a table; the message says the line.

    >>> read_runs("/nowhere/runs.csv")
    Traceback (most recent call last):
    nfexp.analysis.table.records.ReportError: /nowhere/runs.csv: expected a readable file; got No such file or directory
    """
    words = _Vocabulary()
    rows = []
    folder = os.path.dirname(os.path.abspath(path))
    for where, row in saved_rows(path):
        words.admit(where, row)
        rows.append(row | {"dir": os.path.normpath(os.path.join(folder, row["dir"]))})
    if not rows:
        raise ReportError(path, "a row for each run", "none")
    return _tabulate(rows)


def load_sweep(dirs: Iterable[str | os.PathLike[str]] | str | os.PathLike[str], runs: pd.DataFrame) -> Sweep:
    """Read name, centres and number of planned jobs from the sweep.json files at or below `dirs`.

    Several names are joined by " + "; where two sweeps give a target different centres the first one counts.
    A target without a planned centre gets the one that :func:`infer_centres` finds in `runs`.

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


def _sweep(plans: Mapping[Path, Mapping[str, Plan]], runs: pd.DataFrame) -> Sweep:
    names: list[str] = []
    centres: dict[str, dict[str, Any]] = {}
    places = set(runs["dir"])
    for top, own in plans.items():
        for folder, (name, found, plan) in own.items():
            names.append(name)
            centres = found | centres
            places |= {os.path.join(folder, os.path.normpath(job)) for job in plan}
        names += [] if own else [printable(top.name)]
    present = set(runs["data.name"])
    inferred = infer_centres(runs[~runs["data.name"].isin(list(centres))])
    centres = {t: c for t, c in (centres | inferred).items() if t in present}
    return Sweep(" + ".join(dict.fromkeys(names)), centres, len(places))


def distinct(runs: pd.DataFrame) -> pd.DataFrame:
    """The independent runs of a table: one row per configuration and seed, in the order they came.

    A run is a fact: copied, moved or trained again, by whatever code, it is the same run repeated, and adds nothing to
    what is known. Every mean, interval, verdict and count is of these rows. The row that counts is a completed one
    before a diverged, a failed and a missing one; of several such the first by its directory. In a table without
    seeds no row is known to repeat another.

    >>> runs = pd.DataFrame({"data.name": "moons", "seed": [0, 0, 1], "status": "completed", "dir": ["b", "a", "b2"]})
    >>> distinct(runs)["dir"].tolist()
    ['a', 'b2']
    """
    if "seed" not in runs:
        return runs
    standing = pd.DataFrame(index=range(len(runs)))
    standing["rank"] = [_RANK.get(status, len(_RANK)) for status in runs["status"]] if "status" in runs else 0
    standing["dir"] = runs["dir"].to_numpy(object) if "dir" in runs else ""
    order = standing.sort_values(["rank", "dir"], kind="stable").index.to_numpy()
    repeated = runs.iloc[order].duplicated(["data.name", "seed", *config_columns(runs)]).to_numpy()
    return runs.iloc[np.sort(order[~repeated])]


def repetitions(runs: pd.DataFrame) -> str:
    """How many rows :func:`distinct` leaves out, as a line for people; empty if none."""
    n_repeated = len(runs) - len(distinct(runs))
    if not n_repeated:
        return ""
    return (
        f"{n_repeated} of {len(runs)} rows repeat a run (same configuration and seed) and do not count: of each run "
        "one row counts, a completed one before others, then the first by its directory"
    )


def infer_centres(runs: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The most common value of each configuration column per target; of tied numbers the (lower) median one.

    A run that is there twice counts once.

    >>> infer_centres(pd.DataFrame({"data.name": "moons", "flow.n_flows": [3, 6, 9], "flow.norm": "none"}))
    {'moons': {'data.name': 'moons', 'flow.n_flows': 6, 'flow.norm': 'none'}}
    """
    columns = config_columns(runs)
    runs = distinct(runs)
    return {
        str(target): {"data.name": str(target)} | {c: _most_common(group[c]) for c in columns}
        for target, group in runs.groupby("data.name", sort=True)
    }


def _most_common(column: pd.Series) -> Any:
    counts = column.value_counts(dropna=False)
    tied = [None if pd.isna(v) else v for v in counts.index[counts == counts.max()]]
    values = [v for v in tied if v is not None]
    if not values:
        return None
    if any(isinstance(v, str) for v in values):
        return min(values, key=str)
    value = sorted(values)[(len(values) - 1) // 2]
    return value.item() if isinstance(value, np.generic) else value


def config_columns(runs: pd.DataFrame) -> list[str]:
    """The configuration columns of a table of runs, without data.name and seed.

    >>> config_columns(pd.DataFrame(columns=["job", "data.name", "flow.n_flows", "seed", "kl", "dir"]))
    ['flow.n_flows']
    """
    others = ("job", "status", "dir", "data.name", "seed", *METRICS)
    return [c for c in runs.columns if c not in others and is_config(c)]


def load_histories(runs: pd.DataFrame, *, skipped: list[ReportError] | None = None) -> pd.DataFrame:
    """Stack the training curves of `runs`: job, dir, step, train_nll, val_nll (nats per point), grad_norm, lr.

    Runs without a history.csv add no rows; nor do files that are not a table of numbers under these headings, which
    are warned of and added to `skipped`.
    """
    found, blocks, lost = [], [np.empty((0, len(HISTORY)))], []
    for i, folder in enumerate(runs["dir"]):
        path = os.path.join(folder, "history.csv")
        if os.path.lexists(path):
            try:
                blocks.append(read_history(path))
                found += [i] * len(blocks[-1])
            except ReportError as error:
                lost.append(error)
    skip(lost, [] if skipped is None else skipped)
    frame = pd.DataFrame(np.concatenate(blocks), columns=list(HISTORY))
    frame.insert(0, "job", runs["job"].astype(str).iloc[found].reset_index(drop=True))
    frame.insert(1, "dir", runs["dir"].astype(str).iloc[found].reset_index(drop=True))
    return frame


def write_csv(frame: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write `frame` without its index, whole or not at all; text that could be taken for another value gets a quote.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_csv(pd.DataFrame({"kl": [0.5], "best_step": [20.0]}), Path(folder) / "runs.csv")
    ...     print((Path(folder) / "runs.csv").read_text().split())
    ['kl,best_step', '0.5,20']
    """
    path = Path(path)
    words = frame.select_dtypes(exclude="number").columns
    frame = frame.assign(**{c: frame[c].map(_spelling(c)) for c in words})
    returns = any(frame[c].astype(str).str.contains("\r", regex=False).any() for c in words)
    whole = {c: "Int64" for c in COUNTS if c in frame and (frame[c].isna() | (frame[c] % 1 == 0)).all()}
    quoting: Any = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL  # which does not quote carriage returns
    with (
        replacing(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        frame.astype(whole).to_csv(file, index=False, lineterminator="\n", quoting=quoting)


def _spelling(column: str) -> Callable[[Any], Any]:
    """How the text of a column is written."""
    if column in ("job", "dir"):
        return inert_path
    return inert_value if "." in column else inert


def write_runs(runs: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write the table of :func:`load_runs` so that :func:`read_runs` gives every run its directory.

    Where each run lies at its job beside the file, the column dir is left out: the folder can be moved. Otherwise it
    stands last, from the file's folder on.
    """
    folder = os.path.dirname(os.path.realpath(path))
    places = [os.path.relpath(os.path.realpath(place), folder) for place in runs["dir"]]
    beside = all(os.path.normpath(job) == place for job, place in zip(runs["job"], places, strict=True))
    write_csv(runs.drop(columns="dir") if beside else runs.assign(dir=places), path)
