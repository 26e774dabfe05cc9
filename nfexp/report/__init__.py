"""The report of a sweep: CSV and TeX tables, figures, report.md and one self-contained report.html."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from nfexp import claims, figures, stats, table
from nfexp.commands import folder_word
from nfexp.figures import safe
from nfexp.files import replacing
from nfexp.report.contents import content
from nfexp.report.layouts import axis_tex, baselines_tex, claim_lines, claims_tex, to_html, to_markdown
from nfexp.table import ReportError
from nfexp.table.baselines import load_baselines


def write_text(text: str, path: Path) -> Path:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _build(dirs: Sequence[str | Path], out: str | Path | None) -> tuple[Path, pd.DataFrame]:
    folder = Path(out if out is not None else dirs[0])
    try:
        found = table.collect(*dirs, cache=folder)
        runs, centres = found.runs, found.sweep.centres
        tables, judged = stats.ablations(runs, centres), claims.evaluate(runs, centres)
        fits = load_baselines(*dirs, skipped=(unread := []))
        table.skip(unread, found.skipped)
        own = figures.own_folder(folder / "tables")
        table.write_csv(runs.drop(columns="dir"), folder / "runs.csv")
        table.write_csv(judged, folder / "claims.csv")
        for axis, frame in tables.items():
            table.write_csv(frame, folder / f"ablation_{safe(axis)}.csv")
        pictures = figures.draw_all(folder, runs, found.sweep, tables, skipped=found.skipped)
        data = content(found, tables, judged, pictures, shlex.join(map(folder_word, dirs)), fits)
        for section in data["axes"]:
            write_text(axis_tex(section), own / f"{safe(section['axis'])}.tex")
        write_text(claims_tex(judged), own / "claims.tex")
        if data["baselines"]:
            write_text(baselines_tex(data["centre"]), own / "baselines.tex")
        write_text(to_markdown(data), folder / "report.md")
        return write_text(to_html(data), folder / "report.html"), judged
    except OSError as error:
        raise ReportError(folder, "a folder that can be written", error.strerror or error) from error


def build(*dirs: str | Path, out: str | Path | None = None) -> Path:
    """Write tables, figures and reports of the runs below `dirs` into `out` (the first of them); path of the HTML.

    Raises
    ------
    ReportError
        If there are no readable runs, or the folder cannot be written.
    """
    return _build(dirs, out)[0]


def main(argv: Sequence[str] | None = None) -> int:
    """``nfexp-report DIR… [out=PATH]``: build the report; print the claims and the path of report.html."""
    try:
        folders, options = figures.arguments(argv, "nfexp-report", {"out": "PATH"})
        path, found = _build(folders, options.get("out"))
    except ReportError as error:
        print(error, file=sys.stderr)
        return 2
    for line in claim_lines(found):
        print(line)
    print(table.printable(path, 4096))
    return 0
