"""What makes a command do the same wherever it runs: threads, streams, backends, folders.

Its surroundings may have other settings, an output without a reader or without our characters, a
matplotlib backend that is not installed, a deep folder for temporary files.
"""

from __future__ import annotations

import atexit
import gc
import io
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any

# By these a user says how many threads torch is to use
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# Set where nfexp chose their number, so that a process it started does not take it for the user's
OWN_THREADS = "NFEXP_DEFAULT_THREADS"


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """In the body, Python looks for no garbage: worth it where many objects are made that stay.

    Numba compiles in five sixths of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def end_quickly() -> None:
    """Have the process end without a last look for garbage.

    Among all that torch and numba made, it takes half a second to find nothing. Files are closed
    where they are written, and the system takes back the memory.
    """
    atexit.unregister(gc.freeze)  # once is enough, however many commands a process runs
    atexit.register(gc.freeze)


@contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """In the body, set environment variables; None takes one away."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def users_threads() -> int | None:
    """How many threads the user asks for in OMP_NUM_THREADS; None if nfexp is to choose.

    >>> with environment(OMP_NUM_THREADS="3", NFEXP_DEFAULT_THREADS=None):
    ...     users_threads()
    3
    """
    if OWN_THREADS in os.environ:
        return None
    for name in THREADS:
        said = os.environ.get(name, "").split(",")[0].strip()
        if said.isdecimal() and int(said) > 0:
            return int(said)
    return None


def _for_children() -> dict[str, str | None]:
    """The variables that a command sets for itself and for what it starts."""
    # With this no process imports from the working folder.
    values: dict[str, str | None] = {"PYTHONSAFEPATH": "1"}
    if users_threads() is None:
        values |= {"OMP_NUM_THREADS": "1", OWN_THREADS: "1"}
    return values


class _Patient:
    """A stream that drops what cannot be written, so that the work goes on; `trouble` says why.

    Each write is one call of the stream's own: a Ctrl-C within it leaves no line written twice.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self.stream = stream
        self.trouble: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except BlockingIOError:  # a slow reader, and not one that is gone
            raise
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except BlockingIOError:
            raise
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """From now on write into nothing.

        The descriptor is redirected, and not the stream closed: what its buffer still holds would
        otherwise be written, and fail, again at the end of the process.
        """
        self.trouble = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)
        self.stream.flush()


def _patient(stream: Any) -> Any:
    """The same stream, patient and with an escape for each character that its encoding lacks."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="backslashreplace")
    try:
        stream.fileno()
    except (OSError, ValueError):  # a program that collects its output in memory
        return stream
    return _Patient(stream)


def settle_streams() -> None:
    """Let standard output and error take every character, and outlive their readers."""
    sys.stdout = _patient(sys.stdout)
    sys.stderr = _patient(sys.stderr)


def settle_logs() -> None:
    """Let logs write UTF-8 into files, whatever the locale, and every character to streams."""
    for handler in logging.getLogger().handlers:
        stream = getattr(handler, "stream", None)
        if isinstance(handler, logging.FileHandler):
            handler.encoding = "utf-8"
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _unwritten(stream: Any) -> OSError | None:
    """Why output was lost, unless its reader had simply seen enough."""
    with suppress(OSError, ValueError, AttributeError):
        stream.flush()
    trouble = getattr(stream, "trouble", None)
    if isinstance(trouble, BrokenPipeError):
        return None
    return trouble


def command(main: Callable[..., Any]) -> Callable[..., Any]:
    """Make `main` the entry point of a command that does the same whatever surrounds it.

    Characters that the output cannot show are escaped. Once nobody reads the output (``| head -1``)
    the rest of it is dropped; the work goes on, and its own exit status counts. If the output fails
    otherwise (a full disk), the status is 1 at the end. Child processes do not import from the
    working folder, and have one thread each unless the user says otherwise. The process ends
    quickly.
    """

    @wraps(main)
    def settled(*arguments: Any, **keywords: Any) -> Any:
        end_quickly()
        streams = (sys.stdout, sys.stderr)
        errors = (getattr(sys.stdout, "errors", None), getattr(sys.stderr, "errors", None))
        settle_streams()
        try:
            with environment(**_for_children()):
                return main(*arguments, **keywords)
        finally:
            lost = None
            if sys.stdout is not streams[0]:
                lost = _unwritten(sys.stdout)
            if lost is not None:
                expected = "expected one that can be written"
                sys.stderr.write(f"standard output: {expected}; got {lost.strerror}\n")
            _unwritten(sys.stderr)
            sys.stdout, sys.stderr = streams
            for stream, before in zip(streams, errors, strict=True):
                if isinstance(stream, io.TextIOWrapper):
                    stream.reconfigure(errors=before)
            if lost is not None:
                raise SystemExit(1)

    return settled


def load_matplotlib() -> None:
    """Import matplotlib, whatever backend the surroundings name.

    A notebook's ``!nfexp`` inherits one that may not be installed here, which makes the import
    fail. One that is installed stays the user's choice; nfexp draws by Agg, on its own canvases.
    """
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.get("MPLBACKEND")
    with environment(MPLBACKEND=None):
        import matplotlib
    if backend:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


# In bytes: a socket's address has at most 107, on some systems 103, and multiprocessing adds to it
LONGEST_SOCKET_FOLDER = 60


def socket_folder() -> str | None:
    """A folder for temporary files with a name short enough for sockets; None if there is none.

    >>> len(socket_folder() or "") <= LONGEST_SOCKET_FOLDER
    True
    """
    for folder in (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"):
        is_short = len(os.fsencode(folder)) <= LONGEST_SOCKET_FOLDER
        if is_short and os.access(folder, os.W_OK | os.X_OK):
            return folder
    return None
