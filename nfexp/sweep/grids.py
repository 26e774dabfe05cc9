"""Which runs a sweep has: the union of grids that `hydra.sweeper` and the command line describe."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from nfexp.arguments import Argument, each, given, key_of_override
from nfexp.configuration import CONTROLS
from nfexp.spec import SpecError, Words
from nfexp.sweep.options import Options

Point = dict[str, Argument]  # key → the value it has there: one run, as overrides
Choices = dict[str, list[Argument]]  # key → its values
Values = Mapping[str, Any]  # a point's whole configuration by key, and the option of each group

# Keys that are of the sweep as a whole, so that it cannot sweep over them
OF_THE_SWEEP = ("experiment", *CONTROLS)


# --- Values ----------------------------------------------------------------------------


def _same(a: Any, b: Any) -> bool:
    """Whether two values are equal: 1 and 1.0 are, but true is not 1, as it is in Python."""
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def matches(entry: Choices, values: Values) -> bool:
    """Whether each key of an entry has one of the values that the entry lists."""
    for key, listed in entry.items():
        if key not in values:
            return False
        if not any(_same(values[key], argument.value) for argument in listed):
            return False
    return True


def overrides_of(point: Point) -> list[str]:
    """A point as overrides."""
    return [argument.line for argument in point.values()]


def changes_no_number(key: str) -> bool:
    """Whether an override says only how a run is recorded, named or where it is computed."""
    return key in ("record", "name", "device") or key.startswith("record.")


# --- Points ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every grid is multiplied by: `params`, rows of the sweeper's `zip`, the command line.

    If the command line `narrows`, it restricts the keys of grids and replaces those of `params`.
    Otherwise both replace those of the command line: that shows which points it leaves out.
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

    def around(self, of_grid: Choices) -> Choices:
        """The choices of a grid with those that all grids share, which its own replace."""
        if self.narrows:
            return self.params | self.command_line | of_grid
        return self.command_line | self.params | of_grid

    def narrowing(self, keys: Collection[str]) -> Choices:
        """What the command line allows of the keys that a grid has itself."""
        if not self.narrows:
            return {}
        allowed = {}
        for key, values in self.command_line.items():
            if key in keys and key not in self.removed:
                allowed[key] = values
        return allowed


@dataclass(frozen=True)
class Excluded:
    """An entry of `exclude`: its key in the configuration, how it is written, what it lists."""

    where: str
    written: Mapping[str, Any]
    choices: Choices


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

    def __init__(
        self,
        options: Options,
        parser: OverridesParser,
        values_of: Callable[[Point], Values],
    ) -> None:
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
                if key in OF_THE_SWEEP:
                    expected = "one value, for it says what the sweep is"
                    raise SpecError(key, expected, override.input_line)
                if not override.is_discrete_sweep():
                    raise SpecError(key, "a list of values", override.input_line)
            value = override.value()
            if isinstance(value, dict):  # flow={n_flows:4} says what flow.n_flows=4 says
                for leaf, leaf_value in value.items():
                    _check_leaf(key, leaf, leaf_value, override.input_line)
                    choices[f"{key}.{leaf}"] = [given(f"{key}.{leaf}", leaf_value)]
            else:
                choices[key] = list(each(override))
        return choices

    def _choices(self, entries: Mapping[str, Any], where: str) -> Choices:
        """The values of each key.

        A list holds them as they are; a text alone is read as on the command line: "1,2".
        """
        choices: Choices = {}
        for name, value in entries.items():
            listed = value if isinstance(value, list) else [value]
            if listed == [] or any(isinstance(item, Mapping | list) for item in listed):
                raise SpecError(f"{where}.{name}", "a value or a list of values", value)
            if isinstance(value, str):
                arguments = self._parsed(str(name), value, where)
            else:
                arguments = [given(str(name), item) for item in listed]
            key = arguments[0].key  # without the + of "+seed", say
            if key in choices:
                raise SpecError(f"{where}.{key}", "each key once", Words(f"{name} as well"))
            choices[key] = arguments
        return choices

    def _parsed(self, name: str, text: str, where: str) -> list[Argument]:
        """The values that a text lists in Hydra's grammar: ``1,2`` or ``range(1,9)``."""
        try:
            override = self.parser.parse_override(f"{name}={text}")
        except HydraException:
            expected = "values as the command line spells them, or a list"
            raise SpecError(f"{where}.{name}", expected, text) from None
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
            counts = ", ".join(f"{key}: {length}" for key, length in lengths.items())
            raise SpecError(where, "lists of one length", counts)
        rows = []
        for row in zip(*columns.values(), strict=True):
            rows.append(dict(zip(columns, row, strict=True)))
        return rows

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
        """The points of one grid, or of a list of grids, that agree with the command line.

        A grid's own keys replace those of `params`, and its zip stands beside that of the sweeper.
        """
        if isinstance(grid, list):
            for i, part in enumerate(grid):
                yield from self._grid(part, f"{where}[{i}]", common)
            return
        choices, rows = self._choices_and_rows(grid, where, common)
        for key in common.command_line:
            if changes_no_number(key):
                # how a run is recorded narrows nothing: the command line wins
                choices.pop(key, None)
        factors = common.around(choices)
        for key in rows[0]:
            factors.pop(key, None)  # the rows have it
        narrowing = common.narrowing(choices.keys() | rows[0].keys())
        for row in rows:
            for chosen in itertools.product(*factors.values()):
                point = dict(zip(factors, chosen, strict=True)) | row | common.removed
                values = {key: point[key].value for key in narrowing}
                if matches(narrowing, values):
                    yield point

    def _choices_and_rows(
        self, grid: Any, where: str, common: Common
    ) -> tuple[Choices, list[Point]]:
        """The keys of one grid, and the rows of its zip joined with those of the sweeper's."""
        if not isinstance(grid, dict):
            raise SpecError(where, "a grid: keys with lists of values", grid)
        inner = self._rows(grid.get("zip"), f"{where}.zip")
        keys = dict(grid)
        keys.pop("zip", None)
        choices = self._choices(keys, where)
        if not choices and inner == [{}] and "zip" in grid:
            raise SpecError(where, "a grid: keys with lists of values", "nothing")
        both = sorted(choices.keys() & inner[0].keys())
        if both:
            got = Words("it in both")
            raise SpecError(f"{where}.{both[0]}", "a key in the grid or in its zip", got)
        taken = sorted(common.rows[0].keys() & (choices.keys() | inner[0].keys()))
        if taken:
            got = Words(f"one of {where}")
            raise SpecError(f"hydra.sweeper.zip.{taken[0]}", "a key that no grid has", got)
        rows = []
        for outer_row in common.rows:
            for inner_row in inner:
                rows.append(outer_row | inner_row)
        return choices, rows

    def _check_one_seed(self, points: Sequence[Point]) -> None:
        """Raise if `repeats` would count from several seeds: those of two points would overlap."""
        if self.options.repeats == 1:
            return
        every = [str(self.values_of(point).get("seed")) for point in points]
        seeds = list(dict.fromkeys(every))  # each once, in order
        if len(seeds) > 1:
            first_seeds = ", ".join(seeds[:4])
            if len(seeds) > 4:
                first_seeds += ", …"
            got = Words(f"{len(seeds)} seeds: {first_seeds}")
            raise SpecError("hydra.sweeper.repeats", "1, or a sweep of one seed to count from", got)

    def _repeated(self, points: Sequence[Point]) -> list[Point]:
        """Each point with `repeats` seeds, counted from its own."""
        if self.options.repeats == 1:
            return list(points)
        repeated: list[Point] = []
        for point in points:
            first = self.values_of(point).get("seed")
            if type(first) is not int:  # true, or no number: the check of the spec will say so
                repeated.append(point | {"seed": given("seed", first)})
                continue
            for seed in range(first, first + self.options.repeats):
                repeated.append(point | {"seed": given("seed", seed)})
        return repeated

    def _without_excluded(self, points: Sequence[Point], common: Common) -> list[Point]:
        """The points that no entry of `exclude` matches.

        An entry that matches no point is a mistake, and raises. It may match points that only the
        command line leaves out: so the entries of an experiment stay valid for a part of it.
        """
        entries = self._exclude_entries()
        if not entries or not points:
            return list(points)
        values = [self.values_of(point) for point in points]
        for entry in entries:
            if not any(matches(entry.choices, of_point) for of_point in values):
                self._check_could_match(entry, values[0], common)
        kept = []
        for point, of_point in zip(points, values, strict=True):
            if not any(matches(entry.choices, of_point) for entry in entries):
                kept.append(point)
        return kept

    def _exclude_entries(self) -> list[Excluded]:
        entries = []
        for i, written in enumerate(self.options.exclude):
            where = f"hydra.sweeper.exclude[{i}]"
            if not isinstance(written, dict) or not written:
                raise SpecError(where, "keys with values", written)
            entries.append(Excluded(where, written, self._choices(written, where)))
        return entries

    def _check_could_match(self, entry: Excluded, values: Values, common: Common) -> None:
        """Raise if an entry of `exclude` matches no point, even of those the command line drops.

        `values` are those of one point; all points have the same keys.
        """
        for key in entry.choices:
            if key not in values:
                got = Words("an unknown one")
                raise SpecError(f"{entry.where}.{key}", "a key of the configuration", got)
        wide = self._repeated(self._union(replace(common, narrows=False)))
        if not any(matches(entry.choices, self.values_of(point)) for point in wide):
            raise SpecError(entry.where, "values that a point of the sweep has", entry.written)


def _check_leaf(key: str, leaf: object, value: Any, written: Any) -> None:
    """Raise unless this entry of a dictionary on the command line is a plain value by its key."""
    is_plain = value is None or isinstance(value, bool | int | float | str)
    if not isinstance(leaf, str) or not is_plain:
        raise SpecError(key, f"plain values by key, or {key}.KEY=VALUE for each", Words(written))
