"""The learned density beside the exact one."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from nfexp.report.figures.panels import TITLE, literal
from nfexp.report.planar import Arrays, density_maps

MASKED = "#D9D9D9"  # where p is negligible


def draw_density(arrays: Arrays, title: str) -> Figure:
    """The learned density q, the exact one p in the same colours, and log q − log p in nats.

    The last only where p is not negligible. Negligible is less than a thousandth of the largest
    exact density. The colours end at 3 nats at most.
    """
    maps = density_maps(arrays)
    figure = Figure(figsize=(10.4, 3.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    colours: dict[str, Any] = {"vmin": 0, "vmax": maps.brightest, "cmap": "viridis"}
    left.imshow(maps.learned, extent=maps.extent, **colours)
    density = middle.imshow(maps.exact, extent=maps.extent, **colours)
    reach = maps.reach
    signed: dict[str, Any] = {"vmin": -reach, "vmax": reach, "cmap": "RdBu_r"}
    log_ratio = right.imshow(maps.log_ratio, extent=maps.extent, **signed)
    right.set_facecolor(MASKED)
    names = ("learned  q(x)", "exact  p(x)", "log q − log p")
    for axes, name in zip((left, middle, right), names, strict=True):
        axes.set_title(name, y=1)
        axes.grid(False)
        axes.locator_params(nbins=5)
        axes.set_aspect("equal")
    bar: dict[str, Any] = {"shrink": 0.86, "pad": 0.015, "aspect": 28}
    brighter = "max" if maps.has_brighter else "neither"
    figure.colorbar(density, ax=[left, middle], label="density", extend=brighter, **bar)
    farther = "both" if maps.has_farther else "neither"
    label = "nats; grey: p < max p / 1000"
    figure.colorbar(log_ratio, ax=right, label=label, extend=farther, **bar)
    figure.suptitle(literal(title, TITLE))
    return figure
