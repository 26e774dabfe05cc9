"""A table: named columns of finite numbers, some learned, some given, checked. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nfexp.spec import Data, SpecError, Words, counted, names_of, near

if TYPE_CHECKING:
    import pandas as pd

FEWEST_ROWS = 10
# A column with so few distinct values, or so few for its rows, is not continuous
FEW_VALUES = 20
FEW_SHARE = 0.05
# Of the standard deviation of a column: flows train in float32, and it is the variance that they
# hold
LEAST_SD = 1e-18
MOST_SD = 1e18
LEAST_SHARE = 4e-6  # of a standard deviation in the largest value: about 32 steps of float32
DISTINCT = (
    f"columns that float32 holds: a standard deviation from {LEAST_SD:g} to {MOST_SD:g} and above "
    f"{LEAST_SHARE:g} of the largest value (change the unit, or subtract a constant)"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Rows of finite numbers, (N, D + C) in float64; `dropped` rows had missing values.

    The last C columns, `n_context`, are given and not learned. Messages call the table `label`.
    """

    label: str
    names: tuple[str, ...]
    values: np.ndarray
    dropped: int = 0
    n_context: int = 0

    @property
    def dim(self) -> int:
        """D, the columns that are learned."""
        return len(self.names) - self.n_context

    @property
    def learned(self) -> tuple[str, ...]:
        """The names of the columns that are learned."""
        return self.names[: self.dim]

    @property
    def given(self) -> tuple[str, ...]:
        """The names of the columns that are given."""
        return self.names[self.dim :]


def shortened(names: Sequence[str], most: int = 12) -> str:
    """Names for a message; of many the first ones, and how many there are."""
    text = ", ".join(str(name) for name in names[:most])
    if len(names) > most:
        text += f", … ({len(names)})"
    return text


# --- Which columns ---------------------------------------------------------------------


def pick(frame: pd.DataFrame, data: Data, label: str) -> pd.DataFrame:
    """The columns to learn, then those that are given.

    To learn are those that `data.columns` asks for, in that order, or all; without those of
    `data.drop`. Given are those of `data.context`.
    """
    names = [str(name) for name in frame.columns]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        expected = f"columns of {label} with names of their own"
        raise SpecError("data.path", expected, Words(f"{repeated[0]!r} twice"))
    wanted = list(range(len(names)))
    if data.columns is not None:
        wanted = _positions("data.columns", data.columns, names, label)
    dropped = _positions("data.drop", data.drop, names, label)
    given = _positions("data.context", data.context, names, label)
    elsewhere = dropped if data.columns is None else dropped + wanted
    for position in given:
        if given.count(position) > 1 or position in elsewhere:
            expected = "columns of their own, not named twice nor in data.columns or data.drop"
            raise SpecError("data.context", expected, Words(f"{names[position]!r} again"))
    left = [position for position in wanted if position not in dropped]
    if not left:
        raise SpecError("data.columns", f"at least one column of {label}", Words("none"))
    learned = [position for position in left if position not in given]
    if not learned:
        expected = f"some columns of {label}, so that others are left to learn"
        raise SpecError("data.context", expected, Words("all of them"))
    return frame.iloc[:, learned + given]


def _positions(key: str, listed: str | None, names: Sequence[str], label: str) -> list[int]:
    """The positions of the columns of a list; of none without one."""
    if listed is None:
        return []
    return [_position(key, name, names, label) for name in names_of(listed)]


def _position(key: str, name: str, names: Sequence[str], label: str) -> int:
    """The position of a column that is asked for by its name, or by its position (0, 1, …)."""
    if name in names:
        return list(names).index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    expected = f"columns of {label}: {shortened(names)}"
    raise SpecError(key, expected, Words(f"{name!r}{near(name, names)}"))


# --- Their numbers ---------------------------------------------------------------------


def numbers(
    frame: pd.DataFrame,
    label: str,
    *,
    missing: str,
    key: str = "data.path",
    context: str | None = None,
) -> Table:
    """A frame as finite numbers; rows with missing values are dropped or, by `missing`, refused.

    Its last columns are those of the `context`.
    """
    names = tuple(str(name) for name in frame.columns)
    n_context = 0 if context is None else len(names_of(context))
    columns = []
    for position, name in enumerate(frame.columns):
        is_given = position >= len(frame.columns) - n_context
        columns.append(_as_numbers(frame[name], "data.context" if is_given else key, label))
    values = np.stack(columns, axis=1)
    _check_finite(names, values, key, label)
    lacks_some = np.isnan(values).any(axis=1)
    if missing == "error":
        _check_complete(names, values, label)
    return Table(
        label=label,
        names=names,
        values=values[~lacks_some],
        dropped=int(lacks_some.sum()),
        n_context=n_context,
    )


def _as_numbers(column: pd.Series, key: str, label: str) -> np.ndarray:
    """A column in float64, NaN where a value is missing."""
    import pandas as pd

    has_no_number = pd.api.types.is_complex_dtype(column.dtype)
    has_no_number |= pd.api.types.is_datetime64_any_dtype(column.dtype)
    if has_no_number:
        converted = pd.Series([np.nan] * len(column), index=column.index)
    else:
        converted = pd.to_numeric(column, errors="coerce")
    no_numbers = np.flatnonzero((converted.isna() & column.notna()).to_numpy())
    if len(no_numbers):
        row = no_numbers[0]
        hint = f"data.drop={column.name} leaves one out"
        if key == "data.context":
            hint = "name others, or give words as numbers"
        expected = f"columns of numbers ({hint})"
        got = f"{str(column.iloc[row])!r:.60} in column {column.name!r}, row {row + 1} of {label}"
        raise SpecError(key, expected, Words(got))
    return converted.to_numpy(dtype=np.float64, na_value=np.nan)


def _check_finite(names: Sequence[str], values: np.ndarray, key: str, label: str) -> None:
    infinite = np.argwhere(np.isinf(values))
    if len(infinite):
        row, column = infinite[0]
        got = f"{values[row, column]} in column {names[column]!r}, row {row + 1} of {label}"
        raise SpecError(key, "finite numbers", Words(got))


def _check_complete(names: Sequence[str], values: np.ndarray, label: str) -> None:
    """Raise where a value is missing."""
    missing = np.argwhere(np.isnan(values))
    if len(missing):
        row, column = missing[0]
        n_rows = len(np.unique(missing[:, 0]))
        got = f"none in column {names[column]!r}, row {row + 1} of {label} (missing in {counted(n_rows, 'row')})"
        raise SpecError("data.missing", "a value in every cell", Words(got))


# --- What can be learned ---------------------------------------------------------------


def check_rows(table: Table) -> None:
    """Raise for too few rows, more columns than rows, and columns that do not vary."""
    n_rows, n_columns = table.values.shape
    if n_rows < FEWEST_ROWS:
        dropped = f" (and {table.dropped} with missing values)" if table.dropped else ""
        got = f"{n_rows} in {table.label}{dropped}"
        raise SpecError("data.path", f"at least {FEWEST_ROWS} rows", Words(got))
    if n_columns > n_rows:
        expected = "no more columns than rows (data.columns picks some)"
        got = f"{counted(n_columns, 'column')}, {counted(n_rows, 'row')} in {table.label}"
        raise SpecError("data.path", expected, Words(got))
    check_vary(table.names, table.values, table.label, n_context=table.n_context)


def check_vary(names: Sequence[str], values: np.ndarray, label: str, *, n_context: int = 0) -> None:
    """Raise for columns of one value; the last `n_context` are those of the context."""
    given = names[len(names) - n_context :]
    constant = []
    for name, column in zip(names, values.T, strict=True):
        if column.min() == column.max():
            constant.append(name)
    if constant:
        got = Words(f"the same value in every row of {label}: {shortened(constant)}")
        if constant[0] in given:
            raise SpecError("data.context", "columns that vary", got)
        expected = f"columns that vary (data.drop={constant[0]} leaves one out)"
        raise SpecError("data.columns", expected, got)
    lost = lost_in_float32(values)
    if lost is not None:
        position, what = lost
        key = "data.context" if names[position] in given else "data.path"
        raise SpecError(key, DISTINCT, Words(f"{what} in column {names[position]!r} of {label}"))


def lost_in_float32(values: np.ndarray) -> tuple[int, str] | None:
    """The first column (N, D) of no use in float32, in which flows train, and what is wrong with it."""
    with np.errstate(over="ignore", invalid="ignore"):
        sds = values.std(axis=0)
    largest_values = np.abs(values).max(axis=0)
    for position, (sd, largest) in enumerate(zip(sds, largest_values, strict=True)):
        if not LEAST_SD <= sd <= MOST_SD or sd < LEAST_SHARE * largest:
            return position, f"{sd:.3g} with values up to {largest:.6g}"
    return None


def few_values(table: Table) -> dict[str, float]:
    """The smallest gap between two values of each column to learn that has few distinct ones, by name."""
    gaps = {}
    for name, column in zip(table.learned, table.values.T[: table.dim], strict=True):
        distinct = np.unique(column)
        if len(distinct) <= max(FEW_VALUES, FEW_SHARE * len(column)):
            gaps[name] = float(np.diff(distinct).min())
    return gaps
