"""What a sweep's folder is to hold: its plan (`sweep.json`), what is done, who may write there."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nfexp.configuration import REDO
from nfexp.files import replacing
from nfexp.record import Outcome, code_version, outcome
from nfexp.record import plan as plans
from nfexp.record.plan import Plan
from nfexp.spec import ADDED, Spec, SpecError, Words, counted, relevant
from nfexp.sweep.requests import Request
from nfexp.sweep.stopping import HOLDER, this_process
from nfexp.sweep.worker import clear

# --- The lock --------------------------------------------------------------------------


# At DEBUG, which hydra.verbose=true asks for, it would log every step of taking a lock.
logging.getLogger("filelock").setLevel(logging.INFO)


@contextmanager
def locked(folder: Path, what: str = "a sweep") -> Iterator[None]:
    """Be the one process that writes a sweep or a run; the lock ends with the process.

    Raises
    ------
    SpecError
        If another process holds it; the message says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # An absolute name, for filelock gives one lock for one name within this process, and a run may
    # change the working folder meanwhile.
    full_path = Path(os.path.abspath(folder))
    holder = full_path / HOLDER
    lock = FileLock(full_path / ".lock", is_singleton=True)
    held_already = lock.is_locked  # by this process, further out
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise _lock_error(folder, what, holder) from None
    try:
        with replacing(holder) as path:
            path.write_text(this_process(), encoding="utf-8")
        yield
    finally:
        if not held_already:
            with suppress(OSError):
                holder.unlink()
            if (full_path / "result.json").exists():
                # A finished run is never written again, so its lock file is not needed either. Any
                # other must stay: who waits for a removed file and who makes a new one would both
                # have the lock.
                with suppress(OSError):
                    Path(lock.lock_file).unlink()
        lock.release()


def _lock_error(folder: Path, what: str, holder: Path) -> SpecError:
    """The error that another process writes there, with its name where that can be read."""
    name = ""
    with suppress(OSError):
        name = holder.read_text(encoding="utf-8").strip()
    got = Words(f"one that {name or 'another process'} writes")
    return SpecError(str(folder), f"{what} that no process is writing", got)


# --- The plan --------------------------------------------------------------------------


def read_plan(folder: Path) -> Plan | None:
    """The plan of the sweep in a folder, complete enough to resume it; None if it holds none.

    Raises
    ------
    SpecError
        If its `sweep.json` cannot be read, is not of this schema, or lacks the overrides of a job.
    """
    plan = plans.read_plan(folder)
    if plan is not None:
        plans.require_commands(folder, plan)
        _check_rounds(folder, plan)
    return plan


def _check_rounds(folder: Path, plan: Plan) -> None:
    if not plan.rounds:
        return
    from nfexp.analysis.sequential import rounds_of

    try:
        rounds_of(plan.rounds)
    except ValueError as error:
        raise SpecError(f"{folder}/sweep.json", str(error), plan.rounds) from None


def stored_configs(plan: Plan) -> list[dict[str, Any]]:
    """The whole configuration of every job of a plan, by key."""
    configs = []
    for job in plan.jobs:
        centre = plan.centres[job["data.name"]]
        configs.append(ADDED | centre | job["config"] | {"seed": job["seed"]})
    return configs


def difference(old: Plan, specs: Sequence[Spec]) -> str:
    """In what the jobs of a plan and other jobs differ, in words; "" if in nothing."""
    stored = stored_configs(old)
    wanted = [relevant(spec) for spec in specs]
    words = []
    if len(wanted) != len(stored):
        words.append(f"{counted(len(wanted), 'run')} instead of {len(stored)}")
    differing = [key for key in wanted[0] if _values(wanted, key) != _values(stored, key)]
    for key in differing[:3]:
        words.append(f"{key} {_spelled(wanted, key)} instead of {_spelled(stored, key)}")
    if len(differing) > 3:
        words.append("…")
    return "; ".join(words)


def _values(configs: Sequence[Mapping[str, Any]], key: str) -> set[str]:
    """The values of a key, each as JSON, for 1, 1.0 and true would be one in a set."""
    return {json.dumps(config.get(key)) for config in configs}


def _spelled(configs: Sequence[Mapping[str, Any]], key: str) -> str:
    values = sorted(_values(configs, key))
    if len(values) > 4:
        return ", ".join(values[:4]) + ", …"
    return ", ".join(values)


# --- The folders of jobs ---------------------------------------------------------------

# Suffixes of the files that a sweep and its report write beside the runs: sweep.json, runs.csv, …
OWN_SUFFIXES = (".json", ".yaml", ".csv", ".md", ".html")


def check_folders(folders: Mapping[int, str]) -> None:
    """Raise unless every job has a folder of its own, below that of the sweep, where reports look.

    `folders` holds paths from the folder of the sweep, by the number of the job.
    """
    owners: dict[tuple[str, ...], int] = {}
    for number, folder in folders.items():
        parts = Path(folder).parts
        _check_name(folder, parts)
        if parts in owners:
            raise _shared(f"{folder!r} for job {owners[parts]} and job {number}")
        owners[parts] = number
    for parts, number in owners.items():
        for length in range(1, len(parts)):
            outer = owners.get(parts[:length])
            if outer is not None:
                raise _shared(f"that of job {number} within that of job {outer}")


def _check_name(folder: str, parts: Sequence[str]) -> None:
    key = "hydra.sweep.subdir"
    if not parts or parts[0] == os.pardir or os.path.isabs(folder):
        raise SpecError(key, "a folder below that of the sweep", folder)
    if any(part.startswith(".") for part in parts):
        raise SpecError(key, "a folder that is not hidden, for reports pass over those", folder)
    if Path(parts[0]).suffix in OWN_SUFFIXES:
        expected = "a folder whose name is not that of a file of the sweep's own"
        raise SpecError(key, expected, folder)


def _shared(got: str) -> SpecError:
    return SpecError("hydra.sweep.subdir", "a folder of its own for each job", Words(got))


# --- One command's part of a sweep -----------------------------------------------------


@dataclass(frozen=True)
class NumberedJob:
    """A run with its number in the sweep, and its folder, relative to that of the sweep."""

    number: int
    run_id: str
    overrides: Sequence[str]
    spec: Spec
    folder: str


def folders_of(jobs: Mapping[int, NumberedJob]) -> dict[int, str]:
    return {number: job.folder for number, job in jobs.items()}


@dataclass(kw_only=True)
class Step:
    """One command's part of a sweep: its jobs by number.

    `finished` holds what is kept, `again` the numbers of finished jobs that are redone. `mixed`
    says that the folder gets jobs its first command did not plan, or of another code version.
    """

    jobs: dict[int, NumberedJob]
    finished: dict[int, Outcome]
    again: list[int]
    mixed: bool

    def folders(self) -> dict[int, str]:
        return folders_of(self.jobs)

    def specs(self, without: Container[int] = ()) -> list[Spec]:
        """The runs of all jobs but those with these numbers."""
        specs = []
        for number, job in self.jobs.items():
            if number not in without:
                specs.append(job.spec)
        return specs

    def ranges(self, without: Set[int] = frozenset()) -> list[range]:
        """The numbers as runs of consecutive ones, for a launcher counts on from a first one."""
        ranges: list[range] = []
        for number in sorted(self.jobs.keys() - without):
            if ranges and ranges[-1].stop == number:
                ranges[-1] = range(ranges[-1].start, number + 1)
            else:
                ranges.append(range(number, number + 1))
        return ranges


def settle(
    folder: Path,
    old: Plan | None,
    requests: Mapping[str, Request],
    folder_of: Callable[[Sequence[str], int], str],
    *,
    mixed: bool,
    redo: str,
) -> Step:
    """Give each job its number: the one it has in the folder, or the next free one.

    Writes nothing. `requests` holds the runs by `run_id`.

    Raises
    ------
    SpecError
        If the folder holds something else: a single run, other jobs, or (unless `mixed`) a sweep
        of other jobs or finished runs of another code version.
    """
    if (folder / "result.json").exists():
        raise _not_ours(folder, "one that holds a run")
    numbers = _old_numbers(old)
    added = [identity for identity in requests if identity not in numbers]
    if old and not mixed and (added or len(requests) < len(numbers)):
        unlike = difference(old, [request.spec for request in requests.values()])
        expected = "the runs of its sweep.json (or mixed=true)"
        raise SpecError(str(folder), expected, Words(unlike or "a part of them"))
    for identity in added:
        numbers[identity] = len(numbers)
    jobs = _numbered(requests, numbers, folder_of)
    _check_places(old, jobs)

    finished = _finished(folder, old, jobs)
    again = [number for number, past in finished.items() if past.status in REDO[redo]]
    for number in again:
        del finished[number]
    other_codes = _other_codes(finished)
    if other_codes and not mixed:
        expected = f"runs of {code_version()} (or mixed=true)"
        raise SpecError(str(folder), expected, Words(f"finished runs of {other_codes[0]}"))
    is_mixed = old is not None and bool(added or other_codes)
    return Step(jobs=jobs, finished=finished, again=again, mixed=is_mixed)


def _numbered(
    requests: Mapping[str, Request],
    numbers: Mapping[str, int],
    folder_of: Callable[[Sequence[str], int], str],
) -> dict[int, NumberedJob]:
    """The jobs of these requests by number, in that order."""
    jobs = {}
    for identity in sorted(requests, key=numbers.__getitem__):
        number = numbers[identity]
        request = requests[identity]
        folder = folder_of(request.overrides, number)
        jobs[number] = NumberedJob(number, identity, request.overrides, request.spec, folder)
    return jobs


def _not_ours(folder: Path, got: str) -> SpecError:
    expected = "a new or empty folder, or that of an earlier sweep"
    return SpecError(str(folder), expected, Words(got))


def _old_numbers(old: Plan | None) -> dict[str, int]:
    """The number of each job of a plan, by `run_id`."""
    if old is None:
        return {}
    return {job["run_id"]: number for number, job in enumerate(old.jobs)}


def _check_places(old: Plan | None, jobs: Mapping[int, NumberedJob]) -> None:
    """Raise unless the folders of these jobs and of those planned before go together."""
    planned: dict[int, str] = {}
    if old is not None:
        for number, entry in enumerate(old.jobs):
            planned[number] = str(entry["job"])
    check_folders(planned | folders_of(jobs))
    for number, job in jobs.items():
        before = planned.get(number, job.folder)
        if job.folder != before:
            expected = f"{before!r}, where sweep.json has this run"
            raise SpecError("hydra.sweep.subdir", expected, job.folder)


def _finished(
    folder: Path,
    old: Plan | None,
    jobs: Mapping[int, NumberedJob],
) -> dict[int, Outcome]:
    """How jobs ended that have finished, by number; raises if another run is in a job's folder."""
    finished = {}
    for number, job in jobs.items():
        past = outcome(folder / job.folder)
        if past is None:
            continue
        if old is None or past.run_id != job.run_id:
            raise _not_ours(folder, f"one whose {job.folder} holds another run")
        finished[number] = past
    return finished


def _other_codes(finished: Mapping[int, Outcome]) -> list[str]:
    """The other versions of the code that finished runs are of."""
    codes = set()
    for past in finished.values():
        codes.add(past.code)
    return sorted(codes - {code_version()})


def begin_sweep(folder: Path, old: Plan | None, step: Step, plan: Plan) -> None:
    """Write the plan of a sweep, then clear what is redone and what a killed command left behind.

    `plan` has its name, arguments and centres; the jobs of this step are put into it.
    """
    if old is not None:
        plan.centres |= old.centres
        plan.jobs = list(old.jobs)
        plan.mixed = list(old.mixed)
    for number, job in sorted(step.jobs.items()):
        entry = plan.entry(job.folder, job.spec, job.overrides)
        if number < len(plan.jobs):
            plan.jobs[number] = entry
        else:  # the numbers of new jobs follow without a gap
            plan.jobs.append(entry)
    if step.mixed:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        plan.mixed.append({"created": now, "code": code_version(), "arguments": plan.arguments})
    plan.write(folder)

    for name in (".", "figures", "tables"):
        clear(folder / name)
    for number in step.finished:
        clear(folder / step.jobs[number].folder)
    for number in step.again:
        (folder / step.jobs[number].folder / "result.json").unlink(missing_ok=True)
