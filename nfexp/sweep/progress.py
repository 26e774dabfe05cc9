"""How far a sweep is, in numbers and in plain lines."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from nfexp.flows.cost import training_cost
from nfexp.record import Outcome
from nfexp.spec import Spec, counted, run_id
from nfexp.sweep.planning import run_cost
from nfexp.sweep.standing import Standing

log = logging.getLogger(__name__)

PLAIN_SECONDS = 30.0  # at least, between two plain lines


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any.

    >>> clock(75.2), clock(3 * 3600 + 65)
    ('1:15', '3:01:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Progress:
    """How far some runs are, by the estimated cost of what is done, stacks in work included.

    Parameters
    ----------
    specs
        The runs that are trained now.
    before
        The outcomes of runs that were finished before.
    """

    def __init__(self, specs: Sequence[Spec], before: Sequence[Outcome] = ()) -> None:
        self.n_runs = len(specs) + len(before)
        self.ends = Counter(end.status for end in before)
        self.begun = time.perf_counter()
        self._lock = threading.Lock()
        self._costs = {run_id(spec): run_cost(spec) for spec in specs}
        self._training = {run_id(spec): training_cost(spec) for spec in specs}
        self._done: set[str] = set()

    def add(self, specs: Sequence[Spec], ends: Sequence[Outcome]) -> None:
        """These runs are done with; those that left an outcome have ended so."""
        with self._lock:
            self._done.update(run_id(spec) for spec in specs)
            self.ends.update(end.status for end in ends)

    @property
    def n_ended(self) -> int:
        return sum(self.ends.values())

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.begun

    def in_work(self, standings: Sequence[Standing]) -> list[Standing]:
        """The stacks of these that have runs which are not done, the furthest first."""
        with self._lock:
            in_work = [s for s in standings if set(s.runs) & (self._costs.keys() - self._done)]
        return sorted(in_work, key=lambda s: -s.step / s.steps)

    def share(self, standings: Sequence[Standing]) -> float:
        """The share of the work that is done, by its estimated cost."""
        done, left = self._work(standings)
        return done / (done + left) if done + left > 0 else 1.0

    def seconds_left(self, standings: Sequence[Standing]) -> float:
        """About how long it takes from here at the pace so far; infinite if nothing is done yet.

        It is never less than the slowest stack in work needs.
        """
        done, left = self._work(standings)
        at_this_pace = self.elapsed * left / done if done > 0 else math.inf
        of_stacks = [s.seconds_left for s in standings if s.seconds_left < math.inf]
        return max([at_this_pace, *of_stacks])

    def _work(self, standings: Sequence[Standing]) -> tuple[float, float]:
        """The estimated cost of what was done since the beginning, and of what is left."""
        done = 0.0
        skipped = 0.0  # what earlier commands did of the stacks in work
        with self._lock:
            done += sum(self._costs[run] for run in self._done & self._costs.keys())
            for standing in standings:
                for run in set(standing.runs) & (self._costs.keys() - self._done):
                    per_step = self._training[run] / standing.steps
                    done += per_step * (standing.step - standing.begun_at)
                    skipped += per_step * standing.begun_at
        return done, max(0.0, sum(self._costs.values()) - done - skipped)

    def counts(self) -> str:
        """How many runs ended, and how.

        >>> Progress([]).counts()
        '0/0 runs, 0 diverged, 0 failed'
        """
        ends = self.ends
        return f"{self.n_ended}/{self.n_runs} runs, {ends['diverged']} diverged, {ends['failed']} failed"

    def times(self, standings: Sequence[Standing]) -> str:
        """The time so far, and about how much is left, where that is known."""
        said = f"{clock(self.elapsed)} elapsed"
        left = self.seconds_left(standings)
        if self.n_ended < self.n_runs and left < math.inf:
            said += f", about {clock(left)} left"
        return said


# --- Plain lines -----------------------------------------------------------------------


class View(Protocol):
    """Shows how far a sweep is, as often as it is called."""

    def show(self, progress: Progress, standings: Sequence[Standing]) -> None: ...

    def close(self) -> None: ...


class Plain:
    """Lines of the log.

    One when training has gone on for a while, and one at the end of a sweep.
    """

    def __init__(self) -> None:
        self._said = time.monotonic()

    def show(self, progress: Progress, standings: Sequence[Standing]) -> None:
        now = time.monotonic()
        if now - self._said >= PLAIN_SECONDS:
            self._said = now
            log.info(plain_line(progress, standings))

    def close(self) -> None:
        pass


def plain_line(progress: Progress, standings: Sequence[Standing]) -> str:
    """How far a sweep, or a single run, is, in one line."""
    at_work = progress.in_work(standings)
    if progress.n_runs == 1 and at_work:
        parts = [_step(at_work[0])]
    else:
        parts = [progress.counts()]
        if at_work:
            shares = ", ".join(f"{100 * s.step / s.steps:.0f}%" for s in at_work[:8])
            more = f" and {len(at_work) - 8} more" if len(at_work) > 8 else ""
            parts.append(f"{counted(len(at_work), 'stack')} in work: {shares}{more}")
    return " · ".join([*parts, progress.times(at_work)])


def _step(standing: Standing) -> str:
    said = f"step {standing.step:,} of {standing.steps:,}"
    if standing.best_nll is not None:
        said += f", best validation NLL {standing.best_nll:.4f} nats"
    return said
