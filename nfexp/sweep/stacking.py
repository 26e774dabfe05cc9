"""Train many runs as stacks: which of them train together, who executes them, and what came of each."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nfexp.flows.cost import training_cost
from nfexp.record import Outcome, outcome
from nfexp.spec import Spec, SpecError, Words, run_id
from nfexp.sweep import executors
from nfexp.sweep.dry_run import Stacks
from nfexp.sweep.folder import locked
from nfexp.sweep.joblib import Joblib
from nfexp.sweep.planning import Machine, budget, machine, plan
from nfexp.sweep.pool import Pool
from nfexp.sweep.slurm import Resources, Slurm, resources
from nfexp.sweep.worker import Job

log = logging.getLogger(__name__)

JobOf = Callable[[int], Job]  # by its position


class Executor(Protocol):
    """Trains stacks somewhere; what came of them stands in the directories of their runs."""

    def machine(self, here: Callable[[], Machine]) -> Machine:
        """The machine that one stack finds there; `here` looks at this one."""
        ...

    def run(self, stacks: Sequence[list[int]], job: JobOf, *, workers: int, fail_fast: bool) -> Iterator[list[int]]:
        """Yield the positions of jobs as they are done with."""
        ...

    def close(self) -> None: ...


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


def checked(values: Mapping[str, Any]) -> Options:
    """The options of a launcher.

    Raises
    ------
    SpecError
        For a value out of range, or an executor that does not exist or cannot work here.
    """
    for key in ("max_stack", "workers"):
        value = values[key]
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise SpecError(f"hydra.launcher.{key}", "an integer >= 1 or null", value)
    memory = values["memory"]
    if memory is not None and (not isinstance(memory, int | float) or not 0 < memory < math.inf):
        raise SpecError("hydra.launcher.memory", "a number of gigabytes > 0 or null", memory)
    executors.check(values["executor"], values["backend"], values["wait"])
    return Options(**{**values, "slurm": resources(values["slurm"])})


class Stacking:
    """The stacks of one sweep and the processes that train them; they start at the first use.

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

        def here() -> Machine:
            if devices == ["cpu"]:
                return machine(devices)
            found: Machine = self.call(machine, devices)  # asks torch for GPUs
            return found

        on = self.executor.machine(here)
        workers = options.workers or min(on.places, len(specs))
        room = budget(on, workers, options.memory)
        positions = plan(specs, workers=workers, max_stack=options.max_stack, room=room, device=on.device)
        at_once = options.workers or (len(positions) if options.executor == "slurm" else workers)
        return Stacks(positions=positions, at_once=min(at_once, len(positions)), room=room)

    def train(
        self,
        specs: Sequence[Spec],
        folders: Sequence[str],
        job_of: JobOf,
        *,
        fail_fast: bool,
        on_end: Callable[[int, Outcome | None], None],
    ) -> dict[int, Outcome]:
        """Train what has no finished record; gives the outcomes by position, and tells `on_end` of each new one."""
        with locked(self.folder):
            ends = self._outcomes(specs, folders, range(len(specs)))
            rest = [i for i in range(len(specs)) if i not in ends]
            if rest:
                self._train_rest(specs, folders, job_of, rest, ends, fail_fast=fail_fast, on_end=on_end)
        return ends

    def _train_rest(
        self,
        specs: Sequence[Spec],
        folders: Sequence[str],
        job_of: JobOf,
        rest: Sequence[int],
        ends: dict[int, Outcome],
        *,
        fail_fast: bool,
        on_end: Callable[[int, Outcome | None], None],
    ) -> None:
        found = self.stacks([specs[i] for i in rest])
        stacks = [[rest[i] for i in stack] for stack in found.positions]
        finished = f"; {len(ends)} more are finished" if ends else ""
        log.info(f"{len(rest)} runs in {len(stacks)} stacks, {found.at_once} at a time{finished}")
        progress = Progress([specs[i] for i in rest])
        working = self.executor.run(stacks, job_of, workers=found.at_once, fail_fast=fail_fast)
        for part in working:
            new = self._outcomes(specs, folders, part)
            ends |= new
            for i in part:
                on_end(i, new.get(i))
            progress.add([specs[i] for i in part])
            log.info(progress.line(list(ends.values()), len(specs)))
            if fail_fast and any(end.status == "failed" for end in new.values()):
                break
        if hasattr(working, "close"):
            working.close()  # a generator: what is queued is cancelled

    def _outcomes(self, specs: Sequence[Spec], folders: Sequence[str], some: Sequence[int]) -> dict[int, Outcome]:
        """The outcomes that stand in the directories of some of the runs."""
        ends = {}
        for i in some:
            end = outcome(folders[i])
            if end is None:
                continue
            if end.run_id != run_id(specs[i]):
                raise SpecError(folders[i], "a new or empty folder", Words("one that holds another run"))
            ends[i] = end
        return ends


class Progress:
    """How far a sweep is, by the cost of what is done."""

    def __init__(self, specs: Sequence[Spec]) -> None:
        self.total = sum(training_cost(spec) for spec in specs)
        self.done = 0.0
        self.begun = time.perf_counter()

    def add(self, specs: Sequence[Spec]) -> None:
        self.done += sum(training_cost(spec) for spec in specs)

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
