"""Figures of images.

Real beside sampled ones, temperatures, interpolation, scales, and the walk of an image flow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from nfexp.report.figures.panels import TITLE, literal
from nfexp.report.planar import Arrays

SIDE = 0.5  # inches, of an image
GAP = 1  # pixels of white between images
ACROSS = 10  # images in a row of samples
MOST = 50  # images of one kind that are shown
WALKED = 14  # layers of a walk that are shown
PAPER = 1.0  # the shade of the gaps


def shaded(images: np.ndarray, levels: float) -> np.ndarray:
    """Images (…, C, H, W) of levels as shades in [0, 1], (…, H, W, 3)."""
    shades = np.clip(np.moveaxis(images.astype(float), -3, -1) / (levels - 1), 0.0, 1.0)
    if shades.shape[-1] == 3:
        return shades
    return np.repeat(shades[..., :1], 3, axis=-1)


def sheet(shades: np.ndarray) -> np.ndarray:
    """Images (rows, columns, H, W, 3) on one sheet, a pixel of white between them."""
    n_rows, n_columns, height, width, _ = shades.shape
    whole = np.full((n_rows * (height + GAP) - GAP, n_columns * (width + GAP) - GAP, 3), PAPER)
    for i in range(n_rows):
        for j in range(n_columns):
            top = i * (height + GAP)
            left = j * (width + GAP)
            whole[top : top + height, left : left + width] = shades[i, j]
    return whole


def in_rows(images: np.ndarray, across: int = ACROSS) -> np.ndarray:
    """Images (N, …) as rows of `across`, (rows, across, …).

    What fills no row is left out, unless it is the only one.

    >>> in_rows(np.zeros((23, 1, 8, 8)), 10).shape
    (2, 10, 1, 8, 8)
    """
    images = images[:MOST]
    across = min(across, len(images))
    n_rows = len(images) // across
    return images[: n_rows * across].reshape(n_rows, across, *images.shape[1:])


def _sheets(
    title: str, parts: Sequence[tuple[str, np.ndarray]], labels: Sequence[str] = ()
) -> Figure:
    """Sheets side by side, each under its name; `labels` are those of the rows of the first one."""
    n_rows = len(parts[0][1])
    across = sum(part.shape[1] for _, part in parts)
    left = 1.15 if labels else 0.15
    width = max(left + across * SIDE + 0.3 * (len(parts) - 1) + 0.15, 4.2)
    height = n_rows * SIDE + 0.7
    figure = Figure(figsize=(width, height))
    ratios = [part.shape[1] for _, part in parts]
    grid = figure.add_gridspec(
        1,
        len(parts),
        width_ratios=ratios,
        left=left / width,
        right=1 - 0.15 / width,
        bottom=0.12 / height,
        top=1 - 0.52 / height,
        wspace=0.3 * len(parts) / max(across * SIDE, 1),
    )
    for i, (name, shades) in enumerate(parts):
        axes = figure.add_subplot(grid[0, i])
        axes.imshow(sheet(shades), interpolation="nearest", aspect="equal", origin="upper")
        axes.set_title(literal(name, 60), fontsize=9, fontweight="normal", pad=3)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_xticks([])
        axes.set_yticks([])
        if i == 0 and labels:
            side = shades.shape[2] + GAP
            axes.set_yticks([side * row + shades.shape[2] / 2 for row in range(n_rows)])
            axes.set_yticklabels([literal(label) for label in labels], fontsize=8)
            axes.tick_params(length=0)
    figure.suptitle(literal(title, TITLE), fontsize=9, y=1 - 0.1 / height, va="top")
    return figure


def draw_images(arrays: Arrays, title: str) -> Figure:
    """Training images, and as many samples."""
    levels = float(arrays["levels"])
    n = min(len(arrays["real"]), len(arrays["drawn"]))
    real = shaded(in_rows(arrays["real"][:n]), levels)
    drawn = shaded(in_rows(arrays["drawn"][:n]), levels)
    return _sheets(title, [("training images", real), ("samples", drawn)])


def draw_temperatures(arrays: Arrays, title: str) -> Figure:
    """The same base draws, multiplied by the temperature of each row."""
    shades = shaded(arrays["tempered"], float(arrays["levels"]))
    labels = [f"T = {temperature:g}" for temperature in np.round(arrays["temperatures"], 3)]
    return _sheets(title, [("base draws times T", shades)], labels)


def draw_interpolation(arrays: Arrays, title: str) -> Figure:
    """From the test image at the left of each row to that at its right."""
    return _sheets(
        title,
        [("test image → test image", shaded(arrays["interpolated"], float(arrays["levels"])))],
    )


def draw_scales(arrays: Arrays, title: str) -> Figure:
    """Test images, and what is left of them where the finest scales are drawn anew."""
    shades = shaded(arrays["redrawn"], float(arrays["levels"]))
    numbers = arrays["redrawn_numbers"].astype(int)
    labels = ["test images", *(f"{kept} of {numbers[0]} kept" for kept in numbers[1:])]
    return _sheets(
        title, [("base coordinates that are kept; the others are drawn anew", shades)], labels
    )


def draw_image_walk(arrays: Arrays, title: str) -> Figure:
    """Samples after every layer from base to data.

    The shades of a row span what its pixels span.
    """
    frames = arrays["image_walk"]
    shown = np.unique(np.linspace(0, len(frames) - 1, min(WALKED, len(frames))).round().astype(int))
    rows = []
    for frame in frames[shown]:
        low, high = np.percentile(frame, [1, 99])
        spread = high - low if high > low else 1.0
        rows.append(shaded((frame - low) / spread, 2.0))
    labels = [str(arrays["image_walk_names"][i]) for i in shown]
    return _sheets(title, [("after each layer", np.stack(rows))], labels)
