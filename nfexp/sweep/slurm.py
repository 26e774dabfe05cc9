"""The executor `slurm`: stacks as elements of SLURM job arrays, through submitit."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nfexp.commands import folder_command, resume_command
from nfexp.spec import SpecError, Words, counted, from_mapping, within
from nfexp.sweep.executors import Retries, log_to_output, unfinished, work_at
from nfexp.sweep.planning import Machine, pick
from nfexp.sweep.pool import Pool
from nfexp.sweep.stopping import ask_to_stop
from nfexp.sweep.worker import Job, give_up

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0  # between two looks at the queue and the directories
LARGEST_ARRAY = 1000  # elements; SLURM's MaxArraySize is 1001 unless a site changes it
RESTARTS = 100  # times that a stack may run into its time limit
NOTICE_SECONDS = 90  # before the end of its time, when SLURM signals a stack to leave checkpoints


# --- What is asked for -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Extra:
    """Further options of `sbatch`, by their own names.

    For all others there are its environment variables, `SBATCH_…`.
    """

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
    """What SLURM is asked for, for each stack."""

    partition: str | None
    time: int = within(1, 525_600)  # minutes
    cpus: int = within(1, 4096)
    mem_gb: float = within(0, 1e5, exclusive=True)
    gpus: int = within(0, 64)
    extra: Extra


def resources(config: Mapping[str, Any]) -> Resources:
    """The checked `hydra.launcher.slurm`; its texts go into a script, so each must be one word."""
    if not isinstance(config, Mapping):
        raise SpecError("hydra.launcher.slurm", "a group of keys", config)
    checked = from_mapping(config, Resources, "hydra.launcher.slurm.")
    _check_word("partition", checked.partition)
    for name, value in vars(checked.extra).items():
        _check_word(f"extra.{name}", value)
    return checked


def _check_word(name: str, value: str | None) -> None:
    if value is not None and not re.fullmatch(r"[\w@%&|!*:=.,;/\[\]()+-]+", value):
        raise SpecError(f"hydra.launcher.slurm.{name}", "a word as sbatch takes it, or null", value)


# --- In the process that trains --------------------------------------------------------


@dataclass(frozen=True)
class Element:
    """What submitit calls with the jobs of one stack, in one element of a job array.

    Every signal makes it leave checkpoints. What comes then depends on the signal:

    - SIGUSR2, its time is up: submitit queues it again.
    - SIGTERM, it is to make room: it waits to be killed, for SLURM queues a preempted job again
      only if that does not end by itself.
    - SIGINT, the sweep was interrupted: it ends.
    """

    threads: int
    fail_fast: bool

    def __call__(self, jobs: Sequence[Job]) -> None:
        from nfexp.run import Interrupted

        log_to_output()
        heard: list[int] = []

        def note(signum: int, frame: object) -> None:
            heard.append(signum)
            ask_to_stop()

        requeue: Any = signal.signal(signal.SIGUSR2, note)  # submitit's own handler, needed below
        signal.signal(signal.SIGTERM, note)
        signal.signal(signal.SIGINT, note)
        try:
            work_at(0, self.threads, jobs, fail_fast=self.fail_fast)
        except Interrupted:
            if signal.SIGUSR2 in heard:
                requeue(signal.SIGUSR2, None)  # queues this element again, and ends the process
            while signal.SIGTERM in heard and signal.SIGINT not in heard:
                signal.pause()
            raise

    def checkpoint(self, jobs: Sequence[Job]) -> Any:
        """What submitit queues again: the same call.

        The folders of the runs say how far they are.
        """
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, jobs)


# --- SLURM's queue ---------------------------------------------------------------------


def array_name(folder: Path) -> str:
    """The name of the job arrays that train for the sweep in a folder."""
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()
    return f"nfexp-{digest[:10]}"


def queued(*options: str) -> set[str] | None:
    """Ids of this user's array elements in SLURM's queue; None if the queue cannot be asked now."""
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}", *options]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or error
        log.warning(f"squeue: expected the queue; got {' '.join(str(said).split())}")
        return None
    return set(answer.stdout.split())


def array_ids(ids: Iterable[str]) -> str:
    """The job arrays that elements belong to, as `scancel` takes them.

    >>> array_ids(["7_0", "7_1", "9"])
    '7 9'
    """
    arrays = {element.partition("_")[0] for element in ids}
    return " ".join(sorted(arrays))


# --- The executor ----------------------------------------------------------------------


@dataclass(eq=False)
class _Submitted:
    """A stack in the queue: positions of its jobs, the jobs, and submitit's handle of its element.

    `missed` counts the looks at the queue, one after the other, that did not find it there.
    """

    positions: list[int]
    jobs: list[Job]
    handle: Any
    missed: int = 0


@dataclass
class _Batch:
    """One call of :meth:`Slurm.run`: stacks to submit, and those submitted and not yet done."""

    queue: list[list[int]]
    job_of: Callable[[int], Job]
    at_once: int
    fail_fast: bool
    running: list[_Submitted] = field(default_factory=list)
    retries: Retries = field(default_factory=Retries)

    def jobs(self, positions: Sequence[int]) -> list[Job]:
        return [self.job_of(i) for i in positions]

    def handles(self) -> list[Any]:
        """Those of all stacks in the queue."""
        return [submitted.handle for submitted in self.running]


class Slurm:
    """Trains stacks as elements of SLURM job arrays.

    That an element has ended shows in the directories of its runs and in `squeue`; neither
    `sacct`, which many sites lack, nor the pickle that submitit returns is needed.
    """

    cluster = "slurm"

    def __init__(self, folder: Path, pool: Pool, ask: Resources, *, wait: bool) -> None:
        self.folder = folder
        self.pool = pool
        self.ask = ask
        self.wait = wait

    def machine(self, look: Callable[[], Machine]) -> Machine:
        """What one element is granted; this machine is not looked at."""
        device = "cuda" if self.ask.gpus else "cpu"
        return Machine(device=device, places=1, free_bytes=1e9 * self.ask.mem_gb)

    @cached_property
    def scratch(self) -> Path:
        """A folder for submitit, new for each command: a restarted controller reuses job numbers.

        Raises
        ------
        SpecError
            If a job in the queue writes this sweep.
        """
        writers = queued(f"--name={array_name(self.folder)}", "--states=PENDING,RUNNING,SUSPENDED")
        if writers:
            ids = array_ids(writers)
            got = Words(f"one that SLURM job {ids} writes (to end it: scancel {ids})")
            raise SpecError(str(self.folder), "a sweep that no process is writing", got)
        top = self.folder / ".submitit"
        top.mkdir(exist_ok=True)
        # Of mode 0700: what submitit unpickles there must be the user's own.
        return Path(tempfile.mkdtemp(prefix=time.strftime("%Y-%m-%d_%H-%M-%S_"), dir=top))

    def run(
        self,
        stacks: Sequence[list[int]],
        job_of: Callable[[int], Job],
        *,
        workers: int,
        fail_fast: bool,
    ) -> Iterator[list[int]]:
        """Train the stacks and yield positions of finished jobs, as the local pool does.

        The unfinished jobs of an element that is gone are tried again in halves, at last alone,
        then recorded as failed. Leaving the iteration early cancels what is queued and what runs.
        Without `wait` the stacks are only submitted.
        """
        batch = _Batch([*stacks], job_of, workers, fail_fast)
        try:
            while batch.queue or batch.running:
                self._submit_queue(batch)
                if not self.wait:
                    self._announce(batch.handles())
                    batch.running = []  # nothing is cancelled: it is to go on
                    return
                time.sleep(POLL_SECONDS)
                alive = self._alive(batch.handles())
                for submitted in [*batch.running]:
                    submitted.missed = 0 if submitted.handle in alive else submitted.missed + 1
                    done = self._collect(batch, submitted)
                    if done:
                        yield done
        finally:
            if batch.running:
                self._cancel(batch.handles())

    def close(self) -> None:
        """Nothing is held open: what is queued or runs ends with :meth:`run`, or is to go on."""

    def _submit_queue(self, batch: _Batch) -> None:
        """Submit all stacks that wait."""
        if not batch.queue:
            return
        stacks = [batch.jobs(positions) for positions in batch.queue]
        handles = self._submit(stacks, batch.at_once, batch.fail_fast)
        for positions, jobs, handle in zip(batch.queue, stacks, handles, strict=True):
            batch.running.append(_Submitted(positions, jobs, handle))
        batch.queue = []

    def _submit(self, stacks: Sequence[Sequence[Job]], at_once: int, fail_fast: bool) -> list[Any]:
        """Submit stacks; a handle of submitit's for each."""
        import submitit

        ask = self.ask
        executor = submitit.AutoExecutor(
            self.scratch,
            cluster=self.cluster,
            slurm_max_num_timeout=RESTARTS,
        )
        executor.update_parameters(
            name=array_name(self.folder),
            timeout_min=ask.time,
            mem_gb=ask.mem_gb,
            cpus_per_task=ask.cpus,
            slurm_array_parallelism=at_once,
            slurm_signal_delay_s=min(NOTICE_SECONDS, 20 * ask.time),  # a third of a very short time
            **self._optional_parameters(),
        )
        element = Element(ask.cpus, fail_fast)
        handles: list[Any] = []
        try:
            for first in range(0, len(stacks), LARGEST_ARRAY):
                handles += executor.map_array(element, stacks[first : first + LARGEST_ARRAY])
        except submitit.core.utils.FailedJobError as error:
            said = Words(" ".join(str(error).split()))
            raise SpecError("hydra.launcher.slurm", "what sbatch grants", said) from error
        return handles

    def _optional_parameters(self) -> dict[str, Any]:
        """What is asked for only if it is given: submitit would hand on an empty option."""
        parameters: dict[str, Any] = {}
        if self.ask.gpus:
            parameters["gpus_per_node"] = self.ask.gpus
        if self.ask.partition:
            parameters["slurm_partition"] = self.ask.partition
        extra = {}
        for name, value in vars(self.ask.extra).items():
            if value is not None:
                extra[name] = value
        if extra:
            parameters["slurm_additional_parameters"] = extra
        return parameters

    def _alive(self, handles: Sequence[Any]) -> set[Any]:
        """Those that wait or run, as far as can be known."""
        ids = queued()
        if ids is None:  # nothing is known, so nothing has ended
            return set(handles)
        return {handle for handle in handles if handle.job_id in ids}

    def _collect(self, batch: _Batch, submitted: _Submitted) -> list[int]:
        """Positions of a stack's jobs that are done with, once all are or its element is gone.

        An element counts as gone once two looks in a row have missed it. After the first, the
        records of one that has just ended may still be on their way through a network file system,
        and one that is queued again is missing from the queue for a moment.
        """
        left = unfinished(submitted.jobs)
        if left and submitted.missed < 2:
            return []
        batch.running.remove(submitted)
        positions = submitted.positions
        done = [i for k, i in enumerate(positions) if k not in left]
        if not left:
            return done

        handle = submitted.handle
        log.warning(
            f"SLURM job {handle.job_id} is gone; trying {counted(len(left), 'unfinished run')} of its "
            f"stack again; its log: {handle.paths.stderr}"
        )
        reason = f"SLURM job {handle.job_id} ended without a record (log: {handle.paths.stderr})"
        for task in batch.retries.after_death(positions, pick(positions, left), reason):
            if task.lost is None:
                batch.queue.append(task.positions)
            else:
                self.pool.call(give_up, submitted.jobs, task.lost)  # in a worker: it needs torch
                done += task.positions
        return done

    def _cancel(self, handles: Sequence[Any]) -> None:
        """Have them leave checkpoints and end; return when they have."""
        ids = [handle.job_id for handle in handles]
        for which in ("--state=PENDING", "--signal=INT"):
            subprocess.run(["scancel", "--quiet", which, *ids], check=False, timeout=60)
        until = time.monotonic() + NOTICE_SECONDS
        while self._alive(handles) and time.monotonic() < until:
            time.sleep(1)

    def _announce(self, handles: Sequence[Any]) -> None:
        ids = array_ids(handle.job_id for handle in handles)
        name = array_name(self.folder)
        again = resume_command(self.folder)
        log.info(
            f"submitted {counted(len(handles), 'stack')} as SLURM job {ids}\n"
            f"  to watch them:            squeue --name={name}   (logs: {self.scratch})\n"
            f"  to collect what is there: {folder_command('nfexp-report', self.folder)}\n"
            f"  to train what is missing, once they have left the queue: {again}"
        )
