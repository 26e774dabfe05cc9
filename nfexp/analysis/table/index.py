"""Which runs lie below a directory, and which of their records changed since they were last read."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from nfexp.analysis.table.records import LIMITS, ReportError
from nfexp.files import open_plain, replacing

CACHE = ".runs.cache"  # of records, beside runs.csv; deleting it changes no table
LOOKED_AT = 2000  # folders inside one that is not read, to say whether runs are there
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


def _regular(path: str, skipped: list[ReportError]) -> os.stat_result | None:
    """The status of a regular file; None where there is none, and a line in `skipped` where something else is."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        skipped.append(ReportError(path, "a readable file", getattr(error, "strerror", None) or error))
        return None
    if stat.S_ISREG(status.st_mode):
        return status
    kind = "a symbolic link, which is not followed" if stat.S_ISLNK(status.st_mode) else "no regular file"
    skipped.append(ReportError(path, "a file", kind))
    return None


def _below(folder: str) -> int:
    """How many runs and plans lie at or below a folder that is not read; only the first LOOKED_AT folders are asked."""
    found = 0
    pending = [folder]
    for _ in range(LOOKED_AT):
        if not pending:
            break
        here = pending.pop()
        found += any(os.path.lexists(os.path.join(here, name)) for name in ("result.json", "sweep.json"))
        with suppress(OSError), os.scandir(here) as entries:
            pending += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    return found


def _unread(folder: str, where: str) -> list[ReportError]:
    """The line that says what is not read in a folder, if anything is there."""
    n_places = _below(folder)
    if not n_places:
        return []
    places = "1 place" if n_places == 1 else f"{n_places} places"
    return [ReportError(folder, "no runs or sweeps", f"{places} {where}, not read unless named")]


def _is_inside(path: str, tops: Iterable[str | os.PathLike[str]]) -> bool:
    real = os.path.realpath(path)
    return any(os.path.commonpath([real, home]) == home for home in map(os.path.realpath, tops))


def search(
    top: str | os.PathLike[str],
    skipped: list[ReportError],
    tops: Iterable[str | os.PathLike[str]] = (),
) -> Iterator[Place]:
    """The places at or below `top`. What is not read and may hold runs gets a line in `skipped`.

    No symbolic link is followed (one that leads into `top` or `tops`, which are read, needs no line), no hidden folder
    is read, and none below a run: which of its files would belong to which run?
    """
    pending = [os.fspath(top)]
    while pending:
        here = pending.pop()
        result = _regular(os.path.join(here, "result.json"), skipped)
        plan = _regular(os.path.join(here, "sweep.json"), skipped)
        if result or plan:
            yield Place(here, identity(result) if result else None, plan is not None)
        try:
            with os.scandir(here) as entries:
                found = sorted(entries, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            skipped.append(ReportError(here, "a readable directory", error.strerror or error))
            continue
        for entry in found:
            hidden = entry.name.startswith(".")
            if entry.is_symlink():
                to_file = os.path.exists(entry.path) and not os.path.isdir(entry.path)
                said = hidden or entry.name in ("result.json", "sweep.json")
                if not (said or to_file or _is_inside(entry.path, [top, *tops])):
                    got = "a symbolic link, which is not followed (its target can be named beside this one)"
                    skipped.append(ReportError(entry.path, "a folder", got))
            elif not entry.is_dir(follow_symlinks=False) or entry.name == ".hydra":
                continue
            elif result is None and not hidden:
                pending.append(entry.path)
            else:
                skipped += _unread(entry.path, "in a hidden folder" if hidden else "below another run")


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
