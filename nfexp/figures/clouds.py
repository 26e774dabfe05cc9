"""Figures of one run: convergence gallery, learned against exact density, layer-by-layer walk."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nfexp.figures.curves import TITLE, literal

GREY, INK, BLUE, ORANGE = "#777777", "#222222", "#0072B2", "#D55E00"
QUADRANTS = ("#0072B2", "#D55E00", "#009E73", "#E69F00")  # base quadrants I to IV
SHOWN_STEPS, SHOWN_LAYERS = 13, 60

Arrays = Mapping[str, np.ndarray]


def box(*clouds: np.ndarray, cover: float = 0.99, pad: float = 0.12) -> tuple[float, float, float, float]:
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


def _cloud(axes: Axes, points: np.ndarray, title: str, limits: tuple[float, ...], **look: object) -> None:
    axes.scatter(points[:, 0], points[:, 1], linewidths=0, **look)
    axes.set_title(literal(title), fontsize=9, fontweight="normal", pad=3, y=1)
    axes.set(xlim=limits[:2], ylim=limits[2:], aspect="equal")
    axes.grid(False)
    axes.spines[["top", "right"]].set_visible(True)
    axes.spines[:].set(color="#BBBBBB", linewidth=0.6)
    axes.tick_params(length=2, width=0.5, labelsize=6.5, color="#BBBBBB", pad=1.5)
    axes.locator_params(nbins=4)


def _label_edges(grid: list[Axes], limits: list[tuple[float, ...]]) -> None:
    """Keep tick labels where they say something: at the left and below, and where a panel has limits of its own."""
    columns = grid[0].get_gridspec().ncols
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
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(SHOWN_STEPS, len(steps))).round().astype(int))
    tiles = [("base", arrays["base"], GREY), ("target", target, INK)]
    tiles += [(f"step {steps[i]}", snapshots[i], BLUE) for i in chosen]
    tiles += [("best model", arrays["best"], ORANGE)]
    limits = box(target, cover=1.0)
    boxes = [box(points) if name == "base" else limits for name, points, _ in tiles]
    figure, grid = _tiles(len(tiles), min(4, math.ceil(math.sqrt(len(tiles)))), title)
    for axes, (name, points, colour), own in zip(grid, tiles, boxes, strict=True):
        _cloud(axes, points, name, own, s=3.5, alpha=0.45, color=colour)
    _label_edges(grid, boxes)
    return figure


def draw_density(arrays: Arrays, title: str) -> Figure:
    """The learned density exp(grid_log_q), the exact one exp(grid_log_p) in the same colours, and their difference."""
    learned, exact = (np.exp(np.minimum(arrays[f"grid_log_{k}"].astype(float), 200)) for k in "qp")
    x0, x1, y0, y1 = map(float, arrays["grid_extent"])
    rows, columns = exact.shape
    dx, dy = (x1 - x0) / max(columns - 1, 1) / 2, (y1 - y0) / max(rows - 1, 1) / 2
    extent = (x0 - dx, x1 + dx, y0 - dy, y1 + dy)  # the grid's numbers sit at the middle of their cells
    difference = learned - exact
    top = float(np.nanmax(np.concatenate([exact.ravel(), [np.nanpercentile(learned, 99.9)]])))
    reach = float(np.nanpercentile(np.abs(difference), 99.9)) or 1.0
    figure = Figure(figsize=(10.4, 3.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for axes, image, name in ((left, learned, "learned  q(x)"), (middle, exact, "exact  p(x)")):
        drawn = axes.imshow(image, extent=extent, vmin=0, vmax=top, cmap="viridis")
        axes.set_title(name, y=1)
    apart = right.imshow(difference, extent=extent, vmin=-reach, vmax=reach, cmap="RdBu_r")
    right.set_title("difference  q − p")
    for axes in (left, middle, right):
        axes.grid(False)
        axes.locator_params(nbins=5)
        axes.set_aspect("equal")
    bars = {"shrink": 0.86, "pad": 0.015, "aspect": 28}
    figure.colorbar(
        drawn,
        ax=[left, middle],
        label="density",
        extend="max" if np.nanmax(learned) > top else "neither",
        **bars,
    )
    figure.colorbar(
        apart,
        ax=right,
        label="q − p",
        extend="both" if np.nanmax(np.abs(difference)) > reach else "neither",
        **bars,
    )
    figure.suptitle(literal(title, TITLE))
    return figure


def draw_walk(arrays: Arrays, title: str) -> Figure:
    """The same points after every layer from base to data, coloured by the quadrant they started in.

    The standardised frames share their limits unless one is over five times as wide as another; "data" has its own.
    """
    shown = np.unique(np.linspace(0, len(arrays["walk"]) - 1, SHOWN_LAYERS).round().astype(int))
    frames, names = arrays["walk"][shown], [str(n) for n in arrays["walk_names"][shown]]
    start = frames[0]
    quadrant = np.select(
        [(start > 0).all(1), (start[:, 0] <= 0) & (start[:, 1] > 0), (start <= 0).all(1)],
        [0, 1, 2],
        default=3,
    )
    colours = np.array(QUADRANTS)[quadrant]
    own = [box(points, cover=0.995, pad=0.08) for points in frames]
    inner = [limits for limits, name in zip(own, names, strict=True) if name != "data"]
    widths = [limits[1] - limits[0] for limits in inner]
    if inner and max(widths) <= 5 * min(widths):
        shared = box(*(np.array([limits[::2], limits[1::2]]) for limits in inner), cover=1.0, pad=0.0)
        own = [limits if name == "data" else shared for limits, name in zip(own, names, strict=True)]
    n_columns = min(len(names), 4 if len(names) <= 16 else 6)
    figure, grid = _tiles(len(names), n_columns, title, apart=True)
    size = 5.0 if len(start) <= 2000 else 2.0
    for axes, points, name, limits in zip(grid, frames, names, own, strict=True):
        _cloud(axes, points, name, limits, s=size, alpha=0.5, c=colours, rasterized=len(start) > 1000)
    if len(set(own)) <= 2:
        _label_edges(grid, own)
    return figure
