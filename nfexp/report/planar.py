"""What figures of one run in the plane draw: limits, densities, the walk from base to data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

# the colours of the base's quadrants I to IV
QUADRANTS = ("#0072B2", "#D55E00", "#009E73", "#E69F00")
SHOWN_LAYERS = 60
SHOWN_LINES = 21  # of a walk's grid, each way
# below the peak of the exact density, in nats: no log-ratio is shown there
NEGLIGIBLE = math.log(1e-3)
REACH = 3.0  # nats, of the log-ratio's colours: the far tails of a poor fit would take them all
LARGEST_LOG = 200.0  # of a log-density: its exponential, 1e87, can still be drawn

Arrays = Mapping[str, np.ndarray]
Limits = tuple[float, float, float, float]  # x0, x1, y0, y1


def box(*clouds: np.ndarray, cover: float = 0.99, pad: float = 0.12) -> Limits:
    """The square (x0, x1, y0, y1) around the middle `cover` of every cloud (N, 2), with a margin.

    Only finite points count; without any it is about the square from −1 to 1.

    >>> box(np.array([[0.0, 0.0], [4.0, 2.0]]), cover=1.0, pad=0.0)
    (0.0, 4.0, -1.0, 3.0)
    """
    tail = 50 * (1 - cover)  # percent, at either end
    lows = []
    highs = []
    for points in clouds:
        finite = points[np.isfinite(points).all(1)]
        if len(finite):
            low, high = np.percentile(finite, [tail, 100 - tail], axis=0)
            lows.append(low)
            highs.append(high)
    low = np.min(lows, axis=0) if lows else np.array([-1.0, -1.0])
    high = np.max(highs, axis=0) if highs else np.array([1.0, 1.0])
    x, y = ((low + high) / 2).tolist()
    # no square of size zero, nor one below the spacing of floats around its middle
    smallest = max(1e-9, 1e-9 * max(abs(x), abs(y)))
    half = max(float((high - low).max()) / 2, smallest) * (1 + 2 * pad)
    return x - half, x + half, y - half, y + half


def spread(n: int, most: int) -> np.ndarray:
    """At most `most` of the indices 0 … n − 1, evenly spaced, with the first and the last.

    >>> spread(7, 4).tolist()
    [0, 2, 4, 6]
    """
    positions = np.linspace(0, n - 1, min(most, n))
    return np.unique(positions.round().astype(int))


def density_on_grid(arrays: Arrays, log_density: str) -> np.ndarray:
    """The exponential of a stored log-density, (rows, columns)."""
    return np.exp(np.minimum(arrays[log_density].astype(float), LARGEST_LOG))


def image_extent(arrays: Arrays, log_density: str) -> Limits:
    """The extent of the image of a stored grid: its numbers sit in the middle of the cells."""
    x0, x1, y0, y1 = map(float, arrays["grid_extent"])
    n_rows, n_columns = arrays[log_density].shape
    dx = (x1 - x0) / max(n_columns - 1, 1) / 2
    dy = (y1 - y0) / max(n_rows - 1, 1) / 2
    return x0 - dx, x1 + dx, y0 - dy, y1 + dy


@dataclass(frozen=True)
class DensityMaps:
    """The learned density q, the exact one p, and log q − log p where p is not negligible."""

    learned: np.ndarray  # (rows, columns)
    exact: np.ndarray
    log_ratio: np.ndarray  # nats; NaN where p is negligible
    extent: Limits
    brightest: float  # density at the end of the colours: single cells of q may exceed it
    reach: float  # nats at the ends of the colours of the log-ratio

    @property
    def has_brighter(self) -> bool:
        """Whether some of q is brighter than its colours show."""
        return bool(np.nanmax(self.learned) > self.brightest)

    @property
    def has_farther(self) -> bool:
        """Whether some log-ratio is beyond its colours."""
        return bool(_sizes(self.log_ratio).max(initial=0) > self.reach)


def density_maps(arrays: Arrays) -> DensityMaps:
    """What a run stored of q and p: p is negligible below a thousandth of its largest value."""
    learned = density_on_grid(arrays, "grid_log_q")
    exact = density_on_grid(arrays, "grid_log_p")
    log_q = arrays["grid_log_q"].astype(float)
    log_p = arrays["grid_log_p"].astype(float)
    matters = log_p >= np.nanmax(log_p) + NEGLIGIBLE
    log_ratio = np.where(matters, log_q - log_p, np.nan)
    brightest = max(np.nanmax(exact), np.nanpercentile(learned, 99.9))
    sizes = _sizes(log_ratio)
    reach = min(float(np.percentile(sizes, 99)), REACH) if len(sizes) else 0.0
    return DensityMaps(
        learned=learned,
        exact=exact,
        log_ratio=log_ratio,
        extent=image_extent(arrays, "grid_log_q"),
        brightest=float(brightest),
        reach=reach or 1.0,
    )


def _sizes(log_ratio: np.ndarray) -> np.ndarray:
    return np.abs(log_ratio[np.isfinite(log_ratio)])


def quadrants(points: np.ndarray) -> np.ndarray:
    """The colour, by quadrant I to IV, of each point (N, 2)."""
    right = points[:, 0] > 0
    above = points[:, 1] > 0
    number = np.select([right & above, ~right & above, ~right & ~above], [0, 1, 2], default=3)
    return np.array(QUADRANTS)[number]


@dataclass(frozen=True)
class Walk:
    """Points and grid lines after every shown layer, coloured by their quadrant of the base."""

    names: list[str]  # of the layers
    points: np.ndarray  # (layers, N, 2)
    colours: np.ndarray  # (N,)
    limits: list[Limits]  # of each layer's panel
    nodes: np.ndarray  # (layers, nodes of the grid, 2)
    pieces: list[np.ndarray]  # the nodes along each piece of a grid line, within one quadrant
    piece_colours: list[str]


def walk_of(arrays: Arrays, *, layers: int = SHOWN_LAYERS, most: int | None = None) -> Walk:
    """At most `layers` layers and the first `most` points of what a run stored."""
    shown = spread(len(arrays["walk"]), layers)
    points = arrays["walk"][shown, :most]
    names = [str(name) for name in arrays["walk_names"][shown]]
    if "walk_grid" in arrays:
        grid = arrays["walk_grid"][shown]
    else:
        grid = np.empty((len(shown), 0, 0, 2))
    _, n_rows, n_columns, _ = grid.shape
    nodes = grid.reshape(len(shown), n_rows * n_columns, 2)
    node_colours = quadrants(nodes[0])
    pieces = _pieces(node_colours.reshape(n_rows, n_columns))
    return Walk(
        names=names,
        points=points,
        colours=quadrants(points[0]),
        limits=_walk_limits(points, names),
        nodes=nodes,
        pieces=pieces,
        piece_colours=[node_colours[piece[-1]] for piece in pieces],
    )


def _walk_limits(points: np.ndarray, names: list[str]) -> list[Limits]:
    """The limits of each layer's panel.

    The standardised layers share theirs unless one is over three times as wide as another; "data"
    does not.
    """
    of_layers = [box(layer, cover=0.995, pad=0.08) for layer in points]
    corners = []
    widths = []
    for (x0, x1, y0, y1), name in zip(of_layers, names, strict=True):
        if name != "data":
            corners.append(np.array([[x0, y0], [x1, y1]]))
            widths.append(x1 - x0)
    if not widths or max(widths) > 3 * min(widths):
        return of_layers
    shared = box(*corners, cover=1.0, pad=0.0)
    for i, name in enumerate(names):
        if name != "data":
            of_layers[i] = shared
    return of_layers


def _pieces(colours: np.ndarray) -> list[np.ndarray]:
    """The grid's lines, cut where they enter another quadrant: the nodes along each piece.

    `colours` (rows, columns) are those of the nodes, which are numbered row by row.
    """
    numbers: np.ndarray = np.arange(colours.size).reshape(colours.shape)
    pieces: list[np.ndarray] = []
    if not numbers.size:
        return pieces
    for lines in (numbers, numbers.T):
        n_lines, length = lines.shape
        shown = lines[spread(n_lines, SHOWN_LINES)]
        for line in shown[:, spread(length, 10 * SHOWN_LINES)]:
            along = colours.ravel()[line]
            changes = np.flatnonzero(along[1:] != along[:-1]) + 1
            for start, end in pairwise([0, *changes, len(line)]):
                # from the last node of the piece before, so that the line has no gap
                pieces.append(line[max(start - 1, 0) : end])
    return pieces
