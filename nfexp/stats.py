"""Means over seeds with t intervals, and the ablation tables found in a table of runs.

Three seeds give wide intervals (t is 4.3 at 2 degrees of freedom); an interval that holds 0 shows no equality.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from nfexp.table import STATUSES, config_columns

AXES = {
    "flow.n_flows": "flows",
    "flow.hidden_depth": "depth",
    "flow.hidden_width": "width",
    "flow.activation": "activation",
    "data.n_samples": "samples",
    "data.noise": "noise",
    "flow.mask": "mask",
    "flow.coupling": "coupling",
    "flow.conditioner": "conditioner",
    "flow.norm": "norm",
    "flow.base": "base",
    "train.lr": "lr",
    "train.batch_size": "batch_size",
    "train.steps": "steps",
}
AVERAGED = ("test_nll", "kl", "kl_diff")


def t_interval(mean: Any, sd: Any, n: Any, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Ends of Student's t interval, mean ± t(n − 1) sd / √n, for arrays that broadcast; NaN where n < 2.

    >>> low, high = t_interval(1.0, 0.5, 3)
    >>> print(f"{low:.3f} {high:.3f}")
    -0.242 2.242
    """
    n = np.asarray(n, dtype=float)
    n = np.where(n < 2, np.nan, n)
    half = stdtrit(n - 1, 0.5 + level / 2) * np.asarray(sd, dtype=float) / np.sqrt(n)
    return mean - half, mean + half


def mean_interval(values: Iterable[float], level: float = 0.95) -> tuple[float, float, float]:
    """The mean over seeds and the ends of its Student t interval (Student 1908); missing values (NaN) do not count.

    One value has no interval (NaN ends), none has no mean either.

    >>> print("{:.3f} {:.3f} {:.3f}".format(*mean_interval([0.5, 1.0, 1.5])))
    1.000 -0.242 2.242
    >>> mean_interval([2.0])
    (2.0, nan, nan)
    """
    x = np.asarray(list(values), dtype=float)
    x = x[~np.isnan(x)]
    if len(x) < 2:
        return (float(x[0]) if len(x) else np.nan), np.nan, np.nan
    low, high = t_interval(x.mean(), x.std(ddof=1), len(x), level)
    return float(x.mean()), float(low), float(high)


def wilson(k: int, n: int, level: float = 0.95) -> tuple[float, float, float]:
    """The share k/n and the ends of its score interval (Wilson 1927); all NaN where n = 0.

    >>> print("{:.3f} {:.3f} {:.3f}".format(*wilson(1, 10)))
    0.100 0.018 0.404
    """
    if n == 0:
        return np.nan, np.nan, np.nan
    z2 = stdtrit(np.inf, 0.5 + level / 2) ** 2
    middle, half = (k + z2 / 2) / (n + z2), np.sqrt(z2 * (k * (n - k) / n + z2 / 4)) / (n + z2)
    return k / n, 0.0 if k == 0 else float(middle - half), 1.0 if k == n else float(middle + half)


def share_gap(k: int, n: int, l: int, m: int, level: float = 0.95) -> tuple[float, float, float]:  # noqa: E741
    """The difference k/n − l/m of two shares with Newcombe's interval (1998, method 10), from two Wilson intervals.

    >>> print("{:.3f} {:.3f} {:.3f}".format(*share_gap(3, 3, 0, 3)))
    1.000 0.206 1.000
    """
    (p, p_low, p_high), (q, q_low, q_high) = wilson(k, n, level), wilson(l, m, level)
    return p - q, p - q - float(np.hypot(p - p_low, q_high - q)), p - q + float(np.hypot(p_high - p, q - q_low))


def axis_name(column: str) -> str:
    """The short name of a configuration column: "flow.n_flows" is "flows", an unlisted one its last part.

    >>> axis_name("flow.norm_every")
    'norm_every'
    """
    return AXES.get(column, column.rpartition(".")[2])


def distinct(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration and seed: a run is a fact, so a repetition adds nothing; completed ones come first."""
    rank = {status: i for i, status in enumerate(STATUSES)}
    ordered = runs.iloc[np.argsort(runs["status"].map(rank).fillna(len(rank)), kind="stable")]
    return ordered.drop_duplicates(["data.name", "seed", *config_columns(runs)]).sort_index()


def deviations(runs: pd.DataFrame, centres: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Which configuration columns of each run differ from the centre of its target: booleans, one row per run.

    >>> runs = pd.DataFrame({"data.name": ["moons"] * 2, "seed": 0, "flow.n_flows": [3, 6], "flow.norm": "none"})
    >>> deviations(runs, {"moons": {"flow.n_flows": 6, "flow.norm": "none"}})["flow.n_flows"].tolist()
    [True, False]
    """
    codes, targets = pd.factorize(runs["data.name"])
    out = {}
    for column in config_columns(runs):
        values, middles = runs[column].to_numpy(object), [centres.get(t, {}).get(column) for t in targets]
        middles = np.array([*(None if m != m else m for m in middles), None], dtype=object)[codes]
        out[column] = np.where(np.equal(middles, None), ~pd.isna(values), values != middles)
    return pd.DataFrame(out, index=runs.index, dtype=bool)


def ablations(runs: pd.DataFrame, centres: Mapping[str, Mapping[str, Any]]) -> dict[str, pd.DataFrame]:
    """Find the ablation axes in `runs` and summarise each cell over its seeds.

    A column that alone differs from the centre of the target makes an axis ("flows"); two columns that differ
    together make a grid ("flows_x_depth") with both single axes and the centre. Each row is one cell: counts by
    status, then mean and 95% t interval over seeds of test_nll and kl (nats per point) and of
    kl_diff = KL(cell) − KL(centre), paired by seed. Runs that diverged, failed or are missing are counted and
    enter no mean.

    >>> runs = pd.DataFrame({"data.name": "moons", "status": "completed", "seed": [0, 1, 0, 1], "test_nll": 1.0,
    ...                      "flow.n_flows": [6, 6, 3, 3], "kl": [0.1, 0.2, 0.4, 0.6]})
    >>> table = ablations(runs, {"moons": {"flow.n_flows": 6}})["flows"]
    >>> table[["flow.n_flows", "n", "kl_diff_mean"]].round(3).to_numpy().tolist()
    [[3.0, 2.0, 0.35], [6.0, 2.0, 0.0]]
    """
    runs = distinct(runs[runs["data.name"].isin(list(centres))])
    differs = deviations(runs, centres)
    centre_kl = runs[(runs["status"] == "completed") & ~differs.any(axis=1)].set_index(["data.name", "seed"])["kl"]
    keys = pd.MultiIndex.from_frame(runs[["data.name", "seed"]])
    runs = runs.assign(
        kl_diff=runs["kl"].to_numpy() - centre_kl.reindex(keys).to_numpy(), is_centre=~differs.any(axis=1)
    )
    patterns, order = differs.drop_duplicates(), [*AXES, *differs]
    sets = {tuple(sorted(differs.columns[row], key=order.index)) for row in patterns.to_numpy(dtype=bool)}
    out = {}
    for columns in sorted((s for s in sets if 1 <= len(s) <= 2), key=lambda s: (len(s), [order.index(c) for c in s])):
        others = ~differs.drop(columns=list(columns)).any(axis=1)
        full = others & differs[list(columns)].all(axis=1)
        inside = runs[others & runs["data.name"].isin(runs.loc[full, "data.name"])]
        name = "_x_".join(map(axis_name, columns))
        out["_x_".join(columns) if name in out else name] = _summary(inside, list(columns), list(centres))
    return out


def _summary(runs: pd.DataFrame, columns: list[str], targets: list[str]) -> pd.DataFrame:
    by = ["data.name", *columns]
    done = runs["status"] == "completed"
    averaged = runs[list(AVERAGED)].where(done)
    flags = pd.get_dummies(pd.Categorical(runs["status"], [*STATUSES, "missing"])).set_index(runs.index)
    groups = pd.concat([runs[[*by, "is_centre"]], averaged, flags], axis=1).groupby(by, dropna=False, sort=False)
    counts = groups[[*STATUSES, "missing"]].sum()
    table = pd.DataFrame({"n": counts["completed"]} | {f"n_{s}": counts[s] for s in ("diverged", "failed", "missing")})
    for name in AVERAGED:
        mean, n = groups[name].mean(), groups[name].count()
        low, high = t_interval(mean, groups[name].std(), n)
        table = table.assign(**{f"{name}_mean": mean, f"{name}_low": low, f"{name}_high": high})
    table = table.assign(n_pairs=groups["kl_diff"].count(), is_centre=groups["is_centre"].any()).reset_index()
    cells = table[by].itertuples(index=False)
    rank = [(targets.index(target), *map(_sortable, values)) for target, *values in cells]
    return table.iloc[sorted(range(len(table)), key=rank.__getitem__)].reset_index(drop=True)


def _sortable(value: Any) -> tuple[bool, bool, Any]:
    missing = pd.isna(value)
    return missing, isinstance(value, str), 0 if missing else value


class Absent(Exception):
    """A cell or a condition that a claim needs is not in the study."""


@dataclass
class Study:
    """The runs of one target by how they differ from its centre, with a record of the cells that were looked at."""

    target: str
    centre: Mapping[str, Any]
    cells: dict[frozenset[tuple[str, Any]], pd.DataFrame]
    used: dict[frozenset[tuple[str, Any]], pd.DataFrame] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    excused: frozenset[tuple[str, Any]] | None = None  # a cell whose divergence is the claim

    def key(self, changes: Mapping[str, Any]) -> frozenset[tuple[str, Any]]:
        return frozenset((k, v) for k, v in changes.items() if v != self.centre.get(k))

    def cell(self, changes: Mapping[str, Any]) -> pd.DataFrame:
        """The runs that equal the centre but for `changes`."""
        key = self.key(changes)
        if key not in self.cells:
            raise Absent("missing: " + (", ".join(f"{k}={v}" for k, v in changes.items()) or "the centre"))
        return self.used.setdefault(key, self.cells[key])

    def values(self, metric: str, changes: Mapping[str, Any]) -> pd.Series:
        """A metric of the completed runs of a cell, by seed."""
        runs = self.cell(changes)
        return runs[runs["status"] == "completed"].set_index("seed")[metric].dropna()

    def gap(self, a: Mapping[str, Any], b: Mapping[str, Any], metric: str = "kl") -> pd.Series:
        """metric(a) − metric(b), paired by seed."""
        return (self.values(metric, a) - self.values(metric, b)).dropna()

    def axis(self, column: str, fixed: Mapping[str, Any] | None = None) -> list[Any]:
        """The numbers `column` takes in the cells that equal the centre but for it and `fixed`."""
        rest = self.key(fixed or {})
        keys = [k for k in self.cells if frozenset(i for i in k if i[0] != column) == rest]
        values = {dict(k).get(column, self.centre.get(column)) for k in keys}
        return sorted(v for v in values if isinstance(v, (int, float)))

    def ends(self, column: str, at_least: float = -math.inf, fixed: Mapping[str, Any] | None = None) -> tuple[Any, Any]:
        """The lowest and the highest value on an axis."""
        values = [v for v in self.axis(column, fixed) if v >= at_least]
        if len(values) < 2:
            raise Absent(f"missing: two values of {column}")
        return values[0], values[-1]


def studies(runs: pd.DataFrame, centres: Mapping[str, Mapping[str, Any]]) -> dict[str, Study]:
    """One :class:`Study` per target of `centres`."""
    runs = distinct(runs[runs["data.name"].isin(list(centres))])
    differs = deviations(runs, centres)
    columns, values = np.array(differs.columns), runs[list(differs)].astype(object).to_numpy()
    keys = [
        frozenset((c, None if pd.isna(v) else v) for c, v in zip(columns[d], row[d], strict=True))
        for row, d in zip(values, differs.to_numpy(dtype=bool), strict=True)
    ]
    studies = {}
    for target, centre in centres.items():
        cells: dict[frozenset[tuple[str, Any]], list[int]] = {}
        for i in np.flatnonzero(runs["data.name"] == target):
            cells.setdefault(keys[i], []).append(i)
        studies[target] = Study(target, centre, {k: runs.iloc[i] for k, i in cells.items()})
    return studies
