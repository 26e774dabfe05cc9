"""Drawing in several processes: most of a report's time goes into its figures."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from nfexp.report.figures.writing import Drawing, draw

MOST_PROCESSES = 4
WORTHWHILE = 5  # figures that are worth the start of a process
PACKAGE_FOLDER = Path(__file__).parents[3]  # where `nfexp` is imported from


def draw_in_parallel(folder: Path, drawings: Mapping[str, Drawing]) -> None:
    """Draw into `folder` in this process and a few workers, one per core.

    If a worker fails, its share is drawn again here: an error in it is then raised as any other.
    """
    here, *others = _shares(drawings, _n_processes(len(drawings)))
    workers = [_start(folder, share) for share in others]
    try:
        draw(folder, here)
    except BaseException:
        for worker in workers:
            worker.kill()
            worker.wait()
        raise
    codes = [worker.wait() for worker in workers]  # all have ended before any error is raised
    for code, share in zip(codes, others, strict=True):
        if code != 0:
            draw(folder, share)


def _n_processes(n_drawings: int) -> int:
    if not sys.executable:  # Python inside another program
        return 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return min(cores, MOST_PROCESSES, 1 + n_drawings // WORTHWHILE)


def _shares(drawings: Mapping[str, Drawing], n: int) -> list[dict[str, Drawing]]:
    """The drawings dealt out to `n` processes in turn: neighbours take about as long."""
    items = list(drawings.items())
    return [dict(items[first::n]) for first in range(n)]


def _start(folder: Path, share: Mapping[str, Drawing]) -> subprocess.Popen[bytes]:
    """Start a worker: a plain interpreter that gets its share on standard input.

    Unlike a forked or spawned process pool it needs nothing of the calling program. It imports from
    the same folders as this process, but not from the working folder.
    """
    paths = [entry for entry in sys.path if os.path.isabs(entry)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, str(PACKAGE_FOLDER)])}
    command = [sys.executable, "-P", "-m", "nfexp.report.figures.worker"]
    with tempfile.TemporaryFile() as file:
        pickle.dump((folder, share), file)
        file.seek(0)
        return subprocess.Popen(command, stdin=file, stderr=subprocess.DEVNULL, env=environment)
