"""Figures and animations as files: the same bytes for the same data."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fontTools.subset
import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from nfexp.files import replacing
from nfexp.report.figures.animations import Animation
from nfexp.report.planar import QUADRANTS

STYLE = Path(__file__).parent / "nfexp.mplstyle"
ANIMATION = "gif_"  # how the name of an animation begins
INKS = ("#000000", *QUADRANTS)  # of animations
# of each ink on white paper: every animation has the same few colours
TINTS = np.linspace(0.15, 1, 7)
SHAPING = ("GDEF", "GPOS", "GSUB", "kern")  # tables of a font for shaping text

Drawing = Callable[[], Figure | Animation]

# at INFO it logs every table of every font in a PDF
logging.getLogger("fontTools").setLevel(logging.WARNING)


def draw(folder: Path, drawings: Mapping[str, Drawing]) -> None:
    """Draw each into `folder` under its name: a figure as PNG and PDF, an animation as GIF."""
    with mpl.rc_context(fname=STYLE), _fonts_without_shaping(), warnings.catch_warnings():
        # a letter of a foreign name: drawn as a box
        warnings.filterwarnings("ignore", "Glyph .* missing")
        for name, drawing in drawings.items():
            drawn = drawing()
            if isinstance(drawn, Figure):
                save(drawn, folder, name)
            else:
                save_animation(drawn, folder, name)


def path_of(folder: Path, name: str) -> Path:
    """The file that shows a figure or animation: NAME.png or NAME.gif."""
    extension = "gif" if name.startswith(ANIMATION) else "png"
    return folder / f"{name}.{extension}"


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write NAME.png and NAME.pdf, without the time in them.

    ``Figure.savefig`` would compute the layout and draw everything once more for each format.
    """
    canvas = FigureCanvasAgg(figure)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")  # the layout just computed serves both formats
    with replacing(folder / f"{name}.png") as temporary:
        canvas.print_png(temporary, metadata={"Software": None})
    with replacing(folder / f"{name}.pdf") as temporary:
        FigureCanvasPdf(figure).print_pdf(temporary, metadata={"CreationDate": None})


def save_animation(animation: Animation, folder: Path, name: str) -> None:
    """Write NAME.gif, which runs for ever, in one palette for all its frames."""
    frames = []
    durations = []
    for figure, duration in animation:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
        durations.append(duration)
    palette = _palette()
    pages = []
    for frame in frames:
        pages.append(Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE))
    with replacing(folder / f"{name}.gif") as temporary:
        pages[0].save(
            temporary,
            "GIF",
            save_all=True,
            append_images=pages[1:],
            duration=durations,
            loop=0,
            optimize=True,
        )


def _palette() -> Image.Image:
    """White and the tints of every ink, as an image whose palette others take."""
    colours = [np.ones((1, 3))]
    for ink in INKS:
        darkness = 1 - np.array(to_rgb(ink))
        colours.append(1 - TINTS[:, None] * darkness)
    image = Image.new("P", (1, 1))
    image.putpalette((255 * np.concatenate(colours)).round().astype(np.uint8).ravel().tolist())
    return image


@contextmanager
def _fonts_without_shaping() -> Iterator[None]:
    """Embed fonts in PDFs without their tables for shaping text.

    No PDF needs them, for its letters have their places. Subsetting them takes half of the time of
    a PDF.
    """
    load = fontTools.subset.load_font

    def load_without_shaping(*arguments: Any, **keywords: Any) -> Any:
        font = load(*arguments, **keywords)
        for table in SHAPING:
            if table in font:
                del font[table]
        return font

    fontTools.subset.load_font = load_without_shaping
    try:
        yield
    finally:
        fontTools.subset.load_font = load
