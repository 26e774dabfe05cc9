"""The run that stands for its target in the figures of one run, with the arrays that it stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from nfexp.analysis.table import ReportError, load_arrays, skip
from nfexp.analysis.table.records import rows_of
from nfexp.report.selection import Centres, differences

Shape = tuple[str | int, ...]
# What each figure of one run needs: array name to shape; equal letters are equal lengths.
SHAPES: dict[str, dict[str, Shape]] = {
    "gallery": {
        "base": ("a", 2),
        "target": ("b", 2),
        "snapshots": ("s", "m", 2),
        "snapshot_steps": ("s",),
        "best": ("c", 2),
    },
    "density": {
        "grid_log_q": ("y", "x"),
        "grid_log_p": ("y", "x"),
        "grid_extent": (4,),
    },
    "walk": {
        "walk": ("f", "k", 2),
        "walk_names": ("f",),
        "walk_grid": ("f", "r", "c", 2),
    },
    "corner": {
        "target": ("b", "d"),
        "best": ("c", "d"),
        "columns": ("d",),
    },
    "images": {
        "real": ("a", "c", "h", "w"),
        "drawn": ("b", "c", "h", "w"),
        "levels": (),
    },
    "temperatures": {
        "tempered": ("t", "n", "c", "h", "w"),
        "temperatures": ("t",),
        "levels": (),
    },
    "interpolation": {
        "interpolated": ("p", "s", "c", "h", "w"),
        "levels": (),
    },
    "scales": {
        "redrawn": ("r", "n", "c", "h", "w"),
        "redrawn_numbers": ("r",),
        "levels": (),
    },
    "imagewalk": {
        "image_walk": ("f", "n", "c", "h", "w"),
        "image_walk_names": ("f",),
    },
    "summary": {
        "target": ("b", 2),
        "best": ("c", 2),
        "grid_log_q": ("y", "x"),
        "grid_extent": (4,),
    },
}
OPTIONAL = ("walk_grid",)  # left out of the figure where it is absent or odd
TEXT = ("walk_names", "columns", "image_walk_names")  # all other arrays hold numbers
TRIES = 6  # runs whose archives are opened for a target
FAR = 1e30  # what lies further out is drawn there


def exemplar(
    runs: pd.DataFrame,
    centres: Centres,
    target: str,
    kind: str,
    *,
    skipped: list[ReportError] | None = None,
) -> dict[str, Any] | None:
    """The run to show for a target: completed, nearest to the centre, of the lowest seed.

    It has stored what the figure `kind` needs.

    Returns its row as a dict, with "arrays" (floats are float64, within ±FAR) and "differs" (the
    columns in which it is not the centre), or None. Archives that cannot be read are warned of and
    added to `skipped`.
    """
    if skipped is None:
        skipped = []
    candidates = runs[(runs["data.name"] == target) & (runs["status"] == "completed")]
    differs = differences(candidates, centres)
    candidates = candidates.assign(differs=differs, n_differs=differs.map(len))
    nearest = candidates.sort_values(["n_differs", "seed", "dir"], kind="stable").head(TRIES)
    for row in rows_of(nearest):
        try:
            arrays = load_arrays(row["dir"], only=SHAPES[kind])
        except ReportError as error:
            skip([error], skipped)
            continue
        fit = _fit(arrays, SHAPES[kind])
        if fit is not None:
            return row | {"arrays": fit}
    return None


def _fit(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, Shape],
) -> dict[str, np.ndarray] | None:
    """The arrays that a figure draws; None where one that it needs is absent or odd."""
    bounded = {}
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            array = np.clip(array, -FAR, FAR, dtype=float)
        bounded[name] = array
    needed = {name: shape for name, shape in shapes.items() if name not in OPTIONAL}
    for wanted in (shapes, needed):
        if _holds(bounded, wanted):
            return {name: bounded[name] for name in wanted}
    return None


def _holds(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Shape]) -> bool:
    """Whether there are arrays of these shapes, with numbers that a picture can be made of."""
    lengths: dict[str | int, int] = {}  # of each letter
    for name, shape in shapes.items():
        if name not in arrays:
            return False
        array = arrays[name]
        is_text = array.dtype.kind == "U"
        if is_text != (name in TEXT) or array.ndim != len(shape) or 0 in array.shape:
            return False
        for wanted, length in zip(shape, array.shape, strict=True):
            expected = wanted if isinstance(wanted, int) else lengths.setdefault(wanted, length)
            if length != expected:
                return False
    x0, x1, y0, y1 = arrays.get("grid_extent", (0, 1, 0, 1))
    has_area = bool(x0 < x1 and y0 < y1)
    log_densities = [array for name, array in arrays.items() if name.startswith("grid_log_")]
    return has_area and not any(np.isnan(array).all() for array in log_densities)
