"""Animations of one run: training beside the target, and the walk from layer to layer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from nfexp.report.figures.clouds import draw_cloud, draw_walk_grid
from nfexp.report.figures.panels import BLUE, INK, ORANGE, literal
from nfexp.report.planar import Arrays, box, spread, walk_of

DOTS = 100  # per inch
TITLE = 70  # letters
SHOWN_STEPS = 40
SHOWN_LAYERS = 25
SHOWN_POINTS = 800
MOVES = 49  # frames between the layers of a walk, about: more would only make the file larger
# ms that a frame shows: between layers, at a layer, the last one
MOVE = 70
STOP = 700
END = 2500
TRAINING = 6000  # ms, of all steps together

# the same figure again and again, with how long it shows, in ms
Animation = Iterator[tuple[Figure, int]]


def animate_training(arrays: Arrays, title: str) -> Animation:
    """The target beside the samples at each recorded step; the best model at last.

    All samples come from one base draw.
    """
    target = arrays["target"][:SHOWN_POINTS]
    snapshots = arrays["snapshots"][:, :SHOWN_POINTS]
    figure = Figure(figsize=(6, 3.4), dpi=DOTS)
    figure.subplots_adjust(0.05, 0.08, 0.99, 0.83, 0.1)
    left, right = figure.subplots(1, 2)
    figure.suptitle(literal(title, TITLE), y=0.97, va="top")
    limits = box(target, cover=1.0)
    look = {"s": 5.0, "alpha": 0.6}
    draw_cloud(left, target, "target", limits, color=INK, **look)
    points = draw_cloud(right, snapshots[0], "", limits, color=BLUE, **look)
    right.tick_params(labelleft=False)
    steps = spread(len(snapshots), SHOWN_STEPS)
    for i in steps:
        points.set_offsets(snapshots[i])
        right.title.set_text(f"step {arrays['snapshot_steps'][i]}")
        yield figure, max(150, TRAINING // len(steps))
    points.set(offsets=arrays["best"][:SHOWN_POINTS], color=ORANGE)
    right.title.set_text("best model")
    yield figure, END


def animate_walk(arrays: Arrays, title: str) -> Animation:
    """Points and grid on their way from base to data, along straight lines between the layers.

    The limits move along, so that a layer that only rescales both axes moves the tick labels alone.
    """
    walk = walk_of(arrays, layers=SHOWN_LAYERS, most=SHOWN_POINTS)
    figure = Figure(figsize=(5, 5.4), dpi=DOTS)
    figure.subplots_adjust(0.07, 0.05, 0.98, 0.89)
    axes = figure.subplots()
    figure.suptitle(literal(title, TITLE), y=0.985, va="top")
    look = {"s": 7.0, "alpha": 0.7, "c": walk.colours}
    points = draw_cloud(axes, walk.points[0], "", walk.limits[0], **look)
    lines = draw_walk_grid(axes, walk, walk.nodes[0])
    limits = np.array(walk.limits)
    last = len(walk.names) - 1
    n_moves = max(3, MOVES // max(last, 1))
    for i, name in enumerate(walk.names):
        axes.title.set_text(literal(name))
        ways = np.linspace(0, 1, n_moves + 1)[1:] if i else np.array([1.0])
        for way in ways:
            share = way * way * (3 - 2 * way)  # slow at both ends
            points.set_offsets(_between(walk.points, i, share))
            nodes = _between(walk.nodes, i, share)
            lines.set_segments([nodes[piece] for piece in walk.pieces])
            x0, x1, y0, y1 = _between(limits, i, share)
            axes.set(xlim=(x0, x1), ylim=(y0, y1))
            is_layer = way == 1
            yield figure, _shows(is_layer=is_layer, is_last=i == last)


def _between(layers: np.ndarray, i: int, share: float) -> np.ndarray:
    """What lies `share` of the way from layer i − 1 to layer i; the first layer stands still."""
    return layers[max(i - 1, 0)] * (1 - share) + layers[i] * share


def _shows(*, is_layer: bool, is_last: bool) -> int:
    if not is_layer:
        return MOVE
    return END if is_last else STOP
