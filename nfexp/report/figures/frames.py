"""What the figures draw, as frames: the runs of an axis, learning curves with their means, the run of a gallery."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from nfexp.analysis.statistics import deviations, distinct, mean_interval
from nfexp.analysis.table import ReportError, load_arrays, skip
from nfexp.analysis.table.records import rows_of

FAR = 1e30  # what lies further out is drawn there
Centres = Mapping[str, Mapping[str, object]]


def differences(runs: pd.DataFrame, centres: Centres) -> pd.Series:
    """Per run, the tuple of configuration columns in which it differs from the centre of its target."""
    marks = deviations(runs, centres)
    names = marks.columns.to_numpy(dtype=object)
    return pd.Series([tuple(names[row]) for row in marks.to_numpy(bool)], index=runs.index, dtype=object)


def learning_curves(
    runs: pd.DataFrame, histories: pd.DataFrame, centres: Centres, column: str | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Learning curves along one axis, as excess over the true NLL (nats per point), and their means over seeds.

    Parameters
    ----------
    runs, histories
        From :func:`nfexp.analysis.table.load_runs` and :func:`nfexp.analysis.table.load_histories`.
    column
        The swept column; None takes the centre's runs alone, training beside validation NLL.

    Returns
    -------
    (curves, means)
        `curves`: data.name, value, dir, status, step, excess. `means`, over completed runs only: data.name, value,
        step, excess_mean, n. A diverged run, which has no true NLL of its own, is measured against the mean true NLL
        of the completed runs with its target and noise. A run that is there twice is one curve.
    """
    runs = distinct(runs)
    allowed = {(), (column,)} if column else {()}
    chosen = runs[[d in allowed for d in differences(runs, centres)]]
    done = runs[runs["status"] == "completed"]
    usual = done.groupby(["data.name", "data.noise"])["true_nll"].mean().to_dict()
    truth = [
        true if true == true else usual.get((name, noise), np.nan)
        for name, noise, true in zip(chosen["data.name"], chosen["data.noise"], chosen["true_nll"], strict=True)
    ]
    kept = {
        "dir": chosen["dir"],
        "data.name": chosen["data.name"],
        "status": chosen["status"],
        "truth": np.array(truth, dtype=float),
    }
    if column:
        kept["value"] = ["none" if v is None or v != v else v for v in chosen[column]]
    joined = histories.drop(columns="job").merge(pd.DataFrame(kept), on="dir")
    if not column:
        parts = [joined.assign(value=kind, nll=joined[f"{kind}_nll"]) for kind in ("train", "val")]
        joined = pd.concat(parts).replace({"value": {"train": "training", "val": "validation"}})
    else:
        joined["nll"] = joined["val_nll"]
    joined["excess"] = joined["nll"] - joined["truth"]
    joined = joined[np.isfinite(joined["excess"].to_numpy(float)) & (joined["step"] > 0)]
    curves = joined[["data.name", "value", "dir", "status", "step", "excess"]].reset_index(drop=True)
    complete = curves[curves["status"] == "completed"]
    means = complete.groupby(["data.name", "value", "step"], sort=False)["excess"].agg(excess_mean="mean", n="size")
    return curves, means.reset_index().sort_values(["step"], kind="stable")


def centre_scores(runs: pd.DataFrame, centres: Centres) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The KL at the centre of the study (nats per point): every completed run, and per target the mean over seeds.

    Returns
    -------
    (seeds, means)
        `seeds`: data.name, seed, kl. `means`, in the order of `centres`: data.name, n, n_diverged, n_failed, n_missing,
        kl_mean, kl_low, kl_high, the ends of the 95% t interval.
    """
    own = distinct(runs)
    own = own[[not d for d in differences(own, centres)]]
    done = own[own["status"] == "completed"]
    rows = []
    for target in centres:
        status, kl = own.loc[own["data.name"] == target, "status"], done.loc[done["data.name"] == target, "kl"].dropna()
        counts = {f"n_{s}": int((status == s).sum()) for s in ("diverged", "failed", "missing")}
        ends = dict(zip(("kl_mean", "kl_low", "kl_high"), mean_interval(kl), strict=True))
        rows.append({"data.name": target, "n": len(kl), **counts, **ends})
    return done[["data.name", "seed", "kl"]].reset_index(drop=True), pd.DataFrame(rows)


# What each figure of one run needs: array name to shape; equal letters are equal lengths.
SHAPES: dict[str, dict[str, tuple[str | int, ...]]] = {
    "gallery": {"base": ("a", 2), "target": ("b", 2), "snapshots": ("s", "m", 2), "snapshot_steps": ("s",),
                "best": ("c", 2)},
    "density": {"grid_log_q": ("y", "x"), "grid_log_p": ("y", "x"), "grid_extent": (4,)},
    "walk": {"walk": ("f", "k", 2), "walk_names": ("f",), "walk_grid": ("f", "r", "c", 2)},
    "summary": {"target": ("b", 2), "best": ("c", 2), "grid_log_q": ("y", "x"), "grid_extent": (4,)},
}  # fmt: skip
OPTIONAL = {"walk_grid"}  # left out of the figure where it is absent or odd


def _holds(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[str | int, ...]]) -> bool:
    lengths: dict[str | int, int] = {}
    for name, shape in shapes.items():
        if name not in arrays or arrays[name].ndim != len(shape) or 0 in arrays[name].shape:
            return False
        if (arrays[name].dtype.kind == "U") != (name == "walk_names"):
            return False
        for want, got in zip(shape, arrays[name].shape, strict=True):
            if got != (want if isinstance(want, int) else lengths.setdefault(want, got)):
                return False
    x0, x1, y0, y1 = arrays.get("grid_extent", (0, 1, 0, 1))
    return bool(x0 < x1 and y0 < y1) and not any(np.isnan(arrays[name]).all() for name in arrays if "log" in name)


def exemplar(
    runs: pd.DataFrame, centres: Centres, target: str, kind: str, tries: int = 6,
    skipped: list[ReportError] | None = None,
) -> dict[str, Any] | None:  # fmt: skip
    """The run to show for a target: completed, nearest to the centre, lowest seed, with what `kind` needs stored.

    Returns its row as a dict, with "arrays" (floats are float64, within ±FAR) and "differs" (the columns in which it
    is not the centre), or None. Archives that cannot be read are warned of and added to `skipped`.
    """
    own = runs[(runs["data.name"] == target) & (runs["status"] == "completed")]
    own = own.assign(differs=differences(own, centres))
    own = own.assign(apart=own["differs"].map(len)).sort_values(["apart", "seed", "dir"], kind="stable")
    for row in rows_of(own.head(tries)):
        try:
            arrays = load_arrays(row["dir"], only=SHAPES[kind])
        except ReportError as error:
            skip([error], [] if skipped is None else skipped)
            continue
        arrays = {k: np.clip(a, -FAR, FAR, dtype=float) if a.dtype.kind == "f" else a for k, a in arrays.items()}
        for shapes in (SHAPES[kind], {k: s for k, s in SHAPES[kind].items() if k not in OPTIONAL}):
            if _holds(arrays, shapes):
                return row | {"arrays": {k: arrays[k] for k in shapes}}
    return None
