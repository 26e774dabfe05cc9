"""Rows of a table beside samples of a flow: every column alone and every pair of columns."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nfexp.report.figures.panels import BLUE, GREY, TITLE, literal
from nfexp.report.planar import Arrays

BINS = 30
INCHES = 1.35  # the side of a panel
MIDDLE = (0.5, 99.5)  # percent of the rows and samples that a panel shows


def draw_corner(arrays: Arrays, title: str) -> Figure:
    """A triangle of panels: the rows grey, as many samples blue.

    On the diagonal are histograms of each column, below it the points of each pair. A panel shows
    the middle 99% of both clouds.
    """
    rows = arrays["target"]
    samples = arrays["best"][: len(rows)]
    names = [literal(name) for name in arrays["columns"]]
    d = len(names)
    side = INCHES * max(d, 2) + 0.8
    figure = Figure(figsize=(side, side), layout="constrained")
    grid = figure.subplots(d, d, squeeze=False)
    limits = [_limits(rows[:, i], samples[:, i]) for i in range(d)]
    for i in range(d):
        for j in range(d):
            axes = grid[i, j]
            if j > i:
                axes.remove()
                continue
            if i == j:
                _draw_column(axes, rows[:, i], samples[:, i], limits[i])
            else:
                _draw_pair(axes, rows[:, [j, i]], samples[:, [j, i]])
                axes.set_ylim(limits[i])
            axes.set_xlim(limits[j])
            _label(axes, names[j] if i == d - 1 else "", names[i] if j == 0 < i else "")
    handles = [
        Line2D([], [], color=GREY, marker="o", linestyle="none", label="rows of the table"),
        Line2D([], [], color=BLUE, marker="o", linestyle="none", label="samples of the flow"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    figure.suptitle(literal(title, TITLE), fontsize=8)
    return figure


def _limits(rows: np.ndarray, samples: np.ndarray) -> tuple[float, float]:
    """Where a column is shown: the middle of both clouds, never empty."""
    both = np.concatenate([rows, samples])
    low, high = np.percentile(both[np.isfinite(both)], MIDDLE)
    pad = 0.05 * (high - low) or 1.0
    return float(low - pad), float(high + pad)


def _draw_column(
    axes: Axes, rows: np.ndarray, samples: np.ndarray, limits: tuple[float, float]
) -> None:
    edges = np.linspace(*limits, BINS + 1)
    axes.stairs(_shares(rows, edges), edges, fill=True, color=GREY, alpha=0.45)
    axes.stairs(_shares(samples, edges), edges, color=BLUE)
    axes.set_yticks([])


def _shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The share of the values in each bin."""
    counts, _ = np.histogram(values[np.isfinite(values)], edges)
    return counts / max(counts.sum(), 1)


def _draw_pair(axes: Axes, rows: np.ndarray, samples: np.ndarray) -> None:
    for points, colour in ((rows, GREY), (samples, BLUE)):
        axes.plot(*points.T, ".", color=colour, markersize=1.5, alpha=0.5, rasterized=True)


def _label(axes: Axes, below: str, beside: str) -> None:
    """Name the axes at the rim of the triangle only."""
    axes.grid(False)
    axes.tick_params(labelsize=5)
    axes.locator_params(nbins=3)
    axes.set_xlabel(below, fontsize=7)
    axes.set_ylabel(beside, fontsize=7)
    if not below:
        axes.set_xticklabels([])
    if not beside:
        axes.set_yticklabels([])
