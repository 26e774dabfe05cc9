"""Stacks through joblib: on loky's processes, a Dask cluster or a Ray cluster."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from typing import Any

from nfexp.spec import SpecError
from nfexp.sweep.executors import log_here, unfinished
from nfexp.sweep.planning import Machine, cores, threads_each
from nfexp.sweep.pool import Pool, told, work_at
from nfexp.sweep.worker import Job, following, leader

log = logging.getLogger(__name__)

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
        """Have the stacks worked off, as :meth:`nfexp.sweep.pool.Pool.run` does.

        Stacks whose process died (by loky all that were in hand then) go on in the local pool, which finds the run
        that did it; all others stay with the backend.
        """
        todo = deque(enumerate(stacks))
        begun: dict[int, tuple[list[int], list[Job]]] = {}
        while todo:
            results = self._results(todo, begun, job, workers, how)
            broken: Exception | None = None
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
    ) -> Generator[tuple[int | None, Exception | None], None, None]:  # fmt: skip
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
