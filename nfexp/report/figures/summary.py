"""The sweep at a glance: per target its draws, the flow's samples, the learned density, and the KL over seeds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from nfexp.report.figures.clouds import BLUE, INK, Arrays, density_image, square
from nfexp.report.figures.curves import TROUBLE, literal, scale_values, troubles

SIDE, GAP, LEFT, RIGHT = 1.55, 0.1, 0.66, 0.12  # inches
TOP, STRIP, BELOW = 0.62, 1.15, 0.62
SHADES = LinearSegmentedColormap.from_list("density", ["white", "#7DB7DC", BLUE, "#00263C"])


def draw_summary(arrays: Mapping[str, Arrays], seeds: pd.DataFrame, means: pd.DataFrame, title: str) -> Figure:
    """One column per target: target draws, as many flow samples, the learned density, and the KL of all seeds.

    Parameters
    ----------
    arrays
        By target, what one run at the centre of the study stored.
    seeds, means
        From :func:`nfexp.report.figures.frames.centre_scores`, of these targets.
    """
    n = len(arrays)
    width = LEFT + n * SIDE + (n - 1) * GAP + RIGHT
    height = TOP + 3 * SIDE + 2 * GAP + 0.3 + STRIP + BELOW
    figure = Figure(figsize=(width, height))

    def place(left: float, top: float, across: float, down: float) -> Axes:
        return figure.add_axes((left / width, 1 - (top + down) / height, across / width, down / height))

    def label(axes: Axes, text: str) -> None:
        box = axes.get_position()
        axes.set_ylabel(text)
        axes.yaxis.set_label_coords(0.2 / width, (box.y0 + box.y1) / 2, transform=figure.transFigure)

    for i, (target, own) in enumerate(arrays.items()):
        x0, x1, y0, y1 = map(float, own["grid_extent"])
        density, edges = density_image(own, "q")
        top = float(np.nanpercentile(density, 99.9))
        for j, name in enumerate(("target draws", "flow samples", "learned density")):
            axes = place(LEFT + i * (SIDE + GAP), TOP + j * (SIDE + GAP), SIDE, SIDE)
            if j < 2:
                points = own["best" if j else "target"][: min(len(own["best"]), len(own["target"]))]
                axes.scatter(points[:, 0], points[:, 1], s=2.5, alpha=0.5, linewidths=0, color=BLUE if j else INK)
            else:
                axes.imshow(density, extent=edges, vmin=0, vmax=top or 1.0, cmap=SHADES)
            square(axes, (x0, x1, y0, y1))
            axes.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
            if not i:
                label(axes, name)
            if not j:
                axes.set_title(literal(target), y=1)
    axes = place(LEFT, height - BELOW - STRIP, width - LEFT - RIGHT, STRIP)
    half = SIDE / 2 / (SIDE + GAP)  # the middle of each column above is at a whole number
    axes.set_xlim(-half, n - 1 + half)
    shown = means.set_index("data.name").loc[list(arrays)]
    seeds = seeds[seeds["data.name"].isin(shown.index)]
    cap = scale_values(axes, shown["kl_mean"], [*shown["kl_low"], *shown["kl_high"], *seeds["kl"]])
    at = {target: i for i, target in enumerate(shown.index)}
    axes.plot([at[t] - 0.05 for t in seeds["data.name"]], seeds["kl"], ".", color="#999999", alpha=0.7, zorder=2)
    mean, low, high = (shown[f"kl_{k}"].to_numpy(float) for k in ("mean", "low", "high"))
    inside = mean <= cap
    axes.errorbar(np.flatnonzero(inside) + 0.05, mean[inside], [(mean - low)[inside], (high - mean)[inside]],
                  fmt="o", color=BLUE, elinewidth=1.4, zorder=3)  # fmt: skip
    axes.plot(np.flatnonzero(~inside), np.ones((~inside).sum()), "^", color=TROUBLE, clip_on=False,
              transform=axes.get_xaxis_transform())  # fmt: skip
    axes.set_xticks(range(n), [_score(row) for _, row in shown.iterrows()], linespacing=1.3)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)
    label(axes, "KL, nats")
    figure.suptitle(literal(title, 24 * n), y=1 - 0.12 / height, va="top")
    return figure


def _score(row: pd.Series) -> str:
    def number(value: float) -> str:
        return f"{value:.3f}" if 1e-3 <= abs(value) < 10 else f"{value:.2g}"

    interval = f" [{number(row['kl_low'])}, {number(row['kl_high'])}]" if row["kl_low"] == row["kl_low"] else ""
    seeds = f"{row['n']:.0f} {'seed' if row['n'] == 1 else 'seeds'}"
    return "\n".join([number(row["kl_mean"]) + interval, seeds, *troubles(row)])
