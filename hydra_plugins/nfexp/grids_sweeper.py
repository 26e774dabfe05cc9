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
    from nfexp.sweep.grids import Options, Point
    from nfexp.sweep.requests import Chosen
    from nfexp.sweep.stacking import Stacking

log = logging.getLogger(__name__)


class GridsSweeper(Sweeper):
    """Translates `hydra.sweeper` and the command line for :mod:`nfexp.sweep`."""

    config: DictConfig
    hydra_context: HydraContext
    launcher: Any  # a Launcher of Hydra's; ours has `stacking` besides
    composer: Composer

    def __init__(self, **options: Any) -> None:
        self.options = _checked(options)

    def setup(
        self,
        *,
        hydra_context: HydraContext,
        task_function: TaskFunction,
        config: DictConfig,
    ) -> None:
        from nfexp.sweep.compose import Composer

        # Once more: what `__init__` got, Hydra has resolved already. Only here is text that came by
        # an interpolation told from other text, and converted.
        sweeper = config.hydra.sweeper
        options = {name: sweeper[name] for name in sweeper if name != "_target_"}
        self.options = _checked(options)
        self.hydra_context = hydra_context
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        # The stack launcher trains many jobs at once; any other of Hydra's gets them one by one.
        self.stacking: Stacking | None = getattr(self.launcher, "stacking", None)
        if self.stacking is not None:
            self.composer = self.launcher.composer
        else:
            self.composer = Composer(hydra_context.config_loader, config)

    def sweep(self, arguments: list[str]) -> Any:
        """Plan the sweep of a command line, have the launcher run it, report."""
        from nfexp.configuration import check_controls
        from nfexp.spec import SpecError, Words
        from nfexp.sweep.claim import check_output_subdir, named_folder

        check_controls(self.config)
        if self.config.fail_fast and self.stacking is None:
            another = Words("another launcher")
            raise SpecError("fail_fast", "hydra/launcher=stack, which alone can stop", another)
        check_output_subdir(self.config)
        folder = named_folder(self.config, "sweep")  # fixes ${now:…} before any job copies it
        try:
            return self._sweep(folder, _of_runs(arguments))
        finally:
            if self.stacking is not None:
                self.stacking.close()

    def _sweep(self, folder: Path, arguments: list[str]) -> list[JobReturn]:
        from nfexp.sweep.claim import claimed
        from nfexp.sweep.worker import check_all
        from nfexp.tables import tell

        begun = time.perf_counter()
        chosen = self._chosen(folder, arguments)
        self._call(check_all, [request.spec for request in chosen.requests.values()])
        if self.config.dry_run:
            print(self._dry_run(self._settled(folder, chosen), chosen.dropped))
            return []
        if not folder.exists():
            self._settled(folder, chosen)  # a sweep that is refused makes no folder
        with claimed(self.config, "sweep") as claimed_folder:  # may have another name, with _1
            step = self._settled(claimed_folder, chosen)
            self._begin(claimed_folder, step, arguments)
            seconds = time.perf_counter() - begun
            runs = f"{len(chosen.requests)} runs; {chosen.dropped}"
            log.info(f"{claimed_folder}: {runs}; {seconds:.1f} s to compose")
            tell(request.spec for request in chosen.requests.values())
            return self._launch(claimed_folder, step)

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function that needs torch: in a worker, where there is one."""
        if self.stacking is None:
            return function(*args)
        return self.stacking.call(function, *args)

    def _chosen(self, folder: Path, arguments: Sequence[str]) -> Chosen:
        """The jobs of the command line or, on resuming, of the folder."""
        from nfexp.spec import SpecError, Words
        from nfexp.sweep.folder import read_plan
        from nfexp.sweep.requests import choose

        if self.options.resume:
            old = read_plan(folder)
            if old is None:
                got = Words("one without sweep.json")
                raise SpecError(str(folder), "the folder of an earlier sweep", got)
            return choose(_stored(folder, old), self.composer.spec, excluded=0, sample=None)
        overrides, excluded = self.points(arguments)
        sample = self.options.sample
        return choose(overrides, self.composer.spec, excluded=excluded, sample=sample)

    def points(self, arguments: Sequence[str]) -> tuple[list[list[str]], int]:
        """Overrides of every point, equal ones not yet dropped, and how many `exclude` left out."""
        from nfexp.sweep.grids import Grids, overrides_of

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        points, excluded = Grids(self.options, parser, self._values).points(arguments)
        return [overrides_of(point) for point in points], excluded

    def _values(self, point: Point) -> dict[str, Any]:
        """The configuration of a point by key, not yet checked, and the option of each group."""
        from nfexp.sweep.grids import overrides_of

        values = dict(self.config.hydra.runtime.choices)
        for key, argument in point.items():
            values[key] = argument.value
        for key, value in self.composer.plain(overrides_of(point)).items():
            if isinstance(value, Mapping):
                for leaf, one in value.items():
                    values[f"{key}.{leaf}"] = one
            else:
                values[key] = value
        return values

    def _settled(self, folder: Path, chosen: Chosen) -> Step:
        """The jobs with their numbers and folders, and what of them is in the sweep's folder."""
        from nfexp.sweep.folder import read_plan, settle

        def place(overrides: Sequence[str], number: int) -> str:
            return os.path.relpath(self.composer.folder(overrides, number), folder)

        return settle(
            folder,
            read_plan(folder),
            chosen.requests,
            place,
            mixed=self.config.mixed,
            redo=self.config.redo,
        )

    def _dry_run(self, step: Step, dropped: str) -> str:
        from nfexp.sweep.dry_run import Stacks, describe
        from nfexp.sweep.planning import training_rate

        n_finished = len(step.finished)
        specs = [job.spec for job in step.jobs.values() if job.number not in step.finished]
        if not specs:
            return f"{n_finished} runs are finished: nothing to train; {dropped}"
        if self.stacking is not None:
            stacks = self.stacking.stacks(specs)
        else:
            alone = [[i] for i in range(len(specs))]
            stacks = Stacks(positions=alone, at_once=1, room=None)
        rate = self._call(training_rate, specs[0], stacks.at_once)
        return describe(specs, stacks, rate=rate, n_finished=n_finished, dropped=dropped)

    def _begin(self, folder: Path, step: Step, arguments: Sequence[str]) -> None:
        """Write what the sweep intends: `multirun.yaml` as Hydra does, and `sweep.json`."""
        from nfexp.arguments import argument, key_of
        from nfexp.commands import is_said_once
        from nfexp.files import replacing
        from nfexp.spec import flatten
        from nfexp.sweep.folder import Plan, begin_sweep, read_plan

        with replacing(folder / "multirun.yaml") as path:
            OmegaConf.save(self.config, path)
        plan = Plan(
            name=self.config.name,
            arguments=[word for word in sys.argv[1:] if not is_said_once(word)],
        )
        # The centre of the study: what the command line fixes, and nothing of what the sweep
        # varies.
        naming = ("data", "data.name", "data.path")  # what a target or a table is
        fixed = [a for a in arguments if not argument(a).swept and key_of(a) not in naming]
        for job in step.jobs.values():
            name = job.spec.data.name
            if name not in plan.centres:
                target = [override for override in job.overrides if key_of(override) in naming]
                plan.centres[name] = flatten(self.composer.spec([*target, *fixed]))
        begin_sweep(folder, read_plan(folder), step, plan)

    def _launch(self, folder: Path, step: Step) -> list[JobReturn]:
        """Have the launcher run the jobs, then report; raises if a run failed."""
        from nfexp.record import RunFailed
        from nfexp.sweep import conclusion

        returns: list[JobReturn] = []
        interrupted = False
        try:
            for numbers in step.ranges():
                some = [step.jobs[number].overrides for number in numbers]
                returns += self.launcher.launch(some, initial_job_idx=numbers.start)
        except KeyboardInterrupt:
            interrupted = True
        ends = conclusion.report_on(folder, step.folders())
        if interrupted:
            there = conclusion.summarise(ends)
            raise conclusion.Interrupted(f"interrupted; {there}; {conclusion.go_on(folder)}")
        for back in returns:
            # That a run failed is said below. Anything else (a run could not be written, say) is
            # an error of this command: reading the return value raises it.
            if back.status is JobStatus.FAILED and not isinstance(back._return_value, RunFailed):
                _ = back.return_value
        if self.stacking is None or self.stacking.options.wait:
            conclusion.raise_unless_complete(folder, step.folders(), ends)
        return returns


def _checked(options: Mapping[str, Any]) -> Options:
    from nfexp.configuration import values_of
    from nfexp.sweep.grids import checked_options

    plain = {}
    for name, value in options.items():
        plain[name] = values_of(value)
    return checked_options(plain)


def _of_runs(arguments: Sequence[str]) -> list[str]:
    """The arguments that say what runs are, and not how the sweep goes about them.

    One that lists several values stays among them, for it to be refused.
    """
    from nfexp.arguments import argument, key_of
    from nfexp.configuration import CONTROLS

    kept = []
    for one in arguments:
        if key_of(one) not in CONTROLS or argument(one).swept:
            kept.append(one)
    return kept


def _stored(folder: Path, old: Plan) -> list[list[str]]:
    """The overrides of the jobs that a folder lists, which may come from elsewhere."""
    from nfexp.commands import harmless
    from nfexp.spec import SpecError

    stored = []
    for job in old.jobs:
        for override in job["overrides"]:
            if not harmless(override):
                expected = "jobs with overrides that are safe to repeat"
                raise SpecError(f"{folder}/sweep.json", expected, override)
        stored.append(job["overrides"])
    return stored
