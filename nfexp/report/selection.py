"""What pages and figures show of a sweep, as tables: centre, learning curves, lines."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from nfexp.analysis.statistics import BITS, deviations, distinct, has_bits, mean_interval
from nfexp.analysis.table.records import rows_of
from nfexp.report.words import TROUBLES, plain
from nfexp.spec import is_parameter_key

# the configuration at the centre of the study, by target
Centres = Mapping[str, Mapping[str, object]]
MOST_LINES = 12  # of an ablation of two columns


def differences(runs: pd.DataFrame, centres: Centres) -> pd.Series:
    """Per run, the configuration columns in which it differs from the centre of its target."""
    marks = deviations(runs, centres)
    names = marks.columns.to_numpy(dtype=object)
    differs = [tuple(names[row]) for row in marks.to_numpy(bool)]
    return pd.Series(differs, index=runs.index, dtype=object)


def at_centre(runs: pd.DataFrame, centres: Centres) -> pd.DataFrame:
    """The runs whose configuration is the centre of their target, each once."""
    runs = distinct(runs)
    differs = deviations(runs, centres).any(axis=1)
    return runs[~differs]


def swept(ablation: pd.DataFrame) -> list[str]:
    """The one or two swept columns of an ablation table, between the target and the counts."""
    columns = list(ablation.columns)
    before_counts = columns[: columns.index("n")]
    return [column for column in before_counts if column != "data.name"]


def has_truth(scores: pd.DataFrame) -> bool:
    """Whether any KL is known: of runs (column kl) or of ablation cells (kl_mean).

    Images have bits/dim instead.
    """
    if has_bits(scores):
        return False
    column = "kl" if "kl" in scores else "kl_mean"
    return bool(scores[column].notna().any())


def as_measured(ablation: pd.DataFrame) -> pd.DataFrame:
    """An ablation with what its figure draws in the columns of the KL.

    That is the KL, of the targets where it is known; where none is, the test NLL of all. Of images
    it is bits/dim.
    """
    if has_truth(ablation):
        known = ablation.groupby("data.name")["kl_mean"].transform("count") > 0
        unscored = ablation.groupby("data.name")["test_nll_mean"].transform("count") == 0
        return ablation[known | unscored]
    scores = {}
    shown = BITS if has_bits(ablation) else "test_nll"
    for part in ("mean", "low", "high"):
        scores[f"kl_{part}"] = ablation[f"{shown}_{part}"]
    return ablation.assign(**scores)


def distinct_values(values: pd.Series) -> list:
    """The values of a column in their order, each once; a missing one is "none"."""
    return list(dict.fromkeys(values_or_none(values)))


def values_or_none(values: pd.Series) -> list:
    """The values of a column with "none" for each that is missing."""
    return ["none" if plain(value) == "none" else value for value in values]


def shown_lines(ablation: pd.DataFrame, x_column: str, line_column: str) -> pd.DataFrame:
    """The rows of an ablation of two columns that its figure shows, a line per `line_column`.

    A line is shown for a target if it has two points or more. All lines of a target are shown if
    fewer than two of them have. Of more than MOST_LINES lines those with most points stay.
    """
    by_line = ablation.groupby(["data.name", line_column], sort=False)
    is_line = by_line[x_column].transform("nunique") > 1
    n_lines = ablation[is_line].groupby("data.name")[line_column].nunique()
    # NaN, of a target without any line, is not >= 2 either
    has_lines = ablation["data.name"].map(n_lines) >= 2
    kept = ablation[is_line | ~has_lines]
    longest = kept[line_column].value_counts().index[:MOST_LINES]
    return kept[kept[line_column].isin(longest)]


def learning_curves(
    runs: pd.DataFrame,
    histories: pd.DataFrame,
    centres: Centres,
    column: str | None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Learning curves along one axis, as excess over the true NLL (nats), and their means.

    Where no run of the table has a true NLL, the excess is the NLL itself. Of images it is in
    bits/dim.

    Parameters
    ----------
    runs, histories
        From :func:`nfexp.analysis.table.load_runs` and :func:`nfexp.analysis.table.load_histories`.
    column
        The swept column; None takes the centre's runs alone, training beside validation NLL.

    Returns
    -------
    (curves, means)
        `curves`: data.name, value, dir, status, step, excess. `means`, over completed runs only:
        data.name, value, step, excess_mean, n. A diverged run, which has no true NLL of its own, is
        measured against the mean true NLL of the completed runs with its target and noise. A run
        that is there twice is one curve.
    """
    runs = distinct(runs)
    on_axis = [differs in ((), (column,)) for differs in differences(runs, centres)]
    chosen = runs[on_axis]
    kept = chosen[["dir", "data.name", "status"]]
    kept = kept.assign(truth=_true_nll(chosen, runs), nats=_nats_of_a_unit(chosen))
    if column is not None:
        kept["value"] = values_or_none(chosen[column])
    curves = histories.drop(columns="job").merge(kept, on="dir")
    curves = _with_nll(curves, by_split=column is None)
    curves["excess"] = (curves["nll"] - curves["truth"]) / curves["nats"]
    is_finite = np.isfinite(curves["excess"].to_numpy(float))
    curves = curves[is_finite & (curves["step"] > 0)]  # the step axis is logarithmic
    columns = ["data.name", "value", "dir", "status", "step", "excess"]
    curves = curves[columns].reset_index(drop=True)
    completed = curves[curves["status"] == "completed"]
    by_step = completed.groupby(["data.name", "value", "step"], sort=False)
    means = by_step["excess"].agg(excess_mean="mean", n="size").reset_index()
    return curves, means.sort_values(["step"], kind="stable")


def _nats_of_a_unit(runs: pd.DataFrame) -> np.ndarray:
    """How many nats per point the unit is in which NLLs of each run are shown.

    Of images, one bit/dim.
    """
    if "data.levels" not in runs:
        return np.ones(len(runs))
    is_image = runs["data.levels"].notna()
    return np.where(is_image, runs["data.dim"].to_numpy(float) * math.log(2), 1.0)


def _true_nll(chosen: pd.DataFrame, runs: pd.DataFrame) -> np.ndarray:
    """The true NLL of each chosen run, or else the mean of those with its target, noise and parameters."""
    of_law = [
        "data.name",
        "data.noise",
        *(column for column in map(str, runs) if is_parameter_key(column)),
    ]
    completed = runs[(runs["status"] == "completed") & runs["true_nll"].notna()]
    known: dict[tuple[str, ...], list[float]] = {}
    for row in rows_of(completed[[*of_law, "true_nll"]]):
        law = tuple(str(row[key]) for key in of_law)
        known.setdefault(law, []).append(row["true_nll"])
    truth = []
    for row in rows_of(chosen[[*of_law, "true_nll"]]):
        value = row["true_nll"]
        if value != value:
            alike = known.get(tuple(str(row[key]) for key in of_law))
            value = float(np.mean(alike)) if alike else math.nan
        truth.append(value)
    true_nll = np.array(truth, dtype=float)
    return true_nll if runs["true_nll"].notna().any() else np.zeros(len(true_nll))


def _with_nll(curves: pd.DataFrame, *, by_split: bool) -> pd.DataFrame:
    """The curves with the column `nll`: on validation or (`by_split`) also on training points."""
    if not by_split:
        return curves.assign(nll=curves["val_nll"])
    training = curves.assign(value="training", nll=curves["train_nll"])
    validation = curves.assign(value="validation", nll=curves["val_nll"])
    return pd.concat([training, validation])


def centre_scores(runs: pd.DataFrame, centres: Centres) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The KL at the centre of the study (nats): every completed run, and the mean per target.

    Returns
    -------
    (seeds, means)
        `seeds`: data.name, seed, kl. `means`, in the order of `centres`: data.name, n, n_diverged,
        n_failed, n_missing, kl_mean, kl_low, kl_high, the ends of the 95% t interval.
    """
    runs_at_centre = at_centre(runs, centres)
    completed = runs_at_centre[runs_at_centre["status"] == "completed"]
    means = []
    for target in centres:
        kl = completed.loc[completed["data.name"] == target, "kl"].dropna()
        status = runs_at_centre.loc[runs_at_centre["data.name"] == target, "status"]
        mean, low, high = mean_interval(kl)
        row = {"data.name": target, "n": len(kl)}
        for trouble in TROUBLES:
            row[f"n_{trouble}"] = int((status == trouble).sum())
        means.append(row | {"kl_mean": mean, "kl_low": low, "kl_high": high})
    seeds = completed[["data.name", "seed", "kl"]].reset_index(drop=True)
    return seeds, pd.DataFrame(means)
