"""The explorer: `explorer.html`, a page to ask questions of a sweep with, beside its report."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from nfexp.analysis import table
from nfexp.files import replacing
from nfexp.report.explorer.contents import explorer_contents
from nfexp.report.explorer.libraries import HOW_TO_GET, lacking, load_libraries
from nfexp.report.explorer.page import to_page

__all__ = ["EXPLORER", "HOW_TO_GET", "lacking", "write_explorer"]

EXPLORER = "explorer.html"


def write_explorer(
    collected: table.Collection,
    judged: pd.DataFrame,
    folder: Path,
    *,
    skipped: list[table.ReportError] | None = None,
) -> Path:
    """Write the page of the runs `collected`, with the verdicts on the claims, into `folder`.

    Raises
    ------
    ReportError
        If the libraries that it embeds are not installed.
    """
    code = load_libraries()
    contents = explorer_contents(collected, judged, skipped=skipped)
    path = folder / EXPLORER
    with replacing(path) as temporary:
        temporary.write_text(to_page(contents, code), encoding="utf-8")
    return path
