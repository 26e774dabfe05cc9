"""Figures of points in square panels: the convergence gallery, and the walk from base to data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure

from nfexp.report.figures.panels import BLUE, GREY, INK, ORANGE, TITLE, literal
from nfexp.report.planar import Arrays, Limits, Walk, box, spread, walk_of

SHOWN_STEPS = 13  # of a gallery
SIDE = 1.95  # inches, of a panel
# inches around all panels
LEFT = 0.45
RIGHT = 0.1
ABOVE = 0.62
BELOW = 0.3
MANY_POINTS = 2000  # of a walk: more would hide the grid


@dataclass(frozen=True)
class Tile:
    """One panel of a gallery."""

    name: str
    points: np.ndarray  # (N, 2)
    colour: str
    limits: Limits


def tiles(n: int, n_columns: int, title: str, *, apart: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of `n` equal square panels, row by row; `apart` leaves room for tick labels."""
    n_rows = math.ceil(n / n_columns)
    across = 0.36 if apart else 0.14
    down = 0.46 if apart else 0.37
    width = LEFT + n_columns * SIDE + (n_columns - 1) * across + RIGHT
    height = BELOW + n_rows * SIDE + (n_rows - 1) * down + ABOVE
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(
        left=LEFT / width,
        bottom=BELOW / height,
        right=1 - RIGHT / width,
        top=1 - ABOVE / height,
        wspace=across / SIDE,
        hspace=down / SIDE,
    )
    grid = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    for spare in grid[n:]:
        spare.remove()
    figure.suptitle(literal(title, TITLE), y=1 - 0.12 / height, va="top")
    return figure, grid[:n]


def draw_cloud(
    axes: Axes,
    points: np.ndarray,
    title: str,
    limits: Limits,
    **look: Any,
) -> PathCollection:
    """Points (N, 2) in a square panel of their own."""
    drawn = axes.scatter(points[:, 0], points[:, 1], linewidths=0, **look)
    axes.set_title(literal(title), fontsize=9, fontweight="normal", pad=3, y=1)
    make_square(axes, limits)
    return drawn


def make_square(axes: Axes, limits: Limits) -> None:
    """A square panel in a thin frame with few ticks and no grid."""
    axes.set(xlim=limits[:2], ylim=limits[2:], aspect="equal")
    axes.grid(False)
    axes.spines[["top", "right"]].set_visible(True)
    axes.spines[:].set(color="#BBBBBB", linewidth=0.6)
    axes.tick_params(length=2, width=0.5, labelsize=6.5, color="#BBBBBB", pad=1.5)
    axes.locator_params(nbins=4)


def _label_edges(grid: list[Axes], limits: list[Limits], n_columns: int) -> None:
    """Keep tick labels at the left and below, and where a panel has limits of its own."""
    first_column = limits[n_columns::n_columns]  # without the base, whose limits are its own
    for i, axes in enumerate(grid):
        is_at_left = i % n_columns == 0
        if not is_at_left and limits[i] in (limits[i - 1], *first_column):
            axes.tick_params(labelleft=False)
        below = i + n_columns
        if below < len(grid) and limits[below] == limits[i]:
            axes.tick_params(labelbottom=False)


def draw_gallery(arrays: Arrays, title: str) -> Figure:
    """The paper's convergence gallery: base, target, samples at up to 13 steps, best model.

    All samples come from the same base draw; all panels but the base share their limits (data
    units).
    """
    steps = arrays["snapshot_steps"]
    limits = box(arrays["target"], cover=1.0)
    shown = [
        Tile("base", arrays["base"], GREY, box(arrays["base"])),
        Tile("target", arrays["target"], INK, limits),
    ]
    for i in spread(len(steps), SHOWN_STEPS):
        shown.append(Tile(f"step {steps[i]}", arrays["snapshots"][i], BLUE, limits))
    shown.append(Tile("best model", arrays["best"], ORANGE, limits))
    n_columns = min(4, math.ceil(math.sqrt(len(shown))))
    figure, grid = tiles(len(shown), n_columns, title)
    for axes, tile in zip(grid, shown, strict=True):
        look = {"s": 3.5, "alpha": 0.45, "color": tile.colour}
        draw_cloud(axes, tile.points, tile.name, tile.limits, **look)
    _label_edges(grid, [tile.limits for tile in shown], n_columns)
    return figure


def draw_walk_grid(axes: Axes, walk: Walk, nodes: np.ndarray) -> LineCollection:
    """Draw the lines of a walk's grid, behind the points, where its `nodes` (nodes, 2) now are."""
    pieces = [nodes[piece] for piece in walk.pieces]
    colours = walk.piece_colours
    lines = LineCollection(pieces, colors=colours, linewidths=0.6, alpha=0.8, zorder=0.5)
    axes.add_collection(lines, autolim=False)
    return lines


def draw_walk(arrays: Arrays, title: str) -> Figure:
    """The same points, and a grid laid over the base, after every layer from base to data.

    Both are coloured by the quadrant they started in.
    """
    walk = walk_of(arrays, most=MANY_POINTS if "walk_grid" in arrays else None)
    n_layers, n_points = walk.points.shape[:2]
    n_columns = min(n_layers, 4 if n_layers <= 16 else 6)
    figure, grid = tiles(n_layers, n_columns, title, apart=True)
    look = {
        "s": 5.0 if n_points <= MANY_POINTS else 2.0,
        "alpha": 0.5,
        "c": walk.colours,
        "rasterized": n_points > 1000,  # as vectors they would make a PDF of megabytes
    }
    for i, axes in enumerate(grid):
        draw_cloud(axes, walk.points[i], walk.names[i], walk.limits[i], **look)
        draw_walk_grid(axes, walk, walk.nodes[i])
    if len(set(walk.limits)) <= 2:  # those of the data, and one for all other layers
        _label_edges(grid, walk.limits, n_columns)
    return figure
