"""The scales of panels: every mean shows, and the swept values are labelled where there is room."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from nfexp.report.figures.panels import literal
from nfexp.report.words import plain

OFF_SCALE = 1e4  # a mean this many times the median mean would flatten all others
MOST_LABELS = 40  # of the values along one axis
LETTER = 0.068  # inches, of a tick label


@dataclass(frozen=True)
class Scale:
    """The kind of a y axis, and the range in which the end of an interval counts for its limits.

    An end outside that range leaves the panel.
    """

    kind: str  # linear, log or symlog
    lowest_end: float
    highest_end: float
    threshold: float = 0.0  # symlog: linear between minus this and this


def scale_of(means: np.ndarray) -> Scale:
    """Linear within one decade, logarithmic beyond, symlog where a value is zero or negative.

    >>> [scale_of(np.array(means)).kind for means in ([0.03, 0.06], [0.03, 0.9], [-0.002, 0.9])]
    ['linear', 'log', 'symlog']
    """
    sizes = np.abs(means[means != 0])
    small = sizes.min() if len(sizes) else 1.0
    large = sizes.max() if len(sizes) else 1.0
    least = means.min()
    if large <= 10 * small or (least <= 0 and large <= 10 * -least):
        return Scale("linear", least - large, means.max() + large)
    if least > 0:
        return Scale("log", least / 4, 4 * large)
    threshold = 10.0 ** math.ceil(math.log10(max(-least, large / 1000)))
    return Scale("symlog", -3 * threshold, 4 * large, threshold)


def scale_values(
    axes: Axes,
    means: Iterable[float],
    ends: Iterable[float] = (),
    *,
    room: float = 0.0,
) -> float:
    """Scale the y axis so that every mean shows, with `room` (a share of the height) above.

    Returns the value above which points are off the scale: means more than 10,000 times the median
    would flatten all others.
    """
    shown = _finite(means)
    if not len(shown):
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_locator(NullLocator())
        return math.inf
    cap = max(OFF_SCALE * float(np.median(np.abs(shown))), 1.0)
    if (shown <= cap).any():
        shown = shown[shown <= cap]
    scale = scale_of(shown)
    if scale.kind == "symlog":
        axes.set_yscale("symlog", linthresh=scale.threshold, linscale=0.6)
    else:
        axes.set_yscale(scale.kind)
    axes.yaxis.set_major_formatter(FuncFormatter(_value_label))
    known_ends = _finite(ends)
    tame = (known_ends > scale.lowest_end) & (known_ends < scale.highest_end)
    low, high = _set_limits(axes, np.concatenate([shown, known_ends[tame]]), room)
    if scale.kind != "linear":
        smallest = scale.threshold if scale.kind == "symlog" else low
        axes.yaxis.set_major_locator(FixedLocator(_log_ticks(low, high, smallest)))
        axes.yaxis.set_minor_locator(NullLocator())
    return cap


def _finite(values: Iterable[float]) -> np.ndarray:
    return np.array([value for value in values if math.isfinite(value)])


def _value_label(value: float, _: int | None) -> str:
    """The label of a tick; 0 for the tiny number, such as 1e-17, that rounding makes of a zero."""
    return plain(value) if abs(value) > 1e-15 else "0"


def _set_limits(axes: Axes, values: np.ndarray, room: float) -> tuple[float, float]:
    """Set and return limits of the y axis around `values`, with margins equal to the eye."""
    transform = axes.yaxis.get_transform()
    low, high = transform.transform(np.array([values.min(), values.max()]))
    pad = 0.07 * (high - low) or 0.5 * abs(high) or 1.0
    free = (high - low + 2 * pad) * room / (1 - room)
    bottom, top = transform.inverted().transform(np.array([low - pad, high + pad + free]))
    axes.set_ylim(bottom, top)
    return bottom, top


def _log_ticks(low: float, high: float, smallest: float) -> list[float]:
    """Ticks of a logarithmic axis: powers of ten, over few decades 2 and 5 times them as well."""
    first = math.floor(math.log10(smallest) + 1e-9)
    last = math.ceil(math.log10(max(high, smallest)))
    factors = (1, 2, 5) if high < 4000 * smallest else (1,)
    step = max(1, (last - first) // 8)
    ticks = [0.0]
    for power in range(first, last + 1, step):
        for factor in factors:
            tick = factor * 10.0**power
            if tick >= smallest * (1 - 1e-9):
                ticks += [-tick, tick]
    return [tick for tick in sorted(ticks) if low <= tick <= high]


def is_logarithmic(ablation: pd.DataFrame, column: str) -> bool:
    """Whether the numbers of a column are positive, and span more than a decade in one target."""
    spans = ablation.groupby("data.name")[column].agg(["min", "max"])
    is_positive = (spans["min"] > 0).all()
    is_wide = (spans["max"] > 10 * spans["min"]).any()
    return bool(is_positive and is_wide)


@dataclass(frozen=True)
class ValueAxis:
    """An x axis of swept values: numbers at their places, words one beside the other."""

    numeric: bool
    log: bool
    inches: float  # the width of the panel

    def lay_out(self, axes: Axes, values: Sequence, *, keep: object) -> dict[object, float]:
        """Place and label the values of one panel; returns the place of each.

        Where not all labels have room, those of `keep` and of the first and last number stay.
        """
        positions = np.array(values if self.numeric else range(len(values)), dtype=float)
        if self.log:
            axes.set_xscale("log")
        across = np.log10(positions) if self.log else positions  # as the eye sees them
        low = across.min()
        high = across.max()
        margin = 0.09 if self.numeric else 0.5 / max(len(values) - 1, 1)
        pad = (high - low) * margin or (0.2 if self.log else 1.0)
        limits = np.array([low - pad, high + pad])
        axes.set_xlim(*(10**limits if self.log else limits))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(FixedLocator(positions.tolist()))
        shares = (across - low + pad) / (high - low + 2 * pad)
        labels = [plain(value) for value in values]
        fitting = self._fitting(values, labels, shares, keep)
        self._label(axes, positions, labels, fitting)
        axes.grid(axis="x", visible=False)
        return dict(zip(values, positions.tolist(), strict=True))

    def _fitting(
        self,
        values: Sequence,
        labels: Sequence[str],
        shares: np.ndarray,
        keep: object,
    ) -> list[int]:
        """The labels, at `shares` of the axis, that have room: the most important ones first."""
        lengths = np.array([len(label) for label in labels])
        room = LETTER * (lengths + 0.9) / self.inches  # shares of the axis
        ends = (0, len(values) - 1) if self.numeric else ()
        rank = [(i not in ends, value != keep, i) for i, value in enumerate(values)]
        kept: list[int] = []
        for _, _, i in sorted(rank):
            apart = np.abs(shares[kept] - shares[i])
            needed = (room[kept] + room[i]) / 2
            if i in ends or (apart >= needed).all():
                kept.append(i)
        return kept

    def _label(
        self,
        axes: Axes,
        positions: np.ndarray,
        labels: Sequence[str],
        fitting: list[int],
    ) -> None:
        shown = [literal(label) for label in labels]
        if len(labels) > MOST_LABELS:
            fitting = sorted(fitting)
            axes.xaxis.set_major_locator(FixedLocator(positions[fitting].tolist()))
            axes.set_xticklabels([shown[i] for i in fitting])
        elif self.numeric or len(fitting) == len(labels):
            axes.set_xticklabels([text if i in fitting else "" for i, text in enumerate(shown)])
        else:
            axes.set_xticklabels(shown, rotation=30, ha="right", rotation_mode="anchor")

    def beside(
        self,
        positions: dict[object, float],
        share: float,
        limits: tuple[float, float],
    ) -> dict[object, float]:
        """The places moved by a share of the axis, for lines that stand side by side."""
        low, high = limits
        moved = {}
        for value, position in positions.items():
            if self.log:
                moved[value] = position * (high / low) ** share
            else:
                moved[value] = position + share * (high - low)
        return moved
