"""What figures share: text, colours, and rows of panels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import ColorType

from nfexp.analysis.table import printable

CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
BLUE = CYCLE[0]
ORANGE = CYCLE[1]
INK = "#222222"
GREY = "#777777"
TROUBLE = "#B3261E"
TITLE = 140  # letters of a title
ACROSS = 4  # panels in a row, at most


def literal(text: object, limit: int = 24) -> str:
    """Text that matplotlib shows as it is, cut at `limit` letters.

    A dollar sign would begin a formula, and a legend leaves out what begins with an underscore.

    >>> literal("_$x$")
    ' _\\\\$x\\\\$'
    """
    shown = printable(text, limit).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def figure_width(n_columns: int) -> float:
    """The width, in inches, of a figure with so many panels in a row."""
    return {1: 5.2, 2: 7.6, 3: 9.4}.get(n_columns, 10.8)


def panels(targets: Sequence[str], *, height: float = 2.6) -> tuple[Figure, dict[str, Axes]]:
    """A figure with one panel per target, at most ACROSS in a row, sharing the y axis."""
    n_columns = min(len(targets), ACROSS)
    n_rows = math.ceil(len(targets) / n_columns)
    size = (figure_width(n_columns), height * n_rows + 0.65)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False)
    for spare in grid.flat[len(targets) :]:
        spare.remove()
    by_target = {}
    for axes, target in zip(grid.flat, targets, strict=False):
        # y: matplotlib then looks for no room above tick labels
        axes.set_title(literal(target), y=1)
        by_target[target] = axes
    return figure, by_target


def all_numbers(values: Iterable[object]) -> bool:
    """Whether all are finite numbers, none of them a truth value."""
    for value in values:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
            return False
        if not math.isfinite(value):
            return False
    return True


def palette(values: Sequence[object]) -> dict[object, ColorType]:
    """One colour per value: distinct hues for words and few numbers, a ramp for many numbers."""
    is_few = len(values) <= 3
    if is_few or (len(values) <= len(CYCLE) and not all_numbers(values)):
        return dict(zip(values, CYCLE, strict=False))
    ramp = colormaps["viridis"](np.linspace(0.0, 0.88, len(values)))
    colours: dict[object, ColorType] = {}
    for value, colour in zip(values, ramp.tolist(), strict=True):
        colours[value] = tuple(colour)
    return colours
