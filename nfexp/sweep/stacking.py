"""Train many runs as stacks: which train together, by which executor, what came of each."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nfexp.record import Outcome, outcome
from nfexp.spec import Spec, SpecError, Words, run_id
from nfexp.sweep import executors
from nfexp.sweep.dry_run import Stacks
from nfexp.sweep.folder import locked
from nfexp.sweep.joblib import Joblib
from nfexp.sweep.planning import Machine, budget, machine, pick, plan_stacks, total_cost
from nfexp.sweep.pool import Pool
from nfexp.sweep.slurm import Resources, Slurm, resources
from nfexp.sweep.worker import Job

log = logging.getLogger(__name__)


class Executor(Protocol):
    """Trains stacks somewhere; what came of them stands in the directories of their runs."""

    def machine(self, look: Callable[[], Machine]) -> Machine:
        """The machine that one stack finds there; `look` looks at this one."""
        ...

    def run(
        self,
        stacks: Sequence[list[int]],
        job_of: Callable[[int], Job],
        *,
        workers: int,
        fail_fast: bool,
    ) -> Iterator[list[int]]:
        """Train the stacks (lists of positions); yield positions of jobs that are done with."""
        ...

    def close(self) -> None: ...


# --- What hydra.launcher says, checked -------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keys of `hydra.launcher`; conf/hydra/launcher/stack.yaml says what each means."""

    max_stack: int | None
    memory: float | None
    workers: int | None
    executor: str
    backend: str
    wait: bool
    slurm: Resources


def checked_options(values: Mapping[str, Any]) -> Options:
    """The options of a launcher.

    Raises
    ------
    SpecError
        For a value out of range, or an executor that does not exist or cannot work here.
    """
    for key in ("max_stack", "workers"):
        value = values[key]
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if value is not None and not is_count:
            raise SpecError(f"hydra.launcher.{key}", "an integer >= 1 or null", value)
    memory = values["memory"]
    if memory is not None and (not isinstance(memory, int | float) or not 0 < memory < math.inf):
        raise SpecError("hydra.launcher.memory", "a number of gigabytes > 0 or null", memory)
    executors.check(values["executor"], values["backend"], values["wait"])
    return Options(**{**values, "slurm": resources(values["slurm"])})


# --- The stacks of a sweep -------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The runs that a launcher is given: their specs, and how to find each one's folder and job.

    `on_end` is told of each run that is done with, and of its outcome if it left one.
    """

    specs: Sequence[Spec]
    folders: Sequence[str]
    job_of: Callable[[int], Job]
    on_end: Callable[[int, Outcome | None], None]

    def outcomes(self, positions: Sequence[int]) -> dict[int, Outcome]:
        """The outcomes in the directories of these runs, by position, where there are any.

        Raises
        ------
        SpecError
            If a directory holds another run.
        """
        ends = {}
        for i in positions:
            end = outcome(self.folders[i])
            if end is None:
                continue
            if end.run_id != run_id(self.specs[i]):
                got = Words("one that holds another run")
                raise SpecError(self.folders[i], "a new or empty folder", got)
            ends[i] = end
        return ends


class Stacking:
    """The stacks of one sweep and the processes that train them, which start at the first use.

    Parameters
    ----------
    options
        The keys of `hydra.launcher`.
    folder_now
        Gives the folder of the sweep, whose name is settled only when it is claimed.
    """

    def __init__(self, options: Options, folder_now: Callable[[], Path]) -> None:
        self.options = options
        self.folder_now = folder_now
        self._pool: Pool | None = None
        self._executor: Executor | None = None

    @property
    def folder(self) -> Path:
        return self.folder_now()

    @property
    def pool(self) -> Pool:
        """Worker processes of this machine; they serve every batch of jobs."""
        if self._pool is None:
            self._pool = Pool()
        return self._pool

    @property
    def executor(self) -> Executor:
        if self._executor is None:
            self._executor = self._new_executor()
        return self._executor

    def _new_executor(self) -> Executor:
        options = self.options
        if options.executor == "slurm":
            return Slurm(self.folder, self.pool, options.slurm, wait=options.wait)
        if options.executor == "joblib":
            return Joblib(options.backend, self.pool, options.workers)
        return self.pool

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function where torch is loaded: in a worker."""
        return self.pool.call(function, *args)

    def close(self) -> None:
        if self._executor is not None:
            self._executor.close()
        if self._pool is not None:
            self._pool.close()

    def stacks(self, specs: Sequence[Spec]) -> Stacks:
        """Which of these runs train together, how many stacks at a time, and in how much memory."""
        options = self.options
        devices = sorted({spec.device for spec in specs})

        def look() -> Machine:
            if devices == ["cpu"]:
                return machine(devices)
            found: Machine = self.call(machine, devices)  # it asks torch for GPUs
            return found

        on = self.executor.machine(look)
        workers = options.workers or min(on.places, len(specs))
        room = budget(on, workers, options.memory)
        positions = plan_stacks(
            specs,
            workers=workers,
            max_stack=options.max_stack,
            room=room,
            device=on.device,
        )
        at_once = workers
        if options.executor == "slurm" and options.workers is None:
            at_once = len(positions)  # SLURM finds a place for each
        return Stacks(positions=positions, at_once=min(at_once, len(positions)), room=room)

    def train(self, runs: Runs, *, fail_fast: bool) -> dict[int, Outcome]:
        """Train the runs that have no finished record; gives the outcomes of all, by position."""
        with locked(self.folder):
            ends = runs.outcomes(range(len(runs.specs)))
            rest = [i for i in range(len(runs.specs)) if i not in ends]
            if rest:
                self._train_rest(runs, rest, ends, fail_fast=fail_fast)
        return ends

    def _train_rest(
        self,
        runs: Runs,
        rest: Sequence[int],
        ends: dict[int, Outcome],
        *,
        fail_fast: bool,
    ) -> None:
        """Train the runs at the positions `rest` and put their outcomes into `ends`."""
        found = self.stacks(pick(runs.specs, rest))
        stacks = [pick(rest, positions) for positions in found.positions]
        finished = f"; {len(ends)} more are finished" if ends else ""
        log.info(f"{len(rest)} runs in {len(stacks)} stacks, {found.at_once} at a time{finished}")

        progress = Progress(pick(runs.specs, rest))
        working = self.executor.run(stacks, runs.job_of, workers=found.at_once, fail_fast=fail_fast)
        for done in working:
            new = runs.outcomes(done)
            ends |= new
            for i in done:
                runs.on_end(i, new.get(i))
            progress.add(pick(runs.specs, done))
            log.info(progress.line(list(ends.values()), len(runs.specs)))
            if fail_fast and any(end.status == "failed" for end in new.values()):
                break
        # Left early, an executor's generator must be closed now: so it cancels what is queued.
        if hasattr(working, "close"):
            working.close()


# --- Progress --------------------------------------------------------------------------


class Progress:
    """How far a sweep is, by the estimated cost of what is done."""

    def __init__(self, specs: Sequence[Spec]) -> None:
        self.total = total_cost(specs)
        self.done = 0.0
        self.begun = time.perf_counter()

    def add(self, specs: Sequence[Spec]) -> None:
        self.done += total_cost(specs)

    def line(self, ends: Sequence[Outcome], n_runs: int) -> str:
        counts = Counter(end.status for end in ends)
        elapsed = time.perf_counter() - self.begun
        left = elapsed * (self.total / self.done - 1)
        return (
            f"{len(ends)}/{n_runs} runs, {counts['diverged']} diverged, {counts['failed']} failed"
            f" · {clock(elapsed)} elapsed, about {clock(left)} left"
        )


def clock(seconds: float) -> str:
    """Minutes and seconds.

    >>> clock(75.2)
    '1:15'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
