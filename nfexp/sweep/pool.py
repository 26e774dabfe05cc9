"""The executor `local`: worker processes of this machine, each with one stack at a time."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

from nfexp.surroundings import environment, socket_folder
from nfexp.sweep.executors import Retries, Task, log_to_output, portable, unfinished, work_at
from nfexp.sweep.planning import Machine, pick, threads_each
from nfexp.sweep.stopping import ask_to_stop, is_asked_to_stop
from nfexp.sweep.worker import Job, give_up

log = logging.getLogger(__name__)


# --- Ctrl-C ----------------------------------------------------------------------------


@contextmanager
def _on_ctrl_c(handler: Any) -> Iterator[None]:
    """Handle SIGINT like this while the body runs; Python allows that in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _ctrl_c_as_message() -> Iterator[connection.Connection]:
    """A connection that can be read once Ctrl-C was pressed; a second one raises an error.

    So the first Ctrl-C interrupts no step of the body: it is waited for beside the answers of the
    workers.
    """
    heard, say = multiprocessing.Pipe(duplex=False)

    def note(*_: object) -> None:
        if heard.poll():
            raise KeyboardInterrupt
        say.send(None)

    with heard, say, _on_ctrl_c(note):
        yield heard


# --- In a worker -----------------------------------------------------------------------


class Answer(NamedTuple):
    """What comes back of a call: what it returned, or (`good` is False) the exception it raised."""

    good: bool
    value: Any


def _end_with(parent: Any) -> None:
    """Wait for the end of the parent, then tell this process to end as well."""
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _write_into(output: connection.Connection) -> None:
    """Have what this process writes, by whatever means, go into a pipe."""
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    output.close()


def _serve(pipe: connection.Connection, output: connection.Connection | None) -> None:
    """Life of a worker: call what comes, until the pipe closes, a SIGTERM comes or the parent dies.

    A call that is running then is finished. But training, which looks at :func:`is_asked_to_stop`,
    stops early.
    """
    busy = False

    def on_sigterm(*_: object) -> None:
        ask_to_stop()
        if not busy:  # it waits for a call: nothing will look at the flag
            raise SystemExit

    if output is not None:
        _write_into(output)
    # Ctrl-C reaches the whole process group; the parent decides what comes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, on_sigterm)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    log_to_output()
    with suppress(EOFError, BrokenPipeError):
        while not is_asked_to_stop():
            function, args, keywords = pipe.recv()
            busy = True
            try:
                answer = Answer(True, function(*args, **keywords))
            except Exception as error:
                if is_asked_to_stop():
                    return
                answer = Answer(False, portable(error))
            busy = False
            pipe.send(answer)


# --- Starting processes ----------------------------------------------------------------


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the main module from processes that start, which would run it again for nothing."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start_server(context: Any) -> None:
    """Start the process that workers are forked from. It loads torch meanwhile, and ignores Ctrl-C.

    This process itself cannot be forked: its threads would not be copied, but the locks that they
    hold would.
    """
    from multiprocessing import forkserver

    search_path = [str(Path(__file__).parents[2])]  # where this package lies
    if os.environ.get("PYTHONPATH"):
        search_path.append(os.environ["PYTHONPATH"])
    # The second is left out where numba is not installed.
    context.set_forkserver_preload(["nfexp.run", "nfexp.flows.kernels.compiled"])
    # The server inherits what holds now: the environment, the handler of SIGINT, the main module.
    variables = environment(PYTHONPATH=os.pathsep.join(search_path), PYTHONSAFEPATH="1")
    with variables, _on_ctrl_c(signal.SIG_IGN), _without_main():
        forkserver.ensure_running()


def _make_room_for_sockets() -> bool:
    """Have multiprocessing keep its sockets where their names fit, however long TMPDIR is.

    The address of a socket has about 100 characters at most. False if there is no such folder.
    """
    from multiprocessing import util

    folder = socket_folder()
    if folder is None:
        return False
    before = tempfile.tempdir
    tempfile.tempdir = folder
    try:
        util.get_temp_dir()  # makes the folder now, and keeps to it for the life of this process
    finally:
        tempfile.tempdir = before
    return True


# --- In the parent ---------------------------------------------------------------------


@dataclass
class _Worker:
    """A worker as its parent sees it; `task` is what it is working on."""

    place: int
    process: Any
    pipe: connection.Connection
    task: Task | None = None

    def send(self, function: Callable[..., Any], *args: Any, **keywords: Any) -> None:
        with suppress(OSError):  # that a worker is dead shows when its answer is read
            self.pipe.send((function, args, keywords))

    def answer(self) -> Answer | None:
        """The answer to a call; None if the worker has died."""
        try:
            answer: Answer = self.pipe.recv()
        except (EOFError, OSError):
            return None
        return answer


def _kill(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
    workers.clear()


class _Relay:
    """A pipe whose lines a thread writes to this process's own output, one after the other.

    So that workers do not write into the middle of a display.
    """

    END = "\0\n"

    def __init__(self) -> None:
        ours, self.theirs = multiprocessing.Pipe(duplex=False)
        self._is_empty = threading.Event()
        threading.Thread(target=self._copy, args=(ours,), daemon=True, name="nfexp-relay").start()

    def _copy(self, ours: connection.Connection) -> None:
        with ours, open(ours.fileno(), encoding="utf-8", errors="replace", closefd=False) as lines:
            for line in lines:
                if line == self.END:
                    self._is_empty.set()
                else:
                    sys.stdout.write(line)
                    sys.stdout.flush()

    def drain(self) -> None:
        """Wait until what has been written so far has been copied."""
        self._is_empty.clear()
        os.write(self.theirs.fileno(), self.END.encode())
        self._is_empty.wait(timeout=10)


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
        can_fork = has_server and _make_room_for_sockets()
        self.context: Any = multiprocessing.get_context("forkserver" if can_fork else "spawn")
        self.workers: list[_Worker] = []
        self._relay = _Relay() if relays and can_fork else None
        if can_fork:
            _start_server(self.context)
        weakref.finalize(self, _kill, self.workers)

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
        """Call a function in so many workers at the same time; what each returns, or what one raises."""
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
            with _ctrl_c_as_message() as ctrl_c:
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
            _kill(self.workers)

    def _have_workers(self, number: int) -> None:
        """Start workers until there are so many."""
        while len(self.workers) < number:
            self.workers.append(self._start(len(self.workers)))

    def _start(self, place: int) -> _Worker:
        ours, theirs = self.context.Pipe()
        name = f"nfexp-{place}"
        output = None if self._relay is None else self._relay.theirs
        process = self.context.Process(target=_serve, args=(theirs, output), daemon=True, name=name)
        with _without_main():
            process.start()
        theirs.close()  # or the pipe would stay open when the worker dies
        return _Worker(place, process, ours)

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

    def _hand_out(self, batch: _Batch, worker: _Worker, task: Task) -> None:
        worker.task = task
        jobs = batch.jobs(task)
        if task.lost is None:
            worker.send(work_at, worker.place, batch.threads, jobs, fail_fast=batch.fail_fast)
        else:
            worker.send(give_up, jobs, task.lost)

    def _collect(self, batch: _Batch, worker: _Worker) -> list[int]:
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

    def _replace(self, batch: _Batch, worker: _Worker, task: Task) -> list[int]:
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
        log.warning(f"a worker was {end}; {len(left)} unfinished runs of its stack are tried again")
        tasks = batch.retries.after_death(task.positions, left, f"its process was {end}")
        batch.queue.extendleft(reversed(tasks))  # extendleft turns the order round
        worker.pipe.close()
        self.workers[self.workers.index(worker)] = self._start(worker.place)
        return [i for i in task.positions if i not in left]
