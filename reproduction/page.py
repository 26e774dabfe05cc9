"""The page docs/reproduction.md and the pictures that its tables suffice for."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pandas as pd

from benchmarks import pictures
from benchmarks.tables import rewritten
from nfexp.analysis import statistics as stats
from nfexp.report.figures.ablation import draw_ablation
from nfexp.report.figures.writing import draw as draw_figures
from nfexp.report.selection import swept
from reproduction import PICTURES, Centres
from reproduction.blocks import BLOCKS, Block
from reproduction.taking import copied

SHOWN = ("flows", "depth", "activation", "samples", "noise", "mask", "coupling", "norm", "lr")


def refreshed(
    page: str,
    frames: Mapping[str, pd.DataFrame],
    centres: Mapping[str, Centres],
    blocks: Mapping[str, tuple[tuple[str, ...], Block]] = BLOCKS,
) -> str:
    """The page with what stands between each `<!-- name -->` and `<!-- end -->` written anew.

    Blocks of claims need the verdicts among the tables `frames`, see :func:`with_verdicts`.
    """

    def text(name: str) -> str:
        needs, write = blocks[name]
        return write(frames, centres) if set(needs) <= frames.keys() else "Not run yet."

    return rewritten(page, text)


def draw(
    frames: Mapping[str, pd.DataFrame], centres: Mapping[str, Centres], images: Path = PICTURES
) -> None:
    """The pictures that tables suffice for: the axes of the ablations, the blog's study."""
    if "ablations" in frames:
        tables = stats.ablations(frames["ablations"], centres["ablations"])
        tasks = {
            f"ablation_{axis}": partial(draw_ablation, t, swept(t))
            for axis, t in tables.items()
            if axis in SHOWN
        }
        with tempfile.TemporaryDirectory() as name:
            draw_figures(Path(name), tasks)
            copied(Path(name).glob("*.png"), images)
    if {"blog", "blog_layers"} <= frames.keys():
        pictures.blog(frames["blog"], frames["blog_layers"], images / "blog.png")
