"""What a sweep's folder is to hold: its plan (`sweep.json`), what of it is done, and who may write there."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nfexp.configuration import REDO
from nfexp.files import parse_json, read_plain, replacing
from nfexp.record import Outcome, code_version, outcome
from nfexp.spec import ADDED, SCHEMA_VERSION, Spec, SpecError, Words, relevant, run_id
from nfexp.sweep.worker import HOLDER, clear

LARGEST_PLAN = 2**26  # bytes of a sweep.json that is read


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


@dataclass(kw_only=True)
class Plan:
    """What `sweep.json` holds: the jobs by number, the centre of the study per target, the command's arguments.

    `mixed` says when, by which code and command, jobs were added that the first command did not plan.
    """

    name: str = ""
    arguments: list[str] = field(default_factory=list)
    centres: dict[str, dict[str, Any]] = field(default_factory=dict)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    mixed: list[dict[str, Any]] = field(default_factory=list)

    def entry(self, folder: str, spec: Spec, overrides: Sequence[str]) -> dict[str, Any]:
        """What `jobs` says of a job: its configuration as what differs from the centre of its target."""
        centre = self.centres[spec.data.name]
        differs = {k: v for k, v in relevant(spec).items() if k != "seed" and (k not in centre or v != centre[k])}
        return {
            "job": folder, "run_id": run_id(spec), "data.name": spec.data.name, "seed": spec.seed,
            "overrides": list(overrides), "config": differs,
        }  # fmt: skip

    def write(self, folder: Path) -> None:
        document = {"schema_version": SCHEMA_VERSION} | vars(self)
        with replacing(folder / "sweep.json") as path:
            path.write_text(json.dumps(document, indent=1), encoding="utf-8")


def read_plan(folder: Path) -> Plan | None:
    """The plan of the sweep in a folder; None if it holds none.

    Raises
    ------
    SpecError
        If its `sweep.json` cannot be read or is not of this schema.
    """
    path = folder / "sweep.json"
    try:
        document = parse_json(read_plain(path, LARGEST_PLAN)[0])
        if document.pop("schema_version") != SCHEMA_VERSION:
            raise ValueError("another schema_version")
        plan = Plan(**document)
        for key, value in vars(Plan()).items():
            if not isinstance(getattr(plan, key), type(value)):
                raise TypeError(f"{key} is no {type(value).__name__}")
        texts = [*plan.arguments, *(text for job in plan.jobs for text in (job["run_id"], *job["overrides"]))]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("an argument is no string")
        for job in plan.jobs:
            _ = plan.centres[job["data.name"]] | job["config"] | {"seed": job["seed"], "job": job["job"]}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise SpecError(str(path), "the plan of a sweep", Words(" ".join(str(error).split()))) from None
    return plan


def difference(old: Plan, specs: Sequence[Spec]) -> str:
    """In what the jobs of a plan and other jobs differ, in words."""
    there = [ADDED | old.centres[j["data.name"]] | j["config"] | {"seed": j["seed"]} for j in old.jobs]
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
