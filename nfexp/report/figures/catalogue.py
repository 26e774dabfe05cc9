"""Which figures the stored results of a sweep or run allow, and how each is drawn."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nfexp.analysis import table
from nfexp.analysis.statistics import has_bits
from nfexp.analysis.table import ReportError, cannot_write
from nfexp.report.exemplar import exemplar
from nfexp.report.figures.ablation import BITS_LABEL, KL_LABEL, NLL_LABEL, draw_ablation
from nfexp.report.figures.animations import Animation, animate_training, animate_walk
from nfexp.report.figures.clouds import draw_gallery, draw_walk
from nfexp.report.figures.convergence import BITS_EXCESS_LABEL, EXCESS_LABEL, draw_convergence
from nfexp.report.figures.corner import draw_corner
from nfexp.report.figures.density import draw_density
from nfexp.report.figures.parallel import draw_in_parallel
from nfexp.report.figures.pictures import (
    draw_image_walk,
    draw_images,
    draw_interpolation,
    draw_scales,
    draw_temperatures,
)
from nfexp.report.figures.summary import draw_summary
from nfexp.report.figures.writing import ANIMATION, Drawing, path_of
from nfexp.report.folders import own_folder
from nfexp.report.selection import (
    as_measured,
    centre_scores,
    differences,
    has_truth,
    learning_curves,
    swept,
)
from nfexp.report.words import file_name, plain

MOST_ABLATIONS = 100  # drawn; their tables are always written
MOST_SUMMARISED = 9  # targets of a summary
MOST_COLUMNS = 8  # of a corner plot
SOME = np.array([])
MOST_NAMED = 4  # settings that a title names, of those in which its run is not the centre
# By what a run must have stored (see exemplar.SHAPES): the figures of one run per target
OF_ONE_RUN: dict[str, dict[str, Callable[..., Figure | Animation]]] = {
    "gallery": {"gallery": draw_gallery, "gif_training": animate_training},
    "density": {"density": draw_density},
    "corner": {"corner": draw_corner},
    "walk": {"walk": draw_walk, "gif_walk": animate_walk},
    "images": {"images": draw_images},
    "temperatures": {"temperatures": draw_temperatures},
    "interpolation": {"interpolation": draw_interpolation},
    "scales": {"scales": draw_scales},
    "imagewalk": {"imagewalk": draw_image_walk},
}


def plan(
    runs: pd.DataFrame,
    sweep: table.Sweep,
    tables: Mapping[str, pd.DataFrame],
    skipped: list[ReportError] | None = None,
) -> dict[str, Drawing]:
    """Name to drawing function, for every figure that the stored data allow."""
    if skipped is None:
        skipped = []
    drawings: dict[str, Drawing] = {}
    for axis, ablation in list(tables.items())[:MOST_ABLATIONS]:
        is_known = has_truth(ablation) or ablation["test_nll_mean"].isna().all()
        label = KL_LABEL if is_known else NLL_LABEL
        if has_bits(ablation):
            label = BITS_LABEL
        drawn = as_measured(ablation)
        drawing = partial(draw_ablation, drawn, swept(ablation), label)
        drawings[f"ablation_{file_name(axis)}"] = drawing
    drawings |= _convergence(runs, sweep, tables, skipped)
    drawings |= _of_one_run(runs, sweep, skipped)
    drawings |= _summary(runs, sweep, skipped)
    return drawings


def _convergence(
    runs: pd.DataFrame,
    sweep: table.Sweep,
    tables: Mapping[str, pd.DataFrame],
    skipped: list[ReportError],
) -> dict[str, Drawing]:
    """The learning curves at the centre, and along each axis of one column."""
    independent = table.distinct(runs)
    is_near = differences(independent, sweep.centres).map(len) < 2  # on one axis, or at the centre
    has_run = independent["status"] != "missing"
    histories = table.load_histories(independent[is_near & has_run], skipped=skipped)
    if not len(histories):
        return {}
    columns: dict[str, str | None] = {"centre": None}
    for axis, ablation in tables.items():
        if len(swept(ablation)) == 1:
            columns[axis] = swept(ablation)[0]
    drawings: dict[str, Drawing] = {}
    for axis, column in columns.items():
        curves, means = learning_curves(independent, histories, sweep.centres, column)
        if len(curves):
            title = f"validation NLL by {column}" if column else "NLL of the runs at the centre"
            name = f"convergence_{file_name(axis)}"
            has_excess = bool(runs["true_nll"].notna().any())
            label = EXCESS_LABEL if has_excess else NLL_LABEL
            if has_bits(runs):
                label = BITS_EXCESS_LABEL if has_excess else BITS_LABEL
            drawings[name] = partial(draw_convergence, curves, means, title, label)
    return drawings


def _of_one_run(
    runs: pd.DataFrame,
    sweep: table.Sweep,
    skipped: list[ReportError],
) -> dict[str, Drawing]:
    """Per target, the figures and animations of the run that stands for it."""
    drawings: dict[str, Drawing] = {}
    for kind, pictures in OF_ONE_RUN.items():
        for target in sorted(set(runs["data.name"])):
            row = exemplar(runs, sweep.centres, target, kind, skipped=skipped)
            if row is None or row["arrays"].get("columns", SOME)[MOST_COLUMNS:].size:
                continue
            title = _title(row, kind)
            for name, picture in pictures.items():
                drawings[f"{name}_{file_name(target)}"] = partial(picture, row["arrays"], title)
    return drawings


def _summary(
    runs: pd.DataFrame,
    sweep: table.Sweep,
    skipped: list[ReportError],
) -> dict[str, Drawing]:
    """The centre of the study at a glance; none of one target, whose other figures say it all."""
    arrays = {}
    flows = {}  # their number, in words; a dict for its order
    for target in list(sweep.centres)[:MOST_SUMMARISED]:
        row = exemplar(runs, sweep.centres, target, "summary", skipped=skipped)
        if row is not None and not row["differs"]:
            arrays[target] = row["arrays"]
            flows[_flows(row)] = True
    if len(arrays) < 2:
        return {}
    title = f"{sweep.name}, centre of the study: {', '.join(flows)}"
    seeds, means = centre_scores(runs, sweep.centres)
    return {"summary_centre": partial(draw_summary, arrays, seeds, means, title)}


def _title(row: Mapping[str, Any], kind: str) -> str:
    """Which run it is, how it differs from the centre, and its KL.

    A walk of an ensemble is that of its first member, whose KL is not the run's.
    """
    settings = []
    for column in row["differs"][:MOST_NAMED]:
        settings.append(f"{column} = {plain(row[column])}")
    which = ", ".join(settings) or "centre"
    if len(row["differs"]) > MOST_NAMED:
        which += ", …"
    title = f"{row['data.name']} · {_flows(row)} · run {row['job']}, seed {row['seed']} ({which})"
    if (row.get("flow.members") or 1) > 1:
        title += f" · {plain(row['flow.members'])} members"
        if kind in ("walk", "imagewalk"):
            return f"{title}, the first alone"
    bits = row.get("test_bpd")
    if bits is not None and bits == bits:
        return f"{title} · {bits:.3f} bits/dim"
    kl = row.get("kl")
    if kl is not None and kl == kl:
        title += f" · KL {kl:.3f} nats"
    return title


def _flows(config: Mapping[str, Any]) -> str:
    n = config["flow.n_flows"]
    return f"{plain(n)} {'flow' if n == 1 else 'flows'}"


def draw_all(
    out_dir: Path,
    runs: pd.DataFrame,
    sweep: table.Sweep,
    tables: Mapping[str, pd.DataFrame],
    *,
    only: Sequence[str] = ("*",),
    skipped: list[ReportError] | None = None,
) -> dict[str, Path]:
    """Draw what the data allow into `out_dir`/figures; name to path of the PNG or GIF.

    Parameters
    ----------
    out_dir
        The folder that gets `figures/`.
    runs, sweep, tables
        From :func:`nfexp.load_runs`, :func:`nfexp.analysis.table.load_sweep` and
        :func:`nfexp.analysis.statistics.ablations`.
    only
        Names or patterns (``gallery_*``); ``*`` alone leaves out the animations (``gif_*``), which
        take seconds each.
    skipped
        Gets the files that cannot be read.

    Raises
    ------
    ReportError
        If a name or pattern fits no figure that can be drawn, or the folder cannot be written.
    """
    drawings = plan(runs, sweep, tables, skipped)
    chosen: dict[str, Drawing] = {}
    for pattern in only:
        for name in _fitting(pattern, list(drawings)):
            chosen[name] = drawings[name]
    folder = own_folder(Path(out_dir) / "figures")
    try:
        draw_in_parallel(folder, chosen)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return {name: path_of(folder, name) for name in chosen}


def _fitting(pattern: str, names: Sequence[str]) -> list[str]:
    """The names that fit a pattern; ReportError if none does."""
    if pattern == "*":
        return [name for name in names if not name.startswith(ANIMATION)]
    fitting = fnmatch.filter(names, pattern)
    if not fitting:
        raise ReportError("figures", f"one of {', '.join(names) or 'none'}", repr(pattern))
    return fitting
