"""Which runs lie below a directory, and which of their records changed since the last reading."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nfexp.files import open_plain, replacing
from nfexp.record.formats import LIMITS, PLAN, RESULT, ReportError, reason
from nfexp.spec import counted

CACHE = ".runs.cache"  # of records, beside runs.csv; deleting it changes no table
LOOKED_AT = 2000  # folders below an unread one that are searched, to say whether it holds runs
# ns; a younger record is not cached: it may change again within a tick of the clock, and look the
# same.
SETTLED = 2 * 10**9
NO_LINK = "a symbolic link, which is not followed"


@dataclass(frozen=True)
class Place:
    """A directory, and which records it holds."""

    folder: str
    result: str | None  # the identity of its result.json, if there is one
    plan: bool  # whether there is a sweep.json


def identity(status: os.stat_result) -> str:
    """What tells one state of a file from all others: its inode, its size and two times.

    No path is in it, so a sweep that moves keeps its cache; a copy has new inodes, so no cache
    travels with it.
    """
    # The time of the inode (ctime) comes last, where `write_cache` reads it. Nobody can set it
    # back, unlike the time of the content (mtime).
    facts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return "-".join(f"{number:x}" for number in facts)


def search(
    top: str | os.PathLike[str],
    skipped: list[ReportError],
    tops: Iterable[str | os.PathLike[str]] = (),
) -> Iterator[Place]:
    """The places at or below `top`. What is not read and may hold runs gets a line in `skipped`.

    Symbolic links are not followed. One that leads into `top` or `tops` needs no line, for what it
    leads to is read anyway. Hidden folders are not read. Nor are folders below a run: nobody could
    tell which of the two runs their files belong to.
    """
    named = [top, *tops]
    pending = [os.fspath(top)]
    while pending:
        here = pending.pop()
        place = _place(here, skipped)
        if place.result or place.plan:
            yield place
        for entry in _entries(here, skipped):
            hidden = entry.name.startswith(".")
            if entry.is_symlink():
                skipped += _unfollowed(entry, named)
            elif not entry.is_dir(follow_symlinks=False) or entry.name == ".hydra":
                continue
            elif hidden:
                skipped += _unread(entry.path, "in a hidden folder")
            elif place.result:
                skipped += _unread(entry.path, "below another run")
            else:
                pending.append(entry.path)


def _place(folder: str, skipped: list[ReportError]) -> Place:
    result = _regular(os.path.join(folder, RESULT), skipped)
    plan = _regular(os.path.join(folder, PLAN), skipped)
    return Place(folder, identity(result) if result else None, plan is not None)


def _regular(path: str, skipped: list[ReportError]) -> os.stat_result | None:
    """The status of a regular file, or None.

    Where something else has its name, `skipped` gets a line.
    """
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        skipped.append(ReportError(path, "a readable file", reason(error)))
        return None
    if stat.S_ISREG(status.st_mode):
        return status
    kind = NO_LINK if stat.S_ISLNK(status.st_mode) else "no regular file"
    skipped.append(ReportError(path, "a file", kind))
    return None


def _entries(folder: str, skipped: list[ReportError]) -> list[os.DirEntry[str]]:
    """The entries of a folder, the last name first.

    There are none, and `skipped` gets a line, if the folder cannot be read. :func:`search` takes
    the last of its pending folders first, so it reads folders in the order of their names.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name, reverse=True)
    except OSError as error:
        skipped.append(ReportError(folder, "a readable directory", reason(error)))
        return []


def _unfollowed(
    link: os.DirEntry[str],
    tops: Iterable[str | os.PathLike[str]],
) -> list[ReportError]:
    """The line that says that a link is not followed, if runs may lie there that are not read."""
    # `_regular` has already reported a record or a plan that is a link.
    if link.name.startswith(".") or link.name in (RESULT, PLAN):
        return []
    if not os.path.exists(link.path):
        return [ReportError(link.path, "a folder", f"{NO_LINK}, and leads nowhere")]
    to_file = not os.path.isdir(link.path)
    if to_file or _is_inside(link.path, tops):
        return []
    got = f"{NO_LINK} (its target can be named beside this one)"
    return [ReportError(link.path, "a folder", got)]


def _is_inside(path: str, tops: Iterable[str | os.PathLike[str]]) -> bool:
    real = os.path.realpath(path)
    for top in tops:
        home = os.path.realpath(top)
        if os.path.commonpath([real, home]) == home:
            return True
    return False


def _unread(folder: str, where: str) -> list[ReportError]:
    """The line that says what is not read in a folder, if anything is there."""
    n_places = _below(folder)
    if not n_places:
        return []
    got = f"{counted(n_places, 'place')} {where}, not read unless named"
    return [ReportError(folder, "no runs or sweeps", got)]


def _below(folder: str) -> int:
    """How many runs and plans lie at or below a folder, within its first LOOKED_AT folders."""
    n_places = 0
    pending = [folder]
    for _ in range(LOOKED_AT):
        if not pending:
            break
        here = pending.pop()
        if os.path.lexists(os.path.join(here, RESULT)) or os.path.lexists(os.path.join(here, PLAN)):
            n_places += 1
        with suppress(OSError), os.scandir(here) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
    return n_places


def read_cache(folder: str | os.PathLike[str], wanted: Collection[str]) -> dict[str, str]:
    """The records of the cache in `folder` with the identities in `wanted`, as JSON text.

    They must be checked as the files would be. A line is `identity JSON`; reading ends at a line
    that is longer than any record may be.
    """
    records: dict[str, str] = {}
    limit = 8 * LIMITS[RESULT]  # an escape has six letters for one byte
    try:
        with open_plain(os.path.join(folder, CACHE), 2**40)[0] as file:
            line = file.readline(limit)
            while line.endswith(b"\n"):
                key, _, text = line.partition(b" ")
                name = key.decode("ascii", "replace")
                if name in wanted:
                    records[name] = text.decode("ascii", "replace")
                line = file.readline(limit)
    except (OSError, ValueError):
        pass  # then every record is read from its file
    return records


def write_cache(folder: Path, records: dict[str, dict[str, Any]], started_ns: int) -> None:
    """Write the cache: `records` by identity, but none that changed just before `started_ns`."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / CACHE) as temporary, temporary.open("w", encoding="ascii") as file:
        for key, record in records.items():
            changed_ns = int(key.rpartition("-")[2], 16)
            if changed_ns < started_ns - SETTLED:
                file.write(f"{key} {json.dumps(record, separators=(',', ':'))}\n")
