"""The `stack` launcher: jobs of one architecture train together, each leaves what Hydra's own launchers leave."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.nfexp.compose import Composer

if TYPE_CHECKING:
    from nfexp.record import Outcome
    from nfexp.spec import Spec
    from nfexp.sweep.joblib import Joblib
    from nfexp.sweep.planning import Machine
    from nfexp.sweep.pool import Pool
    from nfexp.sweep.slurm import Slurm

log = logging.getLogger(__name__)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"


class StackLauncher(Launcher):
    def __init__(
        self, max_stack: int | None, memory: float | None, workers: int | None, executor: str, backend: str,
        slurm: Any, wait: bool,
    ) -> None:  # fmt: skip
        from nfexp.spec import SpecError
        from nfexp.sweep import executors as engines
        from nfexp.sweep.slurm import resources

        for key, value in {"max_stack": max_stack, "workers": workers}.items():
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise SpecError(f"hydra.launcher.{key}", "an integer >= 1 or null", value)
        if memory is not None and (not isinstance(memory, int | float) or not 0 < memory < math.inf):
            raise SpecError("hydra.launcher.memory", "a number of gigabytes > 0 or null", memory)
        self.max_stack, self.memory, self.workers = max_stack, memory, workers
        engines.check(executor, backend, wait)
        self.executor, self.backend, self.wait = executor, backend, wait
        self.slurm = resources(OmegaConf.to_container(slurm) if OmegaConf.is_config(slurm) else slurm)
        self._pool: Pool | None = None
        self._engine: Pool | Slurm | Joblib | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.composer = Composer(hydra_context.config_loader, config)

    @property
    def pool(self) -> Pool:
        """The worker processes; they start at the first use and serve every batch of jobs."""
        from nfexp.sweep.pool import Pool

        if self._pool is None:
            self._pool = Pool()
        return self._pool

    @property
    def engine(self) -> Pool | Slurm | Joblib:
        """What works the stacks off."""
        from nfexp.sweep.joblib import Joblib
        from nfexp.sweep.slurm import Slurm

        makers: dict[str, Callable[[], Pool | Slurm | Joblib]] = {
            "local": lambda: self.pool,
            "slurm": lambda: Slurm(Path(str(self.config.hydra.sweep.dir)), self.pool, self.slurm, wait=self.wait),
            "joblib": lambda: Joblib(self.backend, self.pool, self.workers),
        }
        if self._engine is None:
            self._engine = makers[self.executor]()
        return self._engine

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function where torch is loaded: in a worker."""
        return self.pool.call(function, *args)

    def close(self) -> None:
        if hasattr(self._engine, "close"):
            self._engine.close()
        if self._pool is not None:
            self._pool.stop()

    def stacks(self, specs: Sequence[Spec]) -> tuple[list[list[int]], int, float]:
        """Positions of the jobs that train together, how many stacks at a time, and the bytes that each may use."""
        from nfexp.sweep.planning import budget, machine, plan

        devices = sorted({spec.device for spec in specs})

        def here() -> Machine:
            return machine(devices) if devices == ["cpu"] else self.call(machine, devices)

        on = here() if self.executor == "local" else self.engine.machine(here)
        workers = self.workers or min(on.places, len(specs))
        room = budget(on, workers, self.memory)
        found = plan(specs, workers=workers, max_stack=self.max_stack, room=room, device=on.device)
        at_once = self.workers or (len(found) if self.executor == "slurm" else workers)
        return found, min(at_once, len(found)), room

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from nfexp.flows.cost import training_cost
        from nfexp.record import outcome
        from nfexp.spec import SpecError, Words, run_id
        from nfexp.sweep.folder import check_folders, locked
        from nfexp.sweep.worker import Job

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        if any(self.composer.plain(overrides).get("dry_run") for overrides in job_overrides[:1]):
            raise SpecError("dry_run", "the grids sweeper, which alone can plan", Words("another sweeper"))
        specs = [self.composer.spec(overrides) for overrides in job_overrides]
        folders = [self.composer.folder(overrides, initial_job_idx + i) for i, overrides in enumerate(job_overrides)]
        ends: dict[int, Outcome] = {}
        root = str(self.config.hydra.sweep.dir)
        check_folders({initial_job_idx + i: os.path.relpath(folder, root) for i, folder in enumerate(folders)})

        def job(i: int) -> Job:
            page = self.composer.page(job_overrides[i], initial_job_idx + i)
            return Job(spec=specs[i], folder=page.folder, files=page.files, logging=page.logging, root=root)

        def note(i: int) -> None:
            if end := outcome(folders[i]):
                if end.run_id != run_id(specs[i]):
                    raise SpecError(folders[i], "a new or empty folder", Words("one that holds another run"))
                ends[i] = end

        with locked(Path(root)):
            for i in range(len(specs)):
                note(i)
            rest = [i for i in range(len(specs)) if i not in ends]
            if rest:
                found, workers, _ = self.stacks([specs[i] for i in rest])
                stacks = [[rest[i] for i in stack] for stack in found]
                there = f"; {len(ends)} more are finished" if ends else ""
                log.info(f"{len(rest)} runs in {len(stacks)} stacks, {workers} at a time{there}")
                total, done, begun = sum(training_cost(specs[i]) for i in rest), 0.0, time.perf_counter()
                fast = self.config.fail_fast
                working = self.engine.run(stacks, job, workers=workers, fail_fast=fast)
                for part in working:
                    for i in part:
                        note(i)
                        self._call_back(job_overrides[i], initial_job_idx + i, ends.get(i))
                    done += sum(training_cost(specs[i]) for i in part)
                    counts, elapsed = Counter(end.status for end in ends.values()), time.perf_counter() - begun
                    log.info(
                        f"{len(ends)}/{len(specs)} runs, {counts['diverged']} diverged, {counts['failed']} failed"
                        f" · {clock(elapsed)} elapsed, about {clock(elapsed * (total / done - 1))} left"
                    )
                    if fast and any(i in ends and ends[i].status == "failed" for i in part):
                        break
                working.close()
        return [self._returned(overrides, ends.get(i)) for i, overrides in enumerate(job_overrides)]

    def _call_back(self, overrides: Sequence[str], number: int, end: Outcome | None) -> None:
        """Pass a finished run through Hydra's own `run_job`, for the callbacks that the command configures."""
        from nfexp.cli import objective
        from nfexp.folders import ClaimFolder

        theirs = [c for c in self.hydra_context.callbacks.callbacks if not isinstance(c, ClaimFolder)]
        if end and theirs:
            run_job(
                hydra_context=self.hydra_context,
                task_function=lambda _: objective(end),
                config=self.composer.numbered(overrides, number),
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
            configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)

    def _returned(self, overrides: Sequence[str], end: Outcome | None) -> JobReturn:
        """What sweepers learn of a job: its objective, or why there is none."""
        from nfexp.cli import RunFailed, objective

        back = JobReturn(
            overrides=list(overrides), working_dir=os.getcwd(), task_name=JobRuntime.instance().get("name")
        )
        try:
            back.return_value, back.status = objective(end), JobStatus.COMPLETED
        except RunFailed as error:
            back.return_value, back.status = error, JobStatus.FAILED
        return back
