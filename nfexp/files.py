"""One way to write a file: whole, or not at all.

One way to read one from elsewhere: bounded, checked, as data.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def _link(name: str, path: Path) -> None:
    """Give a file its name; raise FileExistsError if there is such a file, however late it came."""
    try:
        os.link(name, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(errno.EEXIST, "there is such a file", str(path)) from None
        os.rename(name, path)
    else:
        os.unlink(name)


@contextmanager
def replacing(path: Path, *, sync: bool = True, once: bool = False) -> Iterator[Path]:
    """Give a temporary name in the same folder to write to.

    On success it replaces `path`: a file that exists is whole.

    Without `sync` that holds for everything but a power cut. With `once` nothing is replaced:
    FileExistsError is raised if the file is there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder) / "note.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     os.listdir(folder)
    ['note.txt']
    """
    name = os.path.join(path.parent, f".{path.name}.{secrets.token_hex(8)}")
    try:
        # made here, not by mkstemp before: a Ctrl-C between the two would leave the file
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        yield Path(name)
        if sync:
            with open(name, "rb+") as file:
                os.fsync(file.fileno())
        os.chmod(name, 0o644)
        if once:
            _link(name, path)
        else:
            os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


_LIMITS = {  # what the system lacks, whatever file or process was asked for
    errno.EMFILE: ("open files", "leave to open more of them (ulimit -n)"),
    errno.ENFILE: ("open files", "a system that can open more of them"),
    errno.ENOMEM: ("memory", "more of it"),
    errno.EAGAIN: ("processes", "leave to start more of them (ulimit -u)"),
}
_OF_A_NAME = {
    errno.ENAMETOOLONG: "a shorter name",
    errno.EISDIR: "a file",
    errno.EIO: "a disk that works",
}


def trouble(
    error: OSError, expected: str, folder: object = "output folder"
) -> tuple[str, str, str]:
    """What went wrong with the system: the place, what was expected there, and what came.

    `expected` serves where it is the `folder`, or what lies in it, that could not be written.

    >>> trouble(PermissionError(errno.EACCES, "Permission denied", "/proc/x"), "a folder one can write to")
    ('/proc/x', 'a folder one can write to', 'Permission denied')
    >>> trouble(BrokenPipeError(errno.EPIPE, "Broken pipe"), "a folder one can write to")
    ('connection', 'a process that answers', 'Broken pipe')
    """
    said = error.strerror or " ".join(str(error).split()) or type(error).__name__
    place = str(error.filename or folder)
    if error.errno in _LIMITS:
        return *_LIMITS[error.errno], said
    if isinstance(error, ConnectionError | TimeoutError):
        return "connection", "a process that answers", said
    if isinstance(error, ChildProcessError):
        return "processes", "ones that live", said
    if error.errno in _OF_A_NAME:
        return place, _OF_A_NAME[error.errno], said
    if isinstance(error, PermissionError) and error.filename and os.path.isfile(error.filename):
        return place, "a file that nfexp may open", said
    if error.errno is None and error.filename is None:
        return "system", "what nfexp asked of it", said
    return place, expected, said


# No link is followed and no pipe is waited for (Windows has neither flag).
OPENING = os.O_RDONLY | sum(
    getattr(os, f"O_{flag}", 0) for flag in ("NOFOLLOW", "NONBLOCK", "CLOEXEC", "BINARY")
)


def open_plain(path: str | os.PathLike[str], limit: int) -> tuple[Any, os.stat_result]:
    """Open a regular file of at most `limit` bytes for reading.

    Gives the binary file and its status.

    Raises
    ------
    OSError
        If it cannot be opened.
    ValueError
        If it is a symbolic link, no regular file, or larger.
    """
    try:
        handle = os.open(path, OPENING)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("a symbolic link") from None
        raise
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("no regular file")
        if status.st_size > limit:
            raise ValueError(f"{status.st_size:,} bytes (at most {limit:,} are read)")
        return os.fdopen(handle, "rb"), status
    except BaseException:
        os.close(handle)
        raise


def read_plain(path: str | os.PathLike[str], limit: int) -> tuple[bytes, os.stat_result]:
    """The bytes of a regular file and its status; raises as :func:`open_plain`."""
    file, status = open_plain(path, limit)
    with file:
        return file.read(status.st_size), status


def parse_json(raw: bytes | str) -> Any:
    """JSON as the standard has it: UTF-8, keys once, no NaN, no half of a surrogate pair.

    >>> parse_json('{"kl": 0.5, "kl": 0.1}')
    Traceback (most recent call last):
    ValueError: the key 'kl' twice

    Raises
    ------
    ValueError
        For anything else, with the reason.
    """
    text = raw if isinstance(raw, str) else raw.decode("utf-8")
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # raises for half of a surrogate pair
    except RecursionError:
        raise ValueError("values nested too deeply") from None
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError(f"the key {_repeated(pairs)!r} twice")
    return values


def _repeated(pairs: list[tuple[str, Any]]) -> str:
    """The first key that comes a second time; "" if none does."""
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return key
        seen.add(key)
    return ""


def _no_constant(name: str) -> float:
    raise ValueError(f"the literal {name}")


def signature_of(path: str | None) -> tuple[object, ...]:
    """What tells that a file, or a file of a folder, was changed since it was last read.

    Nothing where there is none.
    """
    full_path = os.path.expanduser(path or "")
    try:
        status = os.stat(full_path)
        signature: tuple[object, ...] = (status.st_mtime_ns, status.st_size)
        if not os.path.isdir(full_path):
            return signature
        with os.scandir(full_path) as entries:
            entries_seen = []
            for entry in entries:
                status = entry.stat()
                entries_seen.append((entry.name, status.st_mtime_ns, status.st_size))
    except OSError:
        return ()
    return signature + tuple(sorted(entries_seen))
