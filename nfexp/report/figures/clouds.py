"""Figures of one run: convergence gallery, learned against exact density, layer-by-layer walk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure

from nfexp.report.figures.curves import TITLE, literal

GREY, INK, BLUE, ORANGE, MASKED = "#777777", "#222222", "#0072B2", "#D55E00", "#D9D9D9"
QUADRANTS = ("#0072B2", "#D55E00", "#009E73", "#E69F00")  # base quadrants I to IV
SHOWN_STEPS, SHOWN_LAYERS, SHOWN_LINES = 13, 60, 21
NEGLIGIBLE = math.log(1e-3)  # below the peak of the exact density, in nats: no log-ratio is shown there
REACH = 3.0  # of its colours, nats, at most: the far tails of a poor fit would take them all

Arrays = Mapping[str, np.ndarray]
Limits = tuple[float, float, float, float]  # x0, x1, y0, y1


def box(*clouds: np.ndarray, cover: float = 0.99, pad: float = 0.12) -> Limits:
    """The square (x0, x1, y0, y1) that holds the middle `cover` of every cloud, with a margin; finite points only."""
    tail = 50 * (1 - cover)
    finite = [c[np.isfinite(c).all(1)] for c in clouds]
    ends = [np.percentile(c, [tail, 100 - tail], axis=0) for c in finite if len(c)] or [
        np.array([[-1.0, -1.0], [1.0, 1.0]])
    ]
    low, high = np.min([e[0] for e in ends], 0), np.max([e[1] for e in ends], 0)
    middle = (low + high) / 2
    half = max((high - low).max() / 2, 1e-9, 1e-9 * np.abs(middle).max()) * (1 + 2 * pad)
    return middle[0] - half, middle[0] + half, middle[1] - half, middle[1] + half


def spread(n: int, most: int) -> np.ndarray:
    """At most `most` of the indices 0 … n − 1, evenly spaced, the first and the last among them.

    >>> spread(7, 4).tolist()
    [0, 2, 4, 6]
    """
    return np.unique(np.linspace(0, n - 1, min(most, n)).round().astype(int))


def _tiles(n: int, n_columns: int, title: str, *, apart: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of `n` equal square panels, row by row; `apart` leaves room for tick labels between them."""
    n_rows = math.ceil(n / n_columns)
    side, across, down = 1.95, 0.36 if apart else 0.14, 0.46 if apart else 0.37
    width = 0.45 + n_columns * side + (n_columns - 1) * across + 0.1
    height = 0.3 + n_rows * side + (n_rows - 1) * down + 0.62
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(0.45 / width, 0.3 / height, 1 - 0.1 / width, 1 - 0.62 / height, across / side, down / side)
    grid = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    for spare in grid[n:]:
        spare.remove()
    figure.suptitle(literal(title, TITLE), y=1 - 0.12 / height, va="top")
    return figure, grid[:n]


def cloud(axes: Axes, points: np.ndarray, title: str, limits: Limits, **look: Any) -> PathCollection:
    """Points (N, 2) in a square panel of their own."""
    drawn = axes.scatter(points[:, 0], points[:, 1], linewidths=0, **look)
    axes.set_title(literal(title), fontsize=9, fontweight="normal", pad=3, y=1)
    square(axes, limits)
    return drawn


def square(axes: Axes, limits: Limits) -> None:
    """A square panel in a thin frame with few ticks and no grid."""
    axes.set(xlim=limits[:2], ylim=limits[2:], aspect="equal")
    axes.grid(False)
    axes.spines[["top", "right"]].set_visible(True)
    axes.spines[:].set(color="#BBBBBB", linewidth=0.6)
    axes.tick_params(length=2, width=0.5, labelsize=6.5, color="#BBBBBB", pad=1.5)
    axes.locator_params(nbins=4)


def _label_edges(grid: list[Axes], limits: list[Limits], columns: int) -> None:
    """Keep tick labels where they say something: at the left and below, and where a panel has limits of its own."""
    for i, axes in enumerate(grid):
        if i % columns and limits[i] in (limits[i - 1], *limits[columns::columns]):
            axes.tick_params(labelleft=False)
        if i + columns < len(grid) and limits[i + columns] == limits[i]:
            axes.tick_params(labelbottom=False)


def draw_gallery(arrays: Arrays, title: str) -> Figure:
    """The paper's convergence gallery: base, target, samples at up to 13 recorded steps, best model.

    All samples come from the same base draw; all panels but the base share their limits (data units).
    """
    steps, snapshots, target = arrays["snapshot_steps"], arrays["snapshots"], arrays["target"]
    tiles = [("base", arrays["base"], GREY), ("target", target, INK)]
    tiles += [(f"step {steps[i]}", snapshots[i], BLUE) for i in spread(len(steps), SHOWN_STEPS)]
    tiles += [("best model", arrays["best"], ORANGE)]
    limits = box(target, cover=1.0)
    boxes = [box(points) if name == "base" else limits for name, points, _ in tiles]
    n_columns = min(4, math.ceil(math.sqrt(len(tiles))))
    figure, grid = _tiles(len(tiles), n_columns, title)
    for axes, (name, points, colour), own in zip(grid, tiles, boxes, strict=True):
        cloud(axes, points, name, own, s=3.5, alpha=0.45, color=colour)
    _label_edges(grid, boxes, n_columns)
    return figure


def density_image(arrays: Arrays, kind: str) -> tuple[np.ndarray, Limits]:
    """The density exp(grid_log_KIND) (rows, columns) and the extent of its image, whose numbers sit at mid-cell."""
    x0, x1, y0, y1 = map(float, arrays["grid_extent"])
    image = np.exp(np.minimum(arrays[f"grid_log_{kind}"].astype(float), 200))
    dx, dy = ((b - a) / max(n - 1, 1) / 2 for a, b, n in ((x0, x1, image.shape[1]), (y0, y1, image.shape[0])))
    return image, (x0 - dx, x1 + dx, y0 - dy, y1 + dy)


def draw_density(arrays: Arrays, title: str) -> Figure:
    """The learned density q, the exact one p in the same colours, and log q − log p in nats where p is not negligible.

    Negligible is less than a thousandth of the largest exact density. The colours end at 3 nats at most.
    """
    (learned, extent), (exact, _) = (density_image(arrays, kind) for kind in "qp")
    log_q, log_p = (arrays[f"grid_log_{kind}"].astype(float) for kind in "qp")
    inside = log_p >= np.nanmax(log_p) + NEGLIGIBLE
    ratio = np.where(inside, log_q - log_p, np.nan)
    known = np.abs(ratio[np.isfinite(ratio)])
    reach = min(float(np.percentile(known, 99)) if len(known) else 0.0, REACH) or 1.0
    top = float(np.nanmax(np.concatenate([exact.ravel(), [np.nanpercentile(learned, 99.9)]])))
    figure = Figure(figsize=(10.4, 3.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for axes, image, name in ((left, learned, "learned  q(x)"), (middle, exact, "exact  p(x)")):
        drawn = axes.imshow(image, extent=extent, vmin=0, vmax=top, cmap="viridis")
        axes.set_title(name, y=1)
    right.set_facecolor(MASKED)
    apart = right.imshow(ratio, extent=extent, vmin=-reach, vmax=reach, cmap="RdBu_r")
    right.set_title("log q − log p", y=1)
    for axes in (left, middle, right):
        axes.grid(False)
        axes.locator_params(nbins=5)
        axes.set_aspect("equal")
    bars: dict[str, Any] = {"shrink": 0.86, "pad": 0.015, "aspect": 28}
    more = "max" if np.nanmax(learned) > top else "neither"
    figure.colorbar(drawn, ax=[left, middle], label="density", extend=more, **bars)
    more = "both" if known.max(initial=0) > reach else "neither"
    figure.colorbar(apart, ax=right, label="nats; grey: p < max p / 1000", extend=more, **bars)
    figure.suptitle(literal(title, TITLE))
    return figure


def quadrants(points: np.ndarray) -> np.ndarray:
    """The colour, by quadrant I to IV, of each point (N, 2)."""
    x, y = points[:, 0] > 0, points[:, 1] > 0
    return np.array(QUADRANTS)[np.select([x & y, ~x & y, ~x & ~y], [0, 1, 2], default=3)]


@dataclass
class Walk:
    """What the pictures of a walk draw: points and grid lines after every shown layer, coloured by base quadrant."""

    names: list[str]
    points: np.ndarray  # (layers, N, 2)
    colours: np.ndarray  # (N,)
    limits: list[Limits]  # per layer
    grid: np.ndarray  # (layers, nodes, 2)
    pieces: list[np.ndarray]  # the nodes along each piece of a grid line, within one quadrant
    piece_colours: list[str]

    @classmethod
    def of(cls, arrays: Arrays, *, layers: int = SHOWN_LAYERS, most: int | None = None) -> Walk:
        """At most `layers` layers and the first `most` points of what a run stored.

        The standardised layers share their limits unless one is over three times as wide as another; "data" does not.
        """
        shown = spread(len(arrays["walk"]), layers)
        points, names = arrays["walk"][shown, :most], [str(n) for n in arrays["walk_names"][shown]]
        own = [box(layer, cover=0.995, pad=0.08) for layer in points]
        inner = [limits for limits, name in zip(own, names, strict=True) if name != "data"]
        widths = [limits[1] - limits[0] for limits in inner]
        if inner and max(widths) <= 3 * min(widths):
            shared = box(*(np.array([limits[::2], limits[1::2]]) for limits in inner), cover=1.0, pad=0.0)
            own = [limits if name == "data" else shared for limits, name in zip(own, names, strict=True)]
        grid = arrays["walk_grid"][shown] if "walk_grid" in arrays else np.empty((len(shown), 0, 0, 2))
        rows, columns = grid.shape[1:3]
        nodes = grid.reshape(len(shown), rows * columns, 2)
        colours, index, pieces = quadrants(nodes[0]), np.arange(rows * columns).reshape(rows, columns), []
        for lines in (index, index.T) if index.size else ():
            for line in lines[spread(len(lines), SHOWN_LINES)][:, spread(lines.shape[1], 10 * SHOWN_LINES)]:
                cuts = [0, *np.flatnonzero(colours[line[1:]] != colours[line[:-1]]) + 1, len(line)]
                pieces += [line[max(a - 1, 0) : b] for a, b in pairwise(cuts)]
        return cls(names, points, quadrants(points[0]), own, nodes, pieces, [colours[piece[-1]] for piece in pieces])

    def draw_grid(self, axes: Axes, nodes: np.ndarray) -> LineCollection:
        """Draw the lines of the grid, behind the points, where its `nodes` (nodes, 2) now are."""
        pieces = [nodes[piece] for piece in self.pieces]
        lines = LineCollection(pieces, colors=self.piece_colours, linewidths=0.6, alpha=0.8, zorder=0.5)
        axes.add_collection(lines, autolim=False)
        return lines


def draw_walk(arrays: Arrays, title: str) -> Figure:
    """The same points, and a grid laid over the base, after every layer from base to data.

    Both are coloured by the quadrant they started in.
    """
    walk = Walk.of(arrays, most=2000 if "walk_grid" in arrays else None)  # more points would hide the grid
    n_layers, n_points = walk.points.shape[:2]
    n_columns = min(n_layers, 4 if n_layers <= 16 else 6)
    figure, grid = _tiles(n_layers, n_columns, title, apart=True)
    size = 5.0 if n_points <= 2000 else 2.0
    for axes, points, nodes, name, limits in zip(grid, walk.points, walk.grid, walk.names, walk.limits, strict=True):
        cloud(axes, points, name, limits, s=size, alpha=0.5, c=walk.colours, rasterized=n_points > 1000)
        walk.draw_grid(axes, nodes)
    if len(set(walk.limits)) <= 2:
        _label_edges(grid, walk.limits, n_columns)
    return figure
