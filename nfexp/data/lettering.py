"""A text as boxes on the plane: its ink in cells, and those merged into rectangles."""

from __future__ import annotations

import numpy as np

from nfexp.surroundings import load_matplotlib

CELL = 1 / 64  # side of a cell
UNITS = 16  # to a cell: matplotlib flattens curves to a fraction of a unit
MAX_TEXT = 40  # characters
WIDTH = 8.0  # of the text, or HEIGHT if it reaches that first
HEIGHT = 4.0


def text_boxes(text: object) -> np.ndarray:
    """The rectangles that make up the ink of a text, centred: (K, 4), xmin, xmax, ymin, ymax.

    Raises
    ------
    ValueError
        For what is no text, has no ink, or cannot be drawn in DejaVu Sans Bold.
    """
    ink = raster(text)
    n_rows, n_columns = ink.shape
    x = (np.arange(n_columns + 1) - n_columns / 2) * CELL  # edges of the cells
    y = (np.arange(n_rows + 1) - n_rows / 2) * CELL
    boxes = []
    for left, right, bottom, top in rectangles(ink):
        boxes.append((x[left], x[right], y[bottom], y[top]))
    return np.array(boxes)


def raster(text: object) -> np.ndarray:
    """Whether the centre of a cell lies in the ink of the text: (rows from the bottom, columns)."""
    load_matplotlib()
    import matplotlib
    from matplotlib.font_manager import FontProperties
    from matplotlib.path import Path
    from matplotlib.textpath import text_to_path

    font = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans-Bold.ttf"
    if not isinstance(text, str) or not _has_ink(text) or not _is_in_font(text, font):
        what = f"1 to {MAX_TEXT} printable characters with ink, all in DejaVu Sans Bold"
        raise ValueError(f"data.text: expected {what}; got {text!r}")
    vertices, codes = text_to_path.get_text_path(FontProperties(fname=font), text, ismath=False)
    path = Path(vertices, codes)
    low, high = path.get_extents().get_points()
    width, height = high - low
    scale = min(WIDTH / width, HEIGHT / height) / CELL  # cells to a unit of the font
    columns, rows = np.ceil((high - low) * scale - 1e-9).astype(int)
    path = Path((path.vertices - (low + high) / 2) * scale * UNITS, path.codes)  # about the origin
    x = (np.arange(columns) + 0.5 - columns / 2) * UNITS
    y = (np.arange(rows) + 0.5 - rows / 2) * UNITS
    centres = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)

    # contains_points of the whole path would fill the holes of letters. So count how often each
    # contour winds about a centre, by its sign, as TrueType does: ink is where that is not 0.
    winding = np.zeros(len(centres))
    for polygon in path.to_polygons():
        px, py = np.asarray(polygon).T
        sign = np.sign(px[:-1] @ py[1:] - px[1:] @ py[:-1])  # of the area: its sense of rotation
        winding += sign * Path(polygon).contains_points(centres)
    return (winding != 0).reshape(rows, columns)


def _has_ink(text: str) -> bool:
    return len(text) <= MAX_TEXT and text.isprintable() and text.strip() != ""


def _is_in_font(text: str, font: str) -> bool:
    from matplotlib.font_manager import get_font

    glyphs = get_font(font)
    return all(glyphs.get_char_index(ord(character)) for character in text)


def rectangles(ink: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Split a raster into (i, j, k, m), the columns i … j-1 of the rows k … m-1.

    In each row the ink is a number of runs of columns; a run that stays the same in the next rows
    becomes one rectangle.

    >>> rectangles(np.array([[True, True, False], [True, True, False], [False, False, True]]))
    [(0, 2, 0, 2), (2, 3, 2, 3)]
    """
    done: list[tuple[int, int, int, int]] = []
    growing: dict[tuple[int, int], int] = {}  # run of columns → the row it began in
    framed = np.pad(ink, ((0, 1), (1, 1))).astype(int)  # an empty last row ends all that grow
    for k, row in enumerate(framed):
        flips = np.flatnonzero(np.diff(row)).tolist()  # where ink begins, ends, begins, …
        runs = list(zip(flips[0::2], flips[1::2], strict=True))
        for (i, j), first in growing.items():
            if (i, j) not in runs:
                done.append((i, j, first, k))
        growing = {run: growing.get(run, k) for run in runs}
    return done
