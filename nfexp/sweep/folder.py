"""What a sweep's folder is to hold: its plan (`sweep.json`), what of it is done, and who may write there."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from nfexp.spec import Spec, SpecError, Words, relevant
from nfexp.sweep.worker import HOLDER, clear


@contextmanager
def locked(folder: Path, what: str = "a sweep") -> Iterator[None]:
    """Be the one process that writes a sweep or a run; the lock ends with the process, however that ends.

    Once a run is finished its lock file is removed: no process may write there any more.

    Raises
    ------
    SpecError
        If another process holds it; the message says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there = Path(os.path.abspath(folder))  # one name within this process, wherever it works meanwhile
    lock, holder = FileLock(there / ".lock", is_singleton=True), there / HOLDER
    held = lock.is_locked  # by this process, further out
    try:
        lock.acquire(blocking=False)
    except Timeout:
        name = "another process"
        with suppress(OSError):
            name = holder.read_text(encoding="utf-8").strip() or name
        raise SpecError(str(folder), f"{what} that no process is writing", Words(f"one that {name} writes")) from None
    try:
        with replacing(holder) as path:
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        if not held:
            with suppress(OSError):
                holder.unlink()
            if (there / "result.json").exists():
                with suppress(OSError):
                    Path(lock.lock_file).unlink()
        lock.release()


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
    return plan


def difference(old: Plan, specs: Sequence[Spec]) -> str:
    """In what the jobs of a plan and other jobs differ, in words."""
    there = [old.centres[j["data.name"]] | j["config"] | {"seed": j["seed"]} for j in old.jobs]
    here = [relevant(spec) for spec in specs]

    def told(rows: Sequence[Mapping[str, Any]], key: str) -> str:
        values = sorted({json.dumps(row.get(key)) for row in rows})
        return ", ".join(values[:4]) + (", …" if len(values) > 4 else "")

    keys = [k for k in here[0] if {json.dumps(r.get(k)) for r in there} != {json.dumps(r[k]) for r in here}]
    words = [f"{k} {told(here, k)} instead of {told(there, k)}" for k in keys[:3]] + ["…"] * (len(keys) > 3)
    return "; ".join([f"{len(here)} runs instead of {len(there)}"] * (len(here) != len(there)) + words)


Jobs = Mapping[str, tuple[Sequence[str], Spec]]  # run_id → overrides and spec


@dataclass(kw_only=True)
class Step:
    """One command's part of a sweep: its jobs by number, with the folder of each and what is there already."""

    specs: dict[int, Spec]
    overrides: dict[int, Sequence[str]]
    folders: dict[int, str]
    finished: dict[int, Outcome]
    again: list[int]
    mixed: bool

    def ranges(self) -> list[range]:
        """The numbers as runs of consecutive ones."""
        found: list[range] = []
        for k in sorted(self.specs):
            if found and found[-1].stop == k:
                found[-1] = range(found[-1].start, k + 1)
            else:
                found.append(range(k, k + 1))
        return found


# Of what a sweep and its report leave beside the runs: sweep.json, multirun.yaml, runs.csv, report.md, report.html
OWN_SUFFIXES = (".json", ".yaml", ".csv", ".md", ".html")


def check_folders(folders: Mapping[int, str]) -> None:
    """Raise unless every job has a folder of its own, below that of the sweep, where reports find it.

    `folders` holds paths from the folder of the sweep, by the number of the job.
    """
    key = "hydra.sweep.subdir"
    owners: dict[tuple[str, ...], int] = {}
    for number, folder in folders.items():
        parts = Path(folder).parts
        if not parts or parts[0] == os.pardir or os.path.isabs(folder):
            raise SpecError(key, "a folder below that of the sweep", folder)
        if any(part.startswith(".") for part in parts):
            raise SpecError(key, "a folder that is not hidden, for reports pass over those", folder)
        if Path(parts[0]).suffix in OWN_SUFFIXES:
            raise SpecError(key, "a folder whose name is not that of a file of the sweep's own", folder)
        if parts in owners:
            raise SpecError(key, "a folder of its own for each job",
                            Words(f"{folder!r} for job {owners[parts]} and job {number}"))  # fmt: skip
        owners[parts] = number
    for parts, number in owners.items():
        for length in range(1, len(parts)):
            outer = owners.get(parts[:length])
            if outer is not None:
                raise SpecError(key, "a folder of its own for each job",
                                Words(f"that of job {number} within that of job {outer}"))  # fmt: skip


def settle(
    folder: Path,
    old: Plan | None,
    jobs: Jobs,
    folder_of: Callable[[Sequence[str], int], str],
    *,
    mixed: bool,
    redo: str,
) -> Step:
    """Give each job its number: that of the sweep the folder holds, or the next free one. Writes nothing.

    Raises
    ------
    SpecError
        If the folder holds something else: a single run, other jobs, or (unless `mixed`) a sweep of other jobs or
        finished runs of another code version.
    """
    where = str(folder)
    if (folder / "result.json").exists():
        raise SpecError(where, "a new or empty folder, or that of an earlier sweep", Words("one that holds a run"))
    numbers = {job["run_id"]: k for k, job in enumerate(old.jobs)} if old else {}
    added = [identity for identity in jobs if identity not in numbers]
    if old and not mixed and (added or len(jobs) < len(numbers)):
        unlike = difference(old, [spec for _, spec in jobs.values()])
        raise SpecError(where, "the runs of its sweep.json (or mixed=true)", Words(unlike or "a part of them"))
    numbers |= {identity: len(numbers) + k for k, identity in enumerate(added)}
    placed = sorted((numbers[identity], identity) for identity in jobs)
    folders = {k: folder_of(jobs[identity][0], k) for k, identity in placed}
    planned = {k: str(job["job"]) for k, job in enumerate(old.jobs)} if old else {}
    check_folders(planned | folders)
    for k, place in folders.items():
        if planned.get(k, place) != place:
            raise SpecError("hydra.sweep.subdir", f"{planned[k]!r}, where sweep.json has this run", place)
    found = {k: (identity, outcome(folder / folders[k])) for k, identity in placed}
    finished = {k: past for k, (_, past) in found.items() if past}
    for k, (identity, past) in found.items():
        if past and (old is None or past.run_id != identity):
            raise SpecError(where, "a new or empty folder, or that of an earlier sweep",
                            Words(f"one whose {folders[k]} holds another run"))  # fmt: skip
    again = [k for k, past in finished.items() if past.status in REDO[redo]]
    others = sorted({past.code for k, past in finished.items() if k not in again} - {code_version()})
    if others and not mixed:
        raise SpecError(where, f"runs of {code_version()} (or mixed=true)", Words(f"finished runs of {others[0]}"))
    return Step(
        specs={k: jobs[identity][1] for k, identity in placed},
        overrides={k: jobs[identity][0] for k, identity in placed},
        folders=folders,
        finished={k: past for k, past in finished.items() if k not in again},
        again=again,
        mixed=bool(old and (added or others)),
    )


def begin(folder: Path, old: Plan | None, step: Step, plan: Plan) -> None:
    """Write the plan (name, arguments and centres are given) with the jobs of this step, and clear what is redone.

    So is what a killed command left behind.
    """
    plan.centres |= old.centres if old else {}
    plan.jobs = list(old.jobs) if old else []
    for k, spec in step.specs.items():
        plan.jobs[k : k + 1] = [plan.entry(step.folders[k], spec, step.overrides[k])]
    plan.mixed = list(old.mixed) if old else []
    if step.mixed:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        plan.mixed.append({"created": now, "code": code_version(), "arguments": plan.arguments})
    plan.write(folder)
    for part in (".", "figures", "tables", *(step.folders[k] for k in step.finished)):
        clear(folder / part)
    for k in step.again:
        (folder / step.folders[k] / "result.json").unlink(missing_ok=True)
