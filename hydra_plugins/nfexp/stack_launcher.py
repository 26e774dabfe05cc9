"""The `stack` launcher: jobs of one architecture train together, as one batched program."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from nfexp.record import Outcome
    from nfexp.sweep.compose import Composer
    from nfexp.sweep.stacking import Stacking
    from nfexp.sweep.worker import Job


class StackLauncher(Launcher):
    """Translates jobs for :class:`nfexp.sweep.stacking.Stacking`, and outcomes for Hydra."""

    config: DictConfig
    hydra_context: HydraContext
    composer: Composer
    stacking: Stacking
    varied: Sequence[str] = ()  # keys that the whole sweep varies, where the sweeper knows it

    def __init__(self, **options: Any) -> None:
        from nfexp.sweep.stacking import checked_options

        plain = {}
        for name, value in options.items():
            plain[name] = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        self.options = checked_options(plain)

    def setup(
        self,
        *,
        hydra_context: HydraContext,
        task_function: TaskFunction,
        config: DictConfig,
    ) -> None:
        from nfexp.sweep.compose import Composer
        from nfexp.sweep.stacking import Stacking

        self.hydra_context = hydra_context
        self.config = config
        self.composer = Composer(hydra_context.config_loader, config)
        self.stacking = Stacking(self.options, lambda: Path(str(config.hydra.sweep.dir)))

    def launch(
        self,
        job_overrides: Sequence[Sequence[str]],
        initial_job_idx: int,
    ) -> Sequence[JobReturn]:
        """Train jobs, each a list of overrides; their numbers count from `initial_job_idx`."""
        from nfexp.spec import SpecError, Words
        from nfexp.sweep.folder import check_folders
        from nfexp.sweep.requests import label, varied_keys
        from nfexp.sweep.stacking import Runs
        from nfexp.sweep.worker import Job

        # As every launcher of Hydra's does first.
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)

        if job_overrides and self.composer.plain(job_overrides[0]).get("dry_run"):
            another = Words("another sweeper")
            raise SpecError("dry_run", "the grids sweeper, which alone can plan", another)
        root = str(self.stacking.folder)
        specs = []
        folders = []
        below_root = {}
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            folder = self.composer.folder(overrides, number)
            specs.append(self.composer.spec(overrides))
            folders.append(folder)
            below_root[number] = os.path.relpath(folder, root)
        check_folders(below_root)
        varied = self.varied or varied_keys(specs)

        def job_of(i: int) -> Job:
            page = self.composer.page(job_overrides[i], initial_job_idx + i)
            return Job(
                spec=specs[i],
                folder=page.folder,
                files=page.files,
                logging=page.logging,
                root=root,
                label=label(specs[i], varied),
                tracker=self.config.get("tracker"),
            )

        def on_end(i: int, end: Outcome | None) -> None:
            self._call_back(job_overrides[i], initial_job_idx + i, end)

        runs = Runs(specs=specs, folders=folders, job_of=job_of, on_end=on_end)
        ends = self.stacking.train(runs, fail_fast=self.config.fail_fast)
        return [_returned(overrides, ends.get(i)) for i, overrides in enumerate(job_overrides)]

    def _call_back(self, overrides: Sequence[str], number: int, end: Outcome | None) -> None:
        """Pass a finished run through Hydra's `run_job`, which calls the command's callbacks.

        That takes time for each run, so it is left out where there is no callback but ours.
        """
        from nfexp.record import objective
        from nfexp.sweep.claim import ClaimFolder

        callbacks = self.hydra_context.callbacks.callbacks
        others = [callback for callback in callbacks if not isinstance(callback, ClaimFolder)]
        if end is None or not others:
            return
        run_job(
            hydra_context=self.hydra_context,
            task_function=lambda _: objective(end),
            config=self.composer.numbered(overrides, number),
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        # run_job has set up the log of the job in this process: back to that of the sweep.
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)


def _returned(overrides: Sequence[str], end: Outcome | None) -> JobReturn:
    """What sweepers learn of a job: its objective, or why there is none."""
    from nfexp.record import RunFailed, objective

    name = JobRuntime.instance().get("name")
    back = JobReturn(overrides=list(overrides), working_dir=os.getcwd(), task_name=name)
    try:
        back.return_value = objective(end)
        back.status = JobStatus.COMPLETED
    except RunFailed as error:
        back.return_value = error
        back.status = JobStatus.FAILED
    return back
