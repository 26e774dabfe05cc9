"""The sweep at a glance: draws, samples, learned density and KL of each target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from nfexp.analysis.table.records import rows_of
from nfexp.report.figures.clouds import make_square
from nfexp.report.figures.panels import BLUE, INK, TROUBLE, literal
from nfexp.report.figures.scales import scale_values
from nfexp.report.planar import Arrays, density_on_grid, image_extent
from nfexp.report.words import troubles
from nfexp.spec import counted

SIDE = 1.55  # inches, of a panel
GAP = 0.1  # inches, between two of them
# inches around all panels
LEFT = 0.66
RIGHT = 0.12
TOP = 0.62
BELOW = 0.62
ROWS = ("target draws", "flow samples", "learned density")
STRIP = 1.15  # inches, the height of the strip of KL
SHADES = LinearSegmentedColormap.from_list("density", ["white", "#7DB7DC", BLUE, "#00263C"])


@dataclass(frozen=True)
class Page:
    """The figure, with places in inches from its upper left corner."""

    figure: Figure
    width: float
    height: float

    def axes(self, left: float, top: float, across: float, down: float) -> Axes:
        """Axes of `across` times `down` inches."""
        rectangle = (
            left / self.width,
            1 - (top + down) / self.height,  # matplotlib counts from below
            across / self.width,
            down / self.height,
        )
        return self.figure.add_axes(rectangle)

    def label(self, axes: Axes, text: str) -> None:
        """The label of a y axis; all of them stand in one line."""
        rectangle = axes.get_position()
        middle = (rectangle.y0 + rectangle.y1) / 2
        axes.set_ylabel(text)
        axes.yaxis.set_label_coords(0.2 / self.width, middle, transform=self.figure.transFigure)


def draw_summary(
    arrays: Mapping[str, Arrays],
    seeds: pd.DataFrame,
    means: pd.DataFrame,
    title: str,
) -> Figure:
    """One column per target: target draws, as many flow samples, learned density, KL of all seeds.

    Parameters
    ----------
    arrays
        By target, what one run at the centre of the study stored.
    seeds, means
        From :func:`nfexp.report.selection.centre_scores`, of these targets.
    """
    n = len(arrays)
    width = LEFT + n * SIDE + (n - 1) * GAP + RIGHT
    height = TOP + 3 * SIDE + 2 * GAP + 0.3 + STRIP + BELOW
    page = Page(Figure(figsize=(width, height)), width, height)
    for i, (target, arrays_of_run) in enumerate(arrays.items()):
        column = _draw_column(page, i, arrays_of_run)
        column[0].set_title(literal(target), y=1)
        if i == 0:
            for axes, name in zip(column, ROWS, strict=True):
                page.label(axes, name)
    strip = page.axes(LEFT, height - BELOW - STRIP, width - LEFT - RIGHT, STRIP)
    _draw_scores(strip, list(arrays), seeds, means)
    page.label(strip, "KL, nats")
    page.figure.suptitle(literal(title, 24 * n), y=1 - 0.12 / height, va="top")
    return page.figure


def _draw_column(page: Page, number: int, arrays: Arrays) -> list[Axes]:
    """The three panels of one target, from above."""
    x0, x1, y0, y1 = map(float, arrays["grid_extent"])
    column = []
    for row in range(3):
        left = LEFT + number * (SIDE + GAP)
        top = TOP + row * (SIDE + GAP)
        axes = page.axes(left, top, SIDE, SIDE)
        column.append(axes)
    n_points = min(len(arrays["best"]), len(arrays["target"]))
    look: dict[str, Any] = {"s": 2.5, "alpha": 0.5, "linewidths": 0}
    for axes, name, colour in zip(column, ("target", "best"), (INK, BLUE), strict=False):
        points = arrays[name][:n_points]
        axes.scatter(points[:, 0], points[:, 1], color=colour, **look)
    density = density_on_grid(arrays, "grid_log_q")
    brightest = float(np.nanpercentile(density, 99.9)) or 1.0
    extent = image_extent(arrays, "grid_log_q")
    column[2].imshow(density, extent=extent, vmin=0, vmax=brightest, cmap=SHADES)
    for axes in column:
        make_square(axes, (x0, x1, y0, y1))
        axes.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
    return column


def _draw_scores(axes: Axes, targets: list[str], seeds: pd.DataFrame, means: pd.DataFrame) -> None:
    """The KL of every seed, their mean and its interval, below the column of each target."""
    half = SIDE / 2 / (SIDE + GAP)  # the middle of each column above is at a whole number
    axes.set_xlim(-half, len(targets) - 1 + half)
    shown = means.set_index("data.name").loc[targets]
    seeds = seeds[seeds["data.name"].isin(targets)]
    ends = [*shown["kl_low"], *shown["kl_high"], *seeds["kl"]]
    cap = scale_values(axes, shown["kl_mean"], ends)
    positions = [targets.index(target) - 0.05 for target in seeds["data.name"]]
    axes.plot(positions, seeds["kl"], ".", color="#999999", alpha=0.7, zorder=2)
    mean = shown["kl_mean"].to_numpy(float)
    low = shown["kl_low"].to_numpy(float)
    high = shown["kl_high"].to_numpy(float)
    inside = mean <= cap
    bars = [(mean - low)[inside], (high - mean)[inside]]
    look: dict[str, Any] = {"fmt": "o", "color": BLUE, "elinewidth": 1.4, "zorder": 3}
    axes.errorbar(np.flatnonzero(inside) + 0.05, mean[inside], bars, **look)
    off = np.flatnonzero(~inside)
    top_edge = axes.get_xaxis_transform()
    axes.plot(off, np.ones(len(off)), "^", color=TROUBLE, clip_on=False, transform=top_edge)
    labels = [_score(row) for row in rows_of(shown)]
    axes.set_xticks(range(len(targets)), labels, linespacing=1.3)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)


def _score(row: Mapping[str, Any]) -> str:
    """The mean with its interval, the number of seeds, and what did not complete, in lines."""
    score = _short(row["kl_mean"])
    if row["kl_low"] == row["kl_low"]:
        score += f" [{_short(row['kl_low'])}, {_short(row['kl_high'])}]"
    seeds = counted(int(row["n"]), "seed")
    return "\n".join([score, seeds, *troubles(row)])


def _short(value: float) -> str:
    """Three decimals, or two digits where a column has no room for them."""
    return f"{value:.3f}" if 1e-3 <= abs(value) < 10 else f"{value:.2g}"
