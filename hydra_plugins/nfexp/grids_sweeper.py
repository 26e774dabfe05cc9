"""The `grids` sweeper: a union of grids, each configuration composed once and trained once."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from nfexp.sweep.compose import Composer
    from nfexp.sweep.folder import Plan, Step
    from nfexp.sweep.grids import Chosen, Point
    from nfexp.sweep.stacking import Stacking

log = logging.getLogger(__name__)


class GridsSweeper(Sweeper):
    """Translates `hydra.sweeper` and the command line for :mod:`nfexp.sweep`."""

    config: DictConfig
    hydra_context: HydraContext
    launcher: Any  # Hydra's Launcher; ours has `stacking` besides
    composer: Composer

    def __init__(self, **options: Any) -> None:
        from nfexp.configuration import values_of
        from nfexp.sweep.grids import checked

        self.options = checked({name: values_of(value) for name, value in options.items()})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from nfexp.configuration import values_of
        from nfexp.sweep.compose import Composer
        from nfexp.sweep.grids import checked

        # Hydra has resolved what `__init__` got; here text that comes by interpolation can be told, and converted.
        names = [name for name in config.hydra.sweeper if name != "_target_"]
        self.options = checked({name: values_of(config.hydra.sweeper[name]) for name in names})
        self.hydra_context = hydra_context
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        # The stack launcher trains many jobs at once; any other launcher of Hydra's is given them one by one.
        self.stacking: Stacking | None = getattr(self.launcher, "stacking", None)
        self.composer = self.launcher.composer if self.stacking else Composer(hydra_context.config_loader, config)

    def sweep(self, arguments: list[str]) -> Any:
        from nfexp.arguments import argument, key_of
        from nfexp.configuration import CONTROLS, check_controls
        from nfexp.spec import SpecError, Words
        from nfexp.sweep.claim import check_output_subdir, claimed, named_folder
        from nfexp.sweep.worker import check_all
        from nfexp.tables import tell

        check_controls(self.config)
        if self.config.fail_fast and not self.stacking:
            raise SpecError("fail_fast", "hydra/launcher=stack, which alone can stop", Words("another launcher"))
        check_output_subdir(self.config)
        begun = time.perf_counter()
        folder = named_folder(self.config, "sweep")  # fixes ${now:…} before any job copies it
        fixed = [a for a in arguments if key_of(a) not in CONTROLS or argument(a).swept]
        try:
            chosen = self._chosen(folder, fixed)
            self._call(check_all, [spec for _, spec in chosen.jobs.values()])
            if self.config.dry_run:
                print(self._dry_run(self._settled(folder, chosen), chosen.dropped))
                return []
            if not folder.exists():
                self._settled(folder, chosen)  # a sweep that is refused makes no folder
            with claimed(self.config, "sweep") as folder:
                step = self._settled(folder, chosen)
                self._begin(folder, step, fixed)
                composed = f"{time.perf_counter() - begun:.1f} s to compose"
                log.info(f"{folder}: {len(chosen.jobs)} runs; {chosen.dropped}; {composed}")
                tell([spec for _, spec in chosen.jobs.values()])
                return self._launch(folder, step)
        finally:
            if self.stacking:
                self.stacking.close()

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function that needs torch: in a worker, where there is one."""
        return self.stacking.call(function, *args) if self.stacking else function(*args)

    def _chosen(self, folder: Path, fixed: Sequence[str]) -> Chosen:
        """The jobs of the command line or, on resuming, of the folder."""
        from nfexp.spec import SpecError, Words
        from nfexp.sweep.folder import read_plan
        from nfexp.sweep.grids import choose

        if self.options.resume:
            old = read_plan(folder)
            if old is None:
                raise SpecError(str(folder), "the folder of an earlier sweep", Words("one without sweep.json"))
            return choose(_stored(folder, old), self.composer.spec, excluded=0, sample=None)
        overrides, excluded = self.points(fixed)
        return choose(overrides, self.composer.spec, excluded=excluded, sample=self.options.sample)

    def points(self, arguments: Sequence[str]) -> tuple[list[list[str]], int]:
        """Every job's overrides, equal configurations not yet dropped, and how many points are excluded."""
        from nfexp.sweep.grids import Grids, overrides_of

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        points, excluded = Grids(self.options, parser, self._values).points(arguments)
        return [overrides_of(point) for point in points], excluded

    def _values(self, point: Point) -> dict[str, Any]:
        """What the configuration of a point holds by key, before it is checked, and the option of each group."""
        from nfexp.sweep.grids import overrides_of

        values = dict(self.config.hydra.runtime.choices)
        for key, one in point.items():
            values[key] = one.value
        for key, value in self.composer.plain(overrides_of(point)).items():
            if isinstance(value, Mapping):
                values |= {f"{key}.{leaf}": leaf_value for leaf, leaf_value in value.items()}
            else:
                values[key] = value
        return values

    def _settled(self, folder: Path, chosen: Chosen) -> Step:
        """The jobs with their numbers and folders, and what of them the sweep's folder already holds."""
        from nfexp.sweep.folder import read_plan, settle

        def place(overrides: Sequence[str], number: int) -> str:
            return os.path.relpath(self.composer.folder(overrides, number), folder)

        config = self.config
        return settle(folder, read_plan(folder), chosen.jobs, place, mixed=config.mixed, redo=config.redo)

    def _dry_run(self, step: Step, dropped: str) -> str:
        from nfexp.sweep.dry_run import Stacks, describe
        from nfexp.sweep.planning import training_rate

        specs = [spec for number, spec in step.specs.items() if number not in step.finished]
        if not specs:
            return f"{len(step.finished)} runs are finished: nothing to train; {dropped}"
        if self.stacking:
            stacks = self.stacking.stacks(specs)
        else:
            stacks = Stacks(positions=[[i] for i in range(len(specs))], at_once=1, room=None)
        rate = self._call(training_rate, specs[0], stacks.at_once)
        return describe(specs, stacks, rate=rate, n_finished=len(step.finished), dropped=dropped)

    def _begin(self, folder: Path, step: Step, fixed: Sequence[str]) -> None:
        """Write what the sweep intends: `multirun.yaml` as Hydra does, and `sweep.json` for the reports."""
        from nfexp.arguments import argument, key_of
        from nfexp.commands import is_said_once
        from nfexp.files import replacing
        from nfexp.spec import flatten
        from nfexp.sweep.folder import Plan, begin, read_plan

        with replacing(folder / "multirun.yaml") as path:
            OmegaConf.save(self.config, path)
        # The centre of the study: what the command line fixes, and nothing of what the sweep varies.
        naming = ("data", "data.name", "data.path")  # what a target or a table is
        single = [a for a in fixed if not argument(a).swept and key_of(a) not in naming]
        plan = Plan(name=self.config.name, arguments=[word for word in sys.argv[1:] if not is_said_once(word)])
        for number, spec in step.specs.items():
            if spec.data.name not in plan.centres:
                target = [override for override in step.overrides[number] if key_of(override) in naming]
                plan.centres[spec.data.name] = flatten(self.composer.spec([*target, *single]))
        begin(folder, read_plan(folder), step, plan)

    def _launch(self, folder: Path, step: Step) -> list[JobReturn]:
        """Have the launcher run the jobs, then report; raises if a run failed."""
        from nfexp.record import RunFailed
        from nfexp.sweep.conclusion import Interrupted, go_on, raise_unless_complete, report_on, summarise

        returns: list[JobReturn] = []
        interrupted = False
        try:
            for numbers in step.ranges():
                some = [step.overrides[number] for number in numbers]
                returns += self.launcher.launch(some, initial_job_idx=numbers.start)
        except KeyboardInterrupt:
            interrupted = True
        ends = report_on(folder, step.folders)
        if interrupted:
            raise Interrupted(f"interrupted; {summarise(ends)}; {go_on(folder)}")
        for back in returns:
            if back.status is JobStatus.FAILED and not isinstance(back._return_value, RunFailed):
                _ = back.return_value  # raises: a run could not be written
        if self.stacking is None or self.stacking.options.wait:
            raise_unless_complete(folder, step.folders, ends)
        return returns


def _stored(folder: Path, old: Plan) -> list[list[str]]:
    """The overrides of the jobs that a folder lists, which may come from elsewhere."""
    from nfexp.commands import harmless
    from nfexp.spec import SpecError

    stored = []
    for job in old.jobs:
        for override in job["overrides"]:
            if not harmless(override):
                raise SpecError(f"{folder}/sweep.json", "jobs with overrides that are safe to repeat", override)
        stored.append(job["overrides"])
    return stored
