"""Many stacks, in worker processes of this machine."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
import types
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any

from nfexp.record import outcome
from nfexp.surroundings import environment, settle_streams, socket_folder
from nfexp.sweep.planning import Machine, threads_each
from nfexp.sweep.worker import Job, stopping, work
from nfexp.sweep.worker import stop as stop_here

log = logging.getLogger(__name__)

TRIES = 2  # deaths of a process before a run that was alone with it is given up


def _follow(parent: Any) -> None:
    connection.wait([parent])
    os.kill(os.getpid(), signal.SIGTERM)


def told(error: Exception) -> Exception:
    """An exception that survives the pipe, with the traceback as a note."""
    if not isinstance(error, OSError):
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        error = (ValueError if isinstance(error, ValueError) else RuntimeError)(text)
    error.add_note(traceback.format_exc())
    return error


def _serve(pipe: connection.Connection) -> None:
    """Life of a worker: call what comes, until the pipe ends, a SIGTERM comes or the parent dies.

    What is in hand then is finished, but for training, which asks :func:`stopping`.
    """
    busy = False

    def stop(*_: object) -> None:
        stop_here()
        if not busy:
            raise SystemExit

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, stop)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()
    settle_streams()
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    with suppress(EOFError, BrokenPipeError):
        while not stopping():
            function, args, keywords = pipe.recv()
            busy = True
            try:
                answer = True, function(*args, **keywords)
            except Exception as error:
                if stopping():
                    return
                answer = False, told(error)
            busy = False
            pipe.send(answer)


def work_at(place: int, threads: int, jobs: Sequence[Job], **how: Any) -> None:
    """:func:`work` with this many threads, on the GPU with this number where there are any."""
    import torch

    torch.set_num_threads(threads)
    if any(job.spec.device != "cpu" for job in jobs) and torch.cuda.is_available():
        torch.cuda.set_device(place % torch.cuda.device_count())
    work(jobs, **how)


@contextmanager
def _without_main() -> Iterator[None]:
    """What starts here does not run the main module of this program again: workers need nothing of it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _on_interrupt(handler: Any) -> Iterator[None]:
    """Handle Ctrl-C so, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _load_ahead(context: Any) -> None:
    """Start the server that workers are forked from: deaf to Ctrl-C, and loading torch while we go on."""
    from multiprocessing import forkserver

    places = [str(Path(__file__).parents[2])]
    if os.environ.get("PYTHONPATH"):
        places.append(os.environ["PYTHONPATH"])
    context.set_forkserver_preload(["nfexp.run", "nfexp.flows.kernels.compiled"])  # the last is left out without numba
    own = environment(PYTHONPATH=os.pathsep.join(places), PYTHONSAFEPATH="1")
    with own, _on_interrupt(signal.SIG_IGN), _without_main():
        forkserver.ensure_running()


def _make_room_for_sockets() -> bool:
    """Have multiprocessing keep its sockets where their names fit, however deep TMPDIR is; whether that can be done."""
    from multiprocessing import util

    folder = socket_folder()
    if folder is None:
        return False
    before = tempfile.tempdir
    tempfile.tempdir = folder
    try:
        util.get_temp_dir()  # made once, for the life of this process
    finally:
        tempfile.tempdir = before
    return True


def after_death(
    task: Sequence[int], left: list[int], deaths: Counter[int], how: str
) -> list[tuple[list[int], str | None]]:
    """What to do with the jobs that a dead process left: halves to try again, or a run given up, with the reason.

    `deaths` counts how often each job was in a process that died.
    """
    deaths.update(left)
    if len(task) == len(left) == 1 and deaths[left[0]] >= TRIES:
        return [(left, how)]
    half = (len(left) + 1) // 2
    return [(part, None) for part in (left[:half], left[half:]) if part]


@dataclass
class _Worker:
    place: int
    process: Any
    pipe: connection.Connection
    task: list[int] = field(default_factory=list)  # positions of the jobs in its hands
    lost: str | None = None

    def send(self, function: Callable[..., Any], *args: Any, **keywords: Any) -> None:
        with suppress(OSError):  # a dead worker shows when it is read
            self.pipe.send((function, args, keywords))

    def answer(self) -> tuple[bool, Any] | None:
        """Whether the call went well, with what it returned or raised; None from a worker that has died."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return None


def _kill(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
    workers.clear()


class Pool:
    """Worker processes that live as long as this object, each with one stack at a time.

    They are forked from a server that has torch loaded, or spawned where there is none; loading begins here and now,
    and nothing waits for it before the first call.
    """

    def __init__(self) -> None:
        forks = "forkserver" in multiprocessing.get_all_start_methods() and _make_room_for_sockets()
        self.context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        self.workers: list[_Worker] = []
        if forks:
            _load_ahead(self.context)
        weakref.finalize(self, _kill, self.workers)

    def _start(self, place: int) -> _Worker:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_serve, args=(theirs,), daemon=True, name=f"nfexp-{place}")
        with _without_main():
            process.start()
        theirs.close()
        return _Worker(place, process, ours)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a worker returns, or raises, for a call."""
        if not self.workers:
            self.workers.append(self._start(0))
        worker = self.workers[0]
        worker.send(function, *args)
        good, value = worker.answer() or (False, RuntimeError(f"a worker process ended in {function.__name__}"))
        if not good:
            raise value
        return value

    def run(
        self, stacks: Sequence[list[int]], job: Callable[[int], Job], *, workers: int, **how: Any
    ) -> Iterator[list[int]]:
        """Have the stacks (lists of positions) worked off; yield the positions of finished jobs as they come.

        A worker that dies is replaced, and its unfinished jobs are tried again in halves, at last alone; a run that
        kills its process alone is recorded as failed. Leaving the iteration early, or a first Ctrl-C (which then
        raises KeyboardInterrupt), lets the workers finish what they are writing; a second stops at once.

        Raises
        ------
        OSError
            If a directory cannot be written.
        """
        queue: deque[tuple[list[int], str | None]] = deque((stack, None) for stack in stacks)
        deaths: Counter[int] = Counter()
        heard, ctrl_c = multiprocessing.Pipe(duplex=False)

        def note(*_: object) -> None:
            if heard.poll():
                raise KeyboardInterrupt
            ctrl_c.send(None)

        finished = False
        try:
            while len(self.workers) < workers:
                self.workers.append(self._start(len(self.workers)))
            with _on_interrupt(note):
                while queue or any(worker.task for worker in self.workers):
                    for worker in self.workers[:workers]:
                        if queue and not worker.task:
                            worker.task, worker.lost = queue.popleft()
                            jobs = [job(i) for i in worker.task]
                            worker.send(work_at, worker.place, threads_each(workers), jobs, lost=worker.lost, **how)
                    busy: dict[Any, _Worker] = {worker.pipe: worker for worker in self.workers if worker.task}
                    ready = connection.wait([heard, *busy])
                    if heard in ready:
                        raise KeyboardInterrupt
                    for worker in (busy[pipe] for pipe in ready):
                        answer = worker.answer()
                        if answer is None:
                            if done := self._replace(worker, job, queue, deaths):
                                yield done
                        elif answer[0]:
                            done, worker.task = worker.task, []
                            yield done
                        else:
                            raise answer[1]
            finished = True
        finally:
            if not finished:
                self.close()

    def _replace(
        self, worker: _Worker, job: Callable[[int], Job], queue: deque[tuple[list[int], str | None]],
        deaths: Counter[int],
    ) -> list[int]:  # fmt: skip
        """Put what a dead worker left at the head of the queue and start another; positions of what it finished."""
        worker.process.join()
        code = worker.process.exitcode
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if worker.lost:
            raise RuntimeError(f"worker processes are {how} whatever they do")
        left = [i for i in worker.task if outcome(job(i).folder) is None]
        log.warning(f"a worker was {how}; {len(left)} unfinished runs of its stack are tried again")
        queue.extendleft(reversed(after_death(worker.task, left, deaths, f"its process was {how}")))
        worker.pipe.close()
        self.workers[self.workers.index(worker)] = self._start(worker.place)
        return [i for i in worker.task if i not in left]

    def machine(self, here: Callable[[], Machine]) -> Machine:
        """This one."""
        return here()

    def close(self) -> None:
        """End the workers, each after what it is writing."""
        try:
            for worker in self.workers:
                worker.process.terminate()
            for worker in self.workers:
                worker.process.join()
        finally:
            _kill(self.workers)
