"""Other ways than the local pool to have stacks worked off: SLURM through submitit; loky, Dask and Ray through joblib.

Each calls :func:`nfexp.work.work` somewhere and looks into the directories of the runs for what came of it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nfexp.record import outcome
from nfexp.spec import SpecError, Words, from_mapping, within
from nfexp.work import (
    Job,
    Machine,
    Pool,
    after_death,
    cores,
    following,
    leader,
    stop,
    threads_each,
    told,
    work,
    work_at,
)  # fmt: skip

log = logging.getLogger(__name__)

EXECUTORS = ("local", "slurm", "joblib")
BACKENDS = ("loky", "dask", "ray")
NEEDS = {"slurm": "submitit", "joblib": "joblib", "dask": "distributed", "ray": "ray"}  # extra → the module it brings

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


def check(executor: str, backend: str, wait: bool) -> None:
    """Raise for an engine that does not exist or cannot work here."""
    key = "hydra.launcher"
    for name, value, known in (("executor", executor, EXECUTORS), ("backend", backend, BACKENDS)):
        if value not in known:
            raise SpecError(f"{key}.{name}", f"one of {', '.join(known)}", value)
    if not isinstance(wait, bool) or (executor != "slurm" and not wait):
        raise SpecError(f"{key}.wait", "true, or false with executor=slurm", wait)
    for extra in (executor, backend if executor == "joblib" else "loky"):
        if extra in NEEDS and not find_spec(NEEDS[extra]):
            name = "executor" if extra == executor else "backend"
            raise SpecError(f"{key}.{name}", f"one that is installed (pip install 'nfexp[{extra}]')", extra)
    if executor == "slurm" and not shutil.which("sbatch"):
        raise SpecError(f"{key}.executor", "a machine that has sbatch, or another executor", executor)


def unfinished(jobs: Sequence[Job]) -> list[int]:
    """Positions of the jobs whose directories hold no record."""
    return [k for k, job in enumerate(jobs) if outcome(job.folder) is None]


def lose(jobs: Sequence[Job], reason: str) -> None:
    """Record jobs as failed."""
    work(jobs, lost=reason)


def log_here() -> None:
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)


# SLURM


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

        submitits = {s: signal.signal(s, note) for s in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)}
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
        """Have the stacks worked off, as :meth:`nfexp.work.Pool.run` does; without `wait` only submit them.

        The unfinished jobs of an element that is gone are tried again in halves, at last alone, then recorded as
        failed. Leaving the iteration early cancels what is queued and runs.
        """
        queue: list[list[int]] = [*stacks]
        running: dict[Any, tuple[list[int], list[Job]]] = {}
        missed: Counter[Any] = Counter()  # looks at the queue that found an element gone
        deaths: Counter[int] = Counter()
        try:
            while queue or running:
                if queue:
                    jobs = [[job(i) for i in task] for task in queue]
                    handles = self._submit(jobs, workers, how)
                    running |= dict(zip(handles, zip(queue, jobs, strict=True), strict=True))
                    queue = []
                if not self.wait:
                    self._announce(running)
                    running.clear()
                    return
                time.sleep(POLL_SECONDS)
                missed.update(set(running) - self._alive([*running]))
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

    def _announce(self, running: Mapping[Any, object]) -> None:
        jobs = " ".join(sorted({handle.job_id.split("_")[0] for handle in running}))
        log.info(
            f"{len(running)} stacks are submitted as SLURM job {jobs}\n"
            f"  to watch them:            squeue --name={array_name(self.folder)}   (logs: {self.scratch})\n"
            f"  to collect what is there: nfexp-report {self.folder}\n"
            f"  to train what is missing, once they have left the queue: nfexp-resume {self.folder}"
        )


# joblib

_one = threading.Lock()  # a Dask worker with several threads: a stack takes over the process's log


def train_stack(
    place: int, threads: int, jobs: Sequence[Job], how: Mapping[str, Any], led_by: str
) -> tuple[int | None, Exception | None]:
    """Work a stack off; errors are handed back, so that only the death of a process breaks joblib's loop.

    Training ends with a checkpoint once the process `led_by` is gone, which these processes would outlive.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    with _one, following(jobs[0].root, led_by):
        log_here()
        try:
            work_at(place, threads, jobs, **how)
        except Exception as error:
            return place, told(error)
    return place, None


Start = Callable[[Callable[[], Any]], "Future[Any]"]  # has a cluster call something


def _join_dask(opened: ExitStack, workers: int) -> tuple[int, Start]:
    """Connect to the cluster of ``DASK_SCHEDULER_ADDRESS``, or start one here; its workers, and how it is used."""
    import dask

    dask.config.set({"logging.distributed": "warning"})  # read when it is imported
    from distributed import Client, LocalCluster

    address = dask.config.get("scheduler-address", None)
    where = address or opened.enter_context(
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
    )
    try:
        client = opened.enter_context(Client(where))
        client.wait_for_workers(1, timeout=60)
    except OSError:
        raise SpecError("DASK_SCHEDULER_ADDRESS", "the address of a Dask scheduler with workers", address) from None
    return len(client.nthreads()), client.get_executor(pure=False).submit


def _join_ray(opened: ExitStack, workers: int) -> tuple[int, Start]:
    """Connect to the cluster of ``RAY_ADDRESS``, or start one here; its processors, and how it is used."""
    import ray

    address = os.environ.get("RAY_ADDRESS")
    try:
        ray.init(**({} if address else {"num_cpus": workers, "include_dashboard": False}))
    except OSError:
        raise SpecError("RAY_ADDRESS", "the address of a Ray cluster", address) from None
    opened.callback(ray.shutdown)
    remote = ray.remote(num_cpus=1)(lambda function: function())
    return int(ray.cluster_resources()["CPU"]), lambda function: remote.remote(function).future()


JOIN: dict[str, Callable[[ExitStack, int], tuple[int, Start]]] = {"dask": _join_dask, "ray": _join_ray}


def joblib_backend(start: Start) -> Any:
    """A backend of joblib's that hands tasks to a cluster; a task whose worker died gives None and the error.

    joblib's own for Dask waits for ever for such a task, Ray's gives back nothing before the end.
    """
    from joblib.parallel import ParallelBackendBase

    class Cluster(ParallelBackendBase):
        supports_retrieve_callback = True

        def effective_n_jobs(self, n_jobs: int) -> int:
            return n_jobs

        def submit(self, func: Callable[[], Any], callback: Callable[[Any], None]) -> Any:
            future = start(func)
            future.add_done_callback(callback)
            return future

        def retrieve_result_callback(self, out: Any) -> Any:
            return [(None, out.exception())] if out.exception() else out.result()

    return Cluster()


class Joblib:
    """Stacks through joblib, by one of its backends; what a process leaves that dies goes to the local pool."""

    def __init__(self, backend: str, pool: Pool, workers: int | None) -> None:
        self.backend, self.pool, self.workers = backend, pool, workers
        self.opened = ExitStack()
        weakref.finalize(self, self.opened.close)

    @cached_property
    def cluster(self) -> tuple[int, Start]:
        """The size of the cluster, which is joined here and left with :meth:`close`, and how it is used."""
        return JOIN[self.backend](self.opened, self.workers or cores())

    def machine(self, here: Callable[[], Machine]) -> Machine:
        """The cluster, each worker taken to be a place of a machine such as this one."""
        on = here()
        if self.backend not in JOIN:
            return on
        size = max(1, self.cluster[0])
        return replace(on, places=size, free=on.free * (size / on.places if on.device == "cpu" else 1))

    def close(self) -> None:
        self.opened.close()

    def run(
        self, stacks: Sequence[list[int]], job: Callable[[int], Job], *, workers: int, **how: Any
    ) -> Iterator[list[int]]:
        """Have the stacks worked off, as :meth:`nfexp.work.Pool.run` does.

        Stacks whose process died (by loky all that were in hand then) go on in the local pool, which finds the run
        that did it; all others stay with the backend.
        """
        todo = deque(enumerate(stacks))
        begun: dict[int, tuple[list[int], list[Job]]] = {}
        while todo:
            results, broken = self._results(todo, begun, job, workers, how), None
            try:
                for place, error in results:
                    if place is None:
                        broken = error
                    elif error:
                        raise error
                    else:
                        yield begun.pop(place)[0]
            finally:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # joblib's, that not all results were taken
                    results.close()
            if broken:
                if not begun:  # it cannot even begin
                    begun = {place: (task, [job(i) for i in task]) for place, task in todo}
                    todo.clear()
                left = [[task[k] for k in unfinished(jobs)] for task, jobs in begun.values()]
                done = [i for task, _ in begun.values() for i in task if not any(i in part for part in left)]
                begun = {}
                if done:
                    yield done
                left = [part for part in left if part]
                why = f"{type(broken).__name__}: {' '.join(str(broken).split())[:200]}"
                log.warning(f"{self.backend} lost {len(left)} stacks ({why}); they go on here")
                yield from self.pool.run(left, job, workers=min(workers, cores()), **how)

    def _results(
        self, todo: deque[tuple[int, list[int]]], begun: dict[int, tuple[list[int], list[Job]]],
        job: Callable[[int], Job], workers: int, how: Mapping[str, Any],
    ) -> Iterator[tuple[int | None, Exception | None]]:  # fmt: skip
        """What :func:`train_stack` gives back, as it comes; None and the error if its process died.

        Stacks move from `todo` to `begun` as they are handed out.
        """
        from joblib import Parallel, delayed, parallel_config

        def tasks() -> Iterator[Any]:
            while todo:
                place, task = todo.popleft()
                begun[place] = task, [job(i) for i in task]
                jobs = begun[place][1]
                yield delayed(train_stack)(place, threads_each(workers), jobs, how, leader(jobs[0].root or ""))

        how_many = {"n_jobs": max(2, workers), "pre_dispatch": workers}  # by one job joblib means this very process
        with parallel_config(backend=joblib_backend(self.cluster[1]) if self.backend in JOIN else self.backend):
            parallel = Parallel(**how_many, batch_size=1, return_as="generator_unordered")
        try:
            yield from parallel(tasks())
        except Exception as error:
            yield None, error
