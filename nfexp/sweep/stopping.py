"""When a process that trains is to stop: it is told to, or the leader of its sweep is gone."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOLDER = ".lock-holder"  # file in the folder of a sweep: which process leads it
LOOK_SECONDS = 1.0  # between two looks at that file

_stop = threading.Event()


def ask_to_stop() -> None:
    """Tell this process to stop: training then leaves checkpoints and raises `Interrupted`."""
    _stop.set()


def is_asked_to_stop() -> bool:
    """Whether this process has been told to stop: by a signal, or by the end of its parent."""
    return _stop.is_set()


def this_process() -> str:
    """This process as the holder file names it, such as "process 4711 on myhost"."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def is_running(pid: int) -> bool:
    """Whether a process of this machine is running.

    A zombie is not: it has ended, and only its parent has not yet asked how.

    >>> is_running(os.getpid())
    True
    """
    try:
        os.kill(pid, 0)  # signal 0 sends nothing, but raises if there is no such process
    except PermissionError:
        return True  # another user's process
    except (OSError, OverflowError):
        return False
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True  # a system without /proc
    # The fields are "pid (command) state …", and a command may hold spaces and brackets of its own.
    state = status.rpartition(")")[2].split()[0]
    return state not in ("Z", "X")


def leader(root: str | os.PathLike[str]) -> str:
    """The process that leads the sweep in a folder, as :func:`this_process` names it, or "".

    A process that was killed leaves its name behind. It counts as gone if that can be found out,
    which is only possible on its own host.

    >>> leader("/nowhere")
    ''
    """
    try:
        name = (Path(root) / HOLDER).read_text(encoding="utf-8").strip()
        _, number, _, host = name.split(" ")
        pid = int(number)
    except (OSError, ValueError):
        return ""
    if host == socket.gethostname() and not is_running(pid):
        return ""
    return name


@contextmanager
def following(root: str | None, led_by: str) -> Iterator[None]:
    """In the body, tell this process to stop once `led_by` does not lead the sweep in `root`."""
    done = threading.Event()

    def watch(folder: str) -> None:
        while not done.wait(LOOK_SECONDS):
            if leader(folder) != led_by:
                ask_to_stop()
                return

    watcher = None
    if root is not None and led_by:
        watcher = threading.Thread(target=watch, args=(root,), daemon=True)
        watcher.start()
    try:
        yield
    finally:
        done.set()
        if watcher is not None:
            watcher.join()
        _stop.clear()  # the process of a cluster lives on, and trains for other sweeps
