"""Which runs lie below a directory, and which of their records changed since they were last read."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nfexp.analysis.table.records import LIMITS, ReportError
from nfexp.files import open_plain, replacing

CACHE = ".runs.cache"  # of records, beside runs.csv; deleting it changes no table
SETTLED = 2 * 10**9  # ns; a file that changed within a tick of the clock may change again and look the same


class Place(NamedTuple):
    """A directory with a result.json (its identity), a sweep.json (True), or both."""

    folder: str
    result: str | None
    plan: bool


def identity(status: os.stat_result) -> str:
    """What tells one state of a file from all others: its inode, size and times, of content and of inode.

    No path is in it, so a sweep that moves keeps its cache; a copy has new inodes, so no cache travels with it.
    """
    return "-".join(f"{n:x}" for n in (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns,
                                       status.st_ctime_ns))  # fmt: skip


def _regular(path: str) -> os.stat_result | None:
    try:
        status = os.lstat(path)
    except (OSError, ValueError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def search(top: str | os.PathLike[str], skipped: list[ReportError]) -> Iterator[Place]:
    """The places at or below `top`; no symlink is followed, what cannot be listed goes to `skipped`."""
    pending = [os.fspath(top)]
    while pending:
        here = pending.pop()
        result, plan = _regular(os.path.join(here, "result.json")), _regular(os.path.join(here, "sweep.json"))
        if result or plan:
            yield Place(here, identity(result) if result else None, plan is not None)
        if result is None:
            try:
                with os.scandir(here) as entries:
                    names = [e.name for e in entries if e.name[0] != "." and e.is_dir(follow_symlinks=False)]
            except OSError as error:
                skipped.append(ReportError(here, "a readable directory", error.strerror or error))
                continue
            pending += [os.path.join(here, name) for name in sorted(names, reverse=True)]


def read_cache(folder: str | os.PathLike[str], wanted: Collection[str]) -> dict[str, str]:
    """The records of the cache in `folder` whose identities are in `wanted`, as JSON text: to be checked as files are.

    Lines are `identity JSON`; one that is longer than any record may be ends the reading.
    """
    found: dict[str, str] = {}
    limit = 8 * LIMITS["result.json"]
    try:
        with open_plain(os.path.join(folder, CACHE), 2**40)[0] as file:
            while (line := file.readline(limit)).endswith(b"\n"):
                key, _, text = line.partition(b" ")
                if (name := key.decode("ascii", "replace")) in wanted:
                    found[name] = text.decode("ascii", "replace")
    except (OSError, ValueError):
        pass  # then every record is read from its file
    return found


def write_cache(folder: Path, records: dict[str, dict[str, Any]], started_ns: int) -> None:
    """Keep `records`, by identity; those that changed shortly before `started_ns` are left to be read again."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / CACHE) as temporary, temporary.open("w", encoding="ascii") as file:
        for key, record in records.items():
            if int(key.rpartition("-")[2], 16) < started_ns - SETTLED:
                file.write(f"{key} {json.dumps(record, separators=(',', ':'))}\n")
