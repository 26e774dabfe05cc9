"""Means and shares over seeds with intervals and tests, and the ablation tables found in a table of runs.

Three seeds give wide intervals (t is 4.3 at 2 degrees of freedom); an interval that holds 0 shows no equality.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import bdtr, bdtrc, betaincinv, stdtr, stdtrit

from nfexp.analysis.table import STATUSES, config_columns, distinct
from nfexp.analysis.table.baselines import MODELS

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
    "train.noise": "training_noise",
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


def mean_tails(values: Iterable[float], margin: float) -> tuple[float, float]:
    """p-values of "the mean is at most `margin`" and of "at least": Student's t, so the tails of :func:`mean_interval`.

    The 1 − 2α interval lies above the margin exactly where the first is below α. NaN for fewer than two values; values
    without any spread are taken at their word.

    >>> print("{:.4f} {:.4f}".format(*mean_tails([0.5, 1.0, 1.5], 0.0)))
    0.0371 0.9629
    """
    x = np.asarray(list(values), dtype=float)
    x = x[~np.isnan(x)]
    if len(x) < 2:
        return math.nan, math.nan
    gap, error = float(x.mean()) - margin, float(x.std(ddof=1)) / math.sqrt(len(x))
    if error == 0:
        return float(gap <= 0), float(gap >= 0)
    return float(stdtr(len(x) - 1, -gap / error)), float(stdtr(len(x) - 1, gap / error))


def share_interval(hits: Iterable[bool], level: float = 0.95) -> tuple[float, float, float]:
    """The share of true values and the ends of its exact interval (Clopper and Pearson 1934); all NaN without values.

    Exact, since shares near 0 are what is asked for here: at 2% of 50 runs the lower end of Wilson's interval exceeds
    the truth in 8% of samples, not in 2.5%.

    >>> print("{:.3f} {:.4f} {:.3f}".format(*share_interval([True] + [False] * 9)))
    0.100 0.0025 0.445
    """
    x = np.asarray(list(hits), dtype=bool)
    n, k, tail = len(x), int(x.sum()), (1 - level) / 2
    if n == 0:
        return math.nan, math.nan, math.nan
    low = float(betaincinv(k, n - k + 1, tail)) if k else 0.0
    return k / n, low, float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0


def share_tails(hits: Iterable[bool], margin: float) -> tuple[float, float]:
    """p-values of "the share is at most `margin`" and of "at least": binomial tails, those of :func:`share_interval`.

    >>> print("{:.4f} {:.4f}".format(*share_tails([True] * 5, 0.5)))
    0.0312 1.0000
    """
    x = np.asarray(list(hits), dtype=bool)
    n, k = len(x), int(x.sum())
    if n == 0:
        return math.nan, math.nan
    return float(bdtrc(k - 1, n, margin)) if k else 1.0, float(bdtr(k, n, margin))


def sign_tails(values: Iterable[float], margin: float) -> tuple[float, float]:
    """p-values of "the median is at most `margin`" and of "at least" by the sign test: tails of :func:`share_tails`.

    How far off a value is does not count. NaN for fewer than two values.

    >>> print("{:.4f} {:.4f}".format(*sign_tails([0.1, 0.2, 0.3, 0.4, 90.0], 0.0)))
    0.0312 1.0000
    """
    x = np.asarray(list(values), dtype=float)
    x = x[~np.isnan(x)]
    if len(x) < 2:
        return math.nan, math.nan
    off = x[x != margin]
    return share_tails(off > margin, 0.5) if len(off) else (1.0, 1.0)


def bootstrap_interval(values: Iterable[float], level: float = 0.95) -> tuple[float, float]:
    """Ends of the percentile bootstrap interval of the mean (Efron 1979), the same for the same values.

    Too narrow for few values: at 3, 5 and 10 normal ones it covers 75, 85 and 90%
    (``python -m tests.helpers.intervals``). NaN for fewer than two values.

    >>> print("{:.2f} {:.2f}".format(*bootstrap_interval([0.5, 1.0, 1.5])))
    0.50 1.50
    """
    from scipy.stats import bootstrap  # 0.4 s to import, and only the claims need it

    x = np.asarray(list(values), dtype=float)
    x = x[~np.isnan(x)]
    if len(x) < 2:
        return math.nan, math.nan
    found = bootstrap(
        (x,),
        np.mean,
        confidence_level=level,
        n_resamples=1999,
        method="percentile",
        random_state=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p-values (1979), shape (k,): all below α are false together with probability at most α.

    The smallest is multiplied by k, the next by k − 1, and none is below a smaller one's. NaN counts as 1.

    >>> holm([0.03, 0.01, 0.02]).round(3).tolist()
    [0.04, 0.03, 0.04]
    """
    known = np.nan_to_num(np.asarray(p, dtype=float), nan=1.0)
    order = np.argsort(known, kind="stable")
    adjusted = np.empty(len(known))
    adjusted[order] = np.maximum.accumulate(known[order] * np.arange(len(known), 0, -1))
    return np.minimum(adjusted, 1)


def axis_name(column: str) -> str:
    """The short name of a configuration column: "flow.n_flows" is "flows", an unlisted one its last part.

    >>> axis_name("flow.norm_every")
    'norm_every'
    """
    return AXES.get(column, column.rpartition(".")[2])


def references(fits: pd.DataFrame, flow: pd.Series | None = None) -> pd.DataFrame:
    """Baselines of one target, noise and sample count over their seeds: one row per model, in the order of MODELS.

    Columns: model, n (seeds), n_used, least and most (components, or the bandwidth), then mean, low and high (95% t
    interval) of test_nll, true_nll, kl, seconds and, where `flow` holds the KL of a flow's runs by seed, of over =
    KL(baseline) − KL(flow), paired by seed.

    >>> fits = pd.DataFrame({"model": "gaussian", "seed": [0, 1], "kl": [1.5, 1.7], "test_nll": 2.0, "true_nll": 0.4,
    ...                      "n_used": 9, "n_components": 1.0, "bandwidth": np.nan, "seconds": 0.1})
    >>> references(fits, pd.Series([0.1, 0.2]))[["model", "n", "kl_mean", "over_mean"]].round(3).to_numpy().tolist()
    [['gaussian', 2, 1.6, 1.45]]
    """
    rows = []
    for model in MODELS:
        own = fits[fits["model"] == model].set_index("seed")
        if len(own):
            chosen = own["bandwidth" if model == "kde" else "n_components"]
            row = {"model": model, "n": own["kl"].count(), "n_used": own["n_used"].max(),
                   "least": chosen.min(), "most": chosen.max()}  # fmt: skip
            over = own["kl"] - (pd.Series(dtype=float) if flow is None else flow).reindex(own.index)
            for name, values in {**own[["test_nll", "true_nll", "kl", "seconds"]], "over": over}.items():
                ends = mean_interval(values)
                row |= {f"{name}_{end}": value for end, value in zip(("mean", "low", "high"), ends, strict=True)}
            rows.append(row)
    return pd.DataFrame(rows)


def deviations(runs: pd.DataFrame, centres: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Which configuration columns of each run differ from the centre of its target: booleans, one row per run.

    >>> runs = pd.DataFrame({"data.name": ["moons"] * 2, "seed": 0, "flow.n_flows": [3, 6], "flow.norm": "none"})
    >>> deviations(runs, {"moons": {"flow.n_flows": 6, "flow.norm": "none"}})["flow.n_flows"].tolist()
    [True, False]
    """
    codes, targets = pd.factorize(runs["data.name"])
    out = {}
    for column in config_columns(runs):
        values = runs[column].to_numpy(object)
        known = [centres.get(t, {}).get(column) for t in targets]
        by_code = [None if value != value else value for value in known]
        by_code.append(None)  # code −1, of a run without a target
        middles = np.array(by_code, dtype=object)[codes]
        lacking = np.array([value is None for value in by_code])[codes]
        out[column] = np.where(lacking, ~pd.isna(values), values != middles)
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
        ends: dict[str, Any] = {f"{name}_mean": mean, f"{name}_low": low, f"{name}_high": high}
        table = table.assign(**ends)
    table = table.assign(n_pairs=groups["kl_diff"].count(), is_centre=groups["is_centre"].any()).reset_index()
    cells = table[by].itertuples(index=False)
    rank = [(targets.index(target), *map(_sortable, values)) for target, *values in cells]
    return table.iloc[sorted(range(len(table)), key=rank.__getitem__)].reset_index(drop=True)


def _sortable(value: Any) -> tuple[bool, bool, Any]:
    missing = pd.isna(value)
    return missing, isinstance(value, str), 0 if missing else value


class Absent(Exception):
    """A cell, a metric or a condition that a claim needs is not in the study."""


def named(changes: Mapping[str, Any]) -> str:
    """A cell by how it differs from the centre: "flow.n_flows=1, flow.hidden_depth=6", or "the centre"."""
    return ", ".join(f"{k}={v}" for k, v in changes.items()) or "the centre"


@dataclass
class Study:
    """The runs of one target by how they differ from its centre, with a record of the cells that were looked at."""

    target: str
    centre: Mapping[str, Any]
    cells: dict[frozenset[tuple[str, Any]], pd.DataFrame]
    used: dict[frozenset[tuple[str, Any]], pd.DataFrame] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def key(self, changes: Mapping[str, Any]) -> frozenset[tuple[str, Any]]:
        return frozenset((k, v) for k, v in changes.items() if v != self.centre.get(k))

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
        values = runs[metric].to_numpy(float)[done] if metric in runs else np.full(done.sum(), np.nan)
        held = ~np.isnan(values)
        if len(held) and not held.any():
            raise Absent(f"missing: {metric} of {named(changes)}")
        return pd.Series(values[held], index=runs["seed"].to_numpy()[done][held])

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
        for i in np.flatnonzero(runs["data.name"] == target).tolist():
            cells.setdefault(keys[i], []).append(i)
        studies[target] = Study(target, centre, {k: runs.iloc[i] for k, i in cells.items()})
    return studies
