"""The report of a sweep: tables, figures, report.md, and one self-contained report.html."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from nfexp import usages
from nfexp.analysis import claims, table
from nfexp.analysis import statistics as stats
from nfexp.analysis.claims.images import claims_of_sources
from nfexp.analysis.claims.looks import evaluate_in_rounds
from nfexp.analysis.claims.own import claims_of
from nfexp.analysis.table import cannot_write
from nfexp.analysis.table.baselines import load_baselines
from nfexp.commands import folder_word
from nfexp.files import replacing
from nfexp.report import figures
from nfexp.report.contents import contents_of
from nfexp.report.explorer import EXPLORER, lacking, write_explorer
from nfexp.report.folders import output_folder, own_folder
from nfexp.report.layouts import ablation_lines, claim_lines, to_html, to_markdown
from nfexp.report.results import AblationTable
from nfexp.report.tex import ablation_tex, baselines_tex, claims_tex
from nfexp.report.words import file_name
from nfexp.surroundings import command
from nfexp.usage import run

SHOWN_LINES = 40  # of ablations, at the end of a sweep


@dataclass(frozen=True)
class Report:
    """A finished report: its page, the verdicts on the claims, the ablations of its axes."""

    page: Path
    judged: pd.DataFrame
    axes: Sequence[AblationTable]


def _make(dirs: Sequence[str | Path], out: str | Path | None, *, explorer: bool) -> Report:
    folder = output_folder(dirs, out)
    try:
        return _write(dirs, folder, explorer=explorer)
    except OSError as error:
        raise cannot_write(folder, error) from error


def _write(dirs: Sequence[str | Path], folder: Path, *, explorer: bool) -> Report:
    """Read, compute, write: tables first, then figures, at last the pages that show both."""
    collected = table.collect(*dirs, cache=folder)
    centres = collected.sweep.centres
    tables = stats.ablations(collected.runs, centres)
    judged = _judged(collected.runs, collected.sweep)
    unread: list[table.ReportError] = []
    fits = load_baselines(*dirs, skipped=unread)
    table.skip(unread, collected.skipped)
    tex_folder = own_folder(folder / "tables")
    table.write_runs(collected.runs, folder / "runs.csv")
    table.write_csv(judged, folder / "claims.csv")
    for axis, ablation in tables.items():
        table.write_csv(ablation, folder / f"ablation_{file_name(axis)}.csv")
    # also adds to found.skipped what it cannot read, which the pages list
    pictures = figures.draw_all(
        folder, collected.runs, collected.sweep, tables, skipped=collected.skipped
    )
    has_explorer = explorer and not lacking()
    if has_explorer:
        write_explorer(collected, judged, folder, skipped=collected.skipped)
    else:
        (folder / EXPLORER).unlink(missing_ok=True)  # an older one would tell of other runs
    arguments = shlex.join(map(folder_word, dirs))
    contents = contents_of(
        collected, tables, judged, pictures, arguments, fits, has_explorer=has_explorer
    )
    for axis_table in contents.axes:
        _write_text(ablation_tex(axis_table), tex_folder / f"{axis_table.file}.tex")
    _write_text(claims_tex(judged), tex_folder / "claims.tex")
    if contents.baselines:
        _write_text(baselines_tex(contents.centre), tex_folder / "baselines.tex")
    _write_text(to_markdown(contents), folder / "report.md")
    _write_text(to_html(contents), folder / "report.html")
    return Report(folder / "report.html", judged, contents.axes)


def _judged(runs: pd.DataFrame, sweep: table.Sweep) -> pd.DataFrame:
    """The verdicts on the claims; of seeds in rounds those of the first look that decided."""
    if sweep.rounds is None:
        judged = []
        for claims_of_group, targets in claims_of_sources(sweep.centres):
            centres = {target: sweep.centres[target] for target in targets}
            judged.append(claims.evaluate(of_sources(runs), centres, claims_of_group))
        if sweep.contrasts:
            judged.append(claims.evaluate(runs, sweep.centres, claims_of(sweep.contrasts)))
        return pd.concat(judged, ignore_index=True)
    if sweep.rounds.margin is None and not sweep.contrasts:
        runs = of_sources(runs)
    return evaluate_in_rounds(runs, sweep.centres, sweep.rounds, sweep.contrasts)


def of_sources(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs on targets of known density and on images.

    The claims of the sources are about those.
    """
    if "data.digest" not in runs:
        return runs
    is_told_of = runs["data.digest"].isna()
    if "data.target" in runs:  # one of the user's own has a digest, too
        is_told_of |= runs["data.target"].notna()
    if "flow.kind" in runs:
        is_told_of |= runs["flow.kind"] == "image"
    return runs[is_told_of]


def _write_text(text: str, path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def build(*dirs: str | Path, out: str | Path | None = None, explorer: bool = True) -> Path:
    """Write tables, figures and reports of the runs below `dirs` into `out`; path of the HTML.

    One folder gets its report itself where `out` is not given; several need one that holds no runs
    of its own. `explorer` also writes explorer.html, where its libraries are installed.

    Raises
    ------
    ReportError
        If there are no readable runs, or the folder cannot be written.
    """
    return _make(dirs, out, explorer=explorer).page


@command
def main(argv: Sequence[str] | None = None) -> int:
    """``nfexp-report DIR… [out=PATH] [explorer=false]``: build the report.

    Print the claims and its path.
    """
    return run(usages.REPORT, argv, _report)


def _report(folders: list[str], options: dict[str, str]) -> int:
    wanted = options.get("explorer", "true")
    if wanted not in ("true", "false"):
        raise table.ReportError("explorer", "true or false", wanted)
    made = _make(folders, options.get("out"), explorer=wanted == "true")
    for line in _summary(made):
        print(line)
    explorer = made.page.with_name(EXPLORER)
    if explorer.exists():
        print(table.printable(explorer, 4096))
    print(table.printable(made.page, 4096))
    return 0


def _summary(made: Report) -> list[str]:
    """What a command prints of a report.

    The ablations that a screen has room for, and the claims.
    """
    lines: list[str] = []
    left_out = []
    for axis_table in made.axes:
        shown = ablation_lines(axis_table)
        if len(lines) + len(shown) > SHOWN_LINES:
            left_out.append(axis_table.axis)
        else:
            lines += shown
    if left_out:
        lines.append(f"on the page: the ablations by {', '.join(left_out)}")
    return lines + claim_lines(made.judged)
