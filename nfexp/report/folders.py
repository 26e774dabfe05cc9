"""Where a report is written: never through a link, never among the runs of another folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from nfexp.analysis.table import ReportError, cannot_write


def output_folder(dirs: Sequence[str | Path], out: str | Path | None) -> Path:
    """The folder to write to: `out`, or else the one that is read.

    Raises
    ------
    ReportError
        If several folders are read and none is named for the output, or one that holds other runs.
    """
    if not dirs:
        raise ReportError("dirs", "at least one directory", "none")
    if not all(map(os.path.isdir, dirs)):
        return Path(dirs[0])  # nothing is written: what is absent is said where it is read
    read = {os.path.realpath(folder) for folder in dirs}
    if out is None:
        if len(read) > 1:
            raise ReportError("out", "out=PATH, since several folders are read", "none")
        return Path(dirs[0])
    full_path = os.path.realpath(out)
    is_all_that_is_read = read == {full_path}
    if not is_all_that_is_read and (full_path in read or _holds_runs(full_path)):
        raise ReportError("out", "a folder without runs of its own", str(out))
    return Path(out)


def _holds_runs(folder: str) -> bool:
    names = ("result.json", "sweep.json")
    return any(os.path.lexists(os.path.join(folder, name)) for name in names)


def own_folder(folder: Path) -> Path:
    """Make a folder for output.

    Raises
    ------
    ReportError
        If it cannot be made, or is a symbolic link, which would lead the output elsewhere.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.is_symlink():
            folder.mkdir(exist_ok=True)
            return folder
    except OSError as error:
        raise cannot_write(folder, error) from error
    raise ReportError(folder, "a folder", "a symbolic link")
