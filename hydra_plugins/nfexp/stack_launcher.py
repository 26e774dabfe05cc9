"""The `stack` launcher: jobs of one architecture train together, each leaves what Hydra's own launchers leave."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from hydra_plugins.nfexp.compose import Composer

if TYPE_CHECKING:
    from nfexp.spec import Spec

log = logging.getLogger(__name__)


def plan(specs: Sequence[Spec], max_stack: int, workers: int = 1) -> list[list[int]]:
    """Group job positions by `stack_key` and split groups evenly, to at most `max_stack` runs and a share per worker.

    The most expensive stack comes first, so that workers finish together.
    """
    from nfexp.spec import stack_key, training_cost

    groups: dict[object, list[int]] = {}
    for i, spec in enumerate(specs):
        groups.setdefault(stack_key(spec), []).append(i)
    total = sum(map(training_cost, specs))
    stacks = []
    for group in groups.values():
        share = sum(training_cost(specs[i]) for i in group) / total
        parts = min(len(group), max(-(-len(group) // max_stack), round(share * workers)))
        stacks += [group[len(group) * k // parts : len(group) * (k + 1) // parts] for k in range(parts)]
    return sorted(stacks, key=lambda stack: -sum(training_cost(specs[i]) for i in stack))


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"


class StackLauncher(Launcher):
    def __init__(self, max_stack: int, workers: int | None) -> None:
        from nfexp.spec import SpecError

        for key, value in {"max_stack": max_stack, "workers": 1 if workers is None else workers}.items():
            if not isinstance(value, int) or value < 1:
                raise SpecError(f"hydra.launcher.{key}", "an integer >= 1", value)
        self.max_stack, self.workers = max_stack, workers

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.composer = Composer(hydra_context.config_loader, config)

    def stacks(self, specs: Sequence[Spec]) -> list[list[int]]:
        """Positions of the jobs that will train together."""
        from nfexp.cli import worker_count

        return plan(specs, self.max_stack, worker_count(specs, self.workers))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from nfexp.cli import finish, spec_of, train_stacks, worker_count
        from nfexp.spec import training_cost

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        specs = [spec_of(self.composer.plain(overrides)) for overrides in job_overrides]
        stacks, workers = self.stacks(specs), worker_count(specs, self.workers)
        total, done, begun = sum(map(training_cost, specs)), 0.0, time.perf_counter()
        log.info(f"{len(specs)} runs in {len(stacks)} stacks, {workers} at a time")
        returns: dict[int, JobReturn] = {}
        counts = {"completed": 0, "diverged": 0, "failed": 0}
        for k, (stack, results) in enumerate(train_stacks(specs, stacks, workers), 1):
            for i, result in zip(stack, results, strict=True):
                config = self.composer(job_overrides[i])
                with open_dict(config):
                    config.hydra.job.id = config.hydra.job.num = initial_job_idx + i
                returns[i] = run_job(
                    hydra_context=self.hydra_context,
                    task_function=partial(finish, result=result),
                    config=config,
                    job_dir_key="hydra.sweep.dir",
                    job_subdir_key="hydra.sweep.subdir",
                )
                configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
                if returns[i].status is not JobStatus.COMPLETED and result.status != "failed":
                    _ = returns[i].return_value  # raises: a run could not be written, so training on is of no use
                counts[result.status] += 1
            done += sum(training_cost(specs[i]) for i in stack)
            elapsed = time.perf_counter() - begun
            log.info(
                f"{sum(counts.values())}/{len(specs)} runs, {counts['diverged']} diverged, {counts['failed']} failed"
                f" · stack {k}/{len(stacks)} · {clock(elapsed)} elapsed,"
                f" about {clock(elapsed * (total / done - 1))} left"
            )
        return [returns[i] for i in range(len(specs))]
