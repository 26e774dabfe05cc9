"""Every figure of a sweep or of a single run, drawn again from its stored results alone."""

from __future__ import annotations

import fnmatch
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nfexp import stats, table
from nfexp.figures.clouds import draw_density, draw_gallery, draw_walk
from nfexp.figures.curves import draw_ablation, draw_convergence, plain
from nfexp.figures.frames import exemplar, learning_curves
from nfexp.files import replacing
from nfexp.table import ReportError

STYLE = Path(__file__).parents[1] / "nfexp.mplstyle"
FORMATS = {"png": {"Software": None}, "pdf": {"CreationDate": None}}  # the same data give the same bytes
CLOUDS = {"gallery": draw_gallery, "density": draw_density, "walk": draw_walk}

logging.getLogger("fontTools").setLevel(logging.WARNING)  # at INFO it logs every table of every font in a PDF


def swept(frame: pd.DataFrame) -> list[str]:
    """The one or two swept columns of an ablation table: those between the target and the counts."""
    columns = list(frame.columns)
    return [c for c in columns[: columns.index("n")] if c != "data.name"]


def safe(name: object) -> str:
    """A name that is fit for a file: letters, digits, dot, dash and underscore."""
    return re.sub(r"[^\w.-]", "_", str(name), flags=re.ASCII).lstrip(".") or "_"


def _title(kind: str, row: Mapping[str, object]) -> str:
    differs = [f"{c} = {plain(row[c])}" for c in row["differs"]]
    which = ", ".join(differs[:4]) + (", …" if len(differs) > 4 else "") if differs else "centre"
    kl = row.get("kl")
    score = f" · KL {kl:.3f} nats" if kind != "walk" and kl == kl and kl is not None else ""
    return f"{row['data.name']} · run {row['job']}, seed {row['seed']} ({which}){score}"


def plan(runs: pd.DataFrame, sweep: table.Sweep, tables: Mapping[str, pd.DataFrame]) -> dict[str, Callable[[], Figure]]:
    """Name to drawing function, for every figure that the stored data allow."""
    figures: dict[str, Callable[[], Figure]] = {}
    for axis, frame in tables.items():
        figures[f"ablation_{safe(axis)}"] = partial(draw_ablation, frame, swept(frame))
    histories = table.load_histories(runs[runs["status"] != "missing"])
    if len(histories):
        wanted = {axis: swept(frame)[0] for axis, frame in tables.items() if len(swept(frame)) == 1}
        for axis, column in {"centre": None, **wanted}.items():
            curves, means = learning_curves(runs, histories, sweep.centres, column)
            if len(curves):
                title = f"validation NLL by {column}" if column else "NLL of the runs at the centre"
                figures[f"convergence_{safe(axis)}"] = partial(draw_convergence, curves, means, title)
    for kind, draw in CLOUDS.items():
        for target in sorted(set(runs["data.name"])):
            row = exemplar(runs, sweep.centres, target, kind)
            if row is not None:
                figures[f"{kind}_{safe(target)}"] = partial(draw, row["arrays"], _title(kind, row))
    return figures


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Write NAME.png and NAME.pdf; returns the path of the PNG."""
    FigureCanvasAgg(figure)
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the layout just computed serves both formats
    for kind, metadata in FORMATS.items():
        with replacing(folder / f"{name}.{kind}") as temporary:
            figure.savefig(temporary, format=kind, metadata=metadata)
    return folder / f"{name}.png"


def draw_all(
    out_dir: Path,
    runs: pd.DataFrame,
    sweep: table.Sweep,
    tables: Mapping[str, pd.DataFrame],
    *,
    only: Sequence[str] = ("*",),
) -> dict[str, Path]:
    """Draw what the data allow into `out_dir`/figures, as PNG and PDF; name to path of the PNG.

    Parameters
    ----------
    out_dir
        The folder that gets `figures/`.
    runs, sweep, tables
        From :func:`nfexp.table.load_runs`, :func:`nfexp.table.load_sweep` and :func:`nfexp.stats.ablations`.
    only
        Names or patterns (``gallery_*``).

    Raises
    ------
    ReportError
        If a name or pattern fits no figure that can be drawn, or the folder cannot be written.
    """
    figures = plan(runs, sweep, tables)
    for pattern in only:
        if pattern != "*" and not fnmatch.filter(figures, pattern):
            raise ReportError("figures", f"one of {', '.join(figures) or 'none'}", repr(pattern))
    folder = Path(out_dir) / "figures"
    paths = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context(fname=STYLE):
            for name, draw in figures.items():
                if any(fnmatch.fnmatchcase(name, pattern) for pattern in only):
                    paths[name] = save(draw(), folder, name)
    except OSError as error:
        raise ReportError(folder, "a folder that can be written", error.strerror or error) from error
    return paths


def arguments(argv: Sequence[str] | None, command: str, options: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Split a command line into directories and `key=value` options; ReportError for anything else."""
    words = list(sys.argv[1:] if argv is None else argv)
    usage = f"{command} DIR… " + " ".join(f"[{k}={v}]" for k, v in options.items())
    if {"-h", "--help"} & set(words):
        print(f"usage: {usage}")
        raise SystemExit(0)
    found: dict[str, str] = {}
    folders = []
    for word in words:
        key, equals, value = word.partition("=")
        if word.startswith("-") and not Path(word).exists():
            raise ReportError(command, usage, f"the option {word}")
        if not equals or Path(word).exists() or not key.isidentifier():
            folders.append(word)
        elif key in options and value:
            found[key] = value
        else:
            raise ReportError(command, " or ".join(f"{k}={v}" for k, v in options.items()), word)
    if not folders:
        raise ReportError(command, usage, "no directory")
    return folders, found


def main(argv: Sequence[str] | None = None) -> int:
    """``nfexp-plot DIR… [figures=NAME,PATTERN] [out=PATH]``: draw from stored results and print the paths."""
    try:
        folders, options = arguments(argv, "nfexp-plot", {"figures": "NAME,PATTERN_*", "out": "PATH"})
        runs = table.load_runs(*folders)
        sweep = table.load_sweep(folders, runs)
        tables = stats.ablations(runs, sweep.centres)
        only = [name for name in options.get("figures", "*").split(",") if name]
        paths = draw_all(Path(options.get("out", folders[0])), runs, sweep, tables, only=only)
    except ReportError as error:
        print(error, file=sys.stderr)
        return 2
    for path in paths.values():
        print(path)
    return 0
