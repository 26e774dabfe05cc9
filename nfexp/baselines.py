"""Density estimates without a flow, on the draws of a sweep's runs: when is a flow worth it?"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nfexp import usages
from nfexp.analysis.table import ReportError, cannot_write, collect, printable, write_csv
from nfexp.analysis.table.baselines import (
    ALL_MODELS,
    BASELINES,
    DATA,
    MODELS,
    columns_of,
    data_key,
    load_baselines,
)
from nfexp.analysis.table.records import rows_of
from nfexp.spec import Data, SpecError, Words, counted, from_mapping, parameters_in
from nfexp.surroundings import command
from nfexp.sweep.planning import cores
from nfexp.targets import find_source
from nfexp.usage import run

PAUSE = 2.0  # seconds between two writings of the table


@dataclass(frozen=True)
class Task:
    """Draws that some models are to be fitted to."""

    data: Data
    seed: int
    models: list[str]

    def run(self) -> list[dict[str, Any]]:
        from nfexp.baseline_fits import fit_draws

        return fit_draws(self.data, self.seed, self.models)

    def __str__(self) -> str:
        data = self.data
        noise = "" if data.noise is None else f", noise {data.noise:g}"
        return f"{data.name}{noise}, {data.n_samples:,} points, seed {self.seed}"


def wanted(
    runs: pd.DataFrame,
    fits: pd.DataFrame,
    sources: Mapping[str, str] | None = None,
) -> tuple[list[Task], list[str]]:
    """What `fits` lacks for the table `runs`, each draw once; and what cannot be drawn.

    `sources` are the targets of the user's own that may be executed, by their digest. Validation
    draws are as many as of the first run with these draws.

    >>> runs = pd.DataFrame({"data.name": "moons", "data.n_samples": 9, "data.noise": 0.1, "data.n_test": 9,
    ...                      "data.n_val": 9, "data.text": None, "seed": [0, 0, 1]})
    >>> [(task.data.name, task.seed, len(task.models)) for task in wanted(runs, pd.DataFrame())[0]]
    [('moons', 0, 5), ('moons', 1, 5)]
    """
    fitted = set()
    for row in rows_of(fits):
        fitted.add((data_key(row), row["seed"], row["model"]))
    lacking: dict[tuple[tuple[Any, ...], Any], list[str]] = {}  # models by data_key and seed
    tables: dict[tuple[Any, ...], Mapping[str, Any]] = {}  # a run with these draws
    for row in rows_of(runs):
        key = data_key(row)
        seed = row["seed"]
        models = [model for model in _models_of(row) if (key, seed, model) not in fitted]
        if models:
            lacking[key, seed] = models
            tables.setdefault(key, row)
    tasks = []
    refused: dict[str, None] = {}  # each reason once, in order
    for (key, seed), models in lacking.items():
        try:
            tasks.append(Task(_data_of(tables[key], sources or {}), int(seed), models))
        except ValueError as error:
            refused[str(error)] = None
    return tasks, list(refused)


def _models_of(row: Mapping[str, Any]) -> list[str]:
    """The baselines for the draws of a run."""
    if row.get("data.kind") != "image":
        return list(MODELS)
    from nfexp.image_baselines import models_for

    return models_for(int(row["data.dim"]), int(row["data.levels"]))


def _data_of(row: Mapping[str, Any], sources: Mapping[str, str]) -> Data:
    """The checked data of a run; whole numbers may be floats, as a table of runs has them.

    Raises
    ------
    SpecError
        Of a target of the user's own that is not among `sources`, too: a record is not trusted to
        name code.
    """
    digest = row.get("data.digest")
    is_table = isinstance(digest, str) and bool(digest)
    given: dict[str, Any] = {"noise": None, "text": None}
    for column, value in row.items():
        is_wanted = column in (*DATA, "data.n_val") or is_table
        if column.startswith("data.") and is_wanted and value is not None and value == value:
            is_whole = (
                isinstance(value, float)
                and value.is_integer()
                and column not in ("data.jitter", "data.noise")
            )
            given[column.removeprefix("data.")] = int(value) if is_whole else value
    given |= parameters_in(row)
    if given.get("kind") == "own":
        if not isinstance(digest, str) or digest not in sources:
            expected = (
                "target=FILE.py:NAME with the source that its runs learned, which is then executed"
            )
            raise SpecError(
                str(given["name"]), expected, Words("another source" if sources else "no source")
            )
        given["target"] = sources[digest]
    return from_mapping(given, Data, "data.")


def _begin() -> None:
    """Every process fits on one core."""
    import torch
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)
    torch.set_num_threads(1)


def fit_all(folder: Path, workers: int, sources: Mapping[str, str]) -> int:
    """Add to `folder`/baselines.csv what it lacks for the runs there.

    Returns how many could not be fitted. The table is written whole, every few seconds and at the
    end, however that comes.
    """
    fits = load_baselines(folder)
    tasks, refused = wanted(collect(folder).runs, fits, sources)
    for line in refused:
        print(f"{folder}: {printable(line, 300)}", file=sys.stderr)
    results = Results(folder, rows_of(fits), n_tasks=len(tasks))
    results.write()  # what cannot be written shows before anything is fitted
    context = multiprocessing.get_context("spawn")
    n_workers = max(1, min(workers, len(tasks)))
    if tasks:
        print(
            f"{printable(folder, 4096)}: {counted(len(tasks), 'draw')} to fit, {n_workers} at a time",
            flush=True,
        )
    with ProcessPoolExecutor(n_workers, mp_context=context, initializer=_begin) as pool:
        try:
            with _deaf_to_interrupts():  # processes start here, and inherit it
                pending = {pool.submit(task.run): task for task in tasks}
            for future in as_completed(pending):
                results.add(pending.pop(future), future)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            # what is being fitted is not waited for
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        finally:
            results.write()
    return len(refused) + results.n_failed


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Ctrl-C is for this process alone: it ends the others."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class Results:
    """The rows of a folder's baselines.csv while fits are added to it."""

    folder: Path
    rows: list[dict[str, Any]]
    n_tasks: int
    n_done: int = 0
    n_failed: int = 0
    written: float = 0.0  # when, by the monotonic clock

    def add(self, task: Task, future: Future[list[dict[str, Any]]]) -> None:
        """Take over what a finished task gives; one that failed is named, and the others go on."""
        self.n_done += 1
        try:
            new = future.result()
        except BrokenProcessPool as error:
            raise ReportError(self.folder, "processes that live", error) from error
        except Exception as error:  # of this fit alone
            self.n_failed += 1
            print(f"{task}: {printable(error, 300)}", file=sys.stderr)
        else:
            self.rows += new
            print(f"{self.n_done}/{self.n_tasks} {task}: {_said(new)}", flush=True)
        if time.monotonic() > self.written + PAUSE:
            self.write()

    def write(self) -> None:
        """Write the table in an order that does not depend on which fit came first."""
        ordered = sorted(self.rows, key=_place)
        columns = list(columns_of(ordered))
        table = pd.DataFrame(ordered, columns=columns).astype({"n_components": "Int64"})
        write_csv(table, self.folder / BASELINES)
        self.written = time.monotonic()


def _said(rows: Sequence[Mapping[str, Any]]) -> str:
    """The scores of a finished task: KL, or NLL where no density is known."""
    metric = "test_nll" if rows[0]["kl"] is None else "kl"
    name = {"kl": "KL", "test_nll": "test NLL"}[metric]
    scores = [f"{row['model']} {row[metric]:.3f}" for row in rows]
    return f"{name} {', '.join(scores)}"


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Where a row stands in the table: by its draws, its seed, its model."""
    draws = map(str, data_key(row))
    return (*draws, row["seed"], list(ALL_MODELS).index(row["model"]))


@command
def main(argv: Sequence[str] | None = None) -> int:
    """``nfexp-baselines DIR… [workers=N]``: fit what DIR/baselines.csv lacks; print its path.

    Ctrl-C keeps what is finished; given again, the command goes on from there.
    """
    return run(usages.BASELINES, argv, _fit_folders)


def _fit_folders(folders: list[str], options: dict[str, str]) -> int:
    workers = options.get("workers", str(cores()))
    if not (workers.isdecimal() and 0 < int(workers) <= 1000):
        raise ReportError("workers", "a whole number from 1 to 1000", repr(workers))
    sources = _sources(options.get("target", ""))
    failed = 0
    for folder in folders:
        try:
            failed += fit_all(Path(folder), int(workers), sources)
        except OSError as error:
            raise cannot_write(folder, error) from error
        print(printable(Path(folder) / BASELINES, 4096))
    return 1 if failed else 0


def _sources(text: str) -> dict[str, str]:
    """Targets by digest, from what the user gives.

    FILE.py:NAME, or MODULE:NAME, several with commas.

    Raises
    ------
    SpecError
        If one is not there.
    """
    sources = {}
    for word in filter(None, text.split(",")):
        if ":" not in word:
            raise SpecError("target", "FILE.py:NAME or MODULE:NAME", word)
        source = find_source(word)
        sources[source.digest] = f"{source.place}:{source.name}"
    return sources
