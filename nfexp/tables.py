"""The user's own tables: those that a spec names, read and checked; which of their rows train.

No torch.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nfexp.columns import (
    DISTINCT,
    Table,
    check_rows,
    check_vary,
    few_values,
    lost_in_float32,
    numbers,
    pick,
    shortened,
)
from nfexp.files import signature_of
from nfexp.images import (
    facts_of_images,
    settled_images,
    shared_reading,
    warnings_of_images,
)
from nfexp.published import read_published
from nfexp.readers import read_file
from nfexp.spec import Data, Spec, SpecError, Words, counted

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "BUNDLED",
    "DISTINCT",
    "Rows",
    "Source",
    "Table",
    "check_vary",
    "facts",
    "few_values",
    "lost_in_float32",
    "name_of",
    "settled",
    "source",
    "split_rows",
    "tell",
    "warnings_of",
]

log = logging.getLogger(__name__)

GIVEN = "_given_"  # in the name of a table, before the columns of its context
LONGEST_GIVEN = 40  # letters of the columns of a context that stand in the name of a table
BUNDLED = ("wine", "breast_cancer", "diabetes", "iris", "digits")  # of scikit-learn


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """The rows a dataset is made of, and those for validation and test where they have files."""

    main: Table
    val: Table | None = None
    test: Table | None = None

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of a hash of all numbers, and of how many columns are given."""
        digest = hashlib.sha256()
        if self.main.n_context:
            digest.update(f"context {self.main.n_context}".encode())
        for table in (self.main, self.val, self.test):
            if table is not None:
                digest.update(repr(table.values.shape).encode())
                digest.update(np.ascontiguousarray(table.values).tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Which rows of :attr:`Source.main` a run trains, validates and tests on."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


# --- What a spec asks for --------------------------------------------------------------


def source(data: Data) -> Source:
    """The tables that `data` names, read and checked; once, while the files stay as they are.

    Raises
    ------
    SpecError
        For a file that is missing or not what its name says, and for columns or rows that cannot
        be learned from.
    """
    is_named = data.kind in ("sklearn", "maf")
    reading = replace(
        shared_reading(data),
        name=data.name if is_named else "table",
        jitter=0.0,
        context_dim=0,
    )
    paths = (data.path, data.val_path, data.test_path)
    return _source(reading, tuple(signature_of(path) for path in paths))


@lru_cache(maxsize=8)
def _source(data: Data, signatures: tuple[object, ...]) -> Source:
    if data.kind == "maf":
        return _standard(data.name, str(data.path))
    if data.kind == "sklearn":
        label = _plain(data.name)
        frame = pick(_bundled(label), data, label)
        main = numbers(frame, label, missing=data.missing, context=data.context)
        check_rows(main)
        return Source(main=main)
    main = _table(data, "data.path", str(data.path))
    check_rows(main)
    others = {}
    for split in ("val", "test"):
        key = f"data.{split}_path"
        path = getattr(data, f"{split}_path")
        if path is not None:
            others[split] = _like(main, _table(data, key, path), key)
    return Source(main=main, **others)


def _table(data: Data, key: str, path: str) -> Table:
    frame = pick(read_file(key, path, header=data.header), data, path)
    return numbers(frame, path, missing=data.missing, key=key, context=data.context)


def _like(main: Table, other: Table, key: str) -> Table:
    """The table `other` once it is known to have the columns of `main`, and rows."""
    if other.names != main.names:
        asks = f"the columns of {main.label}: {shortened(main.names)}"
        raise SpecError(key, asks, Words(f"{shortened(other.names)} in {other.label}"))
    if len(other.values) < 2:
        raise SpecError(key, "at least 2 rows", Words(f"{len(other.values)} in {other.label}"))
    return other


def _standard(name: str, folder: str) -> Source:
    """One of the field's standard tables, divided as published."""
    parts = read_published(name, folder)
    tables = {}
    for part in ("train", "val", "test"):
        values = getattr(parts, part)
        names = tuple(str(i) for i in range(values.shape[1]))
        tables[part] = Table(label=f"{name} ({part})", names=names, values=values)
    return Source(main=tables["train"], val=tables["val"], test=tables["test"])


def _bundled(name: str) -> pd.DataFrame:
    """A table that comes with scikit-learn, without what it is meant to predict."""
    from sklearn import datasets

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
    tables = source(data)
    n_rows = len(tables.main.values)
    n_test = _size_of("test", data, tables.test, n_rows)
    n_val = _size_of("val", data, tables.val, n_rows)
    left = n_rows
    if tables.val is None:
        left -= n_val
    if tables.test is None:
        left -= n_test
    if left < 2:
        expected = f"at least 2 of the {counted(n_rows, 'row')} left for training"
        raise SpecError("data.n_val", expected, Words(f"{left}"))
    if data.n_samples is not None and data.n_samples > left:
        rows = f"the rows for training in {tables.main.label}"
        raise SpecError(
            "data.n_samples", f"at most {left}, {rows}, or null for all of them", data.n_samples
        )
    full = replace(
        data,
        name=_full_name(data, tables.main),
        n_samples=data.n_samples or left,
        n_val=n_val,
        n_test=n_test,
        val_share=None,
        test_share=None,
        dim=tables.main.dim,
        context_dim=tables.main.n_context,
        digest=tables.digest,
    )
    return replace(spec, data=full)


def _size_of(split: str, data: Data, table: Table | None, n_rows: int) -> int:
    """Rows of "val" or "test".

    As many as asked for, all of its own table, or a share of the main one.
    """
    wanted = getattr(data, f"n_{split}")
    if table is not None:
        most = len(table.values)
        if wanted is not None and wanted > most:
            expected = f"at most {most}, the rows of {table.label}, or null for all"
            raise SpecError(f"data.n_{split}", expected, wanted)
        return wanted or most
    if wanted is not None:
        return int(wanted)
    share = getattr(data, f"{split}_share")
    if share is None:
        expected = f"a share of the rows, or data.n_{split}"
        raise SpecError(f"data.{split}_share", expected, None)
    return max(2, round(share * n_rows))


def _full_name(data: Data, table: Table) -> str:
    """The name of a table in records; one that was chosen stays."""
    if data.kind == "table" and data.name == "table":
        return name_of(str(data.path)) + _given(table)
    if data.kind == "sklearn":
        return _plain(data.name) + _given(table)
    return data.name


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
    """What the name of a table says of its context.

    A density given c is another one than that of all columns.
    """
    if table.n_context == 0:
        return ""
    columns = _as_name(" ".join(table.given))
    if not columns or len(columns) > LONGEST_GIVEN:
        columns = f"{table.n_context}_columns"
    return f"{GIVEN}{columns}"


def _plain(name: str) -> str:
    """The name of a table without what :func:`_given` adds to it."""
    return name.partition(GIVEN)[0]


def split_rows(data: Data, seed: int, n: int, *, val_has_file: bool, test_has_file: bool) -> Rows:
    """Divide n rows at random: for the test first, then for validation, the rest for training.

    `seed` is the run's; `data.split`, where given, makes one split serve all seeds. A part with a
    file of its own (`val_has_file`, `test_has_file`) takes no rows here.
    """
    split_seed = seed if data.split is None else data.split
    bits = hashlib.sha256(f"split/{split_seed}".encode()).digest()
    order = np.random.default_rng(int.from_bytes(bits, "little")).permutation(n)
    n_train, n_val, n_test = data.points
    n_test = 0 if test_has_file else n_test
    n_val = 0 if val_has_file else n_val
    return Rows(
        test=order[:n_test],
        val=order[n_test : n_test + n_val],
        train=order[n_test + n_val :][:n_train],
    )


# --- What is said before training ------------------------------------------------------


def tell(specs: Iterable[Spec]) -> None:
    """Log what is to be known of every table and image set before training, once each."""
    told = set()
    for spec in specs:
        data = spec.data
        identity = (data.name, data.digest, data.points)
        if identity in told:
            continue
        if data.kind == "image":
            told.add(identity)
            _log(facts_of_images(data), warnings_of_images(data))
        elif data.is_table:
            told.add(identity)
            _log(facts(data), warnings_of(data))


def _log(said: str, warnings: Iterable[str]) -> None:
    log.info(said)
    for line in warnings:
        log.warning(line)


def facts(data: Data) -> str:
    """The sizes of a table, and what was left out of it or comes twice."""
    table = source(data).main
    n = len(table.values)
    n_train, n_val, n_test = data.points
    columns = f"{counted(table.dim, 'column')} ({shortened(table.learned)})"
    if table.n_context:
        columns += f" given {table.n_context} ({shortened(table.given)})"
    parts = [f"{n} rows, {columns}"]
    if table.dropped:
        parts.append(f"{counted(table.dropped, 'row')} with missing values dropped")
    repeats = n - len(np.unique(table.values, axis=0))
    if repeats:
        parts.append(counted(repeats, "duplicate"))
    parts.append(f"{n_train} train, {n_val} validate, {n_test} test")
    return f"{data.name}: {'; '.join(parts)}"


def warnings_of(data: Data) -> list[str]:
    """What a density suffers from in a table: columns of few values, and a single column."""
    table = source(data).main
    warnings = []
    few = few_values(table)
    if few and data.jitter == 0.0:
        warnings.append(
            f"few distinct values in {shortened(list(few))}: a density can grow without bound on "
            "them; data.jitter=gap spreads them, see docs/own-data.md"
        )
    if table.dim == 1 and table.n_context:
        warnings.append(
            "one column leaves a coupling the context alone: given that, the flow is an affine map "
            "of its base, whose mean and width follow the context"
        )
    elif table.dim == 1:
        warnings.append(
            "one column leaves a coupling nothing to look at: the flow is one affine map of its "
            "base; a mixture or a kernel density (nfexp-baselines) takes any shape on a line"
        )
    return [f"{data.name}: {warning}" for warning in warnings]
