"""What the report says, as plain data: `layouts` only lays it out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nfexp.analysis import statistics as stats
from nfexp.analysis import table
from nfexp.analysis.table.baselines import DATA, MODELS, data_key
from nfexp.analysis.table.records import rows_of
from nfexp.report.selection import differences, swept
from nfexp.report.words import duration, file_name, interval, number, plain, troubles

BADGES = {"supported": "✓", "contradicted": "✗", "inconclusive": "?"}
TROUBLES = ("diverged", "failed", "missing")
CELL = 80  # letters of a value in a cell
RULE = (
    "Intervals are of one target each; verdicts are corrected over a claim's targets (Holm), so that an interval that "
    "just clears the margin can still be inconclusive. A difference that is not significant is not an equality."
)
LISTED = 1000  # runs that did not complete, and files that could not be read: the rest is in runs.csv and on stderr


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
                    for row in rows_of(parts)
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
    runs = table.distinct(runs)
    at_centre = runs[[not d for d in differences(runs, centres)]]
    out = []
    for name, own in at_centre.groupby("data.name"):
        target = str(name)
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
            flow = done.set_index("seed")["kl"]
            for row in rows_of(stats.references(found, flow)):
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
    if numeric:
        frame = frame.sort_values(numeric, kind="stable")
    for row in rows_of(frame):
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
            found = [fits.get(data_key({**centres[t], **draws[value]})) for t in targets]
            lines += _baseline_lines([c if c in DATA else None for c in columns], shown, found)
    return {"axis": axis, "columns": columns, "targets": targets, "rows": lines, "file": file_name(axis)}


def _baseline_lines(
    columns: Sequence[str | None], shown: Sequence[str], found: Sequence[pd.DataFrame | None]
) -> list[dict[str, Any]]:
    """A line per model with a cell per target: named in a column that has no say in the draws (None), if there is."""
    cells: dict[str, list[Any]] = {model: [None] * len(found) for model in MODELS}
    for i, fits in enumerate(found):
        if fits is None:
            continue
        for row in rows_of(stats.references(fits)):
            kl = interval(*(row[f"kl_{end}"] for end in ENDS))
            cells[row["model"]][i] = {"kl": kl, "diff": "", "n": row["n"], "troubles": [], "centre": False}
    lines: list[dict[str, Any]] = []
    for model, name in MODELS.items():
        values = [v if c else "" for c, v in zip(columns, shown, strict=True)]
        at = list(columns).index(None) if None in columns else 0
        values[at] = f"{values[at]}, {name}" if values[at] else name
        lines.append({"values": values, "cells": cells[model], "baseline": True, "centre": False})
    return [line for line in lines if any(line["cells"])]


def content(found: table.Collection, tables: Mapping[str, pd.DataFrame], judged: pd.DataFrame,
             pictures: Mapping[str, Path], command: str, fits: pd.DataFrame) -> dict[str, Any]:  # fmt: skip
    """Everything the report says, ready to be laid out."""
    sweep = found.sweep
    runs = table.distinct(found.runs)
    planned = max(sweep.planned, len(found.runs)) - (len(found.runs) - len(runs))
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
            "runs": ", ".join([f"{counts.get('completed', 0)} completed of {planned} planned"]
                              + [f"{counts[s]} {s}" for s in TROUBLES if counts.get(s)]),
            "targets": ", ".join(sorted(map(str, set(runs["data.name"])))),
            "seeds": table.printable(_ranges(runs["seed"])),
            "training": f"{duration(float(runs['seconds'].sum()))} in all",
            "versions": ", ".join(f"{k} {' / '.join(v)}" for k, v in found.versions.items()),
            "repetitions": table.repetitions(found.runs),
            "skipped": f"{len(found.skipped)} not read" if found.skipped else "",
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
                for r, d in zip(rows_of(listed), differences(listed, sweep.centres), strict=True)],
        "n_bad": len(bad),
        "skipped": [str(error) for error in found.skipped[:LISTED]],
        "n_skipped": len(found.skipped),
        "config": [(k, table.printable(next(iter(v)), CELL) if len(v) == 1 else
                    ", ".join(f"{t}: {table.printable(plain(c.get(k)), CELL)}" for t, c in sweep.centres.items()))
                   for k, v in common.items() if k not in ("name", "data.name", "seed", "device")],
        "command": command if command.isprintable() else table.printable(command, 4096),
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
