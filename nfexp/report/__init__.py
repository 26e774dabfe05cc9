"""The report of a sweep: CSV and TeX tables, figures, report.md and one self-contained report.html."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from nfexp.analysis import claims, table
from nfexp.analysis import statistics as stats
from nfexp.analysis.claims.looks import evaluate_in_rounds
from nfexp.analysis.table import cannot_write
from nfexp.analysis.table.baselines import load_baselines
from nfexp.commands import folder_word
from nfexp.files import replacing
from nfexp.report import figures
from nfexp.report.contents import content
from nfexp.report.figures import safe
from nfexp.report.layouts import axis_tex, baselines_tex, claim_lines, claims_tex, to_html, to_markdown
from nfexp.surroundings import command
from nfexp.usage import RUNS, Usage, run


def write_text(text: str, path: Path) -> Path:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _build(dirs: Sequence[str | Path], out: str | Path | None) -> tuple[Path, pd.DataFrame]:
    folder = figures.output(dirs, out)
    try:
        found = table.collect(*dirs, cache=folder)
        runs, centres = found.runs, found.sweep.centres
        tables, judged = stats.ablations(runs, centres), _judged(runs, found.sweep)
        unread: list[table.ReportError] = []
        fits = load_baselines(*dirs, skipped=unread)
        table.skip(unread, found.skipped)
        own = figures.own_folder(folder / "tables")
        table.write_runs(runs, folder / "runs.csv")
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
        raise cannot_write(folder, error) from error


def _judged(runs: pd.DataFrame, sweep: table.Sweep) -> pd.DataFrame:
    """The verdicts on the claims; of seeds that came in rounds, those of the first look that decided."""
    if sweep.rounds is None:
        return claims.evaluate(runs, sweep.centres)
    return evaluate_in_rounds(runs, sweep.centres, sweep.rounds)


def build(*dirs: str | Path, out: str | Path | None = None) -> Path:
    """Write tables, figures and reports of the runs below `dirs` into `out`; path of the HTML.

    One folder gets its report itself where `out` is not given; several need one that holds no runs of its own.

    Raises
    ------
    ReportError
        If there are no readable runs, or the folder cannot be written.
    """
    return _build(dirs, out)[0]


USAGE = Usage(
    command="nfexp-report",
    purpose="Make tables, figures and pages of runs and sweeps again; print the verdicts and the path of report.html.",
    folders=RUNS,
    options={"out=PATH": "where the report goes: the folder itself if not given; needed for several folders"},
    examples=[
        "nfexp-report outputs/sweeps/ablations/2026-01-31_12-00-00",
        "nfexp-report outputs/sweeps/ablations outputs/sweeps/blog out=both",
    ],
)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """``nfexp-report DIR… [out=PATH]``: build the report; print the claims and the path of report.html."""
    return run(USAGE, argv, _report)


def _report(folders: list[str], options: dict[str, str]) -> int:
    path, found = _build(folders, options.get("out"))
    for line in claim_lines(found):
        print(line)
    print(table.printable(path, 4096))
    return 0
