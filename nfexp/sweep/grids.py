"""Which runs a sweep has: the grammar of `hydra.sweeper`, a union of grids, beside the command line."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from nfexp.arguments import Argument, each, given, key_of_override
from nfexp.spec import Spec, SpecError, Words, run_id

Point = dict[str, Argument]  # key → the value it has there: one run, as overrides
Choices = dict[str, list[Argument]]  # key → its values
Values = Mapping[str, Any]  # the whole configuration of a point by key, and the option of each group

SAYS_WHAT_IT_IS = ("experiment", "dry_run", "fail_fast", "mixed", "redo")  # keys of a sweep that it cannot sweep over


# --- What hydra.sweeper says, checked ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keys of `hydra.sweeper` as plain containers; conf/hydra/sweeper/grids.yaml says what each means."""

    params: Mapping[str, Any]
    zip: Mapping[str, Any]
    grids: Mapping[str, Any] | Sequence[Any]
    exclude: Sequence[Any]
    repeats: int
    sample: int | None
    resume: bool


def checked(values: Mapping[str, Any]) -> Options:
    """The options of a sweeper.

    Raises
    ------
    SpecError
        For one of another kind, with its key.
    """
    kinds: dict[str, tuple[tuple[type, ...], str]] = {
        "params": ((dict,), "a group of keys"),
        "zip": ((dict,), "keys with lists of values"),
        "grids": ((dict, list), "grids by name, or a list of grids"),
        "exclude": ((list,), "a list of {key: value}"),
    }
    plain: dict[str, Any] = {}
    for key, (kind, words) in kinds.items():
        value = values[key]
        if value is not None and not isinstance(value, kind):
            raise SpecError(f"hydra.sweeper.{key}", words, value)
        plain[key] = value or kind[0]()
    repeats = values["repeats"]
    if not _is_count(repeats):
        raise SpecError("hydra.sweeper.repeats", "an integer >= 1", repeats)
    sample = values["sample"]
    if sample is not None and not _is_count(sample):
        raise SpecError("hydra.sweeper.sample", "an integer >= 1, or null", sample)
    resume = values["resume"]
    if not isinstance(resume, bool):
        raise SpecError("hydra.sweeper.resume", "true or false", resume)
    return Options(**plain, repeats=repeats, sample=sample, resume=resume)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


# --- Values ---------------------------------------------------------------------------------------------------------


def _same(a: Any, b: Any) -> bool:
    """Whether two values are one: numbers as numbers, but true is no 1."""
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def matches(entry: Choices, values: Values) -> bool:
    """Whether each key of an entry has one of the values that the entry lists."""
    for key, listed in entry.items():
        if key not in values or not any(_same(values[key], one.value) for one in listed):
            return False
    return True


def overrides_of(point: Point) -> list[str]:
    """A point as overrides."""
    return [one.line for one in point.values()]


def changes_no_number(key: str) -> bool:
    """Whether an override says only how a run is recorded, named or where it is computed."""
    return key in ("record", "name", "device") or key.startswith("record.")


# --- Points ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every grid is multiplied by: `params`, the rows of the sweeper's `zip`, the command line.

    `narrows` says whether the command line restricts the keys of grids and replaces those of `params`, or yields.
    """

    params: Choices
    rows: Sequence[Point]
    command_line: Choices
    narrows: bool = True

    @property
    def removed(self) -> Point:
        """What the command line takes out of the configuration: ``~key``."""
        removed = {}
        for key, values in self.command_line.items():
            if values[0].kind == "remove":
                removed[key] = values[0]
        return removed


class Grids:
    """The points of a sweep, from its options and its command line.

    Parameters
    ----------
    options
        The keys of `hydra.sweeper`.
    parser
        Hydra's, which knows the groups of the configuration.
    values_of
        The whole configuration of a point, before it is checked.
    """

    def __init__(self, options: Options, parser: OverridesParser, values_of: Callable[[Point], Values]) -> None:
        self.options = options
        self.parser = parser
        self.values_of = values_of

    def points(self, arguments: Sequence[str]) -> tuple[list[Point], int]:
        """Every point, equal ones not yet dropped, and how many `exclude` has left out."""
        common = Common(
            params=self._choices(self.options.params, "hydra.sweeper.params"),
            rows=self._rows(self.options.zip, "hydra.sweeper.zip"),
            command_line=self._command_line(arguments),
        )
        once = self._union(common)
        self._check_one_seed(once)
        every = self._repeated(once)
        kept = self._without_excluded(every, common)
        return kept, len(every) - len(kept)

    def _command_line(self, arguments: Sequence[str]) -> Choices:
        choices: Choices = {}
        for override in self.parser.parse_overrides(list(arguments)):
            key = key_of_override(override)
            if override.is_sweep_override():
                if key in SAYS_WHAT_IT_IS:
                    raise SpecError(key, "one value, for it says what the sweep is", override.input_line)
                if not override.is_discrete_sweep():
                    raise SpecError(key, "a list of values", override.input_line)
            value = override.value()
            if isinstance(value, dict):  # flow={n_flows:4} says what flow.n_flows=4 says
                for leaf, one in value.items():
                    self._check_leaf(key, leaf, one, override.input_line)
                    choices[f"{key}.{leaf}"] = [given(f"{key}.{leaf}", one)]
            else:
                choices[key] = list(each(override))
        return choices

    def _check_leaf(self, key: str, leaf: object, value: Any, written: Any) -> None:
        """Raise for what a dictionary on the command line cannot be taken apart into: plain values by key."""
        if not isinstance(leaf, str) or not (value is None or isinstance(value, bool | int | float | str)):
            raise SpecError(key, f"plain values by key, or {key}.KEY=VALUE for each", Words(written))

    def _choices(self, entries: Mapping[str, Any], where: str) -> Choices:
        """The values of each key. A list holds them as they are; a text alone is read as on the command line."""
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
        try:
            override = self.parser.parse_override(f"{name}={text}")
        except HydraException:
            raise SpecError(f"{where}.{name}", "values as the command line spells them, or a list", text) from None
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise SpecError(f"{where}.{name}", "a list of values", text)
        return list(each(override))

    def _rows(self, lists: Any, where: str) -> list[Point]:
        """The rows of a zip: what its lists hold side by side. Without lists, one empty row."""
        if lists is not None and not isinstance(lists, dict):
            raise SpecError(where, "keys with lists of values", lists)
        columns = self._choices(lists or {}, where)
        if not columns:
            return [{}]
        lengths = {key: len(values) for key, values in columns.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{key}: {length}" for key, length in lengths.items())
            raise SpecError(where, "lists of one length", told)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _union(self, common: Common) -> list[Point]:
        """The points of all grids; without grids, those of `params`, `zip` and the command line."""
        grids = self.options.grids or {"all": {}}
        points: list[Point] = []
        if isinstance(grids, Mapping):
            for name, grid in grids.items():
                points += self._grid(grid, f"hydra.sweeper.grids.{name}", common)
        else:
            for i, grid in enumerate(grids):
                points += self._grid(grid, f"hydra.sweeper.grids[{i}]", common)
        return points

    def _grid(self, grid: Any, where: str, common: Common) -> Iterator[Point]:
        """The points of one grid, or of a list of grids: its own keys over `params`, its zip beside that of all.

        Of them only those that agree with the command line; what a run records is no such key, there it simply wins.
        """
        if isinstance(grid, list):
            for i, part in enumerate(grid):
                yield from self._grid(part, f"{where}[{i}]", common)
            return
        own, rows = self._own(grid, where, common)
        command_line, removed = common.command_line, common.removed
        own = {key: values for key, values in own.items() if not (key in command_line and changes_no_number(key))}
        shared = common.params | command_line if common.narrows else command_line | common.params
        free = {key: values for key, values in (shared | own).items() if key not in rows[0]}
        narrowing: Choices = {}
        if common.narrows:
            for key, values in command_line.items():
                if key not in removed and (key in own or key in rows[0]):
                    narrowing[key] = values
        for row in rows:
            for chosen in itertools.product(*free.values()):
                point = dict(zip(free, chosen, strict=True)) | row | removed
                if matches(narrowing, {key: point[key].value for key in narrowing}):
                    yield point

    def _own(self, grid: Any, where: str, common: Common) -> tuple[Choices, list[Point]]:
        """The keys of one grid, and the rows of its zip joined with those of the sweeper's."""
        if not isinstance(grid, dict):
            raise SpecError(where, "a grid: keys with lists of values", grid)
        inner = self._rows(grid.get("zip"), f"{where}.zip")
        own = self._choices({key: value for key, value in grid.items() if key != "zip"}, where)
        if not own and inner == [{}] and "zip" in grid:
            raise SpecError(where, "a grid: keys with lists of values", "nothing")
        both = sorted(own.keys() & inner[0].keys())
        if both:
            raise SpecError(f"{where}.{both[0]}", "a key in the grid or in its zip", Words("it in both"))
        taken = sorted(common.rows[0].keys() & (own.keys() | inner[0].keys()))
        if taken:
            raise SpecError(f"hydra.sweeper.zip.{taken[0]}", "a key that no grid has", Words(f"one of {where}"))
        return own, [outer_row | inner_row for outer_row in common.rows for inner_row in inner]

    def _check_one_seed(self, points: Sequence[Point]) -> None:
        """Raise if `repeats` would count from several seeds: the seeds of two points would overlap."""
        if self.options.repeats == 1:
            return
        seeds = list(dict.fromkeys(str(self.values_of(point).get("seed")) for point in points))
        if len(seeds) > 1:
            told = ", ".join(seeds[:4]) + (", …" if len(seeds) > 4 else "")
            several = Words(f"{len(seeds)} seeds: {told}")
            raise SpecError("hydra.sweeper.repeats", "1, or a sweep of one seed to count from", several)

    def _repeated(self, points: Sequence[Point]) -> list[Point]:
        """Each point with `repeats` seeds, counted from its own."""
        if self.options.repeats == 1:
            return list(points)
        repeated: list[Point] = []
        for point in points:
            first = self.values_of(point).get("seed")
            seeds = range(first, first + self.options.repeats) if type(first) is int else [first]
            repeated += [point | {"seed": given("seed", seed)} for seed in seeds]
        return repeated

    def _without_excluded(self, points: Sequence[Point], common: Common) -> list[Point]:
        """The points that no entry of `exclude` matches; raises if an entry matches none, for then it is a slip.

        An entry may match what only the command line leaves out: that of an experiment stays right in a part of it.
        """
        entries: dict[str, Choices] = {}
        for i, entry in enumerate(self.options.exclude):
            where = f"hydra.sweeper.exclude[{i}]"
            if not isinstance(entry, dict) or not entry:
                raise SpecError(where, "keys with values", entry)
            entries[where] = self._choices(entry, where)
        if not entries or not points:
            return list(points)
        values = [self.values_of(point) for point in points]
        for i, (where, entry) in enumerate(entries.items()):
            if not any(matches(entry, own) for own in values):
                self._check_could_match(where, entry, values[0], common, self.options.exclude[i])
        kept = []
        for point, own in zip(points, values, strict=True):
            if not any(matches(entry, own) for entry in entries.values()):
                kept.append(point)
        return kept

    def _check_could_match(self, where: str, entry: Choices, values: Values, common: Common, written: Any) -> None:
        """Raise if an entry of `exclude` matches no point even where the command line narrows nothing."""
        for key in entry:
            if key not in values:
                raise SpecError(f"{where}.{key}", "a key of the configuration", Words("an unknown one"))
        wide = self._repeated(self._union(replace(common, narrows=False)))
        if not any(matches(entry, self.values_of(point)) for point in wide):
            raise SpecError(where, "values that a point of the sweep has", written)


# --- Jobs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The jobs of a sweep, by run_id, and a sentence on what was left out."""

    jobs: dict[str, tuple[Sequence[str], Spec]]
    dropped: str


def choose(
    overrides: Sequence[Sequence[str]], spec_of: Callable[[Sequence[str]], Spec], *, excluded: int, sample: int | None
) -> Chosen:
    """The distinct runs among many overrides, and of these `sample`, drawn at random.

    Of two equal runs the one that records more is trained. Of the same grid a sample is always the same.
    """
    jobs: dict[str, tuple[Sequence[str], Spec]] = {}
    for one in overrides:
        spec = spec_of(one)
        key = run_id(spec)
        if key not in jobs or _records_more(spec, jobs[key][1]):
            jobs[key] = (one, spec)
    n_distinct = len(jobs)
    if n_distinct == 0:
        key = "exclude" if excluded else "grids"
        none = "none left" if excluded else "none that agrees with the command line"
        raise SpecError(f"hydra.sweeper.{key}", "at least one run", Words(none))
    dropped = f"{len(overrides) - n_distinct} duplicates dropped"
    if excluded:
        dropped += f", {excluded} excluded"
    if sample is not None and sample < n_distinct:
        drawn = set(random.Random(0).sample(sorted(jobs), sample))
        jobs = {key: job for key, job in jobs.items() if key in drawn}
        dropped += f", drawn from {n_distinct}"
    return Chosen(jobs=jobs, dropped=dropped)


def _records_more(spec: Spec, other: Spec) -> bool:
    """Whether a run keeps all that an equal one keeps for figures, and something else."""
    mine: Iterable[int] = vars(spec.record).values()
    theirs: Iterable[int] = vars(other.record).values()
    return spec.record != other.record and all(a >= b for a, b in zip(mine, theirs, strict=True))
