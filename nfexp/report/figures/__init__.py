"""Every figure of a sweep or of a single run, drawn again from its stored results alone."""

# ruff: noqa: E402
from __future__ import annotations

import fnmatch
import logging
import os
import pickle
import re
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import fontTools.subset
import pandas as pd

from nfexp.surroundings import command, load_matplotlib

load_matplotlib()  # before whatever else imports it

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure

from nfexp.analysis import statistics as stats
from nfexp.analysis import table
from nfexp.analysis.table import ReportError, cannot_write
from nfexp.files import replacing
from nfexp.report.figures.clouds import draw_density, draw_gallery, draw_walk
from nfexp.report.figures.curves import draw_ablation, draw_convergence, plain
from nfexp.report.figures.films import Film, film_training, film_walk, save_film
from nfexp.report.figures.frames import centre_scores, differences, exemplar, learning_curves
from nfexp.report.figures.summary import draw_summary
from nfexp.usage import RUNS, Usage, run

STYLE = Path(__file__).parent / "nfexp.mplstyle"
AXES = 100  # at most this many ablations are drawn; their tables are always written
PENS, SHARE = 4, 5  # processes that draw, at most, and the figures that are worth starting one for
CLOUDS: dict[str, dict[str, Callable[..., Figure | Film]]] = {  # what is stored to the pictures that need it
    "gallery": {"gallery": draw_gallery, "gif_training": film_training},
    "density": {"density": draw_density},
    "walk": {"walk": draw_walk, "gif_walk": film_walk},
}
SUMMARISED = 9  # targets of a summary

logging.getLogger("fontTools").setLevel(logging.WARNING)  # at INFO it logs every table of every font in a PDF


def swept(frame: pd.DataFrame) -> list[str]:
    """The one or two swept columns of an ablation table: those between the target and the counts."""
    columns = list(frame.columns)
    return [c for c in columns[: columns.index("n")] if c != "data.name"]


def safe(name: object) -> str:
    """A name that is fit for a file: letters, digits, dot, dash and underscore; one that was changed ends in a hash.

    >>> safe("flow.norm_every"), safe("../x")
    ('flow.norm_every', '_x-1fb8ad98')
    """
    fit = re.sub(r"[^\w.-]", "_", str(name), flags=re.ASCII).lstrip(".")[:80]
    return fit if fit == name else f"{fit}-{zlib.crc32(str(name).encode(errors='replace')):08x}"


def _title(row: Mapping[str, Any]) -> str:
    differs = [f"{c} = {plain(row[c])}" for c in row["differs"]]
    which = ", ".join(differs[:4]) + (", …" if len(differs) > 4 else "") if differs else "centre"
    kl = row.get("kl")
    score = f" · KL {kl:.3f} nats" if kl == kl and kl is not None else ""
    return f"{row['data.name']} · {_flows(row)} · run {row['job']}, seed {row['seed']} ({which}){score}"


def _flows(config: Mapping[str, Any]) -> str:
    n = config["flow.n_flows"]
    return f"{plain(n)} {'flow' if n == 1 else 'flows'}"


def plan(
    runs: pd.DataFrame,
    sweep: table.Sweep,
    tables: Mapping[str, pd.DataFrame],
    skipped: list[ReportError] | None = None,
) -> dict[str, Callable[[], Figure | Film]]:
    """Name to drawing function, for every figure that the stored data allow; only what they need is read."""
    skipped = [] if skipped is None else skipped
    figures: dict[str, Callable[[], Figure | Film]] = {}
    for axis, frame in list(tables.items())[:AXES]:
        figures[f"ablation_{safe(axis)}"] = partial(draw_ablation, frame, swept(frame))
    independent = table.distinct(runs)
    near = differences(independent, sweep.centres).map(len) < 2  # learning curves are of one axis, or of the centre
    histories = table.load_histories(independent[near & (independent["status"] != "missing")], skipped=skipped)
    if len(histories):
        wanted = {axis: swept(frame)[0] for axis, frame in tables.items() if len(swept(frame)) == 1}
        for axis, column in {"centre": None, **wanted}.items():
            curves, means = learning_curves(independent, histories, sweep.centres, column)
            if len(curves):
                title = f"validation NLL by {column}" if column else "NLL of the runs at the centre"
                figures[f"convergence_{safe(axis)}"] = partial(draw_convergence, curves, means, title)
    for kind, pictures in CLOUDS.items():
        for target in sorted(set(runs["data.name"])):
            row = exemplar(runs, sweep.centres, target, kind, skipped=skipped)
            if row is not None:
                own = (row["arrays"], _title(row))
                figures |= {f"{name}_{safe(target)}": partial(draw, *own) for name, draw in pictures.items()}
    found = {t: exemplar(runs, sweep.centres, t, "summary", skipped=skipped) for t in list(sweep.centres)[:SUMMARISED]}
    shown = {t: row for t, row in found.items() if row and not row["differs"]}
    if len(shown) > 1:  # one target has all of it in its density and gallery
        title = f"{sweep.name}, centre of the study: {', '.join(dict.fromkeys(map(_flows, shown.values())))}"
        arrays = {t: row["arrays"] for t, row in shown.items()}
        figures["summary_centre"] = partial(draw_summary, arrays, *centre_scores(independent, sweep.centres), title)
    return figures


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Write NAME.png and NAME.pdf, the same bytes for the same data; returns the path of the PNG."""
    canvas = FigureCanvasAgg(figure)
    if engine := figure.get_layout_engine():
        engine.execute(figure)
        figure.set_layout_engine("none")  # the layout just computed serves both formats
    with replacing(folder / f"{name}.png") as temporary:  # savefig would draw everything once more for each format
        canvas.print_png(temporary, metadata={"Software": None})
    with replacing(folder / f"{name}.pdf") as temporary:
        FigureCanvasPdf(figure).print_pdf(temporary, metadata={"CreationDate": None})
    return folder / f"{name}.png"


@contextmanager
def _bare_fonts() -> Iterator[None]:
    """Embed fonts in PDFs without their tables for shaping text, which no PDF needs and which cost half of its time."""
    load = fontTools.subset.load_font

    def load_bare(*arguments: Any, **keywords: Any) -> Any:
        font = load(*arguments, **keywords)
        for tag in {"GDEF", "GPOS", "GSUB", "kern"} & set(font.keys()):
            del font[tag]
        return font

    fontTools.subset.load_font = load_bare
    try:
        yield
    finally:
        fontTools.subset.load_font = load


def draw(folder: Path, tasks: Mapping[str, Callable[[], Figure | Film]]) -> None:
    """Draw each task into `folder` under its name: a figure as PNG and PDF, a film as GIF."""
    with mpl.rc_context(fname=STYLE), _bare_fonts(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a letter of a foreign name: drawn as a box
        for name, task in tasks.items():
            picture = task()
            if isinstance(picture, Figure):
                save(picture, folder, name)
            else:
                save_film(picture, folder, name)


def _draw_with_pens(folder: Path, tasks: Mapping[str, Callable[[], Figure | Film]]) -> None:
    """Draw `tasks` in this process and a few more, one per core; a share whose pen fails is drawn here.

    Pens are plain interpreters that get their share on standard input: unlike a forked or spawned process pool they
    need nothing of the calling program.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    n = min(cores, PENS, 1 + len(tasks) // SHARE) if sys.executable else 1
    own, *others = [dict(list(tasks.items())[i::n]) for i in range(n)]
    places = [*filter(os.path.isabs, sys.path), str(Path(__file__).parents[3])]  # not the folder one happens to be in
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    pens = []
    for share in others:
        with tempfile.TemporaryFile() as file:
            pickle.dump((folder, share), file)
            file.seek(0)
            pens.append(subprocess.Popen([sys.executable, "-P", "-m", "nfexp.report.figures.pen"], stdin=file,
                                         stderr=subprocess.DEVNULL, env=environment))  # fmt: skip
    try:
        draw(folder, own)
    except BaseException:
        for pen in pens:
            pen.kill()
            pen.wait()
        raise
    failed = [share for pen, share in zip(pens, others, strict=True) if pen.wait()]
    for share in failed:
        draw(folder, share)


def draw_all(
    out_dir: Path,
    runs: pd.DataFrame,
    sweep: table.Sweep,
    tables: Mapping[str, pd.DataFrame],
    *,
    only: Sequence[str] = ("*",),
    skipped: list[ReportError] | None = None,
) -> dict[str, Path]:
    """Draw what the data allow into `out_dir`/figures, as PNG and PDF or GIF; name to path of the PNG or GIF.

    Parameters
    ----------
    out_dir
        The folder that gets `figures/`.
    runs, sweep, tables
        From :func:`nfexp.load_runs`, :func:`nfexp.analysis.table.load_sweep` and
        :func:`nfexp.analysis.statistics.ablations`.
    only
        Names or patterns (``gallery_*``); ``*`` alone leaves out the films (``gif_*``), which take seconds each.
    skipped
        Gets the files that cannot be read.

    Raises
    ------
    ReportError
        If a name or pattern fits no figure that can be drawn, or the folder cannot be written.
    """
    figures = plan(runs, sweep, tables, skipped)
    chosen: dict[str, Callable[[], Figure | Film]] = {}
    for pattern in only:
        names = [n for n in fnmatch.filter(figures, pattern) if pattern != "*" or not n.startswith("gif_")]
        if not names and pattern != "*":
            raise ReportError("figures", f"one of {', '.join(figures) or 'none'}", repr(pattern))
        chosen |= {name: figures[name] for name in names}
    folder = own_folder(Path(out_dir) / "figures")
    try:
        _draw_with_pens(folder, chosen)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return {name: folder / f"{name}.{'gif' if name.startswith('gif_') else 'png'}" for name in chosen}


def own_folder(folder: Path) -> Path:
    """Make a folder for output; ReportError where a symlink would lead the output elsewhere, or it cannot be made."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.is_symlink():
            folder.mkdir(exist_ok=True)
            return folder
    except OSError as error:
        raise cannot_write(folder, error) from error
    raise ReportError(folder, "a folder", "a symbolic link")


def output(dirs: Sequence[str | Path], out: str | Path | None) -> Path:
    """The folder to write to: `out`, or else the one that is read; never one with runs of its own among others.

    Raises
    ------
    ReportError
        If several folders are read and none is named for the output, or one that holds other runs.
    """
    if not dirs:
        raise ReportError("dirs", "at least one directory", "none")
    if not all(map(os.path.isdir, dirs)):
        return Path(dirs[0])  # nothing is written: what is absent is said where it is read
    read = {os.path.realpath(d) for d in dirs}
    if out is None:
        if len(read) > 1:
            raise ReportError("out", "out=PATH, since several folders are read", "none")
        return Path(dirs[0])
    folder = Path(out)
    place = os.path.realpath(folder)
    holds_runs = any(os.path.lexists(os.path.join(place, name)) for name in ("result.json", "sweep.json"))
    if read != {place} and (holds_runs or place in read):
        raise ReportError("out", "a folder without runs of its own", str(folder))
    return folder


USAGE = Usage(
    command="nfexp-plot",
    purpose="Draw figures from the stored results of runs and sweeps, without training; print their paths.",
    folders=RUNS,
    options={
        "figures=NAME,PATTERN_*": "which ones, by name or pattern (quote it); all but films (gif_*) if not given",
        "out=PATH": "where figures/ goes; needed for several folders",
    },
    examples=[
        "nfexp-plot outputs/sweeps/ablations/2026-01-31_12-00-00",
        "nfexp-plot outputs/runs/2026-01-31_12-00-00 'figures=gallery_*,gif_walk_*' out=pictures",
    ],
)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """``nfexp-plot DIR… [figures=NAME,PATTERN_*] [out=PATH]``: draw from stored results and print the paths."""
    return run(USAGE, argv, _plot)


def _plot(folders: list[str], options: dict[str, str]) -> int:
    out = output(folders, options.get("out"))
    found = table.collect(*folders)
    tables = stats.ablations(found.runs, found.sweep.centres)
    words = options.get("figures", "*")
    if words[0] + words[-1] == "[]":  # as Hydra spells a list
        words = words[1:-1]
    only = [name.strip() for name in words.split(",") if name.strip()]
    for path in draw_all(out, found.runs, found.sweep, tables, only=only).values():
        print(path)
    return 0
