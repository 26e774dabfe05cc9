"""The report's tables as TeX, for booktabs and pdflatex."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import pandas as pd

from nfexp.analysis.table.records import rows_of
from nfexp.report.results import AblationTable, CentreRow
from nfexp.report.words import interval

LONG = 40  # lines that fit on a page
LETTERS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": "$<$", ">": "$>$", "|": "$|$", '"': "''", "–": "--", "—": "---", "−": "$-$",
    "≥": r"$\geq$", "≤": r"$\leq$", "≠": r"$\neq$", "≈": r"$\approx$", "×": r"$\times$",
    "±": r"$\pm$", "…": r"\ldots{}", "‖": r"$\|$", "→": r"$\to$", "∞": r"$\infty$", "·": r"$\cdot$",
    "²": "$^2$", "σ": r"$\sigma$", "Δ": r"$\Delta$", "θ": r"$\theta$", "π": r"$\pi$",
    "‘": "`", "’": "'", "“": "``", "”": "''",
}  # fmt: skip


def tex(text: object) -> str:
    """Text that pdflatex prints as it is.

    Letters it does not know lose their accents or become a question mark.

    >>> tex("n_flows = 50% & more"), tex("-0.01 [−0.02, 0]")
    ('n\\\\_flows = 50\\\\% \\\\& more', '$-$0.01 [$-$0.02, 0]')
    """
    flat = " ".join(str(text).split())
    with_minus = re.sub(r"(?<![\w.-])-(?=[\d.])", "−", flat)  # a hyphen before a number
    escaped = "".join(map(_letter, with_minus))
    # after the end of a line of a table these would be arguments of its "\\"
    return "{}" + escaped if escaped.startswith(("[", "*")) else escaped


def _letter(letter: str) -> str:
    if letter in LETTERS:
        return LETTERS[letter]
    if letter.isascii():
        return letter
    without_accent = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return without_accent or "?"


def to_tex(
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    about: str,
    label: str,
    layout: str = "",
) -> str:
    """A booktabs table, or a longtable if it outgrows a page; head and cells are escaped here."""
    cells = []
    for row in rows:
        cells.append([tex(cell) for cell in row])
    frame = pd.DataFrame(cells, columns=[tex(name) for name in head])
    is_long = len(rows) > LONG
    packages = r"\usepackage{booktabs}"
    if is_long:
        packages += r" \usepackage{longtable}"
    body = frame.style.hide(axis="index").to_latex(
        hrules=True,
        column_format=layout or "l" * len(head),
        caption=tex(about),
        label="tab:" + re.sub(r"[^a-z0-9]+", "-", label.lower()),
        environment="longtable" if is_long else "table",
        position=None if is_long else "htbp",
        position_float=None if is_long else "centering",
    )
    return f"% {packages}\n{body}"


def ablation_tex(ablation: AblationTable) -> str:
    """One axis of the study: target by target, a line per swept value and per baseline."""
    rows = []
    for i, target in enumerate(ablation.targets):
        named = target  # in its first line only
        for line in ablation.lines:
            cell = line.cells[i]
            if cell is None:
                continue
            runs = "; ".join([str(cell.n), *cell.troubles])
            diff = "centre" if cell.centre else cell.diff
            rows.append([named, *line.values, cell.kl, diff, runs])
            named = ""
    columns = " and ".join(ablation.columns)
    measure = ablation.measure
    what = "KL to the exact density" if measure == "KL" else measure
    unit = "" if measure == "bits/dim" else ", nats per point"
    about = f"{what}{unit}, by {columns}: mean [95% interval]."
    head = ["target", *ablation.columns, measure, f"{measure} − centre", "runs"]
    return to_tex(head, rows, about=about, label=ablation.axis)


def baselines_tex(centre: Sequence[CentreRow]) -> str:
    """The flow at the centre of the study, and the baselines on its draws."""
    in_bits = any(row.test_bpd != "–" for row in centre)
    rows = []
    before = None
    for row in centre:
        target = "" if row.target == before else row.target
        before = row.target
        model = f"{row.model} ({row.chosen})" if row.chosen else row.model
        first = row.test_bpd if in_bits else row.kl
        rows.append([target, model, first, row.over, row.test_nll, row.n])
    measure = "bits/dim" if in_bits else "KL"
    head = ["target", "model", measure, f"{measure} − flow", "test NLL", "seeds"]
    unit = "bits/dim, NLL in nats" if in_bits else "nats"
    about = f"The centre of the study and, on the same draws, densities without a flow: mean [95% interval], {unit}."
    return to_tex(head, rows, about=about, label="baselines")


def claims_tex(judged: pd.DataFrame) -> str:
    """All rows of :func:`nfexp.analysis.claims.evaluate`."""
    rows = []
    for name, of_claim in judged.groupby("claim", sort=False):
        named = [str(name), of_claim["sentence"].iloc[0]]  # in its first line only
        for row in rows_of(of_claim):
            estimate = interval(row["estimate"], row["low"], row["high"])
            rows.append([*named, row["target"], estimate, f"{row['n']:.0f}", row["verdict"]])
            named = ["", ""]
    head = ["claim", "sentence", "target", "estimate", "n", "verdict"]
    about = "Claims and verdicts: estimate with 95% interval, paired runs."
    return to_tex(head, rows, about=about, label="claims", layout="lp{5cm}llrl")
