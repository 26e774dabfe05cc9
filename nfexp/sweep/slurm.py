"""Stacks as elements of SLURM job arrays, through submitit."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from nfexp.commands import folder_command, resume_command
from nfexp.spec import SpecError, Words, from_mapping, within
from nfexp.sweep.executors import log_here, lose, unfinished
from nfexp.sweep.planning import Machine
from nfexp.sweep.pool import Pool, after_death, work_at
from nfexp.sweep.worker import Job, stop

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0  # between two looks at the queue and the directories
LARGEST_ARRAY = 1000  # elements; SLURM's MaxArraySize is 1001 unless a site changes it
RESTARTS = 100  # times that a stack may run into its time limit
NOTICE_SECONDS = 90  # before the end of its time, in which a stack leaves its checkpoints


@dataclass(frozen=True, kw_only=True)
class Extra:
    """Further options of `sbatch`, by their own names; its `SBATCH_…` environment variables serve for all others."""

    account: str | None
    qos: str | None
    constraint: str | None
    reservation: str | None
    nodelist: str | None
    exclude: str | None
    licenses: str | None
    gres: str | None


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What SLURM is asked for: for one stack at a time."""

    partition: str | None
    time: int = within(1, 525_600)  # minutes
    cpus: int = within(1, 4096)
    mem_gb: float = within(0, 1e5, exclusive=True)
    gpus: int = within(0, 64)
    extra: Extra


def resources(config: Mapping[str, Any]) -> Resources:
    """The checked `hydra.launcher.slurm`: what goes into a batch script may be one word only."""
    if not isinstance(config, Mapping):
        raise SpecError("hydra.launcher.slurm", "a group of keys", config)
    found = from_mapping(config, Resources, "hydra.launcher.slurm.")
    words = {"partition": found.partition} | {f"extra.{f.name}": getattr(found.extra, f.name) for f in fields(Extra)}
    for key, value in words.items():
        if value is not None and not re.fullmatch(r"[\w@%&|!*:=.,;/\[\]()+-]+", value):
            raise SpecError(f"hydra.launcher.slurm.{key}", "a word as sbatch takes it, or null", value)
    return found


@dataclass(frozen=True)
class Element:
    """What submitit calls with the jobs of one stack, in one element of a job array.

    Every signal lets it leave checkpoints. On SIGUSR2 (its time is up) submitit then queues it again, on SIGTERM it
    waits to be killed, for SLURM queues a preempted job again only if it does not end by itself, on SIGINT it ends.
    """

    threads: int
    how: Mapping[str, Any]

    def __call__(self, jobs: Sequence[Job]) -> None:
        from nfexp.run import Interrupted

        log_here()
        heard: list[int] = []

        def note(signum: int, frame: object) -> None:
            heard.append(signum)
            stop()

        submitits: dict[int, Any] = {s: signal.signal(s, note) for s in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)}
        try:
            work_at(0, self.threads, jobs, **self.how)
        except Interrupted:
            if signal.SIGUSR2 in heard:
                submitits[signal.SIGUSR2](signal.SIGUSR2, None)
            while signal.SIGINT not in heard and signal.SIGTERM in heard:
                signal.pause()
            raise

    def checkpoint(self, jobs: Sequence[Job]) -> Any:
        """What is queued again: the same; the directories of the runs say how far they are."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, jobs)


def array_name(folder: Path) -> str:
    """The name of the job arrays that work for a sweep."""
    return f"nfexp-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:10]}"


def queued(*options: str) -> set[str] | None:
    """Ids of the array elements of this user in SLURM's queue; None if the queue cannot be asked now."""
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}", *options]
    try:
        return set(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split())
    except (OSError, subprocess.SubprocessError) as error:
        log.warning(f"squeue: expected the queue; got {' '.join(str(getattr(error, 'stderr', '') or error).split())}")
        return None


class Slurm:
    """Stacks as elements of SLURM job arrays; neither `sacct` nor a returned pickle is needed to see them end."""

    cluster = "slurm"

    def __init__(self, folder: Path, pool: Pool, ask: Resources, *, wait: bool) -> None:
        self.folder, self.pool, self.ask, self.wait = folder, pool, ask, wait

    def machine(self, here: Callable[[], Machine]) -> Machine:
        return Machine(device="cuda" if self.ask.gpus else "cpu", places=1, free=1e9 * self.ask.mem_gb)

    @cached_property
    def scratch(self) -> Path:
        """A new folder for submitit, for a restarted controller begins at job 1 again; raises if a job writes here."""
        if others := queued(f"--name={array_name(self.folder)}", "--states=PENDING,RUNNING,SUSPENDED"):
            ids = " ".join(sorted({i.split("_")[0] for i in others}))
            writes = Words(f"one that SLURM job {ids} writes (to end it: scancel {ids})")
            raise SpecError(str(self.folder), "a sweep that no process is writing", writes)
        (self.folder / ".submitit").mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=time.strftime("%Y-%m-%d_%H-%M-%S_"), dir=self.folder / ".submitit"))

    def _submit(self, stacks: Sequence[Sequence[Job]], at_once: int, how: Mapping[str, Any]) -> list[Any]:
        """Submit stacks; a handle of submitit's for each."""
        import submitit

        ask, options = self.ask, {k: v for k, v in vars(self.ask.extra).items() if v is not None}
        executor = submitit.AutoExecutor(self.scratch, cluster=self.cluster, slurm_max_num_timeout=RESTARTS)
        executor.update_parameters(
            name=array_name(self.folder),
            timeout_min=ask.time,
            mem_gb=ask.mem_gb,
            cpus_per_task=ask.cpus,
            slurm_array_parallelism=at_once,
            slurm_signal_delay_s=min(NOTICE_SECONDS, 20 * ask.time),
            **({"gpus_per_node": ask.gpus} if ask.gpus else {}),
            **({"slurm_partition": ask.partition} if ask.partition else {}),
            **({"slurm_additional_parameters": options} if options else {}),
        )
        parts = [stacks[k : k + LARGEST_ARRAY] for k in range(0, len(stacks), LARGEST_ARRAY)]
        try:
            return [handle for part in parts for handle in executor.map_array(Element(ask.cpus, how), part)]
        except submitit.core.utils.FailedJobError as error:
            says = Words(" ".join(str(error).split()))
            raise SpecError("hydra.launcher.slurm", "what sbatch grants", says) from error

    def _alive(self, handles: Sequence[Any]) -> set[Any]:
        """Those that wait or run, as far as can be known."""
        ids = queued()
        return {handle for handle in handles if ids is None or handle.job_id in ids}

    def _cancel(self, handles: Sequence[Any]) -> None:
        """Have them leave checkpoints and end; returns when they have."""
        ids = [handle.job_id for handle in handles]
        for which in ("--state=PENDING", "--signal=INT"):
            subprocess.run(["scancel", "--quiet", which, *ids], check=False, timeout=60)
        until = time.monotonic() + NOTICE_SECONDS
        while self._alive(handles) and time.monotonic() < until:
            time.sleep(1)

    def run(
        self, stacks: Sequence[list[int]], job: Callable[[int], Job], *, workers: int, **how: Any
    ) -> Iterator[list[int]]:
        """Have the stacks worked off, as :meth:`nfexp.sweep.pool.Pool.run` does; without `wait` only submit them.

        The unfinished jobs of an element that is gone are tried again in halves, at last alone, then recorded as
        failed. Leaving the iteration early cancels what is queued and runs.
        """
        queue: list[list[int]] = [*stacks]
        running: dict[Any, tuple[list[int], list[Job]]] = {}
        missed: Counter[Any] = Counter()  # looks at the queue, one after the other, that found an element gone
        deaths: Counter[int] = Counter()
        try:
            while queue or running:
                if queue:
                    new = [[job(i) for i in task] for task in queue]
                    handles = self._submit(new, workers, how)
                    running |= dict(zip(handles, zip(queue, new, strict=True), strict=True))
                    queue = []
                if not self.wait:
                    self._announce(running)
                    running.clear()
                    return
                time.sleep(POLL_SECONDS)
                alive = self._alive([*running])
                missed = Counter({handle: missed[handle] + 1 for handle in running if handle not in alive})
                for handle, (task, jobs) in [*running.items()]:
                    left = unfinished(jobs)
                    if left and missed[handle] < 2:
                        continue
                    del running[handle]
                    if left:
                        log.warning(
                            f"SLURM job {handle.job_id} is gone; {len(left)} unfinished runs of its stack are tried "
                            f"again; its log: {handle.paths.stderr}"
                        )
                    reason = f"SLURM job {handle.job_id} ended without a record (log: {handle.paths.stderr})"
                    done = [i for k, i in enumerate(task) if k not in left]
                    for part, lost in after_death(task, [task[k] for k in left], deaths, reason):
                        if lost:
                            self.pool.call(lose, jobs, lost)
                            done += part
                        else:
                            queue.append(part)
                    if done:
                        yield done
        finally:
            if running:
                self._cancel([*running])

    def close(self) -> None:
        """Nothing is held open: what is queued or runs ends with :meth:`run`, or is to go on."""

    def _announce(self, running: Mapping[Any, object]) -> None:
        jobs = " ".join(sorted({handle.job_id.split("_")[0] for handle in running}))
        log.info(
            f"{len(running)} stacks are submitted as SLURM job {jobs}\n"
            f"  to watch them:            squeue --name={array_name(self.folder)}   (logs: {self.scratch})\n"
            f"  to collect what is there: {folder_command('nfexp-report', self.folder)}\n"
            f"  to train what is missing, once they have left the queue: {resume_command(self.folder)}"
        )
