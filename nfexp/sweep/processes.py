"""Worker processes: how they start, what they do all their life, and how their parent sees them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

from nfexp.surroundings import environment, socket_folder
from nfexp.sweep.executors import Task, log_to_output, portable
from nfexp.sweep.stopping import ask_to_stop, is_asked_to_stop

# --- Ctrl-C ----------------------------------------------------------------------------


@contextmanager
def on_ctrl_c(handler: Any) -> Iterator[None]:
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
def ctrl_c_as_message() -> Iterator[connection.Connection]:
    """A connection that can be read once Ctrl-C was pressed; a second one raises an error.

    So the first Ctrl-C interrupts no step of the body: it is waited for beside the answers of the
    workers.
    """
    heard, say = multiprocessing.Pipe(duplex=False)

    def note(*_: object) -> None:
        if heard.poll():
            raise KeyboardInterrupt
        say.send(None)

    with heard, say, on_ctrl_c(note):
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


def serve(pipe: connection.Connection, output: connection.Connection | None) -> None:
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
def without_main() -> Iterator[None]:
    """Hide the main module from processes that start, which would run it again for nothing."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def start_server(context: Any) -> None:
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
    with variables, on_ctrl_c(signal.SIG_IGN), without_main():
        forkserver.ensure_running()


def make_room_for_sockets() -> bool:
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
class Worker:
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


def kill(workers: list[Worker]) -> None:
    for worker in workers:
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
    workers.clear()


class Relay:
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
