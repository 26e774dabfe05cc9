"""The report's contents as HTML, Markdown and plain text."""

from __future__ import annotations

import base64
import html
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from nfexp.report.contents import (
    BADGES,
    BASELINES_NOTE,
    HEADINGS,
    IMAGE_BASELINES_NOTE,
    ROUNDS_RULE,
    RULE,
    Contents,
    caption,
)
from nfexp.report.results import AblationTable, Cell
from nfexp.report.verdicts import verdicts
from nfexp.spec import counted

DOTS = 150  # per inch, of the PNG files
CSS_DOTS = 96  # per inch, of a page


def to_html(contents: Contents) -> str:
    """One file: style inline, figures as base64, no script, nothing fetched."""
    return _page("report.html.j2", contents, autoescape=True)


def to_markdown(contents: Contents) -> str:
    """The report in the order of the HTML, figures linked relatively."""
    how = {"autoescape": False, "finalize": _markdown, "keep_trailing_newline": True}
    return _page("report.md.j2", contents, **how)


def _page(template: str, contents: Contents, **how: Any) -> str:
    templates = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=templates, trim_blocks=True, lstrip_blocks=True, **how)
    environment.filters["embedded"] = embedded
    words: Mapping[str, Any] = {
        "headings": HEADINGS,
        "caption": caption,
        "rule": RULE,
        "rounds_rule": ROUNDS_RULE,
        "badges": BADGES,
        "baselines_note": BASELINES_NOTE,
        "image_baselines_note": IMAGE_BASELINES_NOTE,
    }
    return environment.get_template(template).render(**vars(contents), **words)


@dataclass(frozen=True)
class Embedded:
    """A picture within a page."""

    source: str  # a data URI
    width: int  # CSS pixels


def embedded(path: Path) -> Embedded:
    """A PNG for a page, so wide that its text is as large as in print."""
    png = path.read_bytes()
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    width = int.from_bytes(png[16:20])  # the header of every PNG has it there
    return Embedded(source, width * CSS_DOTS // DOTS)


def _markdown(text: object) -> str:
    """Text as GitHub's Markdown shows it literally; what is marked safe is Markdown already."""
    if isinstance(text, Markup):
        return text
    escaped = html.escape(str(text), quote=False)
    escaped = re.sub(r"([\\`*|~])", r"\\\1", escaped)
    return " ".join(escaped.split()).replace("](", "]\\(")


def claim_lines(judged: pd.DataFrame, width: int = 100) -> list[str]:
    """The claims as plain text that fits a terminal of `width` columns."""
    selected = verdicts(judged)
    lines = []
    for claim in selected.shown:
        first, *more = textwrap.wrap(claim.sentence, width - 22) or [""]
        lines.append(f"{claim.claim:<6} {claim.verdict:<13} {first}")
        for sentence in more:
            lines.append(f"{'':21}{sentence}")
        if claim.rounds:
            lines.append(f"{'':21}{claim.rounds}")
        for row in claim.targets:
            name = f"{row.target:<13.13}"
            estimate = f"{row.estimate:<32.32}"
            lines.append(f"{'':7}{row.verdict:<13} {name} {estimate} n = {row.n}")
    if selected.n_hidden:
        why = "this sweep holds nothing to judge them by"
        lines.append(f"{counted(selected.n_hidden, 'claim')} not listed: {why}")
    return [line.rstrip() for line in lines]


def ablation_lines(ablation: AblationTable) -> list[str]:
    """An ablation as plain text: a line for each swept value, a column for each target.

    A cell is the mean score over seeds with its 95% interval and the number of runs; ``*`` marks
    the centre of the study, and what did not complete is said.
    """
    rows = [[*ablation.columns, *ablation.targets]]
    for line in ablation.lines:
        values = list(line.values)
        if line.centre:
            values[-1] += " *"
        rows.append([*values, *map(_cell_text, line.cells)])
    widths = []
    for column in zip(*rows, strict=True):
        widths.append(max(map(len, column)))
    unit = ablation.measure if ablation.measure == "bits/dim" else f"{ablation.measure}, nats"
    lines = [f"{unit}, mean [95% interval over seeds], by {ablation.axis}:"]
    for row in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines


def _cell_text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return " ".join([cell.kl, f"n={cell.n}", *cell.troubles])
