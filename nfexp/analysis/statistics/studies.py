"""The runs of a study, looked up by how they differ from its centre: what the claims ask."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from nfexp.analysis.statistics.ablations import Centres, deviations
from nfexp.analysis.table import distinct

Key = frozenset[tuple[str, Any]]  # how a cell differs from the centre: (column, value)


class Absent(Exception):
    """A cell, a metric or a condition that a claim needs is not in the study."""


def named(changes: Mapping[str, Any]) -> str:
    """A cell by how it differs from the centre.

    >>> named({"flow.n_flows": 1, "flow.hidden_depth": 6}), named({})
    ('flow.n_flows=1, flow.hidden_depth=6', 'the centre')
    """
    return ", ".join(f"{key}={value}" for key, value in changes.items()) or "the centre"


def changes_of(key: Key) -> dict[str, Any]:
    """The changes that a key holds, sorted by column, for a set has no order."""
    return dict(sorted(key))


def cell_name(key: Key) -> str:
    """A cell by its key, as :func:`named`."""
    return named(changes_of(key))


@dataclass
class Study:
    """The runs of one target by how they differ from its centre, and which were looked at."""

    target: str
    centre: Mapping[str, Any]
    cells: dict[Key, pd.DataFrame]
    used: dict[Key, pd.DataFrame] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def key(self, changes: Mapping[str, Any]) -> Key:
        """The key of the cell that equals the centre but for `changes`."""
        differing = [(k, value) for k, value in changes.items() if value != self.centre.get(k)]
        return frozenset(differing)

    def cell(self, changes: Mapping[str, Any]) -> pd.DataFrame:
        """The runs that equal the centre but for `changes`."""
        key = self.key(changes)
        if key not in self.cells:
            raise Absent(f"missing: {named(changes)}")
        return self.used.setdefault(key, self.cells[key])

    def values(self, metric: str, changes: Mapping[str, Any]) -> pd.Series:
        """A metric of the completed runs of a cell, by seed."""
        runs = self.cell(changes)
        done = runs["status"].to_numpy(object) == "completed"
        if metric in runs:
            values = runs[metric].to_numpy(float)[done]
        else:
            values = np.full(done.sum(), np.nan)
        seeds = runs["seed"].to_numpy()[done]
        known = ~np.isnan(values)
        if len(known) and not known.any():
            raise Absent(f"missing: {metric} of {named(changes)}")
        return pd.Series(values[known], index=seeds[known])

    def gap(self, a: Mapping[str, Any], b: Mapping[str, Any], metric: str = "kl") -> pd.Series:
        """metric(a) − metric(b), paired by seed.

        Raises
        ------
        Absent
            Where the study lacks one of the cells, or both are the same one.
        """
        if self.key(a) == self.key(b):
            raise Absent(f"no other cell than the centre's: {named({**a, **b})}")
        # Series subtract by index, here the seed; NaN without a pair.
        difference = self.values(metric, a) - self.values(metric, b)
        return difference.dropna()

    def axis(self, column: str, fixed: Mapping[str, Any] | None = None) -> list[Any]:
        """The numbers `column` takes in the cells that equal the centre but for it and `fixed`."""
        rest = self.key(fixed or {})
        values = set()
        for key in self.cells:
            others = frozenset(change for change in key if change[0] != column)
            value = dict(key).get(column, self.centre.get(column))
            if others == rest and isinstance(value, (int, float)):
                values.add(value)
        return sorted(values)

    def ends(
        self,
        column: str,
        at_least: float = -math.inf,
        fixed: Mapping[str, Any] | None = None,
    ) -> tuple[Any, Any]:
        """The lowest and the highest value on an axis."""
        values = [value for value in self.axis(column, fixed) if value >= at_least]
        if len(values) < 2:
            raise Absent(f"missing: two values of {column}")
        return values[0], values[-1]


def studies(runs: pd.DataFrame, centres: Centres) -> dict[str, Study]:
    """One :class:`Study` per target of `centres`."""
    runs = distinct(runs[runs["data.name"].isin(list(centres))])
    # Positions in `runs`, by target and cell.
    rows_of: dict[str, dict[Key, list[int]]] = {}
    for i, (target, key) in enumerate(zip(runs["data.name"], _keys(runs, centres), strict=True)):
        rows_of.setdefault(target, {}).setdefault(key, []).append(i)
    by_target = {}
    for target, centre in centres.items():
        cells = {key: runs.iloc[rows] for key, rows in rows_of.get(target, {}).items()}
        by_target[target] = Study(target, centre, cells)
    return by_target


def _keys(runs: pd.DataFrame, centres: Centres) -> Iterable[Key]:
    """How each run differs from the centre of its target."""
    differs = deviations(runs, centres)
    columns = np.array(differs.columns)
    values = runs[list(differs)].astype(object).to_numpy()  # object: each value keeps its own type
    for row, differing in zip(values, differs.to_numpy(dtype=bool), strict=True):
        changes = []
        for column, value in zip(columns[differing], row[differing], strict=True):
            changes.append((column, None if pd.isna(value) else value))
        yield frozenset(changes)
