"""The executor `local`: worker processes of this machine, each with one stack at a time."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import Any

from nfexp.spec import counted
from nfexp.sweep.executors import Retries, Task, unfinished, work_at
from nfexp.sweep.planning import Machine, pick, threads_each
from nfexp.sweep.processes import (
    Relay,
    Worker,
    ctrl_c_as_message,
    kill,
    make_room_for_sockets,
    serve,
    start_server,
    without_main,
)
from nfexp.sweep.worker import Job, give_up

log = logging.getLogger(__name__)


@dataclass
class _Batch:
    """One call of :meth:`Pool.run`: what waits for a worker, and what every task is given."""

    queue: deque[Task]
    job_of: Callable[[int], Job]
    threads: int
    fail_fast: bool
    retries: Retries = field(default_factory=Retries)

    def jobs(self, task: Task) -> list[Job]:
        return [self.job_of(i) for i in task.positions]


class Pool:
    """Worker processes that live as long as this object.

    They are forked from a server that has torch loaded, or spawned where there is none. The server
    starts at once, and nothing waits for it before the first call.

    With `relays` this process writes what they write, line by line; without, they do so themselves.
    """

    def __init__(self, *, relays: bool = False) -> None:
        has_server = "forkserver" in multiprocessing.get_all_start_methods()
        can_fork = has_server and make_room_for_sockets()
        self.context: Any = multiprocessing.get_context("forkserver" if can_fork else "spawn")
        self.workers: list[Worker] = []
        self._relay = Relay() if relays and can_fork else None
        if can_fork:
            start_server(self.context)
        weakref.finalize(self, kill, self.workers)

    @property
    def relays(self) -> bool:
        """Whether this process writes what its workers write."""
        return self._relay is not None

    def machine(self, look: Callable[[], Machine]) -> Machine:
        """This machine, as `look` finds it."""
        return look()

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in a worker; return what it returns, raise what it raises."""
        return self.call_in_all(1, function, *args)[0]

    def call_in_all(self, workers: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call a function in so many workers at the same time.

        What each returns, or what one raises.
        """
        self._have_workers(workers)
        asked = self.workers[:workers]
        for worker in asked:
            worker.send(function, *args)
        answers = [worker.answer() for worker in asked]
        values = []
        for answer in answers:
            if answer is None:
                raise RuntimeError(f"a worker process ended in {function.__name__}")
            if not answer.good:
                raise answer.value
            values.append(answer.value)
        return values

    def run(
        self,
        stacks: Sequence[list[int]],
        job_of: Callable[[int], Job],
        *,
        workers: int,
        fail_fast: bool,
    ) -> Iterator[list[int]]:
        """Train the stacks (lists of positions); yield the positions of finished jobs as they come.

        A worker that dies is replaced, and its unfinished jobs are tried again in halves, at last
        alone. A run that kills its process alone is recorded as failed. Leaving the iteration
        early, or a first Ctrl-C (which raises KeyboardInterrupt), lets the workers finish what
        they are writing; a second stops at once.

        Raises
        ------
        OSError
            If a directory cannot be written.
        """
        queue = deque(Task(stack) for stack in stacks)
        batch = _Batch(queue, job_of, threads_each(workers), fail_fast)
        finished = False
        try:
            self._have_workers(workers)
            # While this generator is suspended, Ctrl-C is only noted: the caller is not
            # interrupted either.
            with ctrl_c_as_message() as ctrl_c:
                yield from self._run(batch, workers, ctrl_c)
            finished = True
        finally:
            if not finished:
                self.close()
            if self._relay is not None:
                self._relay.drain()

    def close(self) -> None:
        """End the workers, each after what it is writing."""
        try:
            for worker in self.workers:
                worker.process.terminate()
            for worker in self.workers:
                worker.process.join()
        finally:  # a second Ctrl-C comes here while a worker is waited for
            kill(self.workers)

    def _have_workers(self, number: int) -> None:
        """Start workers until there are so many."""
        while len(self.workers) < number:
            self.workers.append(self._start(len(self.workers)))

    def _start(self, place: int) -> Worker:
        ours, theirs = self.context.Pipe()
        name = f"nfexp-{place}"
        output = None if self._relay is None else self._relay.theirs
        process = self.context.Process(target=serve, args=(theirs, output), daemon=True, name=name)
        with without_main():
            process.start()
        theirs.close()  # or the pipe would stay open when the worker dies
        return Worker(place, process, ours)

    def _run(
        self,
        batch: _Batch,
        n_workers: int,
        ctrl_c: connection.Connection,
    ) -> Iterator[list[int]]:
        """Hand out tasks and take answers until no task is left; yield as :meth:`run` does."""
        while True:
            busy = []
            for worker in self.workers[:n_workers]:
                if worker.task is None and batch.queue:
                    self._hand_out(batch, worker, batch.queue.popleft())
                if worker.task is not None:
                    busy.append(worker)
            if not busy:
                return
            pipes = [worker.pipe for worker in busy]
            ready = connection.wait([ctrl_c, *pipes])
            if ctrl_c in ready:
                raise KeyboardInterrupt
            for worker in busy:
                if worker.pipe in ready:
                    done = self._collect(batch, worker)
                    if done:
                        yield done

    def _hand_out(self, batch: _Batch, worker: Worker, task: Task) -> None:
        worker.task = task
        jobs = batch.jobs(task)
        if task.lost is None:
            worker.send(work_at, worker.place, batch.threads, jobs, fail_fast=batch.fail_fast)
        else:
            worker.send(give_up, jobs, task.lost)

    def _collect(self, batch: _Batch, worker: Worker) -> list[int]:
        """Take the answer of a worker, or its death; positions of the jobs that are done."""
        task = worker.task
        assert task is not None  # only a busy worker is asked
        answer = worker.answer()
        if answer is None:
            return self._replace(batch, worker, task)
        if not answer.good:
            raise answer.value
        worker.task = None
        return task.positions

    def _replace(self, batch: _Batch, worker: Worker, task: Task) -> list[int]:
        """Put what a dead worker left first in the queue, start another; gives what it finished."""
        worker.process.join()
        code = worker.process.exitcode
        if code < 0:
            end = f"killed by {signal.Signals(-code).name}"
        else:
            end = f"ended with exit code {code}"
        if task.lost is not None:  # it had nothing to train, and died all the same
            raise RuntimeError(f"worker processes are {end} whatever they do")

        jobs = batch.jobs(task)
        left = pick(task.positions, unfinished(jobs))
        unfinished_runs = counted(len(left), "unfinished run")
        log.warning(f"a worker was {end}; trying {unfinished_runs} of its stack again")
        tasks = batch.retries.after_death(task.positions, left, f"its process was {end}")
        batch.queue.extendleft(reversed(tasks))  # extendleft turns the order round
        worker.pipe.close()
        self.workers[self.workers.index(worker)] = self._start(worker.place)
        return [i for i in task.positions if i not in left]
