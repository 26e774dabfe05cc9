"""The `stack` launcher: jobs of one architecture train together, each leaves what Hydra's own launchers leave."""

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

    def __init__(self, **options: Any) -> None:
        from nfexp.sweep.stacking import checked

        plain = {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in options.items()}
        self.options = checked(plain)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from nfexp.sweep.compose import Composer
        from nfexp.sweep.stacking import Stacking

        self.hydra_context = hydra_context
        self.config = config
        self.composer = Composer(hydra_context.config_loader, config)
        self.stacking = Stacking(self.options, lambda: Path(str(config.hydra.sweep.dir)))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from nfexp.spec import SpecError, Words
        from nfexp.sweep.folder import check_folders
        from nfexp.sweep.worker import Job

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        if job_overrides and self.composer.plain(job_overrides[0]).get("dry_run"):
            raise SpecError("dry_run", "the grids sweeper, which alone can plan", Words("another sweeper"))
        root = str(self.stacking.folder)
        specs, folders, places = [], [], {}
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            folder = self.composer.folder(overrides, number)
            specs.append(self.composer.spec(overrides))
            folders.append(folder)
            places[number] = os.path.relpath(folder, root)
        check_folders(places)

        def job_of(i: int) -> Job:
            page = self.composer.page(job_overrides[i], initial_job_idx + i)
            return Job(spec=specs[i], folder=page.folder, files=page.files, logging=page.logging, root=root)

        def on_end(i: int, end: Outcome | None) -> None:
            self._call_back(job_overrides[i], initial_job_idx + i, end)

        ends = self.stacking.train(specs, folders, job_of, fail_fast=self.config.fail_fast, on_end=on_end)
        return [_returned(overrides, ends.get(i)) for i, overrides in enumerate(job_overrides)]

    def _call_back(self, overrides: Sequence[str], number: int, end: Outcome | None) -> None:
        """Pass a finished run through Hydra's own `run_job`, for the callbacks that the command configures."""
        from nfexp.record import objective
        from nfexp.sweep.claim import ClaimFolder

        theirs = [c for c in self.hydra_context.callbacks.callbacks if not isinstance(c, ClaimFolder)]
        if end is None or not theirs:
            return
        run_job(
            hydra_context=self.hydra_context,
            task_function=lambda _: objective(end),
            config=self.composer.numbered(overrides, number),
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)


def _returned(overrides: Sequence[str], end: Outcome | None) -> JobReturn:
    """What sweepers learn of a job: its objective, or why there is none."""
    from nfexp.record import RunFailed, objective

    back = JobReturn(overrides=list(overrides), working_dir=os.getcwd(), task_name=JobRuntime.instance().get("name"))
    try:
        back.return_value = objective(end)
        back.status = JobStatus.COMPLETED
    except RunFailed as error:
        back.return_value = error
        back.status = JobStatus.FAILED
    return back
