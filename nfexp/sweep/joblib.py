"""The executor `joblib`: stacks on loky's processes, a Dask cluster or a Ray cluster."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from nfexp.spec import SpecError, counted
from nfexp.sweep.executors import log_to_output, portable, unfinished, work_at
from nfexp.sweep.planning import Machine, cores, pick, threads_each
from nfexp.sweep.pool import Pool
from nfexp.sweep.stopping import following, leader
from nfexp.sweep.worker import Job

log = logging.getLogger(__name__)

# A Dask worker may have several threads, but a stack takes over the log of its whole process.
_one_at_a_time = threading.Lock()


# --- In the process that trains --------------------------------------------------------


class Ended(NamedTuple):
    """How a call ended: the number of its stack, and the error it raised if it did.

    Without a number the process died, or could not be started; the error says how.
    """

    number: int | None
    error: Exception | None


def train_stack(
    number: int,
    threads: int,
    jobs: Sequence[Job],
    fail_fast: bool,
    led_by: str,
) -> Ended:
    """Train a stack; return its error, for one that is raised ends joblib's whole loop.

    These processes may outlive the command. So training stops with a checkpoint once the process
    `led_by` does not lead the sweep any more.
    """
    if threading.current_thread() is threading.main_thread():
        # Ctrl-C reaches the whole process group; the parent decides what comes of it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    with _one_at_a_time, following(jobs[0].root, led_by):
        log_to_output()
        try:
            work_at(number, threads, jobs, fail_fast=fail_fast)
        except Exception as error:
            return Ended(number, portable(error))
    return Ended(number, None)


# --- Clusters --------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """How many stacks a cluster trains at a time, and how it is given a function to call."""

    size: int
    submit: Callable[[Callable[[], Any]], Future[Any]]


def _join_dask(opened: ExitStack, workers: int) -> Cluster:
    """Connect to the cluster of ``DASK_SCHEDULER_ADDRESS``, or start one here."""
    import dask

    dask.config.set({"logging.distributed": "warning"})  # it is read when `distributed` is imported
    from distributed import Client, LocalCluster

    address = dask.config.get("scheduler-address", None)
    where = address
    if where is None:
        local = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
        where = opened.enter_context(local)
    try:
        client = opened.enter_context(Client(where))
        client.wait_for_workers(1, timeout=60)
    except OSError:
        expected = "the address of a Dask scheduler with workers"
        raise SpecError("DASK_SCHEDULER_ADDRESS", expected, address) from None
    # A pure function is called once for equal arguments: what failed before would not be tried
    # again.
    return Cluster(len(client.nthreads()), client.get_executor(pure=False).submit)


def _join_ray(opened: ExitStack, workers: int) -> Cluster:
    """Connect to the cluster of ``RAY_ADDRESS``, or start one here."""
    import ray

    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init()
        else:
            ray.init(num_cpus=workers, include_dashboard=False)
    except OSError:
        raise SpecError("RAY_ADDRESS", "the address of a Ray cluster", address) from None
    opened.callback(ray.shutdown)

    def call(function: Callable[[], Any]) -> Any:
        return function()

    remote = ray.remote(num_cpus=1)(call)

    def submit(function: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = remote.remote(function).future()
        return future

    return Cluster(int(ray.cluster_resources()["CPU"]), submit)


JOIN: dict[str, Callable[[ExitStack, int], Cluster]] = {"dask": _join_dask, "ray": _join_ray}


def joblib_backend(cluster: Cluster) -> Any:
    """A backend of joblib's that hands tasks to a cluster, and tells of workers that died.

    joblib's own backend for Dask waits for ever for such a task; Ray's gives back nothing before
    the end.
    """
    from joblib.parallel import ParallelBackendBase

    class Backend(ParallelBackendBase):
        supports_retrieve_callback = True

        def effective_n_jobs(self, n_jobs: int) -> int:
            return n_jobs

        def submit(self, func: Callable[[], Any], callback: Callable[[Any], None]) -> Any:
            future = cluster.submit(func)
            future.add_done_callback(callback)
            return future

        def retrieve_result_callback(self, out: Any) -> Any:
            """The results of a task, which joblib makes of one call."""
            error = out.exception()
            return [Ended(None, error)] if error else out.result()

    return Backend()


# --- The executor ----------------------------------------------------------------------


@dataclass
class _Batch:
    """One call of :meth:`Joblib.run`: by number, stacks to begin and those begun but not done."""

    todo: deque[tuple[int, list[int]]]
    job_of: Callable[[int], Job]
    workers: int
    fail_fast: bool
    begun: dict[int, list[int]] = field(default_factory=dict)

    def jobs(self, stack: Sequence[int]) -> list[Job]:
        return [self.job_of(i) for i in stack]


class Joblib:
    """Trains stacks by a backend of joblib's; those of a process that dies go on in the pool."""

    def __init__(self, backend: str, pool: Pool, workers: int | None) -> None:
        self.backend = backend
        self.pool = pool
        self.workers = workers
        self.opened = ExitStack()
        weakref.finalize(self, self.opened.close)

    @cached_property
    def cluster(self) -> Cluster | None:
        """The cluster, joined at the first use and left with :meth:`close`; None for loky."""
        if self.backend not in JOIN:
            return None
        return JOIN[self.backend](self.opened, self.workers or cores())

    def machine(self, look: Callable[[], Machine]) -> Machine:
        """The cluster, each of its workers taken to be a place of a machine such as this one."""
        here = look()
        if self.cluster is None:
            return here
        size = max(1, self.cluster.size)
        free = here.free_bytes
        if here.device == "cpu":  # the memory of all cores; that of a GPU is counted for each
            free *= size / here.places
        return replace(here, places=size, free_bytes=free)

    def close(self) -> None:
        self.opened.close()

    def run(
        self,
        stacks: Sequence[list[int]],
        job_of: Callable[[int], Job],
        *,
        workers: int,
        fail_fast: bool,
    ) -> Iterator[list[int]]:
        """Train the stacks and yield positions of finished jobs, as the local pool does.

        The stacks of a process that died (with loky all stacks in hand) go on in the local pool,
        which finds the run that killed it. All others stay with the backend.
        """
        batch = _Batch(deque(enumerate(stacks)), job_of, workers, fail_fast)
        while batch.todo:
            broken: Exception | None = None
            results = self._results(batch)
            try:
                for number, error in results:
                    if number is None:
                        broken = error
                    elif error is not None:
                        raise error
                    else:
                        yield batch.begun.pop(number)
            finally:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # joblib's, that not all results were taken
                    results.close()
            if broken is not None:
                yield from self._go_on_here(batch, broken)

    def _results(self, batch: _Batch) -> Generator[Ended, None, None]:
        """What :func:`train_stack` returns, as it comes; stacks that are taken go to `begun`."""
        from joblib import Parallel, delayed, parallel_config

        def calls() -> Iterator[Any]:
            threads = threads_each(batch.workers)
            while batch.todo:
                number, stack = batch.todo.popleft()
                batch.begun[number] = stack
                jobs = batch.jobs(stack)
                led_by = leader(jobs[0].root or "")
                yield delayed(train_stack)(number, threads, jobs, batch.fail_fast, led_by)

        backend = self.backend if self.cluster is None else joblib_backend(self.cluster)
        with parallel_config(backend=backend):
            parallel = Parallel(
                n_jobs=max(2, batch.workers),  # by one job joblib means this very process
                pre_dispatch=batch.workers,
                batch_size=1,
                return_as="generator_unordered",
            )
        try:
            yield from parallel(calls())
        except Exception as error:  # loky's, when a process dies
            yield Ended(None, error)

    def _go_on_here(self, batch: _Batch, broken: Exception) -> Iterator[list[int]]:
        """Train in the local pool what a broken backend has begun, or all if it cannot begin."""
        if not batch.begun:
            batch.begun.update(batch.todo)
            batch.todo.clear()
        done = []
        left = []
        for stack in batch.begun.values():
            part = pick(stack, unfinished(batch.jobs(stack)))
            done += [i for i in stack if i not in part]
            if part:
                left.append(part)
        batch.begun = {}
        if done:
            yield done
        text = " ".join(str(broken).split())[:200]
        why = f"{type(broken).__name__}: {text}"
        log.warning(
            f"{self.backend} lost {counted(len(left), 'stack')} ({why}); training goes on here"
        )
        workers = min(batch.workers, cores())
        yield from self.pool.run(left, batch.job_of, workers=workers, fail_fast=batch.fail_fast)
