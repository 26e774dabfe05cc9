"""How progress is shown: one live display on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from nfexp.spec import Spec
from nfexp.sweep.progress import Plain, Progress, View
from nfexp.sweep.standing import Clock, Standing

if TYPE_CHECKING:
    from nfexp.run import Observer
    from nfexp.train import State, Training

LOOK_SECONDS = 0.5  # between two looks at the stacks in work


def is_terminal() -> bool:
    """Whether standard output is a terminal on which a display can be redrawn."""
    try:
        shown = sys.stdout.isatty()
    except ValueError:  # it is closed
        return False
    return shown and os.environ.get("TERM", "") not in ("dumb", "unknown") and _has_rich()


def _has_rich() -> bool:
    return find_spec("rich") is not None


def new_view(*, live: bool) -> View:
    """The live display or, where that cannot be, plain lines."""
    if not live:
        return Plain()
    from nfexp.sweep.display import Live

    return Live()


@contextmanager
def shown(
    progress: Progress, look: Callable[[], Sequence[Standing]], *, live: bool
) -> Iterator[None]:
    """While the body runs, look at the stacks in work twice a second, and show them."""
    view = new_view(live=live)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(LOOK_SECONDS):
            view.show(progress, progress.in_work(look()))

    watcher = threading.Thread(target=watch, daemon=True, name="nfexp-progress")
    watcher.start()
    try:
        yield
    finally:
        done.set()
        view.close()
        watcher.join(timeout=10)


@contextmanager
def alone(spec: Spec, *, live: bool) -> Iterator[Observer]:
    """Show how far a single run is; gives what :func:`nfexp.run.run_stack` calls twice a second."""
    clock = Clock()
    now: list[Standing] = []

    def observe(training: Training, state: State) -> None:
        now[:] = [clock.standing(training, state)]

    with shown(Progress([spec]), lambda: list(now), live=live):
        yield observe
