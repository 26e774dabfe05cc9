"""Train many runs as stacks: which train together, by which executor, what came of each."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nfexp.record import Outcome, outcome
from nfexp.spec import Spec, SpecError, Words, counted, run_id
from nfexp.sweep import executors
from nfexp.sweep.dry_run import Stacks
from nfexp.sweep.folder import locked
from nfexp.sweep.joblib import Joblib
from nfexp.sweep.planning import Machine, budget, check_room, machine, pick, plan_stacks
from nfexp.sweep.pool import Pool
from nfexp.sweep.progress import Progress, plain_line
from nfexp.sweep.slurm import Resources, Slurm, resources
from nfexp.sweep.standing import Watch
from nfexp.sweep.views import is_terminal, shown
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
            self._pool = Pool(relays=is_terminal())
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

    def call_in_all(self, workers: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call a function in so many workers at the same time; what each returns."""
        return self.pool.call_in_all(workers, function, *args)

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
            this_machine: Machine = self.call(machine, devices)  # it asks torch for GPUs
            return this_machine

        on = self.executor.machine(look)
        workers = options.workers or min(on.places, len(specs))
        room = budget(on, workers, options.memory)
        check_room(specs, max(room, on.free_bytes))
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

    def _is_live(self) -> bool:
        """Whether progress is a live display: on a terminal that only this process writes to."""
        return is_terminal() and self.pool.relays and self.options.executor != "joblib"

    def _train_rest(
        self,
        runs: Runs,
        rest: Sequence[int],
        ends: dict[int, Outcome],
        *,
        fail_fast: bool,
    ) -> None:
        """Train the runs at the positions `rest` and put their outcomes into `ends`."""
        plan = self.stacks(pick(runs.specs, rest))
        stacks = [pick(rest, positions) for positions in plan.positions]
        finished = f"; {len(ends)} more finished" if ends else ""
        what = f"{counted(len(rest), 'run')} in {counted(len(stacks), 'stack')}"
        log.info(f"{what}, {plan.at_once} at a time{finished}")

        progress = Progress(pick(runs.specs, rest), list(ends.values()))
        watch = Watch(self.folder)
        working = self.executor.run(stacks, runs.job_of, workers=plan.at_once, fail_fast=fail_fast)
        try:
            with shown(progress, watch.look, live=self._is_live()):
                for done in working:
                    new = runs.outcomes(done)
                    ends |= new
                    for i in done:
                        runs.on_end(i, new.get(i))
                    progress.add(pick(runs.specs, done), list(new.values()))
                    if fail_fast and any(end.status == "failed" for end in new.values()):
                        break
        finally:
            watch.close()
        log.info(plain_line(progress, []))
        # After an early end the executor's generator must be closed, which cancels what is queued.
        if hasattr(working, "close"):
            working.close()
