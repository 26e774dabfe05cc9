"""Learning curves: NLL above the target's own against the training step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator
from matplotlib.typing import ColorType

from nfexp.report.figures.panels import TITLE, all_numbers, literal, palette, panels
from nfexp.report.figures.scales import MOST_LABELS, scale_values
from nfexp.report.selection import MOST_LINES, distinct_values
from nfexp.report.words import plain

EXCESS_LABEL = "NLL − true NLL, nats per point"
BITS_EXCESS_LABEL = "NLL − true NLL, bits/dim"
VECTORS = 500  # lines of one panel; more become pixels in the PDF

Colours = dict[object, ColorType]


def draw_convergence(
    curves: pd.DataFrame, means: pd.DataFrame, title: str, label: str = EXCESS_LABEL
) -> Figure:
    """Excess validation NLL against the training step, one panel per target, one colour per value.

    `curves` and `means` are the two tables of :func:`nfexp.report.selection.learning_curves`: thin
    lines are runs, thick ones their mean, a cross is where a run diverged.
    """
    targets = distinct_values(curves["data.name"])
    values = distinct_values(curves["value"])
    if all_numbers(values):
        values = sorted(values)
    colours = palette(values)
    figure, by_target = panels(targets)
    scale_values(by_target[targets[0]], curves["excess"])
    first = max(curves["step"].min(), 1)
    last = curves["step"].max()
    has_crosses = False
    for target, axes in by_target.items():
        of_target = curves[curves["data.name"] == target]
        _draw_runs(axes, of_target, colours)
        _draw_means(axes, means[means["data.name"] == target], colours)
        has_crosses |= _draw_crosses(axes, of_target, colours)
        axes.set_xscale("log")
        axes.set_xlim(first / 1.15, last * 1.15)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: plain(step)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("training step")
    figure.supylabel(label)
    handles = _legend(values, colours)
    if has_crosses:
        cross = Line2D([], [], color="#444444", marker="x", linestyle="none", label="diverged")
        handles.append(cross)
    heading = literal(title, TITLE)
    figure.legend(handles=handles, title=heading, loc="outside lower center", ncols=9)
    return figure


def _draw_runs(axes: Axes, curves: pd.DataFrame, colours: Colours) -> None:
    lines, line_colours = _lines(curves, ["value", "dir"], "excess", colours)
    thin = LineCollection(lines, colors=line_colours, linewidths=0.7, alpha=0.4)
    thin.set_rasterized(len(lines) > VECTORS)
    axes.add_collection(thin, autolim=False)


def _draw_means(axes: Axes, means: pd.DataFrame, colours: Colours) -> None:
    lines, line_colours = _lines(means, ["value"], "excess_mean", colours)
    thick = LineCollection(lines, colors=line_colours, linewidths=1.9, zorder=2)
    axes.add_collection(thick, autolim=False)


def _draw_crosses(axes: Axes, curves: pd.DataFrame, colours: Colours) -> bool:
    """A cross at the last step of each run that diverged; returns whether there is any."""
    ends = curves[curves["status"] == "diverged"].groupby("dir").tail(1)
    cross_colours = [colours[value] for value in ends["value"]]
    axes.scatter(
        ends["step"],
        ends["excess"],
        s=25,
        c=cross_colours,
        marker="x",
        linewidths=1.8,
        zorder=2.5,
    )
    return len(ends) > 0


def _lines(
    curves: pd.DataFrame,
    by: list[str],
    y: str,
    colours: Colours,
) -> tuple[list[np.ndarray], list[ColorType]]:
    """A line (n, 2) of step and `y` per combination of `by`, and its colour."""
    codes = curves.groupby(by, sort=False).ngroup().to_numpy()
    # One stable sort and a split: a group at a time takes a second for thousands of runs.
    order = np.argsort(codes, kind="stable")
    cuts = np.flatnonzero(np.diff(codes[order])) + 1
    lines = np.split(curves[["step", y]].to_numpy(float)[order], cuts)
    starts = order[np.append(0, cuts)] if len(order) else order
    values = curves["value"].iloc[starts].tolist()
    rank = {value: i for i, value in enumerate(colours)}
    in_order = sorted(range(len(values)), key=lambda i: rank[values[i]])
    return [lines[i] for i in in_order], [colours[values[i]] for i in in_order]


def _legend(values: Sequence, colours: Colours) -> list[Line2D]:
    """One entry per value; of very many only some, evenly spaced."""
    named = values
    if len(values) > MOST_LABELS:
        positions = [i * (len(values) - 1) // (MOST_LINES - 1) for i in range(MOST_LINES)]
        named = [values[position] for position in positions]
    handles = []
    for value in named:
        label = literal(plain(value))
        handles.append(Line2D([], [], color=colours[value], linewidth=1.9, label=label))
    return handles
