"""The report's contents as HTML, Markdown, TeX and plain text."""

from __future__ import annotations

import base64
import html
import re
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from nfexp.analysis.table.records import rows_of
from nfexp.report.contents import BASELINES_NOTE, HEADINGS, caption, verdicts
from nfexp.report.words import interval


def _page(template: str, data: Mapping[str, Any], **how: Any) -> str:
    home = Environment(loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True, **how)
    home.filters["picture"] = _picture
    return home.get_template(template).render(**data, headings=HEADINGS, caption=caption, baselines_note=BASELINES_NOTE)


def to_html(data: Mapping[str, Any]) -> str:
    """One file: style inline, figures as base64, no script, nothing fetched."""
    return _page("report.html.j2", data, autoescape=True)


def to_markdown(data: Mapping[str, Any]) -> str:
    """The report in the order of the HTML, figures linked relatively."""
    return _page("report.md.j2", data, autoescape=False, finalize=_md, keep_trailing_newline=True)


def _picture(path: Path) -> tuple[str, int]:
    """A PNG as a data URI, and the width in CSS pixels at which its text is as large as in print."""
    png = path.read_bytes()
    return "data:image/png;base64," + base64.b64encode(png).decode(), int.from_bytes(png[16:20]) * 96 // 150


def _md(text: object) -> str:
    """Text as GitHub-flavoured Markdown shows it literally; what is marked safe is Markdown already."""
    if isinstance(text, Markup):
        return text
    escaped = re.sub(r"([\\`*|~])", r"\\\1", html.escape(str(text), quote=False))
    return " ".join(escaped.split()).replace("](", "]\\(")


TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", '"': "''", "–": "--",
    "—": "---", "−": "$-$", "≥": r"$\geq$", "≤": r"$\leq$", "≠": r"$\neq$", "≈": r"$\approx$", "×": r"$\times$",
    "±": r"$\pm$", "…": r"\ldots{}", "‖": r"$\|$", "→": r"$\to$", "∞": r"$\infty$", "·": r"$\cdot$", "²": "$^2$",
    "σ": r"$\sigma$", "Δ": r"$\Delta$", "θ": r"$\theta$", "π": r"$\pi$", "‘": "`", "’": "'", "“": "``", "”": "''",
}  # fmt: skip


def tex(text: object) -> str:
    """Text that pdflatex prints as it is; letters it does not know lose their accents or become a question mark.

    >>> tex("n_flows = 50% & more"), tex("-0.01 [−0.02, 0]")
    ('n\\\\_flows = 50\\\\% \\\\& more', '$-$0.01 [$-$0.02, 0]')
    """
    flat = re.sub(r"(?<![\w.-])-(?=[\d.])", "−", " ".join(str(text).split()))
    out = "".join(
        TEX.get(c) or (c if c.isascii() else unicodedata.normalize("NFKD", c).encode("ascii", "ignore").decode() or "?")
        for c in flat
    )
    return "{}" + out if out.startswith(("[", "*")) else out


def to_tex(head: Sequence[str], rows: Sequence[Sequence[object]], *, about: str, label: str, layout: str = "") -> str:
    """A booktabs table; one that outgrows a page becomes a longtable. Head and cells are escaped here."""
    frame = pd.DataFrame([[tex(c) for c in row] for row in rows], columns=[tex(h) for h in head])
    long = len(rows) > 40
    needs = r"\usepackage{booktabs}" + (r" \usepackage{longtable}" if long else "")
    body = frame.style.hide(axis="index").to_latex(
        hrules=True,
        column_format=layout or "l" * len(head),
        caption=tex(about),
        label="tab:" + re.sub(r"[^a-z0-9]+", "-", label.lower()),
        environment="longtable" if long else "table",
        position=None if long else "htbp",
        position_float=None if long else "centering",
    )
    return f"% {needs}\n{body}"


def axis_tex(section: Mapping[str, Any]) -> str:
    rows = []
    for i, target in enumerate(section["targets"]):
        cells = [(line["values"], line["cells"][i]) for line in section["rows"] if line["cells"][i]]
        for j, (values, cell) in enumerate(cells):
            runs = "; ".join([str(cell["n"]), *cell["troubles"]])
            differs = "centre" if cell["centre"] else cell["diff"]
            rows.append([target if j == 0 else "", *values, cell["kl"], differs, runs])
    about = f"KL to the exact density, nats per point, by {' and '.join(section['columns'])}: mean [95% interval]."
    head = ["target", *section["columns"], "KL", "KL − centre", "runs"]
    return to_tex(head, rows, about=about, label=section["axis"])


def baselines_tex(centre: Sequence[Mapping[str, Any]]) -> str:
    seen, rows = None, []
    for r in centre:
        first, seen = r["target"] != seen, r["target"]
        model = f"{r['model']} ({r['chosen']})" if r["chosen"] else r["model"]
        rows.append([r["target"] if first else "", model, r["kl"], r["over"], r["test_nll"], r["n"]])
    about = "The centre of the study and, on the same draws, densities without a flow: mean [95% interval], nats."
    return to_tex(["target", "model", "KL", "KL − flow", "test NLL", "seeds"], rows, about=about, label="baselines")


def claims_tex(found: pd.DataFrame) -> str:
    rows = []
    for name, own in found.groupby("claim", sort=False):
        for i, r in enumerate(rows_of(own)):
            rows.append([name if i == 0 else "", r["sentence"] if i == 0 else "", r["target"],
                         interval(r["estimate"], r["low"], r["high"]), f"{r['n']:.0f}", r["verdict"]])  # fmt: skip
    head = ["claim", "sentence", "target", "estimate", "n", "verdict"]
    about = "Claims and verdicts: estimate with 95% interval, paired runs."
    return to_tex(head, rows, about=about, label="claims", layout="lp{5cm}llrl")


def claim_lines(found: pd.DataFrame, width: int = 100) -> list[str]:
    """The claims as plain text that fits a terminal of `width` columns."""
    shown, hidden = verdicts(found)
    out: list[str] = []
    for c in shown:
        first, *more = textwrap.wrap(c["sentence"], width - 22) or [""]
        out.append(f"{c['claim']:<6.6} {c['verdict']:<13} {first}")
        out += [" " * 21 + line for line in more]
        for t in c["targets"]:
            out.append(f"       {t['verdict']:<13} {t['target']:<13.13} {t['estimate']:<32.32} n = {t['n']}")
    if hidden:
        out.append(f"{hidden} claims not listed: this sweep holds none of their runs")
    return [line.rstrip() for line in out]
