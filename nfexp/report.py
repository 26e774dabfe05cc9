"""The report of a sweep: CSV and TeX tables, figures, report.md and one self-contained report.html."""

from __future__ import annotations

import base64
import html
import re
import shlex
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from nfexp import claims, figures, stats, table
from nfexp.figures import safe, swept
from nfexp.figures.curves import plain, troubles
from nfexp.figures.frames import differences
from nfexp.files import replacing
from nfexp.table import ReportError
from nfexp.table.baselines import DATA, MODELS, data_key, load_baselines

BADGES = {"supported": "✓", "contradicted": "✗", "inconclusive": "?"}
TROUBLES = ("diverged", "failed", "missing")
CELL = 80  # letters of a value in a cell
RULE = (
    "Intervals are of one target each; verdicts are corrected over a claim's targets (Holm), so that an interval that "
    "just clears the margin can still be inconclusive. A difference that is not significant is not an equality."
)
LISTED = 1000  # runs that did not complete, and files that could not be read: the rest is in runs.csv and on stderr


def number(value: object) -> str:
    """Three decimals, fewer from 10 on, scientific where neither says anything; "–" if missing.

    >>> number(0.04123), number(0.00023), number(0.00002), number(386.42), number(None)
    ('0.041', '0.0002', '2e-05', '386', '–')
    """
    if value is None or value != value:
        return "–"
    x = float(value)
    if x == 0 or 1e-4 <= abs(x) < 1e6:
        return f"{x:.{4 if 0 < abs(x) < 1e-3 else 3 if abs(x) < 10 else 1 if abs(x) < 100 else 0}f}"
    return f"{x:.1e}".replace(".0e", "e")


def interval(mean: object, low: object, high: object) -> str:
    """A mean with its interval, "0.041 [0.036, 0.049]"; the mean alone where there is none."""
    return number(mean) + (f" [{number(low)}, {number(high)}]" if low == low and low is not None else "")


def duration(seconds: float) -> str:
    """Seconds as people say them: 12.3 s, 4.5 min, 2.1 h."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


# What the report says, as plain data: the templates below only lay it out.


def verdicts(found: pd.DataFrame) -> tuple[list[dict[str, Any]], int]:
    """Claims in their order, each with its verdicts per target and over all; and how many have no data at all."""
    shown, hidden = [], 0
    for name, rows in found.groupby("claim", sort=False):
        notes = rows["note"].astype(str)
        if (rows["n"] == 0).all() and (notes.str.contains("missing: ") & ~notes.str.contains("lost more than")).all():
            hidden += 1
            continue
        first = rows.iloc[0]
        parts = rows[rows["target"] != "all"] if rows["estimate"].notna().any() and len(rows) > 1 else rows.tail(1)
        shown.append(
            {
                "claim": name,
                "source": first["source"],
                "sentence": first["sentence"],
                "verdict": rows["verdict"].iloc[-1],  # the row for all targets
                "estimand": first["estimand"],
                "margin": plain(first["margin"]),
                "note": first["note"] if len(parts) == 1 else rows["note"].iloc[-1],
                "rows": max(rows["rows"], key=len),
                "targets": [
                    {
                        **{k: row[k] for k in ("target", "verdict")},
                        "estimate": interval(row["estimate"], row["low"], row["high"]),
                        "tested": f"bootstrap [{number(row['boot_low'])}, {number(row['boot_high'])}], p = "
                        f"{number(row['p_for'])} for, {number(row['p_against'])} against, "
                        f"by signs {row['sign_verdict']}",
                        "n": f"{row['n']:.0f}",
                        "note": "" if row["note"] != row["note"] or row["note"] is None else row["note"],
                    }
                    for row in parts.to_dict("records")
                ],
            }
        )
    return shown, hidden


Fits = Mapping[tuple[Any, ...], pd.DataFrame]  # baselines by data_key
ENDS = ("mean", "low", "high")


def centre_results(
    runs: pd.DataFrame, centres: Mapping[str, Mapping[str, Any]], fits: Fits | None = None
) -> list[dict[str, Any]]:
    """The centre of the study, per target: mean and 95% interval over seeds of its metrics, then of its baselines."""
    at_centre = runs[[not d for d in differences(runs, centres)]]
    out = []
    for target, own in at_centre.groupby("data.name"):
        done = own[own["status"] == "completed"]
        counts = {"n": len(done)} | {f"n_{t}": int((own["status"] == t).sum()) for t in TROUBLES}
        cell = {
            k: interval(*stats.mean_interval(done[k].dropna().to_numpy(float)))
            for k in ("kl", "test_nll", "true_nll", "clean_distance", "seconds")
        }
        cell |= {"true_nll": number(done["true_nll"].mean()), "seconds": number(done["seconds"].mean())}
        out.append(
            {
                "target": target,
                "model": "flow",
                "chosen": "",
                "over": "",
                **cell,
                "n": len(done),
                "troubles": troubles(counts),
            }
        )
        found = (fits or {}).get(data_key(centres[target]))
        if found is not None:
            flow = done.drop_duplicates("seed").set_index("seed")["kl"]
            for row in stats.references(found, flow).to_dict("records"):
                cell = {k: interval(*(row[f"{k}_{end}"] for end in ENDS)) for k in ("kl", "test_nll", "over")}
                cell |= {"true_nll": number(row["true_nll_mean"]), "seconds": number(row["seconds_mean"])}
                cell["over"] = ("+" if row["over_mean"] > 0 else "") + cell["over"]
                out.append({"target": target, "model": MODELS[row["model"]], "chosen": _chosen(row), **cell,
                            "clean_distance": "–", "n": row["n"], "troubles": []})  # fmt: skip
    return out


def _chosen(row: Mapping[str, Any]) -> str:
    """What was chosen for a baseline, over the seeds: 12–13 components."""
    least, most = row["least"], row["most"]
    if row["model"] == "mixture":
        return f"{least:.0f}{f'–{most:.0f}' if most > least else ''} components"
    if row["model"] == "kde":
        return f"bandwidth {least:.2g}{f'–{most:.2g}' if most > least else ''} sd"
    return ""


def axis_section(
    axis: str,
    frame: pd.DataFrame,
    centres: Mapping[str, Mapping[str, Any]] | None = None,
    fits: Fits | None = None,
) -> dict[str, Any]:
    """One ablation as a table with a row per swept value and a cell per target.

    Below the last row of a sample count and noise stand the baselines on the same draws.
    """
    columns, targets = swept(frame), list(dict.fromkeys(frame["data.name"]))
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    draws: dict[tuple[str, ...], dict[str, Any]] = {}  # the part of the values that says what is learned from
    numeric = [c for c in columns if pd.api.types.is_numeric_dtype(frame[c])]
    for row in frame.sort_values(numeric, kind="stable").to_dict("records") if numeric else frame.to_dict("records"):
        value = tuple(plain(row[c]) for c in columns)
        differs = interval(row["kl_diff_mean"], row["kl_diff_low"], row["kl_diff_high"])
        draws[value] = {c: row[c] for c in columns if c in DATA}
        rows.setdefault(value, {})[row["data.name"]] = {
            "kl": interval(row["kl_mean"], row["kl_low"], row["kl_high"]),
            "diff": "" if row["is_centre"] or differs == "–" else ("" if differs[0] == "-" else "+") + differs,
            "n": int(row["n"]),
            "troubles": troubles(row),
            "centre": bool(row["is_centre"]),
        }
    last = {tuple(draws[value].values()): value for value in rows}
    lines = []
    for value, cells in rows.items():
        shown = [table.printable(v, CELL) for v in value]
        lines.append({"values": shown, "cells": [cells.get(t) for t in targets], "baseline": False,
                      "centre": any(c["centre"] for c in cells.values())})  # fmt: skip
        if fits and centres and last[tuple(draws[value].values())] == value:
            found = [fits.get(data_key(centres[t] | draws[value])) for t in targets]
            lines += _baseline_lines([c if c in DATA else None for c in columns], shown, found)
    return {"axis": axis, "columns": columns, "targets": targets, "rows": lines, "file": safe(axis)}


def _baseline_lines(
    columns: Sequence[str | None], shown: Sequence[str], found: Sequence[pd.DataFrame | None]
) -> list[dict[str, Any]]:
    """A line per model with a cell per target: named in a column that has no say in the draws (None), if there is."""
    cells: dict[str, list[Any]] = {model: [None] * len(found) for model in MODELS}
    for i, fits in enumerate(found):
        for row in [] if fits is None else stats.references(fits).to_dict("records"):
            kl = interval(*(row[f"kl_{end}"] for end in ENDS))
            cells[row["model"]][i] = {"kl": kl, "diff": "", "n": row["n"], "troubles": [], "centre": False}
    lines = []
    for model, name in MODELS.items():
        values = [v if c else "" for c, v in zip(columns, shown, strict=True)]
        at = list(columns).index(None) if None in columns else 0
        values[at] = f"{values[at]}, {name}" if values[at] else name
        lines.append({"values": values, "cells": cells[model], "baseline": True, "centre": False})
    return [line for line in lines if any(line["cells"])]


def contents(found: table.Collection, tables: Mapping[str, pd.DataFrame], judged: pd.DataFrame,
             pictures: Mapping[str, Path], command: str, fits: pd.DataFrame) -> dict[str, Any]:  # fmt: skip
    """Everything the report says, ready to be laid out."""
    runs, sweep = found.runs, found.sweep
    counts = runs["status"].value_counts().to_dict()
    shown, hidden = verdicts(judged)
    tally = {v: sum(c["verdict"] == v for c in shown) for v in BADGES}
    bad = runs[runs["status"] != "completed"]
    listed = bad[:LISTED]
    by_draws = dict(iter(fits.groupby(fits.apply(data_key, axis=1)))) if len(fits) else {}
    common = {k: {str(c.get(k)) for c in sweep.centres.values()} for c in sweep.centres.values() for k in c}
    return {
        "title": sweep.name,
        "facts": {
            "runs": ", ".join([f"{counts.get('completed', 0)} completed of {max(sweep.planned, len(runs))} planned"]
                              + [f"{counts[s]} {s}" for s in TROUBLES if counts.get(s)]),
            "targets": ", ".join(sorted(map(str, set(runs["data.name"])))),
            "seeds": table.printable(_ranges(runs["seed"])),
            "training": f"{duration(float(runs['seconds'].sum()))} in all",
            "versions": ", ".join(f"{k} {' / '.join(v)}" for k, v in found.versions.items()),
            "skipped": f"{len(found.skipped)} unreadable" if found.skipped else "",
        },
        "verdicts": shown,
        "rule": RULE,
        "hidden": hidden,
        "tally": {k: v for k, v in tally.items() if v},
        "badges": BADGES,
        "centre": centre_results(runs, sweep.centres, by_draws),
        "baselines": bool(by_draws),
        "axes": [axis_section(axis, frame, sweep.centres, by_draws) for axis, frame in tables.items()],
        "pictures": {kind: {n.removeprefix(kind + "_"): p for n, p in pictures.items() if n.startswith(kind + "_")}
                     for kind in ("ablation", *HEADINGS)},
        "bad": [{"job": r["job"], "status": r["status"], "target": r["data.name"], "seed": plain(r["seed"]),
                 "differs": ", ".join(f"{c} = {table.printable(plain(r[c]), CELL)}" for c in d) or "centre",
                 "at": plain(r["diverged_at"]) if r["diverged_at"] == r["diverged_at"] else "–",
                 "reason": found.reasons.get(r["dir"]) or ("planned, no result" if r["status"] == "missing" else "–")}
                for r, d in zip(listed.to_dict("records"), differences(listed, sweep.centres), strict=True)],
        "n_bad": len(bad),
        "skipped": [str(error) for error in found.skipped[:LISTED]],
        "n_skipped": len(found.skipped),
        "config": [(k, table.printable(next(iter(v)), CELL) if len(v) == 1 else
                    ", ".join(f"{t}: {table.printable(plain(c.get(k)), CELL)}" for t, c in sweep.centres.items()))
                   for k, v in common.items() if k not in ("name", "data.name", "seed", "device")],
        "command": table.printable(command, 4096),
    }  # fmt: skip


def _ranges(seeds: Iterable[Any]) -> str:
    """Distinct whole numbers, runs of them as ranges: 0–2, 7."""
    known = sorted({int(s) for s in seeds})
    starts = [s for s in known if s - 1 not in known]
    ends = [s for s in known if s + 1 not in known]
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in zip(starts, ends, strict=True))


CAPTIONS = {
    "ablation": "KL to the exact density by {0}, one panel per target; what did not complete is written at its value.",
    "convergence": "Validation NLL above the target's own, by {0}: thin lines are runs, thick lines their means.",
    "centre": "NLL above the target's own at the centre of the study, on training and validation points.",
    "gallery": "{0}: base draw, training points, samples at recorded steps (from one base draw), best model.",
    "density": "{0}: learned density beside the exact one, in the same colours, and log q − log p where p counts.",
    "walk": "{0}: the same base points and grid after every layer, coloured by the quadrant they started in.",
    "summary": "Target draws, flow samples and learned density of one run; KL of all seeds, mean and 95% interval.",
}
HEADINGS = {
    "summary": "The centre at a glance",
    "convergence": "Learning curves",
    "gallery": "Convergence galleries",
    "density": "Densities",
    "walk": "Layer by layer",
}

BASELINES_NOTE = (
    "Without a flow, from scikit-learn: a Gaussian with full covariance, a mixture of such Gaussians (components by "
    "BIC) and a Gaussian kernel density (bandwidth by 5-fold cross-validation, in standard deviations of the data), "
    "fitted to the runs' own training draws (mixture and kernel to the first 20,000 points at most) and scored on the "
    "same test draws; the flow had the validation draws besides, to choose its weights. KL − flow is paired by seed: "
    "above 0 the flow is better."
)


def caption(kind: str, name: str) -> str:
    return CAPTIONS["centre" if (kind, name) == ("convergence", "centre") else kind].format(name)


# Layouts: HTML, Markdown, TeX, plain text.


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
        for i, r in enumerate(own.to_dict("records")):
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
        data = contents(found, tables, judged, pictures, shlex.join(str(d) for d in dirs), fits)
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
