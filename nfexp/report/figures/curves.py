"""Figures over a sweep: KL against a swept value, and learning curves. They draw columns; they compute none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from nfexp.analysis.table import printable

CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
MARKERS = "osD^vPX*"
TROUBLE = "#B3261E"
KL_LABEL = "KL(target ‖ flow), nats per point"
EXCESS_LABEL = "NLL − true NLL, nats per point"
TITLE = 140  # letters of a title
VECTORS = 500  # lines of one colour and panel; more become pixels in the PDF
ACROSS = 4  # panels in a row, at most
LINES, LABELS = 12, 40  # shown of a second swept column, and of the values along one axis
OFF_SCALE = 1e4  # a mean this many times the median mean would flatten all others


def plain(value: object) -> str:
    """A swept value as people write it: 0.0005, 2000, relu; a missing one (null in YAML) is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "none"
    if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
        return f"{float(value):.6g}".replace("e-0", "e-").replace("e+0", "e")
    return str(value)


def panels(targets: Sequence[str], *, height: float = 2.6) -> tuple[Figure, dict[str, Axes]]:
    """A figure with one panel per target, at most ACROSS in a row, sharing the y axis."""
    n_columns = min(len(targets), ACROSS)
    n_rows = math.ceil(len(targets) / n_columns)
    width = {1: 5.2, 2: 7.6, 3: 9.4}.get(n_columns, 10.8)
    figure = Figure(figsize=(width, height * n_rows + 0.65), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False)
    for spare in grid.flat[len(targets) :]:
        spare.remove()
    for axes, target in zip(grid.flat, targets, strict=False):
        axes.set_title(literal(target), y=1)  # y: matplotlib then looks for no room above tick labels
    return figure, dict(zip(targets, grid.flat, strict=False))


def literal(text: object, limit: int = 24) -> str:
    """Text that matplotlib shows as it is, dollar signs and a leading underscore included, cut at `limit` letters."""
    shown = printable(text, limit).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def scale_values(axes: Axes, means: Iterable[float], ends: Iterable[float] = (), *, room: float = 0.0) -> float:
    """Scale the y axis so that every mean shows, with `room` (a share of the height) left free above.

    Linear within one decade, logarithmic beyond, symmetric-logarithmic where a value is zero or negative. Returns the
    value above which points are off the scale: means more than 10,000 times the median would flatten all others.
    """
    shown = np.array([m for m in means if math.isfinite(m)])
    if not len(shown):
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_locator(NullLocator())
        return math.inf
    cap = max(OFF_SCALE * float(np.median(np.abs(shown))), 1.0)
    shown = shown[shown <= cap] if (shown <= cap).any() else shown
    size = np.abs(shown[shown != 0])
    small, large = (size.min(), size.max()) if len(size) else (1.0, 1.0)
    least = shown.min()
    ends = np.array([e for e in ends if math.isfinite(e)])
    if large / small <= 10 or (least <= 0 and large <= 10 * -least):
        axes.set_yscale("linear")
        ends = ends[(ends > least - large) & (ends < shown.max() + large)]  # a wild interval may leave the panel
    elif least > 0:
        axes.set_yscale("log")
        ends = ends[(ends > least / 4) & (ends < 4 * large)]
    else:
        threshold = 10.0 ** math.ceil(math.log10(max(-least, large / 1000)))
        axes.set_yscale("symlog", linthresh=threshold, linscale=0.6)
        ends = ends[(ends > -3 * threshold) & (ends < 4 * large)]
    both = np.concatenate([shown, ends])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: plain(v) if abs(v) > 1e-15 else "0"))
    transform = axes.yaxis.get_transform()
    low, high = transform.transform(np.array([both.min(), both.max()]))
    pad = 0.07 * (high - low) or 0.5 * abs(high) or 1.0
    top = high + pad + (high - low + 2 * pad) * room / (1 - room)
    low, high = transform.inverted().transform(np.array([low - pad, top]))
    axes.set_ylim(low, high)
    if axes.get_yscale() != "linear":
        ladder = _ladder(low, high, threshold if least <= 0 else low)
        axes.yaxis.set_major_locator(FixedLocator(ladder))
        axes.yaxis.set_minor_locator(NullLocator())
    return cap


def _ladder(low: float, high: float, smallest: float) -> list[float]:
    """Ticks of a logarithmic axis: 1, 2, 5 times powers of ten over few decades, else powers; 0 if inside."""
    first, last = math.floor(math.log10(smallest) + 1e-9), math.ceil(math.log10(max(high, smallest)))
    factors = (1, 2, 5) if high < 4000 * smallest else (1,)
    rungs = [f * 10.0**k for k in range(first, last + 1, max(1, (last - first) // 8)) for f in factors]
    rungs = [r for r in rungs if r >= smallest * (1 - 1e-9)]
    return [t for t in sorted([*(-r for r in rungs), 0.0, *rungs]) if low <= t <= high]


def _numeric(values: Iterable[object]) -> bool:
    return all(
        isinstance(v, (int, float, np.number)) and not isinstance(v, (bool, np.bool_)) and math.isfinite(v)
        for v in values
    )


def _place(
    axes: Axes, values: list, *, log: bool, numeric: bool, keep: object, inches: float
) -> dict[object, float]:  # fmt: skip
    """Lay out the swept values on the x axis of one panel, `inches` wide; returns the place of each."""
    at = {v: float(v) if numeric else float(i) for i, v in enumerate(values)}
    if log:
        axes.set_xscale("log")
    places = np.array(list(at.values()))
    inner = np.log10(places) if log else places
    low, high = inner.min(), inner.max()
    pad = (high - low) * (0.09 if numeric else 0.5 / max(len(values) - 1, 1)) or (0.2 if log else 1.0)
    axes.set_xlim(*(10 ** np.array([low - pad, high + pad]) if log else (low - pad, high + pad)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator(places.tolist()))
    share = (inner - low + pad) / (high - low + 2 * pad)
    labels = [plain(v) for v in values]
    room = [0.068 * (len(text) + 0.9) / inches for text in labels]
    ends = (0, len(values) - 1) if numeric else ()
    kept: list[int] = []
    for i in sorted(range(len(values)), key=lambda i: (i not in ends, values[i] != keep, i)):
        if i in ends or all(abs(share[i] - share[j]) >= (room[i] + room[j]) / 2 for j in kept):
            kept.append(i)
    if len(values) > LABELS:
        kept.sort()
        axes.xaxis.set_major_locator(FixedLocator(places[kept].tolist()))
        axes.set_xticklabels([literal(labels[i]) for i in kept])
    elif numeric or len(kept) == len(values):
        axes.set_xticklabels([literal(text) if i in kept else "" for i, text in enumerate(labels)])
    else:
        axes.set_xticklabels([literal(text) for text in labels], rotation=30, ha="right", rotation_mode="anchor")
    axes.grid(axis="x", visible=False)
    return at


def _is_logarithmic(frame: pd.DataFrame, column: str) -> bool:
    """Whether the numbers of a column are positive, and those of one target span more than a decade."""
    spans = frame.groupby("data.name")[column].agg(["min", "max"])
    return bool((spans["min"] > 0).all()) and bool((spans["max"] > 10 * spans["min"]).any())


def _beside(at: Mapping[object, float], share: float, limits: tuple[float, float], *, log: bool) -> dict[object, float]:
    """The places moved by a share of the axis: the intervals of several lines stand side by side."""
    low, high = limits
    if log:
        return {value: x * (high / low) ** share for value, x in at.items()}
    return {value: x + share * (high - low) for value, x in at.items()}


def _palette(values: list) -> dict[object, str]:
    """One colour per value: distinct hues for words and few numbers, an ordered ramp for many numbers."""
    if len(values) <= 3 or (not _numeric(values) and len(values) <= len(CYCLE)):
        return dict(zip(values, CYCLE, strict=False))
    ramp = colormaps["viridis"](np.linspace(0.0, 0.88, len(values)))
    return dict(zip(values, map(tuple, ramp), strict=True))


def _unique(values: Iterable[object]) -> list:
    return list(dict.fromkeys("none" if plain(v) == "none" else v for v in values))


def _joinable(frame: pd.DataFrame, x_column: str, line: str) -> pd.DataFrame:
    """The rows, per target, of lines with two points or more; all rows where fewer than two lines have them.

    Of more than LINES lines those with most points stay.
    """
    several = frame.groupby(["data.name", line], sort=False)[x_column].transform("nunique") > 1
    n_lines = frame[several].groupby("data.name")[line].nunique()
    frame = frame[several | ~(frame["data.name"].map(n_lines) >= 2)]
    return frame[frame[line].isin(frame[line].value_counts().index[:LINES])]


def troubles(row: Mapping[str, Any] | pd.Series) -> list[str]:
    """What went wrong at one value, from its counts: ["2/3 diverged"]."""
    planned = row["n"] + row["n_diverged"] + row["n_failed"] + row["n_missing"]
    words = ("diverged", "failed", "missing")
    return [f"{row[f'n_{w}']:.0f}/{planned:.0f} {w}" for w in words if row[f"n_{w}"]]


def draw_ablation(frame: pd.DataFrame, columns: Sequence[str]) -> Figure:
    """KL against the swept value, mean and 95% interval over seeds, one panel per target.

    `frame` is one table of :func:`nfexp.analysis.statistics.ablations`; `columns` its one or two swept columns (the
    second one becomes lines; lines of a single point are left out). A value where nothing completed is a cross at the
    top edge; what went wrong is written at it.
    """
    x_column, *rest = columns
    frame = frame.assign(**{c: [("none" if plain(v) == "none" else v) for v in frame[c]] for c in columns})
    n_rows = len(frame)
    if rest:
        frame = _joinable(frame, x_column, rest[0])
    targets = _unique(frame["data.name"])
    lines = _unique(frame[rest[0]]) if rest else [None]
    if rest and _numeric(lines):
        lines = sorted(lines)
    figure, grid = panels(targets)
    written = [len(text) + (len(plain(row[rest[0]])) + 2 if rest else 0)
               for _, row in frame.iterrows() for text in troubles(row)]  # fmt: skip
    room = min(0.5, 0.07 + 0.0185 * max(written)) if written else 0.0
    cap = scale_values(grid[targets[0]], frame["kl_mean"], [*frame["kl_low"], *frame["kl_high"]], room=room)
    numeric = _numeric(frame[x_column])
    log = numeric and _is_logarithmic(frame, x_column)
    inches = figure.get_figwidth() / min(len(targets), ACROSS) - 0.55
    colours = _palette(lines) if rest else {None: CYCLE[0]}
    seen: set[str] = set()
    for target, axes in grid.items():
        own = frame[frame["data.name"] == target]
        centre = own[own["is_centre"].astype(bool)]
        middle = centre[x_column].iloc[0] if len(centre) else None
        values = [v for v in _unique(frame[x_column]) if v in set(own[x_column])]
        if numeric:
            values = sorted(values)
        at = _place(axes, values, log=log, numeric=numeric, keep=middle, inches=inches)
        if middle is not None:
            axes.axvline(at[middle], color="#999999", linewidth=0.8, linestyle=(0, (2, 3)), zorder=0.5)
        notes: dict[object, list[str]] = {}
        for i, line in enumerate(lines):
            part = own if line is None else own[own[rest[0]] == line]
            shift = (i - (len(lines) - 1) / 2) / max(len(lines) - 1, 1) * min(0.05, 0.012 * len(lines))
            places = _beside(at, shift, axes.get_xlim(), log=log)
            seen |= _draw_line(axes, part, x_column, places, cap,
                               colour=colours[line], marker=MARKERS[i % len(MARKERS)], joined=numeric)  # fmt: skip
            for _, row in part.iterrows():
                text = troubles(row) + ([f"mean {row['kl_mean']:.0e}"] if row["kl_mean"] > cap else [])
                notes.setdefault(row[x_column], []).extend(f"{plain(line)}: {t}" if rest else t for t in text)
        for value, text in notes.items():
            if len(text) > 3:
                part = own[own[x_column] == value]
                text = troubles(part[["n", "n_diverged", "n_failed", "n_missing"]].sum())
            if text and len(values) <= LABELS:
                axes.text(at[value], 0.95, "\n".join(map(literal, text)), rotation=90, ha="center", va="top",
                          fontsize=6.5, linespacing=1.0, color=TROUBLE, transform=axes.get_xaxis_transform(), zorder=5,
                          bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8})  # fmt: skip
        axes.set_xlabel(literal(x_column, TITLE))
    figure.supylabel(KL_LABEL)
    handles = [Line2D([], [], color=colours[v], marker=MARKERS[i % len(MARKERS)], label=literal(plain(v)))
               for i, v in enumerate(lines)] if rest else []  # fmt: skip
    if rest:
        handles.insert(0, Line2D([], [], linestyle="none", label=f"{literal(rest[0], TITLE)}:"))
    handles += _key(seen, rest)
    note = "the other lines are in the table only" if len(frame) < n_rows else None
    n_columns = len(handles) if len(targets) > 2 else 3
    figure.legend(handles=handles, title=note, loc="outside lower center", ncols=n_columns)
    return figure


def _draw_line(axes: Axes, part: pd.DataFrame, x_column: str, at: dict, cap: float, *,
               colour: object, marker: str, joined: bool) -> set[str]:  # fmt: skip
    """One line of an ablation panel; returns which kinds of mark it used."""
    x = np.array([at[v] for v in part[x_column]])
    order = np.argsort(x)
    x, part = x[order], part.iloc[order]
    mean, low, high = (part[f"kl_{k}"].to_numpy(float) for k in ("mean", "low", "high"))
    n, centre = part["n"].to_numpy(int), part["is_centre"].to_numpy(bool)
    inside = np.isfinite(mean) & (mean <= cap)
    seen = set()
    if joined:
        axes.plot(x[inside], mean[inside], color=colour, linewidth=1.3, alpha=0.75, zorder=2)
    barred = inside & np.isfinite(low)
    if barred.any():
        axes.errorbar(x[barred], mean[barred], [(mean - low)[barred], (high - mean)[barred]],
                      fmt="none", color=colour, elinewidth=1.2, zorder=2.5)  # fmt: skip
        seen.add("interval")
    for chosen, face, kind in ((inside & (n > 1), colour, "many"), (inside & (n == 1), "white", "one")):
        if chosen.any():
            axes.plot(
                x[chosen],
                mean[chosen],
                linestyle="none",
                marker=marker,
                color=colour,
                markerfacecolor=face,
                zorder=3,
            )
            seen.add(kind)
    if (inside & centre).any():
        axes.plot(x[inside & centre], mean[inside & centre], linestyle="none", marker="o", markersize=10,
                  markerfacecolor="none", markeredgecolor="black", markeredgewidth=1.1, zorder=4)  # fmt: skip
        seen.add("centre")
    edge = axes.get_xaxis_transform()
    for chosen, mark, kind in ((n == 0, "x", "nothing"), ((n > 0) & ~inside, "^", "off")):
        if chosen.any():
            axes.plot(x[chosen], np.ones(chosen.sum()), linestyle="none", marker=mark, color=TROUBLE, markersize=6,
                      markeredgewidth=1.8, transform=edge, clip_on=False, zorder=5)  # fmt: skip
            seen.add(kind)
    return seen


def _key(seen: set[str], rest: Sequence[str]) -> list[Line2D]:
    """Legend entries for the marks that the figure really has."""
    colour = "#444444" if rest else CYCLE[0]
    marks: dict[str, tuple[str, dict[str, Any]]] = {
        "interval": ("mean, 95% interval over seeds", {"color": colour, "marker": "o"}),
        "one": ("one seed: no interval", {"color": colour, "marker": "o", "markerfacecolor": "white",
                                          "linestyle": "none"}),
        "centre": ("centre of the study", {"color": "black", "marker": "o", "markerfacecolor": "none", "markersize": 9,
                                           "linestyle": "none"}),
        "nothing": ("nothing completed", {"color": TROUBLE, "marker": "x", "markeredgewidth": 1.8,
                                          "linestyle": "none"}),
        "off": ("mean off the scale", {"color": TROUBLE, "marker": "^", "linestyle": "none"}),
    }  # fmt: skip
    return [Line2D([], [], label=label, **look) for kind, (label, look) in marks.items() if kind in seen]


def _lines(frame: pd.DataFrame, by: list[str], y: str, values: list) -> tuple[list[np.ndarray], list]:
    """The lines (n, 2) of step and `y`, one per combination of `by`, in the order of `values`; and their values."""
    codes = frame.groupby(by, sort=False).ngroup().to_numpy()
    order = np.argsort(codes, kind="stable")
    cuts = np.flatnonzero(np.diff(codes[order])) + 1
    lines = np.split(frame[["step", y]].to_numpy(float)[order], cuts)
    of = frame["value"].iloc[order[[0, *cuts]] if len(order) else []].tolist()
    rank = {v: i for i, v in enumerate(values)}
    sequence = sorted(range(len(of)), key=lambda i: rank[of[i]])
    return [lines[i] for i in sequence], [of[i] for i in sequence]


def draw_convergence(curves: pd.DataFrame, means: pd.DataFrame, title: str) -> Figure:
    """Excess validation NLL against the training step, one panel per target, one colour per value.

    `curves` and `means` are the two frames of :func:`nfexp.report.figures.frames.learning_curves`: thin lines are runs,
    thick ones their mean, a cross is where a run diverged.
    """
    targets = _unique(curves["data.name"])
    values = _unique(curves["value"])
    values = sorted(values) if _numeric(values) else values
    colours = _palette(values)
    figure, grid = panels(targets)
    scale_values(grid[targets[0]], curves["excess"])
    crosses = False
    for target, axes in grid.items():
        own, mean = (frame[frame["data.name"] == target] for frame in (curves, means))
        runs, runs_of = _lines(own, ["value", "dir"], "excess", values)
        thin = LineCollection(runs, colors=[colours[v] for v in runs_of], linewidths=0.7, alpha=0.4)
        thin.set_rasterized(len(runs) > VECTORS)
        axes.add_collection(thin, autolim=False)
        thick, thick_of = _lines(mean, ["value"], "excess_mean", values)
        axes.add_collection(
            LineCollection(thick, colors=[colours[v] for v in thick_of], linewidths=1.9, zorder=2), autolim=False
        )
        ends = own[own["status"] == "diverged"].groupby("dir").tail(1)
        marks = [colours[v] for v in ends["value"]]
        axes.scatter(ends["step"], ends["excess"], s=25, c=marks, marker="x", linewidths=1.8, zorder=2.5)
        crosses |= len(ends) > 0
        axes.set_xscale("log")
        axes.set_xlim(max(curves["step"].min(), 1) / 1.15, curves["step"].max() * 1.15)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: plain(v)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("training step")
    figure.supylabel(EXCESS_LABEL)
    named = values if len(values) <= LABELS else [values[i * (len(values) - 1) // (LINES - 1)] for i in range(LINES)]
    handles = [Line2D([], [], color=colours[v], linewidth=1.9, label=literal(plain(v))) for v in named]
    if crosses:
        handles.append(Line2D([], [], color="#444444", marker="x", linestyle="none", label="diverged"))
    figure.legend(handles=handles, title=literal(title, TITLE), loc="outside lower center", ncols=9)
    return figure
