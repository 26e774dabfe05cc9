"""The `grids` sweeper: a union of grids, each configuration composed once and trained once."""

from __future__ import annotations

import itertools
import logging
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.nfexp.compose import Composer
from nfexp.arguments import Argument, argument, each, given, key_of, key_of_override

if TYPE_CHECKING:
    from nfexp.spec import Spec
    from nfexp.sweep.folder import Plan, Step

log = logging.getLogger(__name__)

Point = dict[str, Argument]  # key → the value it has there
Choices = dict[str, list[Argument]]  # key → its values


def same(a: Any, b: Any) -> bool:
    """Whether two values are one: numbers as numbers, but true is no 1."""
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def matches(entry: Choices, values: Mapping[str, Any]) -> bool:
    """Whether each key of an entry has one of the values that the entry lists."""
    for key, listed in entry.items():
        if key not in values or not any(same(values[key], one.value) for one in listed):
            return False
    return True


def spelled(point: Point) -> list[str]:
    """A point as overrides."""
    return [one.line for one in point.values()]


def since(begun: float) -> str:
    return f"{time.perf_counter() - begun:.1f} s"


def spell_time(seconds: float) -> str:
    """Minutes, or hours from three of them on.

    >>> spell_time(90), spell_time(40_000)
    ('1.5 minutes', '11.1 hours')
    """
    return f"{seconds / 60:.1f} minutes" if seconds < 10_800 else f"{seconds / 3600:.1f} hours"


def changes_no_number(key: str) -> bool:
    """Whether an override says only how a run is recorded, named or where it is computed."""
    return key in ("record", "name", "device") or key.startswith("record.")


def records_more(spec: Spec, other: Spec) -> bool:
    """Whether a run keeps all that an equal one keeps for figures, and something else."""
    mine, theirs = vars(spec.record).values(), vars(other.record).values()
    return spec.record != other.record and all(a >= b for a, b in zip(mine, theirs, strict=True))


class Common(NamedTuple):
    """What every grid is multiplied by: `params`, the rows of the sweeper's `zip`, the command line.

    `narrows` says whether the command line restricts the keys of grids and replaces those of `params`, or yields.
    """

    params: Choices
    rows: list[Point]
    cli: Choices
    narrows: bool = True


class GridsSweeper(Sweeper):
    def __init__(
        self,
        params: Mapping[str, Any] | None,
        zip: Mapping[str, Any] | None,
        grids: Mapping[str, Any] | Sequence[Any] | None,
        exclude: Sequence[Mapping[str, Any]] | None,
        repeats: int,
        sample: int | None,
        resume: bool,
    ) -> None:
        from nfexp.spec import SpecError

        given = {"params": params, "zip": zip, "grids": grids, "exclude": exclude, "repeats": repeats, "sample": sample,
                 "resume": resume}  # fmt: skip
        given = {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in given.items()}
        expected: dict[str, tuple[Any, str]] = {
            "params": (dict | None, "a group of keys"),
            "zip": (dict | None, "keys with lists of values"),
            "grids": (dict | list | None, "grids by name, or a list of grids"),
            "exclude": (list | None, "a list of {key: value}"),
            "repeats": (int, "an integer >= 1"),
            "sample": (int | None, "an integer >= 1, or null"),
            "resume": (bool, "true or false"),
        }
        for key, (kind, words) in expected.items():
            value = given[key]
            number = isinstance(value, int) and kind in (int, int | None)
            if not isinstance(value, kind) or (number and (isinstance(value, bool) or value < 1)):
                raise SpecError(f"hydra.sweeper.{key}", words, value)
        self.params, self.zip, self.grids = (given[key] or {} for key in ("params", "zip", "grids"))
        self.exclude, self.repeats, self.sample, self.resume = given["exclude"] or [], repeats, sample, resume

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.composer = getattr(self.launcher, "composer", None) or Composer(hydra_context.config_loader, config)

    def _choices(self, entries: Mapping[str, Any], where: str) -> Choices:
        """The values of each key. A list holds them as they are; a text alone is read as on the command line."""
        from nfexp.spec import SpecError, Words

        choices: Choices = {}
        for name, value in entries.items():
            listed = value if isinstance(value, list) else [value]
            if listed == [] or any(isinstance(one, Mapping | list) for one in listed):
                raise SpecError(f"{where}.{name}", "a value or a list of values", value)
            if isinstance(value, str):
                found = self._parsed(str(name), value, where)
            else:
                found = [given(str(name), one) for one in listed]
            key = found[0].key
            if key in choices:
                raise SpecError(f"{where}.{key}", "each key once", Words(f"{name} as well"))
            choices[key] = found
        return choices

    def _parsed(self, name: str, text: str, where: str) -> list[Argument]:
        """The values that a text lists in Hydra's grammar: ``1,2`` or ``range(1,9)``."""
        from nfexp.spec import SpecError

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        try:
            override = parser.parse_override(f"{name}={text}")
        except HydraException:
            raise SpecError(f"{where}.{name}", "values as the command line spells them, or a list", text) from None
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise SpecError(f"{where}.{name}", "a list of values", text)
        return list(each(override))

    def _rows(self, lists: Mapping[str, Any] | None, where: str) -> list[Point]:
        """The rows of a zip: what its lists hold side by side. Without lists, one empty row."""
        from nfexp.spec import SpecError

        if lists is not None and not isinstance(lists, dict):
            raise SpecError(where, "keys with lists of values", lists)
        columns = self._choices(lists or {}, where)
        if len({len(v) for v in columns.values()}) > 1:
            lengths = ", ".join(f"{k}: {len(v)}" for k, v in columns.items())
            raise SpecError(where, "lists of one length", lengths)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)] or [{}]

    def _expand(self, grid: Any, where: str, common: Common) -> Iterator[Point]:
        """The points of one grid: its own keys over `params`, the command line keeping only what agrees with it.

        What a run records is no such key: there the command line simply wins.
        """
        from nfexp.spec import SpecError, Words

        if isinstance(grid, list):
            for i, part in enumerate(grid):
                yield from self._expand(part, f"{where}[{i}]", common)
            return
        if not isinstance(grid, dict):
            raise SpecError(where, "a grid: keys with lists of values", grid)
        params, outer, cli, narrows = common
        inner = self._rows(grid.get("zip"), f"{where}.zip")
        own = self._choices({k: v for k, v in grid.items() if k != "zip"}, where)
        if not own and inner == [{}] and "zip" in grid:
            raise SpecError(where, "a grid: keys with lists of values", "nothing")
        if both := sorted(own.keys() & inner[0].keys()):
            raise SpecError(f"{where}.{both[0]}", "a key in the grid or in its zip", Words("it in both"))
        if both := sorted(outer[0].keys() & (own.keys() | inner[0].keys())):
            raise SpecError(f"hydra.sweeper.zip.{both[0]}", "a key that no grid has", Words(f"one of {where}"))
        own = {k: v for k, v in own.items() if not (k in cli and changes_no_number(k))}
        rows = [o | i for o in outer for i in inner]
        every = params | cli if narrows else cli | params
        removed = {k: v[0] for k, v in cli.items() if v[0].kind == "remove"}
        asked = {k: v for k, v in cli.items() if narrows and k not in removed and (k in own or k in rows[0])}
        free = {k: v for k, v in (every | own).items() if k not in rows[0]}
        for row in rows:
            for values in itertools.product(*free.values()):
                point = dict(zip(free, values, strict=True)) | row | removed
                if matches(asked, {k: point[k].value for k in asked}):
                    yield point

    def _union(self, common: Common) -> list[Point]:
        grids = self.grids or {"all": {}}
        named = grids.items() if isinstance(grids, dict) else enumerate(grids)
        where = "hydra.sweeper.grids.{}" if isinstance(grids, dict) else "hydra.sweeper.grids[{}]"
        return [point for name, grid in named for point in self._expand(grid, where.format(name), common)]

    def _values(self, point: Point) -> dict[str, Any]:
        """What the configuration of a point holds by key, before it is checked, and the option of each group."""
        task = self.composer.plain(spelled(point))
        nested = {f"{g}.{k}": v for g, part in task.items() if isinstance(part, dict) for k, v in part.items()}
        chosen = {k: one.value for k, one in point.items()}
        plain = {k: v for k, v in task.items() if not isinstance(v, dict)}
        return dict(self.config.hydra.runtime.choices) | chosen | plain | nested

    def _repeated(self, points: Sequence[Point]) -> list[Point]:
        """Each point with `repeats` seeds, counted from its own."""
        if self.repeats == 1:
            return list(points)
        repeated: list[Point] = []
        for point in points:
            first = self._values(point).get("seed")
            seeds = range(first, first + self.repeats) if type(first) is int else [first]
            repeated += [point | {"seed": given("seed", seed)} for seed in seeds]
        return repeated

    def _kept(self, points: Sequence[Point], common: Common) -> list[Point]:
        """The points that no entry of `exclude` matches; raises if an entry matches none, for then it is a slip.

        An entry may match what only the command line leaves out: that of an experiment stays right in a part of it.
        """
        from nfexp.spec import SpecError, Words

        entries = {f"hydra.sweeper.exclude[{i}]": entry for i, entry in enumerate(self.exclude)}
        if bad := [where for where, entry in entries.items() if not isinstance(entry, dict) or not entry]:
            raise SpecError(bad[0], "keys with values", entries[bad[0]])
        parsed = {where: self._choices(entry, where) for where, entry in entries.items()}
        if not parsed or not points:
            return list(points)
        values = [self._values(point) for point in points]
        for where, entry in parsed.items():
            if any(matches(entry, v) for v in values):
                continue
            if unknown := [key for key in entry if key not in values[0]]:
                raise SpecError(f"{where}.{unknown[0]}", "a key of the configuration", Words("an unknown one"))
            wide = self._repeated(self._union(common._replace(narrows=False)))
            if not any(matches(entry, self._values(point)) for point in wide):
                raise SpecError(where, "values that a point of the sweep has", entries[where])
        return [p for p, v in zip(points, values, strict=True) if not any(matches(e, v) for e in parsed.values())]

    def points(self, arguments: Sequence[str]) -> tuple[list[list[str]], int]:
        """Every job's overrides, duplicates of the configuration not yet dropped, and how many points are excluded."""
        from nfexp.cli import CONTROLS
        from nfexp.spec import SpecError, Words

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        cli: Choices = {}
        for override in parser.parse_overrides(list(arguments)):
            key = key_of_override(override)
            if override.is_sweep_override():
                if key == "experiment" or key in CONTROLS:
                    raise SpecError(key, "one value, for it says what the sweep is", override.input_line)
                if not override.is_discrete_sweep():
                    raise SpecError(key, "a list of values", override.input_line)
            cli[key] = list(each(override))
        params = self._choices(self.params, "hydra.sweeper.params")
        common = Common(params, self._rows(self.zip, "hydra.sweeper.zip"), cli)
        once = self._union(common)
        counted = once if self.repeats > 1 else []
        seeds = list(dict.fromkeys(str(self._values(point).get("seed")) for point in counted))
        if len(seeds) > 1:
            several = Words(f"{len(seeds)} seeds: {', '.join(seeds[:4])}{', …' * (len(seeds) > 4)}")
            raise SpecError("hydra.sweeper.repeats", "1, or a sweep of one seed to count from", several)
        every = self._repeated(once)
        kept = self._kept(every, common)
        return [spelled(point) for point in kept], len(every) - len(kept)

    def sweep(self, arguments: list[str]) -> Any:
        from nfexp.cli import CONTROLS, check_controls
        from nfexp.folders import check_output_subdir, claimed, named_folder
        from nfexp.spec import SpecError, Words, run_id
        from nfexp.sweep.folder import read_plan
        from nfexp.sweep.worker import check_all

        check_controls(self.config)
        fixed = [a for a in arguments if key_of(a) not in CONTROLS or argument(a).swept]
        check_output_subdir(self.config)
        folder = named_folder(self.config, "sweep")  # fixes ${now:…} before any job copies it
        begun, old = time.perf_counter(), read_plan(folder)
        if self.resume and not old:
            raise SpecError(str(folder), "the folder of an earlier sweep", Words("one without sweep.json"))
        try:
            if not hasattr(self.launcher, "pool") and self.config.fail_fast:
                raise SpecError("fail_fast", "hydra/launcher=stack, which alone can stop", Words("another launcher"))
            call = self.launcher.call if hasattr(self.launcher, "pool") else lambda function, *args: function(*args)
            points, excluded = (self._stored(folder, old), 0) if self.resume else self.points(fixed)
            jobs: dict[str, tuple[Sequence[str], Spec]] = {}
            for overrides in points:
                spec = self.composer.spec(overrides)
                if (key := run_id(spec)) not in jobs or records_more(spec, jobs[key][1]):
                    jobs[key] = overrides, spec
            unique, whole = len(jobs), jobs
            if self.sample and self.sample < unique and not self.resume:
                drawn = random.Random(0).sample(sorted(whole), self.sample)  # of the same grid always the same
                jobs = {key: whole[key] for key in whole if key in set(drawn)}
            if not jobs:
                none = "none left" if excluded else "none that agrees with the command line"
                raise SpecError(f"hydra.sweeper.{'exclude' if excluded else 'grids'}", "at least one run", Words(none))
            call(check_all, [spec for _, spec in jobs.values()])
            dropped = f"{len(points) - unique} duplicates dropped" + f", {excluded} excluded" * bool(excluded)
            dropped += f", drawn from {unique}" * (len(jobs) < unique)
            if self.config.dry_run or not folder.exists():  # a folder that is refused is not made
                step = self._settled(folder, jobs)
            if self.config.dry_run:
                print(self._plan_text(step, call, dropped))
                return []
            with claimed(self.config, "sweep") as folder:
                step = self._settled(folder, jobs)
                self._begin(folder, step, fixed)
                log.info(f"{folder}: {len(jobs)} runs; {dropped}; {since(begun)} to compose")
                return self._launch(folder, step)
        finally:
            if hasattr(self.launcher, "close"):
                self.launcher.close()

    def _stored(self, folder: Path, old: Plan) -> list[list[str]]:
        """The overrides of the jobs that a folder lists, which may come from elsewhere."""
        from nfexp.commands import harmless
        from nfexp.spec import SpecError

        for job in old.jobs:
            for override in job["overrides"]:
                if not harmless(override):
                    raise SpecError(f"{folder}/sweep.json", "jobs with overrides that are safe to repeat", override)
        return [job["overrides"] for job in old.jobs]

    def _settled(self, folder: Path, jobs: Mapping[str, tuple[Sequence[str], Spec]]) -> Step:
        from nfexp.spec import SpecError
        from nfexp.sweep.folder import read_plan, settle

        def place(overrides: Sequence[str], number: int) -> str:
            below = os.path.relpath(self.composer.folder(overrides, number), folder)
            if Path(below).parts[:1] == ("..",):
                raise SpecError("hydra.sweep.subdir", "a folder below that of the sweep", below)
            return below

        return settle(folder, read_plan(folder), jobs, place, mixed=self.config.mixed, redo=self.config.redo)

    def _launch(self, folder: Path, step: Step) -> list[JobReturn]:
        """Have the launcher run the jobs, then report; raises if a run failed."""
        from nfexp.cli import Interrupted, RunFailed, report
        from nfexp.commands import resume_command
        from nfexp.record import outcome

        returns: list[JobReturn] = []
        interrupted = False
        try:
            for numbers in step.ranges():
                some = [step.overrides[k] for k in numbers]
                returns += self.launcher.launch(some, initial_job_idx=numbers.start)
        except KeyboardInterrupt:
            interrupted = True
        ends = {k: outcome(folder / place) for k, place in step.folders.items()}
        counts = Counter(end.status if end else "not finished" for end in ends.values())
        begun = time.perf_counter()
        if counts["not finished"] < len(ends):
            report(folder)
            log.info(f"{since(begun)} to report")
        summary = f"{len(ends)} runs: " + ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
        log.info(summary)
        if interrupted:
            raise Interrupted(f"interrupted; {summary}; go on with: {resume_command(folder)}")
        for back in returns:
            if back.status is JobStatus.FAILED and not isinstance(back._return_value, RunFailed):
                _ = back.return_value  # raises: a run could not be written
        if failed := [k for k, end in ends.items() if end and end.status == "failed"]:
            first = f"{folder / step.folders[failed[0]]}: {ends[failed[0]].reason}"
            raise RunFailed(f"{summary}; the first that failed: {first}")
        if counts["not finished"] and getattr(self.launcher, "wait", True):
            raise RunFailed(f"{summary}; go on with: {resume_command(folder)}")
        return returns

    def _plan_text(self, step: Step, call: Callable[..., Any], dropped: str) -> str:
        from nfexp.flows.cost import member_bytes, training_cost, training_flop
        from nfexp.spec import batch_points
        from nfexp.sweep.planning import training_rate

        specs = [spec for k, spec in step.specs.items() if k not in step.finished]
        if not specs:
            return f"{len(step.finished)} runs are finished: nothing to train; {dropped}"
        stacks, workers, limits = [[i] for i in range(len(specs))], 1, ""
        if hasattr(self.launcher, "stacks"):
            stacks, workers, room = self.launcher.stacks(specs)
            limits = f"; {workers} stacks at a time, each in at most {room / 1e9:.3g} GB"
        head = ["runs", "MB", "flows", "depth", "width", "batch", "steps"]
        lines = [" ".join(f"{name:>6}" for name in head) + "  architecture"]
        for stack in stacks:
            s, f = specs[stack[0]], specs[stack[0]].flow
            rest = f"{f.activation} {f.coupling} {f.conditioner} norm={f.norm} base={f.base}"
            size = f"{len(stack) * max(member_bytes(specs[i]) for i in stack) / 1e6:.0f}"
            shape = [len(stack), size, f.n_flows, f.hidden_depth, f.hidden_width, batch_points(s), s.train.steps]
            lines.append(" ".join(f"{number:>6}" for number in shape) + f"  {rest}")
        targets = ", ".join(f"{n} {t}" for t, n in Counter(s.data.name for s in specs).items())
        steps = sum(s.train.steps for s in specs)
        work, seconds = sum(map(training_flop, specs)), sum(map(training_cost, specs))
        took = spell_time(seconds / call(training_rate, specs[0], workers))
        kept = f"; {len(step.finished)} more are finished" if step.finished else ""
        lines += [
            f"{len(specs)} runs ({targets}) in {len(stacks)} stacks; {dropped}{kept}",
            f"{steps:,} member-steps, {work / 1e12:,.3g} TFLOP; about {took} of training on this machine{limits}",
        ]
        return "\n".join(lines)

    def _begin(self, folder: Path, step: Step, fixed: list[str]) -> None:
        """Write what the sweep intends: `multirun.yaml` as Hydra does, and `sweep.json` for the reports."""
        from nfexp.commands import ONCE, name_of
        from nfexp.files import replacing
        from nfexp.spec import flatten
        from nfexp.sweep.folder import Plan, begin, read_plan

        with replacing(folder / "multirun.yaml") as path:
            OmegaConf.save(self.config, path)
        single = [a for a in fixed if not argument(a).swept and key_of(a) != "data"]
        plan = Plan(name=self.config.name, arguments=[a for a in sys.argv[1:] if name_of(a) not in ONCE])
        for k, spec in step.specs.items():
            if spec.data.name not in plan.centres:
                own = [o for o in step.overrides[k] if key_of(o) == "data"]
                plan.centres[spec.data.name] = flatten(self.composer.spec([*own, *single]))
        begin(folder, read_plan(folder), step, plan)
