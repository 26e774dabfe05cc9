"""KL against a swept value: means and intervals over seeds, and what did not complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.typing import ColorType

from nfexp.analysis.table.records import rows_of
from nfexp.report.figures.panels import (
    ACROSS,
    CYCLE,
    TITLE,
    TROUBLE,
    all_numbers,
    literal,
    palette,
    panels,
)
from nfexp.report.figures.scales import MOST_LABELS, ValueAxis, is_logarithmic, scale_values
from nfexp.report.selection import distinct_values, shown_lines, values_or_none
from nfexp.report.words import TROUBLES, plain, troubles

KL_LABEL = "KL(target ‖ flow), nats per point"
NLL_LABEL = "NLL, nats per point"
BITS_LABEL = "bits/dim"
MARKERS = "osD^vPX*"
DARK = "#444444"
MOST_NOTES = 3  # at one value; more become one sum

# What each mark means, and how the legend shows it
MARKS: dict[str, tuple[str, dict[str, Any]]] = {
    "interval": ("mean, 95% interval over seeds", {"marker": "o"}),
    "one": (
        "one seed: no interval",
        {"marker": "o", "markerfacecolor": "white", "linestyle": "none"},
    ),
    "centre": (
        "centre of the study",
        {
            "color": "black",
            "marker": "o",
            "markerfacecolor": "none",
            "markersize": 9,
            "linestyle": "none",
        },
    ),
    "nothing": (
        "nothing completed",
        {"color": TROUBLE, "marker": "x", "markeredgewidth": 1.8, "linestyle": "none"},
    ),
    "off": ("mean off the scale", {"color": TROUBLE, "marker": "^", "linestyle": "none"}),
}


@dataclass(frozen=True)
class Line:
    """One line of an ablation: a value of the second swept column, if any, and its look."""

    value: object
    colour: ColorType
    marker: str
    shift: float  # share of the x axis by which it stands beside the others


@dataclass(frozen=True)
class Look:
    """What all panels of an ablation have in common."""

    x_column: str
    line_column: str | None
    x_values: list
    x_axis: ValueAxis
    lines: list[Line]
    cap: float  # KL above which a mean is off the scale


def draw_ablation(ablation: pd.DataFrame, columns: Sequence[str], label: str = KL_LABEL) -> Figure:
    """KL against the swept value, mean and 95% interval over seeds, one panel per target.

    `ablation` is one table of :func:`nfexp.analysis.statistics.ablations`; `columns` its one or two
    swept columns (the second one becomes lines; lines of a single point are left out). A value
    where nothing completed is a cross at the top edge; what went wrong is written at it.
    """
    x_column = columns[0]
    line_column = columns[1] if len(columns) > 1 else None
    shown = ablation.assign(**{column: values_or_none(ablation[column]) for column in columns})
    if line_column is not None:
        shown = shown_lines(shown, x_column, line_column)
    targets = distinct_values(shown["data.name"])
    figure, by_target = panels(targets)
    numeric = all_numbers(shown[x_column])
    look = Look(
        x_column=x_column,
        line_column=line_column,
        x_values=distinct_values(shown[x_column]),
        x_axis=ValueAxis(
            numeric=numeric,
            log=numeric and is_logarithmic(shown, x_column),
            inches=figure.get_figwidth() / min(len(targets), ACROSS) - 0.55,
        ),
        lines=_lines(shown, line_column),
        cap=_scale_kl(by_target[targets[0]], shown, line_column),
    )
    marks: set[str] = set()
    for target, axes in by_target.items():
        marks |= _draw_panel(axes, shown[shown["data.name"] == target], look)
    figure.supylabel(label)
    handles = _legend(marks, look)
    figure.legend(
        handles=handles,
        title="the other lines are in the table only" if len(shown) < len(ablation) else None,
        loc="outside lower center",
        ncols=len(handles) if len(targets) > 2 else 3,
    )
    return figure


def _lines(shown: pd.DataFrame, line_column: str | None) -> list[Line]:
    if line_column is None:
        return [Line(None, CYCLE[0], MARKERS[0], 0.0)]
    values = distinct_values(shown[line_column])
    if all_numbers(values):
        values = sorted(values)
    colours = palette(values)
    last = max(len(values) - 1, 1)
    width = min(0.05, 0.012 * len(values))  # share of the axis over which the lines stand
    lines = []
    for i, value in enumerate(values):
        shift = (i - (len(values) - 1) / 2) / last * width
        lines.append(Line(value, colours[value], MARKERS[i % len(MARKERS)], shift))
    return lines


def _scale_kl(axes: Axes, shown: pd.DataFrame, line_column: str | None) -> float:
    """Scale the y axis that all panels share, with room for the longest note; see scale_values."""
    longest = 0
    for row in rows_of(shown):
        label = 0 if line_column is None else len(plain(row[line_column])) + 2
        for text in troubles(row):
            longest = max(longest, len(text) + label)
    room = min(0.5, 0.07 + 0.0185 * longest) if longest else 0.0
    return scale_values(axes, shown["kl_mean"], [*shown["kl_low"], *shown["kl_high"]], room=room)


def _draw_panel(axes: Axes, runs: pd.DataFrame, look: Look) -> set[str]:
    """The panel of one target; returns which kinds of mark it has."""
    known = set(runs[look.x_column])
    values = [value for value in look.x_values if value in known]
    if look.x_axis.numeric:
        values = sorted(values)
    centre = runs[runs["is_centre"].astype(bool)]
    middle = centre[look.x_column].iloc[0] if len(centre) else None
    positions = look.x_axis.lay_out(axes, values, keep=middle)
    if middle is not None:
        dots = (0, (2, 3))
        axes.axvline(positions[middle], color="#999999", linewidth=0.8, linestyle=dots, zorder=0.5)
    marks: set[str] = set()
    for line in look.lines:
        part = runs if look.line_column is None else runs[runs[look.line_column] == line.value]
        beside = look.x_axis.beside(positions, line.shift, axes.get_xlim())
        x = np.array([beside[value] for value in part[look.x_column]])
        order = np.argsort(x)
        marks |= _draw_line(axes, x[order], part.iloc[order], line, look)
    if len(values) <= MOST_LABELS:
        for value, text in _notes(runs, look).items():
            _write_note(axes, positions[value], text)
    axes.set_xlabel(literal(look.x_column, TITLE))
    return marks


def _draw_line(axes: Axes, x: np.ndarray, part: pd.DataFrame, line: Line, look: Look) -> set[str]:
    """One line of a panel, its rows in the order of `x`; returns which kinds of mark it has."""
    mean = part["kl_mean"].to_numpy(float)
    low = part["kl_low"].to_numpy(float)
    high = part["kl_high"].to_numpy(float)
    n = part["n"].to_numpy(int)
    inside = np.isfinite(mean) & (mean <= look.cap)
    if look.x_axis.numeric:
        axes.plot(x[inside], mean[inside], color=line.colour, linewidth=1.3, alpha=0.75, zorder=2)
    barred = inside & np.isfinite(low)
    many = inside & (n > 1)
    one = inside & (n == 1)
    centre = inside & part["is_centre"].to_numpy(bool)
    nothing = n == 0
    off = (n > 0) & ~inside
    if barred.any():
        bars = [(mean - low)[barred], (high - mean)[barred]]
        look_of_bars: dict[str, Any] = {"fmt": "none", "elinewidth": 1.2, "zorder": 2.5}
        axes.errorbar(x[barred], mean[barred], bars, color=line.colour, **look_of_bars)
    if many.any():
        _draw_means(axes, x[many], mean[many], line, face=line.colour)
    if one.any():
        _draw_means(axes, x[one], mean[one], line, face="white")
    if centre.any():
        _draw_rings(axes, x[centre], mean[centre])
    if nothing.any():
        _draw_at_edge(axes, x[nothing], "x")
    if off.any():
        _draw_at_edge(axes, x[off], "^")
    kinds = {"interval": barred, "one": one, "centre": centre, "nothing": nothing, "off": off}
    return {kind for kind, chosen in kinds.items() if chosen.any()}


def _draw_means(axes: Axes, x: np.ndarray, y: np.ndarray, line: Line, *, face: ColorType) -> None:
    axes.plot(
        x,
        y,
        linestyle="none",
        marker=line.marker,
        color=line.colour,
        markerfacecolor=face,
        zorder=3,
    )


def _draw_rings(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """Rings around the centre of the study."""
    axes.plot(
        x,
        y,
        linestyle="none",
        marker="o",
        markersize=10,
        markerfacecolor="none",
        markeredgecolor="black",
        markeredgewidth=1.1,
        zorder=4,
    )


def _draw_at_edge(axes: Axes, x: np.ndarray, marker: str) -> None:
    """Marks at the top edge, for values that have no mean on the scale."""
    axes.plot(
        x,
        np.ones(len(x)),
        linestyle="none",
        marker=marker,
        color=TROUBLE,
        markersize=6,
        markeredgewidth=1.8,
        transform=axes.get_xaxis_transform(),
        clip_on=False,
        zorder=5,
    )


def _notes(runs: pd.DataFrame, look: Look) -> dict[object, list[str]]:
    """The notes at each value of a panel: what did not complete, and means off the scale."""
    notes: dict[object, list[str]] = {}
    for line in look.lines:
        part = runs if look.line_column is None else runs[runs[look.line_column] == line.value]
        label = "" if look.line_column is None else f"{plain(line.value)}: "
        for row in rows_of(part):
            words = troubles(row)
            if row["kl_mean"] > look.cap:
                words.append(f"mean {row['kl_mean']:.0e}")
            texts = notes.setdefault(row[look.x_column], [])
            texts += [label + text for text in words]
    for value, texts in notes.items():
        if len(texts) > MOST_NOTES:
            notes[value] = troubles(_summed(runs[runs[look.x_column] == value]))
    return notes


def _summed(part: pd.DataFrame) -> Mapping[str, Any]:
    counts = part[["n", *(f"n_{status}" for status in TROUBLES)]].sum()
    return {str(name): count for name, count in counts.items()}


def _write_note(axes: Axes, x: float, texts: Sequence[str]) -> None:
    """Text at the top edge above a value, upright."""
    if not texts:
        return
    axes.text(
        x,
        0.95,
        "\n".join(map(literal, texts)),
        rotation=90,
        ha="center",
        va="top",
        fontsize=6.5,
        linespacing=1.0,
        color=TROUBLE,
        transform=axes.get_xaxis_transform(),
        zorder=5,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
    )


def _legend(marks: set[str], look: Look) -> list[Line2D]:
    """Legend entries for the lines, and for the marks that the figure really has."""
    handles = []
    if look.line_column is not None:
        heading = f"{literal(look.line_column, TITLE)}:"
        handles.append(Line2D([], [], linestyle="none", label=heading))
        for line in look.lines:
            label = literal(plain(line.value))
            handles.append(Line2D([], [], color=line.colour, marker=line.marker, label=label))
    usual = CYCLE[0] if look.line_column is None else DARK
    for mark, (label, style) in MARKS.items():
        if mark in marks:
            handles.append(Line2D([], [], label=label, **{"color": usual, **style}))
    return handles
