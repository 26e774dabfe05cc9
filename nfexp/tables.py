"""The user's own tables: a file as named columns of numbers, checked; which rows train. No torch."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nfexp.images import facts_of_images, settled_images, warnings_of_images
from nfexp.published import read_published
from nfexp.readers import read_file
from nfexp.spec import Data, Spec, SpecError, Words, names_of, near

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

FEWEST_ROWS = 10
FEW_VALUES, FEW_SHARE = (
    20,
    0.05,
)  # a column with so few distinct values, or so few for its rows, is not continuous
LEAST_SD, MOST_SD = 1e-18, 1e18  # of a column: flows train in float32, and it is the variance that they hold
LEAST_SHARE = 4e-6  # of a standard deviation in the largest value: about 32 steps of float32
DISTINCT = (
    f"columns that float32 holds: a standard deviation from {LEAST_SD:g} to {MOST_SD:g} and above {LEAST_SHARE:g} of "
    "the largest value (change the unit, or subtract a constant)"
)
GIVEN = "_given_"  # in the name of a table, before the columns of its context
LONGEST_GIVEN = 40  # letters of the columns of a context that stand in the name of a table
BUNDLED = ("wine", "breast_cancer", "diabetes", "iris", "digits")  # of scikit-learn


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Rows of finite numbers, (N, D + C) in float64; `dropped` rows had missing values.

    The last C columns, `n_context`, are given and not learned.
    """

    place: str
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """The rows a dataset is made of, and those for validation and test where they have files."""

    main: Table
    val: Table | None = None
    test: Table | None = None

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of a hash of all numbers, and of how many columns are given."""
        found = hashlib.sha256()
        if self.main.n_context:
            found.update(f"context {self.main.n_context}".encode())
        for table in (self.main, self.val, self.test):
            if table is not None:
                found.update(repr(table.values.shape).encode())
                found.update(np.ascontiguousarray(table.values).tobytes())
        return found.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Which rows of :attr:`Source.main` a run trains, validates and tests on."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


# --- Columns and rows ------------------------------------------------------------------------------------------------


def _positions(key: str, asked: str | None, names: Sequence[str], place: str) -> list[int]:
    """Where the columns of a list stand; nowhere without one."""
    return [] if asked is None else [_position(key, one, names, place) for one in names_of(asked)]


def _position(key: str, asked: str, names: Sequence[str], place: str) -> int:
    """Where a column stands that is asked for by its name or its position (0, 1, …)."""
    if asked in names:
        return list(names).index(asked)
    if asked.isdecimal() and int(asked) < len(names):
        return int(asked)
    raise SpecError(key, f"columns of {place}: {_shortened(names)}", Words(f"{asked!r}{near(asked, names)}"))


def _shortened(names: Sequence[str], most: int = 12) -> str:
    shown = [str(name) for name in names[:most]]
    return ", ".join(shown) + (f", … ({len(names)})" if len(names) > most else "")


def pick(frame: pd.DataFrame, data: Data, place: str) -> pd.DataFrame:
    """The columns that `data.columns` asks for, in that order, without those of `data.drop`; then the context."""
    names = [str(name) for name in frame.columns]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise SpecError(
            "data.path",
            f"columns of {place} with names of their own",
            Words(f"{repeated[0]!r} twice"),
        )
    learned = list(range(len(names)))
    if data.columns is not None:
        learned = _positions("data.columns", data.columns, names, place)
    dropped = _positions("data.drop", data.drop, names, place)
    given = _positions("data.context", data.context, names, place)
    elsewhere = dropped if data.columns is None else dropped + learned
    for position in given:
        if given.count(position) > 1 or position in elsewhere:
            expected = "columns of their own, not named twice nor in data.columns or data.drop"
            raise SpecError("data.context", expected, Words(f"{names[position]!r} again"))
    left = [position for position in learned if position not in dropped]
    if not left:
        raise SpecError("data.columns", f"at least one column of {place}", Words("none"))
    learned = [position for position in left if position not in given]
    if not learned:
        expected = f"some columns of {place}, so that others are left to learn"
        raise SpecError("data.context", expected, Words("all of them"))
    return frame.iloc[:, learned + given]


def numbers(
    frame: pd.DataFrame, place: str, *, missing: str, key: str = "data.path", context: str | None = None
) -> Table:
    """A frame as finite numbers; rows with missing values are dropped or, by `missing`, refused.

    Its last columns are those of the `context`.
    """
    import pandas as pd

    n_context = 0 if context is None else len(names_of(context))
    columns: list[np.ndarray] = []
    for name in frame.columns:
        column = frame[name]
        if pd.api.types.is_complex_dtype(column.dtype) or pd.api.types.is_datetime64_any_dtype(column.dtype):
            converted = pd.Series([np.nan] * len(column), index=column.index)
        else:
            converted = pd.to_numeric(column, errors="coerce")
        strange = np.flatnonzero((converted.isna() & column.notna()).to_numpy())
        if len(strange):
            where = f"{str(column.iloc[strange[0]])!r:.60} in column {name!r}, row {strange[0] + 1} of {place}"
            if len(columns) >= len(frame.columns) - n_context:
                raise SpecError(
                    "data.context", "columns of numbers (name others, or give words as numbers)", Words(where)
                )
            raise SpecError(key, f"columns of numbers (data.drop={name} leaves one out)", Words(where))
        columns.append(converted.to_numpy(dtype=np.float64, na_value=np.nan))
    values = np.stack(columns, axis=1)
    infinite = np.argwhere(np.isinf(values))
    if len(infinite):
        row, column_at = infinite[0]
        where = f"{values[row, column_at]} in column {frame.columns[column_at]!r}, row {row + 1} of {place}"
        raise SpecError(key, "finite numbers", Words(where))
    lost = np.isnan(values).any(axis=1)
    if lost.any() and missing == "error":
        row = int(np.flatnonzero(lost)[0])
        name = frame.columns[int(np.flatnonzero(np.isnan(values[row]))[0])]
        where = f"none in column {name!r}, row {row + 1} of {place} ({int(lost.sum())} rows lack some)"
        raise SpecError("data.missing", "a value in every cell", Words(where))
    names = tuple(str(name) for name in frame.columns)
    return Table(place=place, names=names, values=values[~lost], dropped=int(lost.sum()), n_context=n_context)


def check_rows(table: Table) -> None:
    """Raise for too few rows, more columns than rows, and columns that do not vary."""
    n, d = table.values.shape
    if n < FEWEST_ROWS:
        dropped = f" (and {table.dropped} with missing values)" if table.dropped else ""
        raise SpecError("data.path", f"at least {FEWEST_ROWS} rows", Words(f"{n} in {table.place}{dropped}"))
    if d > n:
        what = f"{d} columns, {n} rows in {table.place}"
        raise SpecError("data.path", "no more columns than rows (data.columns picks some)", Words(what))
    check_vary(table.names, table.values, table.place, n_context=table.n_context)


def check_vary(names: Sequence[str], values: np.ndarray, place: str, *, n_context: int = 0) -> None:
    """Raise for columns of one value; the last `n_context` are those of the context."""
    constant = [name for name, column in zip(names, values.T, strict=True) if column.min() == column.max()]
    if constant:
        is_given = constant[0] in names[len(names) - n_context :]
        key = "data.context" if is_given else "data.columns"
        asks = "columns that vary" if is_given else f"columns that vary (data.drop={constant[0]} leaves one out)"
        raise SpecError(key, asks, Words(f"the same value in every row of {place}: {_shortened(constant)}"))
    lost = lost_in_float32(values)
    if lost is not None:
        position, what = lost
        key = "data.context" if position >= len(names) - n_context else "data.path"
        raise SpecError(key, DISTINCT, Words(f"{what} in column {names[position]!r} of {place}"))


def lost_in_float32(values: np.ndarray) -> tuple[int, str] | None:
    """The first column (N, D) of no use in float32, in which flows train, and what is wrong with it."""
    with np.errstate(over="ignore", invalid="ignore"):
        sds = values.std(axis=0)
    for position, (sd, largest) in enumerate(zip(sds, np.abs(values).max(axis=0), strict=True)):
        if not LEAST_SD <= sd <= MOST_SD or sd < LEAST_SHARE * largest:
            return position, f"{sd:.3g} with values up to {largest:.6g}"
    return None


# --- What a spec asks for --------------------------------------------------------------------------------------------


def _signature(path: str | None) -> tuple[int, int] | None:
    """What tells that a file was changed since it was last read."""
    try:
        status = os.stat(os.path.expanduser(path or ""))
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def source(data: Data) -> Source:
    """The tables that `data` names, read and checked; once, while the files stay as they are.

    Raises
    ------
    SpecError
        For a file that is missing or not what its name says, and for columns or rows that cannot
        be learned from.
    """
    reading = replace(
        data, name=data.name if data.kind in ("sklearn", "maf") else "table", n_samples=None, n_val=None, n_test=None,
        val_share=None, test_share=None, split=None, jitter=0.0, dim=2, context_dim=0, digest=None,
    )  # fmt: skip
    signatures = tuple(_signature(path) for path in (data.path, data.val_path, data.test_path))
    return _source(reading, signatures)


@lru_cache(maxsize=8)
def _source(data: Data, signatures: tuple[object, ...]) -> Source:
    if data.kind == "maf":
        return _standard(data.name, str(data.path))
    if data.kind == "sklearn":
        frame = _bundled(data.name)
        place = _plain(data.name)
        main = numbers(pick(frame, data, place), place, missing=data.missing, context=data.context)
        check_rows(main)
        return Source(main=main)
    main = _table(data, "data.path", str(data.path))
    check_rows(main)
    others = {}
    for key in ("val", "test"):
        path = getattr(data, f"{key}_path")
        if path is not None:
            others[key] = _like(main, _table(data, f"data.{key}_path", path), f"data.{key}_path")
    return Source(main=main, **others)


def _table(data: Data, key: str, path: str) -> Table:
    frame = read_file(key, path, header=data.header)
    return numbers(pick(frame, data, path), path, missing=data.missing, key=key, context=data.context)


def _like(main: Table, other: Table, key: str) -> Table:
    """The table `other` once it is known to have the columns of `main`, and rows."""
    if other.names != main.names:
        asks = f"the columns of {main.place}: {_shortened(main.names)}"
        raise SpecError(key, asks, Words(f"{_shortened(other.names)} in {other.place}"))
    if len(other.values) < 2:
        raise SpecError(key, "at least 2 rows", Words(f"{len(other.values)} in {other.place}"))
    return other


def _standard(name: str, folder: str) -> Source:
    """One of the field's standard tables, divided as published."""
    parts = read_published(name, folder)
    tables = {}
    for part in ("train", "val", "test"):
        values = getattr(parts, part)
        names = tuple(str(i) for i in range(values.shape[1]))
        tables[part] = Table(place=f"{name} ({part})", names=names, values=values)
    return Source(main=tables["train"], val=tables["val"], test=tables["test"])


def _bundled(name: str) -> pd.DataFrame:
    """A table that comes with scikit-learn, without what it is meant to predict."""
    from sklearn import datasets

    name = _plain(name)
    if name not in BUNDLED:
        raise SpecError("data.name", f"one of {', '.join(BUNDLED)}", name)
    return getattr(datasets, f"load_{name}")(as_frame=True).data


def settled(spec: Spec) -> Spec:
    """A spec whose table or images have been read: it has a name, sizes, dimension and digest.

    The spec of a target is given back as it is.

    Raises
    ------
    SpecError
        For a table that cannot be learned from, or sizes that it does not have.
    """
    data = spec.data
    if data.kind == "image":
        return replace(spec, data=settled_images(data))
    if not data.is_table:
        return spec
    found = source(data)
    n = len(found.main.values)
    n_test = _part("test", data, found.test, n)
    n_val = _part("val", data, found.val, n)
    left = n - (0 if found.test is not None else n_test) - (0 if found.val is not None else n_val)
    if left < 2:
        raise SpecError("data.n_val", f"at least 2 of the {n} rows left for training", Words(f"{left}"))
    if data.n_samples is not None and data.n_samples > left:
        asks = f"at most {left}, the rows for training in {found.main.place}, or null for all of them"
        raise SpecError("data.n_samples", asks, data.n_samples)
    name = data.name
    if data.kind == "table" and name == "table":
        name = name_of(str(data.path)) + _given(found.main)
    if data.kind == "sklearn":
        name = _plain(name) + _given(found.main)
    full = replace(
        data, name=name, n_samples=data.n_samples or left, n_val=n_val, n_test=n_test, val_share=None,
        test_share=None, dim=found.main.dim, context_dim=found.main.n_context, digest=found.digest,
    )  # fmt: skip
    return replace(spec, data=full)


def name_of(path: str) -> str:
    """The name of a table from that of its file.

    >>> name_of("somewhere/my points (1).csv")
    'my_points_1'
    """
    return _as_name(Path(path).name.split(".")[0]) or "table"


def _as_name(text: str) -> str:
    """The letters, digits, '_' and '-' of a text; empty where it has none."""
    return re.sub(r"[^\w-]+", "_", text, flags=re.ASCII).strip("_")


def _given(table: Table) -> str:
    """What the name of a table says of its context: a density given c is another one than that of all columns."""
    if table.n_context == 0:
        return ""
    what = _as_name(" ".join(table.names[table.dim :]))
    if not what or len(what) > LONGEST_GIVEN:
        what = f"{table.n_context}_columns"
    return f"{GIVEN}{what}"


def _plain(name: str) -> str:
    """The name of a table without what :func:`_given` adds to it."""
    return name.partition(GIVEN)[0]


def _part(key: str, data: Data, given: Table | None, n: int) -> int:
    """Rows of validation or test: as many as asked for, all of a file, or a share of the n."""
    asked = getattr(data, f"n_{key}")
    share = getattr(data, f"{key}_share")
    if given is not None:
        there = len(given.values)
        if asked is not None and asked > there:
            raise SpecError(
                f"data.n_{key}",
                f"at most {there}, the rows of {given.place}, or null for all",
                asked,
            )
        return asked or there
    if asked is not None:
        return int(asked)
    if share is None:
        raise SpecError(f"data.{key}_share", "a share of the rows, or data.n_" + key, None)
    return max(2, round(share * n))


def split_rows(data: Data, seed: int, n: int, *, own_val: bool, own_test: bool) -> Rows:
    """Divide n rows at random: for the test first, then for validation, the rest for training.

    `seed` is the run's; `data.split`, where given, makes one split serve all seeds. A part with a
    file of its own (`own_val`, `own_test`) takes no rows here.
    """
    by = seed if data.split is None else data.split
    bits = hashlib.sha256(f"split/{by}".encode()).digest()
    order = np.random.default_rng(int.from_bytes(bits, "little")).permutation(n)
    n_train, n_val, n_test = data.points
    n_test = 0 if own_test else n_test
    n_val = 0 if own_val else n_val
    return Rows(
        test=order[:n_test],
        val=order[n_test : n_test + n_val],
        train=order[n_test + n_val :][:n_train],
    )


# --- What is said before training ------------------------------------------------------------------------------------


def few_values(table: Table) -> dict[str, float]:
    """The smallest gap between two values of each column to learn that has few distinct ones, by name."""
    gaps = {}
    for name, column in zip(table.learned, table.values.T[: table.dim], strict=True):
        distinct = np.unique(column)
        if len(distinct) <= max(FEW_VALUES, FEW_SHARE * len(column)):
            gaps[name] = float(np.diff(distinct).min())
    return gaps


def tell(specs: Iterable[Spec]) -> None:
    """Log what is to be known of every table and image set before training, once each."""
    told = set()
    for spec in specs:
        data = spec.data
        is_read = data.is_table or data.kind == "image"
        if is_read and (data.name, data.digest, data.points) not in told:
            told.add((data.name, data.digest, data.points))
            is_image = data.kind == "image"
            log.info(facts_of_images(data) if is_image else facts(data))
            for line in warnings_of_images(data) if is_image else warnings_of(data):
                log.warning(line)


def facts(data: Data) -> str:
    """The sizes of a table, and what was left out of it or comes twice."""
    table = source(data).main
    n = len(table.values)
    n_train, n_val, n_test = data.points
    parts = [f"{n} rows, {table.dim} columns ({_shortened(table.learned)})"]
    if table.n_context:
        parts[0] += f" given {table.n_context} ({_shortened(table.names[table.dim :])})"
    if table.dropped:
        parts.append(f"{table.dropped} rows with missing values dropped")
    repeats = n - len(np.unique(table.values, axis=0))
    if repeats:
        parts.append(f"{repeats} rows repeat another")
    parts.append(f"{n_train} train, {n_val} validate, {n_test} test")
    return f"{data.name}: {'; '.join(parts)}"


def warnings_of(data: Data) -> list[str]:
    """What a density suffers from in a table: columns of few values, and a single column."""
    table = source(data).main
    lines = []
    few = few_values(table)
    if few and data.jitter == 0.0:
        remedy = "a density can grow without bound on them; data.jitter=gap spreads them, see docs/own-data.md"
        lines.append(f"{data.name}: few distinct values in {_shortened(list(few))}: {remedy}")
    if table.dim == 1 and table.n_context:
        limit = "one column leaves a coupling the context alone: given that, the flow is an affine map of its base"
        lines.append(f"{data.name}: {limit}, whose mean and width follow the context")
    elif table.dim == 1:
        limit = "one column leaves a coupling nothing to look at: the flow is one affine map of its base"
        remedy = "a mixture or a kernel density (nfexp-baselines) takes any shape on a line"
        lines.append(f"{data.name}: {limit}; {remedy}")
    return lines
