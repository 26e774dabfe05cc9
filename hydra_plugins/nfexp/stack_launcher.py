"""The `stack` launcher: jobs of one architecture train together, each leaves what Hydra's own launchers leave."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from hydra_plugins.nfexp.compose import Composer

if TYPE_CHECKING:
    from nfexp.spec import Spec

log = logging.getLogger(__name__)


def plan(specs: Sequence[Spec], max_stack: int) -> list[list[int]]:
    """Group job positions by `stack_key`, groups of more than `max_stack` evenly split; the largest work first."""
    from nfexp.spec import stack_key

    groups: dict[object, list[int]] = {}
    for i, spec in enumerate(specs):
        groups.setdefault(stack_key(spec), []).append(i)
    stacks = []
    for group in groups.values():
        parts = -(-len(group) // max_stack)
        stacks += [group[len(group) * k // parts : len(group) * (k + 1) // parts] for k in range(parts)]
    return stacks


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"


class StackLauncher(Launcher):
    def __init__(self, max_stack: int) -> None:
        from nfexp.spec import SpecError

        if not isinstance(max_stack, int) or max_stack < 1:
            raise SpecError("hydra.launcher.max_stack", "an integer >= 1", max_stack)
        self.max_stack = max_stack

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.composer = Composer(hydra_context.config_loader, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from nfexp.cli import finish, spec_of, train_stack
        from nfexp.spec import training_cost

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        specs = [spec_of(self.composer.plain(overrides)) for overrides in job_overrides]
        stacks = plan(specs, self.max_stack)
        total, done, begun = sum(map(training_cost, specs)), 0.0, time.perf_counter()
        log.info(f"{len(specs)} runs in {len(stacks)} stacks")
        returns: dict[int, JobReturn] = {}
        counts = {"completed": 0, "diverged": 0, "failed": 0}
        for k, stack in enumerate(stacks, 1):
            for i, result in zip(stack, train_stack([specs[i] for i in stack]), strict=True):
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
                counts[result.status] += 1
            done += sum(training_cost(specs[i]) for i in stack)
            elapsed = time.perf_counter() - begun
            log.info(
                f"{sum(counts.values())}/{len(specs)} runs, {counts['diverged']} diverged, {counts['failed']} failed"
                f" · stack {k}/{len(stacks)} · {clock(elapsed)} elapsed,"
                f" about {clock(elapsed * (total / done - 1))} left"
            )
        return [returns[i] for i in range(len(specs))]
