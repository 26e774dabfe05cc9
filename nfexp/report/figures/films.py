"""Animations of one run, written as GIF: training beside the target, and the walk from layer to layer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from nfexp.files import replacing
from nfexp.report.figures.clouds import BLUE, INK, ORANGE, QUADRANTS, Arrays, Walk, box, cloud, spread
from nfexp.report.figures.curves import literal

DOTS = 100  # per inch
STILLS, LAYERS, POINTS = 40, 25, 800  # shown at most
MOVES = 49  # frames of a walk, about: more would only make the file larger
TINTS = np.linspace(0.15, 1, 7)[:, None]  # of each ink on white paper: every film has the same few colours
PALETTE = np.concatenate([[(1, 1, 1)], *(1 - TINTS * (1 - np.array(to_rgb(ink))) for ink in ("#000000", *QUADRANTS))])
TITLE = 70  # letters

Film = Iterator[tuple[Figure, int]]  # the same figure again and again, each time with how long it shows, in ms


def film_training(arrays: Arrays, title: str) -> Film:
    """The target beside the samples at each recorded step, all of them from one base draw; the best model at last."""
    target, steps = arrays["target"][:POINTS], spread(len(arrays["snapshots"]), STILLS)
    figure = Figure(figsize=(6, 3.4), dpi=DOTS)
    figure.subplots_adjust(0.05, 0.08, 0.99, 0.83, 0.1)
    left, right = figure.subplots(1, 2)
    figure.suptitle(literal(title, TITLE), y=0.97, va="top")
    limits, look = box(target, cover=1.0), {"s": 5.0, "alpha": 0.6}
    cloud(left, target, "target", limits, color=INK, **look)
    shown = cloud(right, arrays["snapshots"][0, :POINTS], "", limits, color=BLUE, **look)
    right.tick_params(labelleft=False)
    for i in steps:
        shown.set_offsets(arrays["snapshots"][i, :POINTS])
        right.title.set_text(f"step {arrays['snapshot_steps'][i]}")
        yield figure, max(150, 6000 // len(steps))
    shown.set(offsets=arrays["best"][:POINTS], color=ORANGE)
    right.title.set_text("best model")
    yield figure, 2500


def film_walk(arrays: Arrays, title: str) -> Film:
    """Points and grid on their way from base to data, moving along straight lines from each layer to the next.

    The limits move along, so that a layer that only rescales both axes moves the tick labels alone.
    """
    walk = Walk.of(arrays, layers=LAYERS, most=POINTS)
    figure = Figure(figsize=(5, 5.4), dpi=DOTS)
    figure.subplots_adjust(0.07, 0.05, 0.98, 0.89)
    axes = figure.subplots()
    figure.suptitle(literal(title, TITLE), y=0.985, va="top")
    shown = cloud(axes, walk.points[0], "", walk.limits[0], s=7.0, alpha=0.7, c=walk.colours)
    lines = walk.draw_grid(axes, walk.grid[0])
    limits, n = np.array(walk.limits), len(walk.names) - 1
    between = np.linspace(0, 1, max(3, MOVES // max(n, 1)) + 1)[1:]
    for i, name in enumerate(walk.names):
        for way in between if i else (1.0,):
            share = way * way * (3 - 2 * way)  # slow at both ends
            points, nodes, (x0, x1, y0, y1) = (
                a[max(i - 1, 0)] * (1 - share) + a[i] * share for a in (walk.points, walk.grid, limits)
            )
            shown.set_offsets(points)
            lines.set_segments([nodes[piece] for piece in walk.pieces])
            axes.set(xlim=(x0, x1), ylim=(y0, y1))
            axes.title.set_text(literal(name))
            yield figure, 70 if way < 1 else 2500 if i == n else 700


def save_film(film: Film, folder: Path, name: str) -> Path:
    """Write NAME.gif, which runs for ever, in the colours of PALETTE; returns its path."""
    frames, times = [], []
    for figure, time in film:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
        times.append(time)
    palette = Image.new("P", (1, 1))
    palette.putpalette((255 * PALETTE).round().astype(np.uint8).ravel().tolist())
    pages = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    with replacing(folder / f"{name}.gif") as temporary:
        pages[0].save(temporary, "GIF", save_all=True, append_images=pages[1:], duration=times, loop=0, optimize=True)
    return folder / f"{name}.gif"
