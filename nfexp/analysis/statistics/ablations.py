"""The ablation tables that a table of runs holds, and the baselines beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nfexp.analysis.statistics.intervals import mean_interval, t_interval
from nfexp.analysis.table import STATUSES, config_columns, distinct
from nfexp.analysis.table.baselines import ALL_MODELS, KERNELS
from nfexp.spec import is_parameter_key

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
BITS = "test_bpd"  # of images: what tables and figures show of them
# Columns that say which points a run is tested on.
TESTED_ON = (
    "data.noise",
    "data.text",
    "data.n_test",
    "data.digest",
    "data.split",
    "data.jitter",
)

Centres = Mapping[str, Mapping[str, Any]]


def axis_name(column: str) -> str:
    """The short name of a configuration column; of one that AXES lacks, its last part.

    >>> axis_name("flow.norm_every")
    'norm_every'
    """
    return AXES.get(column, column.rpartition(".")[2])


def deviations(runs: pd.DataFrame, centres: Centres) -> pd.DataFrame:
    """Which configuration columns of each run differ from the centre of its target, as booleans.

    Where a centre does not name a column, every value but a missing one differs from it.

    >>> runs = pd.DataFrame({"data.name": ["moons"] * 2, "seed": 0, "flow.n_flows": [3, 6]})
    >>> deviations(runs, {"moons": {"flow.n_flows": 6}})["flow.n_flows"].tolist()
    [True, False]
    """
    # targets[codes[i]] is the target of row i; the code of a row without a target is −1.
    codes, targets = pd.factorize(runs["data.name"])
    differs = {}
    for column in config_columns(runs):
        middles = []
        for target in targets:
            middle = centres.get(target, {}).get(column)
            middles.append(None if middle != middle else middle)  # NaN is missing too
        middles.append(None)  # the last one, which the code −1 finds
        lacking = np.array([middle is None for middle in middles])[codes]
        values = runs[column].to_numpy(object)
        other = values != np.array(middles, dtype=object)[codes]
        differs[column] = np.where(lacking, ~pd.isna(values), other)
    return pd.DataFrame(differs, index=runs.index, dtype=bool)


def ablations(
    runs: pd.DataFrame,
    centres: Centres,
    averaged: Sequence[str] = AVERAGED,
) -> dict[str, pd.DataFrame]:
    """Find the ablation axes in `runs` and summarise each cell over its seeds.

    A column that alone differs from the centre of the target makes an axis ("flows"); two columns
    that differ together make a grid ("flows_x_depth") with both single axes and the centre. Each
    row is one cell: counts by status, then mean and 95% t interval over seeds of test_nll and kl
    (nats per point) and of kl_diff = KL(cell) − KL(centre), paired by seed. Where no density is
    known, kl_diff is the difference of the test NLLs on the same points, from which the true NLL
    cancels. Of images there is test_bpd besides, and kl_diff is the difference of these, bits/dim.
    Runs that diverged, failed or are missing are counted and enter no mean. `averaged` asks for the
    means of other columns.

    >>> runs = pd.DataFrame({"data.name": "moons", "status": "completed", "seed": [0, 1, 0, 1],
    ...                      "flow.n_flows": [6, 6, 3, 3], "kl": [0.1, 0.2, 0.4, 0.6],
    ...                      "test_nll": 1.0})
    >>> table = ablations(runs, {"moons": {"flow.n_flows": 6}})["flows"]
    >>> table[["flow.n_flows", "n", "kl_diff_mean"]].round(3).to_numpy().tolist()
    [[3.0, 2.0, 0.35], [6.0, 2.0, 0.0]]
    """
    runs = distinct(runs[runs["data.name"].isin(list(centres))])
    differs = deviations(runs, centres)
    tested_on = [
        column for column in map(str, differs) if column in TESTED_ON or is_parameter_key(column)
    ]
    runs = _beside_the_centre(runs, ~differs.any(axis=1), differs[tested_on].any(axis=1))
    tables: dict[str, pd.DataFrame] = {}
    for columns in _swept(differs):
        equal_elsewhere = ~differs.drop(columns=columns).any(axis=1)
        varied = equal_elsewhere & differs[columns].all(axis=1)
        has_axis = runs["data.name"].isin(runs.loc[varied, "data.name"])
        inside = runs[equal_elsewhere & has_axis]
        name = "_x_".join(axis_name(column) for column in columns)
        if name in tables:  # two columns may share their short name
            name = "_x_".join(columns)
        tables[name] = _summary(inside, columns, list(centres), averaged)
    return tables


def _beside_the_centre(
    runs: pd.DataFrame, is_centre: pd.Series, is_elsewhere: pd.Series
) -> pd.DataFrame:
    """The runs with `is_centre` and `kl_diff`, their KL minus that of the centre at the same seed.

    Where no KL is known, test NLLs stand in for it, but not for a run tested elsewhere than the
    centre.
    """
    pair = ["data.name", "seed"]
    done = runs[(runs["status"] == "completed") & is_centre].set_index(pair)
    opposite = pd.MultiIndex.from_frame(runs[pair])
    # In the order of `runs`; NaN without a pair.
    kl_diff = runs["kl"].to_numpy() - done["kl"].reindex(opposite).to_numpy()
    nll_diff = runs["test_nll"].to_numpy() - done["test_nll"].reindex(opposite).to_numpy()
    unknown = runs["kl"].isna().to_numpy() & done["kl"].isna().reindex(opposite).eq(True).to_numpy()
    kl_diff = np.where(unknown & ~is_elsewhere.to_numpy(), nll_diff, kl_diff)
    if BITS in runs:
        bits_diff = runs[BITS].to_numpy() - done[BITS].reindex(opposite).to_numpy()
        is_image = done[BITS].notna().reindex(opposite).eq(True).to_numpy()
        kl_diff = np.where(is_image & ~is_elsewhere.to_numpy(), bits_diff, kl_diff)
    return runs.assign(kl_diff=kl_diff, is_centre=is_centre)


def _swept(differs: pd.DataFrame) -> list[list[str]]:
    """The sets of one or two columns in which some run differs from its centre.

    Single axes come first, in the order of AXES.
    """
    order = [*AXES, *differs]
    swept: list[list[str]] = []
    for pattern in differs.drop_duplicates().to_numpy(dtype=bool):
        columns = sorted(differs.columns[pattern], key=order.index)
        if 1 <= len(columns) <= 2:
            swept.append(columns)
    swept.sort(key=lambda columns: (len(columns), list(map(order.index, columns))))
    return swept


def _summary(
    runs: pd.DataFrame,
    columns: list[str],
    targets: list[str],
    averaged: Sequence[str],
) -> pd.DataFrame:
    """One row per target and value of `columns`: counts by status, means and intervals."""
    by = ["data.name", *columns]
    statuses = [*STATUSES, "missing"]
    # NaN for a run that did not complete: no mean counts it.
    names = [*averaged, BITS] if has_bits(runs) and BITS not in averaged else list(averaged)
    scores = runs[names].where(runs["status"] == "completed")
    # A column of 0 and 1 for each status, also for one that no run has; sums of these are counts.
    flags = pd.get_dummies(pd.Categorical(runs["status"], statuses)).set_index(runs.index)
    whole = pd.concat([runs[[*by, "is_centre"]], scores, flags], axis=1)
    groups = whole.groupby(by, dropna=False, sort=False)  # a null is a value of an axis
    counts = groups[statuses].sum()
    table = pd.DataFrame({"n": counts["completed"]})
    for status in ("diverged", "failed", "missing"):
        table[f"n_{status}"] = counts[status]
    for name in names:
        mean = groups[name].mean()
        low, high = t_interval(mean, groups[name].std(), groups[name].count())
        table[f"{name}_mean"] = mean
        table[f"{name}_low"] = low
        table[f"{name}_high"] = high
    table["n_pairs"] = groups["kl_diff"].count()
    table["is_centre"] = groups["is_centre"].any()
    table = table.reset_index()
    ranks = []
    for target, *values in table[by].itertuples(index=False):
        ranks.append((targets.index(target), *map(_sortable, values)))
    order = sorted(range(len(table)), key=ranks.__getitem__)
    return table.iloc[order].reset_index(drop=True)


def _sortable(value: Any) -> tuple[bool, bool, Any]:
    """A sort key: numbers first, then words, then what is missing; these do not compare."""
    missing = pd.isna(value)
    return missing, isinstance(value, str), 0 if missing else value


def has_bits(scores: pd.DataFrame) -> bool:
    """Whether there are images among runs (column test_bpd) or ablation cells (test_bpd_mean)."""
    columns = [column for column in (BITS, f"{BITS}_mean") if column in scores]
    return any(bool(scores[column].notna().any()) for column in columns)


def measure_of(scores: pd.DataFrame) -> str:
    """The column that tells how good densities are: kl or, where no KL is known, test_nll.

    Of images it is test_bpd.

    >>> measure_of(pd.DataFrame({"kl": [np.nan, np.nan], "test_nll": [1.0, 2.0]}))
    'test_nll'
    """
    if has_bits(scores):
        return BITS
    return "kl" if scores["kl"].notna().any() or scores["test_nll"].isna().all() else "test_nll"


def references(fits: pd.DataFrame, flow: pd.Series | None = None) -> pd.DataFrame:
    """Baselines of one target, noise and sample count over their seeds: one row per model.

    Columns: model, n (seeds), n_used, least and most (components, or the bandwidth), then mean, low
    and high (95% t interval) of test_nll, true_nll, kl, seconds and, where `flow` holds the KL of a
    flow's runs by seed (their test NLL, where no density is known), of over = KL(baseline) −
    KL(flow), paired by seed.

    >>> fits = pd.DataFrame({"model": "gaussian", "seed": [0, 1], "kl": [1.5, 1.7],
    ...                      "test_nll": 2.0, "true_nll": 0.4, "n_used": 9, "n_components": 1.0,
    ...                      "bandwidth": np.nan, "seconds": 0.1})
    >>> table = references(fits, pd.Series([0.1, 0.2]))
    >>> table[["model", "n", "kl_mean", "over_mean"]].round(3).to_numpy().tolist()
    [['gaussian', 2, 1.6, 1.45]]
    """
    if flow is None:
        flow = pd.Series(dtype=float)
    rows = []
    for model in ALL_MODELS:
        of_model = fits[fits["model"] == model].set_index("seed")
        if of_model.empty:
            continue
        chosen = of_model["bandwidth" if model in KERNELS else "n_components"]
        measure = measure_of(of_model)
        row = {
            "model": model,
            "n": of_model[measure].count(),
            "n_used": of_model["n_used"].max(),
            "least": chosen.min(),
            "most": chosen.max(),
        }
        of_model["over"] = of_model[measure] - flow.reindex(of_model.index)
        names = ["test_nll", "true_nll", "kl", "seconds", "over"]
        for name in [*names, BITS] if has_bits(of_model) else names:
            mean, low, high = mean_interval(of_model[name])
            row |= {f"{name}_mean": mean, f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)
