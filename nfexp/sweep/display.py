"""The live display of a sweep on a terminal, by rich.

What is written meanwhile appears above it.
"""

from __future__ import annotations

import io
import logging
import math
import sys
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live as RichLive
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nfexp.sweep.progress import Progress
from nfexp.sweep.standing import Standing

BAR = 12  # columns of a bar
OTHER_LINES = 5  # of the display beside its stacks, and two of the terminal that stay free
WIDE = 100  # columns, from which on the sweep as a whole has a bar too
MARGIN = 4  # columns that stay free: a terminal writes ^C there, and would break a full line


class Size(NamedTuple):
    """Of a terminal."""

    columns: int
    rows: int


class _Console(Console):
    """A console that leaves the cursor alone: a process that is killed leaves a clean terminal."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


class _Above(io.TextIOBase):
    """A stream that prints whole lines above the display."""

    def __init__(self, console: Console, stream: Any) -> None:
        self.console = console
        self.stream = stream
        self._rest = ""
        self._lock = threading.Lock()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(self.stream.encoding)

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self.stream.fileno())

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self.console.print(Text(line), soft_wrap=True)
        return len(text)

    def finish(self) -> None:
        """Print a last line without an end."""
        if self._rest:
            self.write("\n")


def _short(n: float) -> str:
    """A rate in few letters.

    >>> _short(41_234), _short(950), _short(1.26)
    ('41k', '950', '1.3')
    """
    if n >= 10_000:
        return f"{n / 1000:.0f}k"
    return f"{n:.0f}" if n >= 10 else f"{n:.1f}"


def _stacks(standings: Sequence[Standing], n_shown: int) -> Table:
    """A row for each stack in work, as many as there is room for."""
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("stack in work", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("alive", justify="right", no_wrap=True)
    table.add_column("", width=BAR)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("best val. NLL", justify="right", no_wrap=True)
    table.add_column("steps/s", justify="right", no_wrap=True)
    for standing in standings[:n_shown]:
        best = "–" if standing.best_nll is None else f"{standing.best_nll:.4f}"
        step = f"{standing.step:,}/{standing.steps:,}"
        table.add_row(
            standing.architecture,
            f"{standing.alive}/{len(standing.runs)}",
            ProgressBar(total=standing.steps, completed=standing.step, width=BAR),
            "scoring" if standing.is_scoring else step,
            best,
            _short(standing.rate),
        )
    if len(standings) > n_shown:
        table.add_row(f"and {len(standings) - n_shown} more", "", "", "", "", "")
    return table


def renderable(progress: Progress, standings: Sequence[Standing], size: Size) -> RenderableType:
    """The stacks in work, then a line for the sweep as a whole; steps/s are member-steps."""
    whole = Table.grid(expand=True, padding=(0, 1, 0, 0))
    share = progress.share(standings)
    said = f"{math.floor(100 * share)}%  {progress.times(standings)}"
    cells: list[RenderableType] = [progress.counts()]
    whole.add_column(no_wrap=True)
    if size.columns >= WIDE:
        cells.append(ProgressBar(total=1.0, completed=share, width=BAR))
        whole.add_column(width=BAR)
    whole.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    whole.add_row(*cells, said)
    parts = [whole]
    if standings:
        n_shown = max(1, size.rows - OTHER_LINES)
        parts.insert(0, _stacks(standings, n_shown))
    return Constrain(Group(*parts), size.columns - MARGIN)


class Live:
    """The display at the foot of the terminal; it leaves nothing behind."""

    def __init__(self) -> None:
        self._streams = (sys.stdout, sys.stderr)
        console = _Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
        self.console = console
        self._live = RichLive(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._lock = threading.Lock()
        self._is_open = True
        self._live.start()
        sys.stdout = _Above(console, sys.stdout)
        if sys.stderr.isatty():
            sys.stderr = _Above(console, sys.stderr)
        self._move_logs(dict(zip(self._streams, (sys.stdout, sys.stderr), strict=True)))

    def show(self, progress: Progress, standings: Sequence[Standing]) -> None:
        with self._lock:
            if self._is_open:
                size = Size(self.console.width, self.console.height)
                shown = renderable(progress, standings, size)
                self._live.update(shown, refresh=True)

    def close(self) -> None:
        with self._lock:
            self._is_open = False
            ours = (sys.stdout, sys.stderr)
            for stream in ours:
                if isinstance(stream, _Above):
                    stream.finish()
            self._live.stop()
            sys.stdout, sys.stderr = self._streams
        self._move_logs(dict(zip(ours, self._streams, strict=True)))

    def _move_logs(self, streams: dict[Any, Any]) -> None:
        """Have the log written to other streams than now."""
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                continue
            if isinstance(handler, logging.StreamHandler) and handler.stream in streams:
                handler.setStream(streams[handler.stream])
