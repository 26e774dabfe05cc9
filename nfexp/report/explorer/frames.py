"""The samples of many runs, thinned to a stated size: a cloud at each recorded step."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nfexp.analysis.table import ReportError, load_arrays, skip
from nfexp.analysis.table.records import rows_of
from nfexp.report.planar import Limits, box, spread

MOST_BYTES = 6_000_000  # of all clouds of a page, as text
MOST_POINTS = 200  # of a cloud
FEWEST_POINTS = 50  # of a cloud; with less room than that, runs are left out
MOST_FRAMES = 60  # of a run
MOST_CLOUDS = MOST_BYTES * 3 // 4 // (2 * FEWEST_POINTS)  # base64 takes 4 letters for 3 bytes
LEVELS = 255  # each coordinate is one of as many places across the frame
OUTSIDE = 255  # in place of a coordinate: the point is outside of the frame
KEPT = -1  # in place of a step: the weights that were kept
ARRAYS = ("snapshots", "snapshot_steps", "best", "target")


@dataclass(frozen=True)
class Clouds:
    """What one run stored: its samples at each recorded step and with the kept weights."""

    target: str
    steps: list[int]  # KEPT stands last
    points: np.ndarray  # (frames, n, 2), data units; point i is of one base point in all frames
    draws: np.ndarray  # (n, 2): training points


@dataclass(frozen=True)
class Frames:
    """The clouds of all runs, ready for a page.

    A cloud is base64 of bytes x, y, x, y, …: each from 0 to LEVELS − 1 across the frame of its
    target, or OUTSIDE.
    """

    n_points: int  # at most, of a cloud
    limits: dict[str, Limits]  # by target: the frame, data units
    draws: dict[str, str]  # by target: training points
    runs: dict[int, dict[str, Any]]  # by row of the table: steps, n (points of a cloud), clouds
    n_left_out: int  # runs with samples for which there is no room


def frames_of(
    runs: pd.DataFrame,
    *,
    skipped: list[ReportError] | None = None,
    most_bytes: int = MOST_BYTES,
) -> Frames:
    """The thinned samples of the planar runs of a table, by row.

    Every run keeps its recorded steps (MOST_FRAMES of them), and as many points, the first ones,
    as fit. Where FEWEST_POINTS do not fit, the runs that stand last have no samples. Archives that
    cannot be read are warned of and added to `skipped`.
    """
    by_run: dict[int, Clouds] = {}
    n_clouds = 0
    n_left_out = 0
    for number, row in enumerate(rows_of(runs[["dir", "data.name", "status"]])):
        if row["status"] == "missing":
            continue
        try:
            clouds = _clouds(row["dir"], row["data.name"])
        except ReportError as error:
            skip([error], [] if skipped is None else skipped)
            continue
        if clouds is None:
            continue
        if n_clouds + len(clouds.steps) > most_bytes * MOST_CLOUDS // MOST_BYTES:
            n_left_out += 1
            continue
        n_clouds += len(clouds.steps)
        by_run[number] = clouds
    n_points = MOST_POINTS
    if n_clouds:
        n_points = min(MOST_POINTS, most_bytes * 3 // 4 // (2 * n_clouds))
    return _encoded(by_run, n_points, n_left_out)


def _clouds(folder: str, target: str) -> Clouds | None:
    """What a run stored, MOST_POINTS of each cloud; None if that is nothing, or not planar."""
    arrays = load_arrays(folder, only=ARRAYS)
    if set(arrays) != set(ARRAYS):
        return None
    snapshots = arrays["snapshots"]
    steps = arrays["snapshot_steps"]
    planar = snapshots.ndim == 3 and snapshots.shape[2] == 2 and len(steps) == len(snapshots)
    planar = planar and steps.ndim == 1 and steps.dtype.kind in "iu" and snapshots.dtype.kind == "f"
    for name in ("best", "target"):
        array = arrays[name]
        planar = planar and array.ndim == 2 and array.shape[1] == 2 and array.dtype.kind == "f"
    if not planar:
        return None
    shown = spread(len(steps), MOST_FRAMES - 1) if len(steps) else np.array([], dtype=int)
    n = min(MOST_POINTS, snapshots.shape[1], len(arrays["best"]))
    if not n:
        return None
    points = np.concatenate([snapshots[shown, :n], arrays["best"][None, :n]])
    names = [*steps[shown].tolist(), KEPT]
    return Clouds(target, names, points, arrays["target"][:MOST_POINTS])


def _encoded(by_run: dict[int, Clouds], n_points: int, n_left_out: int) -> Frames:
    draws: dict[str, list[np.ndarray]] = {}
    for clouds in by_run.values():
        draws.setdefault(clouds.target, []).append(clouds.draws)
    limits = {target: box(*arrays, cover=1.0) for target, arrays in draws.items()}
    runs = {}
    for number, clouds in by_run.items():
        kept = clouds.points[:, :n_points]
        runs[number] = {
            "steps": clouds.steps,
            "n": kept.shape[1],
            "clouds": _text(kept, limits[clouds.target]),
        }
    return Frames(
        n_points=n_points,
        limits=limits,
        draws={target: _text(arrays[0], limits[target]) for target, arrays in draws.items()},
        runs=runs,
        n_left_out=n_left_out,
    )


def _text(points: np.ndarray, limits: Limits) -> str:
    """Points (…, 2) as base64 of one byte a coordinate."""
    x0, x1, y0, y1 = limits
    low = np.array([x0, y0])
    width = np.array([x1 - x0, y1 - y0])
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is outside
        share = (points.astype(float) - low) / width
        inside = ((share >= 0) & (share <= 1)).all(axis=-1, keepdims=True)
    scaled = np.where(inside, share, 0.0) * (LEVELS - 1)
    codes = np.where(inside, scaled.round(), OUTSIDE).astype(np.uint8)
    return base64.b64encode(codes.tobytes()).decode()


def decoded(text: str, limits: Limits) -> np.ndarray:
    """The points (n, 2) of an encoded cloud in data units; NaN for those outside of the frame.

    >>> decoded(_text(np.array([[0.0, 1.0], [9.0, 9.0]]), (0, 2, 0, 2)), (0, 2, 0, 2)).tolist()
    [[0.0, 1.0], [nan, nan]]
    """
    codes = np.frombuffer(base64.b64decode(text), dtype=np.uint8).reshape(-1, 2)
    x0, x1, y0, y1 = limits
    shares = codes.astype(float) / (LEVELS - 1)
    points = np.array([x0, y0]) + shares * np.array([x1 - x0, y1 - y0])
    points[codes[:, 0] == OUTSIDE] = np.nan
    return points
