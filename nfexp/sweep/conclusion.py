"""How a sweep ends: its report, the count of its runs, and what to do about missing ones."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from nfexp.commands import folder_command, resume_command
from nfexp.record import Outcome, RunFailed, outcome
from nfexp.spec import counted

log = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended a sweep in good order; the message says what is there and how to go on."""


def report(folder: Path, *, explorer: bool = True) -> None:
    """Make the tables, figures and pages of a finished sweep and print its claim table."""
    from nfexp import report as reporting

    options = [] if explorer else ["explorer=false"]
    try:
        reporting.main([str(folder), *options])
    except Exception:
        again = folder_command("nfexp-report", folder)
        log.exception(f"the runs are safe, but the report failed: make it again with {again}")


def report_on(
    folder: Path,
    folders: Mapping[int, str],
    *,
    explorer: bool = True,
) -> dict[int, Outcome | None]:
    """Report on a sweep if any of its runs has ended; gives the outcome of each, by number.

    `folders` holds the folder of each run, from that of the sweep; `explorer` asks for the page
    too.
    """
    ends = {}
    for number, run_folder in folders.items():
        ends[number] = outcome(folder / run_folder)
    if any(ends.values()):
        begun = time.perf_counter()
        report(folder, explorer=explorer)
        log.info(f"{time.perf_counter() - begun:.1f} s to report")
    log.info(summarise(ends))
    return ends


def raise_unless_complete(
    folder: Path,
    folders: Mapping[int, str],
    ends: Mapping[int, Outcome | None],
) -> None:
    """Raise :class:`nfexp.record.RunFailed` if a run failed or has not finished."""
    for number, end in ends.items():
        if end is not None and end.status == "failed":
            where = folder / folders[number]
            first = f"the first that failed: {where}: {end.reason}"
            raise RunFailed(f"{summarise(ends)}; {first}")
    if None in ends.values():
        raise RunFailed(f"{summarise(ends)}; {go_on(folder)}")


def go_on(folder: Path) -> str:
    """The advice to resume a sweep, with the command."""
    return f"go on with: {resume_command(folder)}"


def summarise(ends: Mapping[int, Outcome | None]) -> str:
    """How many runs there are, by status.

    >>> summarise({0: None, 1: None})
    '2 runs: 2 not finished'
    """
    counts: Counter[str] = Counter()
    for end in ends.values():
        counts["not finished" if end is None else end.status] += 1
    words = []
    for status, n in sorted(counts.items()):
        words.append(f"{n} {status}")
    return f"{counted(len(ends), 'run')}: {', '.join(words)}"
