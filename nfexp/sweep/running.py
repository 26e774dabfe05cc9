"""A sweep from its command to its report.

Plan, have a launcher train, round by round, and report.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from nfexp.commands import is_said_once
from nfexp.configuration import check_controls
from nfexp.files import replacing
from nfexp.record import RunFailed
from nfexp.record.formats import printable
from nfexp.record.plan import Plan
from nfexp.spec import Spec, SpecError, Words, counted
from nfexp.sweep import conclusion, dry_run
from nfexp.sweep.claim import check_output_subdir, claimed, is_named_by_clock, named_folder
from nfexp.sweep.dry_run import Stacks, describe, seconds_to_train
from nfexp.sweep.folder import Step, begin_sweep, read_plan
from nfexp.sweep.intent import Command, Intent, check_targets, intent_of
from nfexp.sweep.planning import cores, total_cost, training_rate
from nfexp.sweep.requests import Chosen, Request, varied_keys
from nfexp.sweep.stacking import Stacking
from nfexp.sweep.worker import check_all
from nfexp.tables import tell

if TYPE_CHECKING:
    from nfexp.analysis.sequential import Rounds

log = logging.getLogger(__name__)

ADHOC = "adhoc"  # the key `name` in conf/config.yaml, where a command gives none


class Launcher(Protocol):
    """Any launcher of Hydra's.

    `varied` holds the keys that the whole sweep varies, for those that ask.
    """

    varied: Sequence[str]

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]: ...


class Running:
    """One sweep on its way.

    Parameters
    ----------
    command
        What was typed.
    launcher
        What trains jobs.
    stacking
        The stack launcher's, which trains many jobs at once; None for a launcher that gets them one
        by one.
    """

    def __init__(self, command: Command, launcher: Launcher, stacking: Stacking | None) -> None:
        self.command = command
        self.config = command.config
        self.launcher = launcher
        self.stacking = stacking

    def run(self) -> list[JobReturn]:
        """Plan the sweep, have the launcher train it, report; or only say what it would be."""
        check_controls(self.config)
        if self.config.fail_fast and self.stacking is None:
            another = Words("another launcher")
            raise SpecError("fail_fast", "hydra/launcher=stack, which alone can stop", another)
        check_output_subdir(self.config)
        folder = named_folder(self.config, "sweep")  # fixes ${now:…} before any job copies it
        try:
            return self._run(folder)
        finally:
            if self.stacking is not None:
                self.stacking.close()

    def _run(self, folder: Path) -> list[JobReturn]:
        begun = time.perf_counter()
        chosen = self.command.chosen(folder)
        requests = chosen.requests.values()
        check_targets(requests)
        self._call(check_all, [request.spec for request in requests])
        intent = intent_of(self.command, folder, chosen)
        if self.config.dry_run:
            print(self._dry_run(self.command.settled(folder, chosen), intent))
            return []
        if not folder.exists():
            self.command.settled(folder, chosen)  # a sweep that is refused makes no folder
        with claimed(self.config, "sweep") as claimed_folder:  # may have another name, with _1
            step = self.command.settled(claimed_folder, chosen)
            self._begin(claimed_folder, step, intent)
            seconds = time.perf_counter() - begun
            runs = f"{counted(len(chosen.requests), 'run')}; {chosen.dropped}"
            log.info(f"{claimed_folder}: {runs}; {seconds:.1f} s to compose")
            tell(request.spec for request in requests)
            return self._train(claimed_folder, step, intent)

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function that needs torch: in a worker, where there is one."""
        if self.stacking is None:
            return function(*args)
        return self.stacking.call(function, *args)

    # --- A dry run ---------------------------------------------------------------------

    def _dry_run(self, step: Step, intent: Intent) -> str:
        n_finished = len(step.finished)
        dropped = intent.chosen.dropped
        specs = step.specs(without=step.finished)
        if not specs:
            return f"{counted(n_finished, 'finished run')}: nothing to train; {dropped}"
        if self.stacking is not None:
            stacks = self.stacking.stacks(specs)
        else:
            alone = [[i] for i in range(len(specs))]
            stacks = Stacks(positions=alone, at_once=1, room=None)
        pace = dry_run.measured_pace(specs, stacks, partial(self._rate, at_once=stacks.at_once))
        seconds = seconds_to_train(specs, stacks, pace)
        more = ""
        if intent.rounds is not None:
            from nfexp.sweep.rounds import most

            first = [spec for spec in step.specs() if spec.seed in intent.rounds.first]
            more = most(first, intent.rounds, total_cost(specs) / seconds)
        return describe(
            specs, stacks, seconds=seconds, n_finished=n_finished, dropped=dropped, more=more
        )

    def _rate(self, spec: Spec, members: int, *, at_once: int) -> float:
        """The work that one of `at_once` workers does in a second while all of them train."""
        if self.stacking is None:
            return training_rate(spec, members, 1)
        workers = min(at_once, cores())
        rates = self.stacking.call_in_all(workers, training_rate, spec, members, workers)
        return float(sum(rates) / len(rates))

    # --- Training ----------------------------------------------------------------------

    def _begin(self, folder: Path, step: Step, intent: Intent) -> None:
        """Write what the sweep intends: `multirun.yaml` as Hydra does, and `sweep.json`."""
        with replacing(folder / "multirun.yaml") as path:
            OmegaConf.save(self.config, path)
        before = read_plan(folder)
        plan = Plan(
            name=self._title(folder) if before is None else before.name,
            arguments=[word for word in sys.argv[1:] if not is_said_once(word)],
            centres=self.command.centres(step.jobs.values()),
            rounds=intent.rounds.written() if intent.rounds else {},
            contrasts={contrast.name: contrast.written() for contrast in intent.contrasts},
        )
        begin_sweep(folder, before, step, plan)

    def _title(self, folder: Path) -> str:
        """What the report is headed.

        The key `name` or, where nobody has set it, the experiment or the folder.
        """
        name = str(self.config.name)
        if name != ADHOC:
            return name
        experiment = self.config.hydra.runtime.choices.get("experiment")
        if experiment:
            return printable(experiment)
        return name if is_named_by_clock(self.config, "sweep") else printable(folder.name)

    def _train(self, folder: Path, step: Step, intent: Intent) -> list[JobReturn]:
        """Have the launcher run the jobs, round by round, then report; raises if a run failed."""
        returns: list[JobReturn] = []
        interrupted = False
        begun = time.perf_counter()
        trained: list[Spec] = []
        try:
            returns += self._launch(step, set())
            trained += step.specs(without=step.finished)
            while intent.rounds is not None:
                later = self._next_round(folder, step, intent.rounds)
                if later is None or not self._is_in_time(later, step, trained, begun):
                    break
                done = set(step.jobs)
                step = later
                self._begin(folder, step, intent)
                returns += self._launch(step, done)
                trained += step.specs(without=done)
        except KeyboardInterrupt:
            interrupted = True
        explorer = bool(self.config.explorer)
        ends = conclusion.report_on(folder, step.folders(), explorer=explorer)
        if interrupted:
            there = conclusion.summarise(ends)
            raise conclusion.Interrupted(f"interrupted; {there}; {conclusion.go_on(folder)}")
        raise_errors(returns)
        if self.stacking is None or self.stacking.options.wait:
            conclusion.raise_unless_complete(folder, step.folders(), ends)
        return returns

    def _launch(self, step: Step, done: set[int]) -> list[JobReturn]:
        """Have the launcher run the jobs of a step but those that were launched before."""
        returns: list[JobReturn] = []
        self.launcher.varied = varied_keys(step.specs())
        for numbers in step.ranges(without=done):
            overrides = [step.jobs[number].overrides for number in numbers]
            returns += self.launcher.launch(overrides, initial_job_idx=numbers.start)
        return returns

    def _next_round(self, folder: Path, step: Step, rounds: Rounds) -> Step | None:
        """The sweep with the runs of its next round; None if there is none, or not yet."""
        from nfexp.sweep.rounds import judged_round  # with pandas

        specs = {}
        overrides = {}
        requests = {}
        for number, job in step.jobs.items():
            specs[number] = job.spec
            overrides[number] = job.overrides
            requests[job.run_id] = Request(job.overrides, job.spec)
        judged = judged_round(
            folder, step.folders(), specs, overrides, rounds, fail_fast=self.config.fail_fast
        )
        if judged is None or not judged.overrides:
            return None
        requests |= self.command.composed(judged.overrides).requests
        grown = self.command.settled(folder, Chosen(requests=requests, dropped=""), grows=True)
        grown.mixed = False  # it is the plan's own rule that lets the folder grow
        return grown

    def _is_in_time(self, later: Step, step: Step, trained: Sequence[Spec], begun: float) -> bool:
        """Whether the next round would end within `time_budget`, at the pace so far."""
        from nfexp.sweep.rounds import is_in_time

        new = later.specs(without=step.jobs)
        elapsed = time.perf_counter() - begun
        return is_in_time(new, trained, elapsed, self.config.time_budget)


def raise_errors(returns: Sequence[JobReturn]) -> None:
    """Raise the first error of a launcher (a run could not be written, say).

    That a run failed is none: :func:`nfexp.sweep.conclusion.raise_unless_complete` says it.
    """
    for back in returns:
        is_failed_run = isinstance(back._return_value, RunFailed)
        if back.status is JobStatus.FAILED and not is_failed_run:
            _ = back.return_value  # reading it raises
