"""The `grids` sweeper: a union of grids, each configuration composed once and trained once."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from nfexp.analysis.contrasts import OwnContrast
    from nfexp.analysis.sequential import Rounds
    from nfexp.spec import Spec
    from nfexp.sweep.compose import Composer
    from nfexp.sweep.folder import NumberedJob, Plan, Step
    from nfexp.sweep.grids import Options, Point
    from nfexp.sweep.requests import Chosen, Request
    from nfexp.sweep.stacking import Stacking

log = logging.getLogger(__name__)


class GridsSweeper(Sweeper):
    """Translates `hydra.sweeper` and the command line for :mod:`nfexp.sweep`."""

    config: DictConfig
    hydra_context: HydraContext
    launcher: Any  # a Launcher of Hydra's; ours has `stacking` besides
    composer: Composer
    contrasts: tuple[OwnContrast, ...] = ()

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

        # The options are checked a second time. Hydra had already resolved those that `__init__`
        # got; only these still show which text came by an interpolation, and is to be converted.
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
        _check_targets(chosen.requests.values())
        self._call(check_all, [request.spec for request in chosen.requests.values()])
        self.contrasts = self._contrasts(chosen, arguments)
        rounds = self._rounds(folder, chosen, arguments)
        if self.config.dry_run:
            print(self._dry_run(self._settled(folder, chosen), chosen.dropped, rounds))
            return []
        if not folder.exists():
            self._settled(folder, chosen)  # a sweep that is refused makes no folder
        with claimed(self.config, "sweep") as claimed_folder:  # may have another name, with _1
            step = self._settled(claimed_folder, chosen)
            self._begin(claimed_folder, step, arguments, rounds)
            seconds = time.perf_counter() - begun
            runs = f"{len(chosen.requests)} runs; {chosen.dropped}"
            log.info(f"{claimed_folder}: {runs}; {seconds:.1f} s to compose")
            tell(request.spec for request in chosen.requests.values())
            return self._train(claimed_folder, step, arguments, rounds)

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
        chosen = choose(overrides, self.composer.spec, excluded=excluded, sample=sample)
        old = read_plan(folder)
        if old is not None and old.rounds:
            # What the rounds have added to this folder belongs to the command that began it.
            first = set(old.rounds["first"])
            every = choose(_stored(folder, old), self.composer.spec, excluded=0, sample=None)
            for identity, request in every.requests.items():
                if request.spec.seed not in first:
                    chosen.requests.setdefault(identity, request)
        return chosen

    def _rounds(self, folder: Path, chosen: Chosen, arguments: Sequence[str]) -> Rounds | None:
        """The rule of the rounds; None if all seeds are said. Raises if the folder has another."""
        from nfexp.sweep.folder import read_plan

        old = read_plan(folder)
        if self.config.until is None and (old is None or not old.rounds):
            return None
        from nfexp.sweep.rounds import check_claims, check_same_rule, rounds_of_sweep

        specs = [request.spec for request in chosen.requests.values()]
        if old is not None and old.rounds:
            of_first = [spec for spec in specs if spec.seed in old.rounds["first"]]
            specs = of_first or specs
        rounds = None
        if self.config.until is not None:
            rounds = rounds_of_sweep(specs, self.config.max_seeds, self.config.margin)
            centres = self._centres(chosen.requests.values(), arguments)
            check_claims(specs, centres, rounds, self.contrasts)
        check_same_rule(folder, old, rounds, self.contrasts)
        return rounds

    def _contrasts(self, chosen: Chosen, arguments: Sequence[str]) -> tuple[OwnContrast, ...]:
        """The contrasts of the study's own; raises for one whose cells the sweep does not have."""
        if self.config.get("contrasts") is None:
            return ()
        from nfexp.analysis.contrasts import contrasts_of
        from nfexp.configuration import values_of
        from nfexp.sweep.rounds import check_contrasts

        contrasts = contrasts_of(values_of(self.config.contrasts))
        specs = [request.spec for request in chosen.requests.values()]
        check_contrasts(specs, self._centres(chosen.requests.values(), arguments), contrasts)
        return contrasts

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

    def _settled(self, folder: Path, chosen: Chosen, *, grows: bool = False) -> Step:
        """The jobs with their numbers and folders, and what of them is in the sweep's folder.

        `grows` lets the folder take more jobs than its plan has.
        """
        from nfexp.sweep.folder import read_plan, settle

        def place(overrides: Sequence[str], number: int) -> str:
            return os.path.relpath(self.composer.folder(overrides, number), folder)

        return settle(
            folder,
            read_plan(folder),
            chosen.requests,
            place,
            mixed=self.config.mixed or grows,
            redo="none" if grows else self.config.redo,
        )

    def _dry_run(self, step: Step, dropped: str, rounds: Rounds | None) -> str:
        from nfexp.sweep.dry_run import Stacks, describe, measured_pace, seconds_to_train
        from nfexp.sweep.planning import total_cost

        n_finished = len(step.finished)
        specs = [job.spec for job in step.jobs.values() if job.number not in step.finished]
        if not specs:
            return f"{n_finished} runs are finished: nothing to train; {dropped}"
        if self.stacking is not None:
            stacks = self.stacking.stacks(specs)
        else:
            alone = [[i] for i in range(len(specs))]
            stacks = Stacks(positions=alone, at_once=1, room=None)
        pace = measured_pace(specs, stacks, partial(self._rate, at_once=stacks.at_once))
        seconds = seconds_to_train(specs, stacks, pace)
        more = ""
        if rounds is not None:
            from nfexp.sweep.rounds import most

            first = [job.spec for job in step.jobs.values() if job.spec.seed in rounds.first]
            more = most(first, rounds, total_cost(specs) / seconds)
        return describe(specs, stacks, seconds=seconds, n_finished=n_finished, dropped=dropped, more=more)

    def _rate(self, spec: Spec, members: int, *, at_once: int) -> float:
        """The work that one of `at_once` workers does in a second while all of them train."""
        from nfexp.sweep.planning import cores, training_rate

        if self.stacking is None:
            return training_rate(spec, members, 1)
        workers = min(at_once, cores())
        rates = self.stacking.call_in_all(workers, training_rate, spec, members, workers)
        return float(sum(rates) / len(rates))

    def _begin(
        self,
        folder: Path,
        step: Step,
        arguments: Sequence[str],
        rounds: Rounds | None,
    ) -> None:
        """Write what the sweep intends: `multirun.yaml` as Hydra does, and `sweep.json`."""
        from nfexp.commands import is_said_once
        from nfexp.files import replacing
        from nfexp.sweep.folder import Plan, begin_sweep, read_plan

        with replacing(folder / "multirun.yaml") as path:
            OmegaConf.save(self.config, path)
        plan = Plan(
            name=self.config.name,
            arguments=[word for word in sys.argv[1:] if not is_said_once(word)],
            centres=self._centres(step.jobs.values(), arguments),
            rounds=rounds.written() if rounds else {},
            contrasts={contrast.name: contrast.written() for contrast in self.contrasts},
        )
        begin_sweep(folder, read_plan(folder), step, plan)

    def _centres(
        self,
        jobs: Iterable[Request | NumberedJob],
        arguments: Sequence[str],
    ) -> dict[str, dict[str, Any]]:
        """The centre of the study by target: what the command line fixes, not what is varied."""
        from nfexp.arguments import argument, key_of
        from nfexp.spec import flatten

        naming = ("data", "data.name", "data.path")  # what a target or a table is
        fixed = [a for a in arguments if not argument(a).swept and key_of(a) not in naming]
        centres = {}
        for job in jobs:
            name = job.spec.data.name
            if name not in centres:
                target = [override for override in job.overrides if key_of(override) in naming]
                centres[name] = flatten(self.composer.spec([*target, *fixed]))
        return centres

    def _train(
        self,
        folder: Path,
        step: Step,
        arguments: Sequence[str],
        rounds: Rounds | None,
    ) -> list[JobReturn]:
        """Have the launcher run the jobs, round by round, then report; raises if a run failed."""
        from nfexp.record import RunFailed
        from nfexp.sweep import conclusion

        returns: list[JobReturn] = []
        interrupted = False
        begun = time.perf_counter()
        trained: list[Spec] = []
        try:
            returns += self._launch(step, set())
            trained += [job.spec for n, job in step.jobs.items() if n not in step.finished]
            while rounds is not None:
                later = self._next_round(folder, step, rounds)
                if later is None or not self._is_in_time(later, step, trained, begun):
                    break
                done = set(step.jobs)
                step = later
                self._begin(folder, step, arguments, rounds)
                returns += self._launch(step, done)
                trained += [job.spec for n, job in step.jobs.items() if n not in done]
        except KeyboardInterrupt:
            interrupted = True
        explorer = bool(self.config.explorer)
        ends = conclusion.report_on(folder, step.folders(), explorer=explorer)
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

    def _launch(self, step: Step, done: set[int]) -> list[JobReturn]:
        """Have the launcher run the jobs of a step but those that were launched before."""
        from nfexp.sweep.requests import varied_keys

        returns: list[JobReturn] = []
        self.launcher.varied = varied_keys([job.spec for job in step.jobs.values()])
        for numbers in step.ranges(without=done):
            some = [step.jobs[number].overrides for number in numbers]
            returns += self.launcher.launch(some, initial_job_idx=numbers.start)
        return returns

    def _next_round(self, folder: Path, step: Step, rounds: Rounds) -> Step | None:
        """The sweep with the runs of its next round; None if there is none, or not yet."""
        from nfexp.sweep.requests import Chosen, Request
        from nfexp.sweep.rounds import judged_round

        specs = {number: job.spec for number, job in step.jobs.items()}
        overrides = {number: job.overrides for number, job in step.jobs.items()}
        found = judged_round(
            folder,
            step.folders(),
            specs,
            overrides,
            rounds,
            fail_fast=self.config.fail_fast,
        )
        if found is None or not found.overrides:
            return None
        requests = {job.run_id: Request(job.overrides, job.spec) for job in step.jobs.values()}
        added = self._composed(found.overrides)
        grown = self._settled(folder, Chosen(requests=requests | added, dropped=""), grows=True)
        grown.mixed = False  # it is the plan's own rule that lets the folder grow
        return grown

    def _composed(self, overrides: Sequence[Sequence[str]]) -> dict[str, Request]:
        from nfexp.sweep.requests import choose

        return choose(overrides, self.composer.spec, excluded=0, sample=None).requests

    def _is_in_time(self, later: Step, step: Step, trained: Sequence[Spec], begun: float) -> bool:
        """Whether the next round would end within `time_budget`, at the pace so far."""
        from nfexp.sweep.rounds import is_in_time

        new = [job.spec for number, job in later.jobs.items() if number not in step.jobs]
        elapsed = time.perf_counter() - begun
        return is_in_time(new, trained, elapsed, self.config.time_budget)


def _checked(options: Mapping[str, Any]) -> Options:
    from nfexp.configuration import values_of
    from nfexp.sweep.grids import checked_options

    plain = {}
    for name, value in options.items():
        plain[name] = values_of(value)
    return checked_options(plain)


def _check_targets(requests: Iterable[Request]) -> None:
    """Raise if a job names code by itself: when it is resumed, nobody could say whom to trust."""
    from nfexp.arguments import key_of
    from nfexp.commands import TARGET
    from nfexp.spec import SpecError, Words

    for request in requests:
        for override in request.overrides:
            if key_of(override) == TARGET:
                expected = "a file data/NAME.yaml in --config-dir that says it, and data=NAME"
                raise SpecError(TARGET, expected, Words(f"{override!r} of a sweep"))


def _of_runs(arguments: Sequence[str]) -> list[str]:
    """The arguments that say what runs are, and not how the sweep goes about them.

    One that lists several values stays among them, for it to be refused.
    """
    from nfexp.arguments import argument, key_of
    from nfexp.configuration import CONTROLS

    kept = []
    for one in arguments:
        if key_of(one).partition(".")[0] not in CONTROLS or argument(one).swept:
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
