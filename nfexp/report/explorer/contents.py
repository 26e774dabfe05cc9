"""What the explorer shows, as plain values for JSON: runs, cells, claims, samples.

Nothing is computed here: means and intervals are those of the ablation tables, verdicts those of
the claims.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from nfexp.analysis import statistics as stats
from nfexp.analysis import table
from nfexp.analysis.claims.findings import EVERY_RUN
from nfexp.analysis.table.records import rows_of
from nfexp.report.explorer.frames import KEPT, LEVELS, OUTSIDE, frames_of
from nfexp.report.results import CELL
from nfexp.report.selection import Centres, swept
from nfexp.report.verdicts import ALL, verdicts
from nfexp.report.words import plain, troubles

# What an ablation can be drawn of: a metric, or kl_diff, with its name and unit.
DRAWN = {
    "kl": "KL, nats",
    "test_nll": "Test NLL, nats",
    "kl_diff": "Difference to the centre, nats",
    "val_nll": "Validation NLL, nats",
    "clean_distance": "Clean distance, data units",
    "sample_distance": "Sample distance, data units",
    "calibration_error": "Calibration error",
    "steps_to_converge": "Steps to converge",
    "seconds": "Seconds a run",
}
FIRST = ("job", "status", "data.name", "seed")  # columns of the run table
# of its metrics: what one looks for, at once in sight
FIRST_METRICS = ("kl", "kl_se", "test_bpd", "test_nll", "test_nll_se", "true_nll")
DIGITS = 6  # of a number on the page


def explorer_contents(
    collected: table.Collection,
    judged: pd.DataFrame,
    *,
    skipped: list[table.ReportError] | None = None,
) -> dict[str, Any]:
    """All that the page holds, of the distinct runs in the order of their table."""
    centres = collected.sweep.centres
    runs = table.distinct(collected.runs).reset_index(drop=True)
    cells = stats.ablations(runs, centres, [*DRAWN])
    measures = [name for name in DRAWN if _is_known(cells, name)]
    frames = frames_of(runs, skipped=skipped)
    return {
        "title": collected.sweep.name,
        "columns": _columns(runs),
        "rows": _rows(runs),
        "same": _same(runs),
        "targets": list(dict.fromkeys(map(str, runs["data.name"]))),
        "measures": {name: _label(name, runs) for name in measures},
        "axes": _axes(runs, cells, centres, measures),
        "claims": _claims(runs, judged, centres),
        "samples": asdict(frames) | {"levels": LEVELS, "outside": OUTSIDE, "kept": KEPT},
    }


def _label(measure: str, runs: pd.DataFrame) -> str:
    """A measure with its unit: of images the difference to the centre is that of the bits/dim."""
    label = DRAWN[measure]
    if measure == "kl_diff" and stats.has_bits(runs):
        done = runs[runs["status"] == "completed"]
        are_all = bool(done[stats.BITS].notna().all())
        label = label.replace("nats", "bits/dim" if are_all else "nats, of images bits/dim")
    return label


def _is_known(cells: Mapping[str, pd.DataFrame], measure: str) -> bool:
    return any(ablation[f"{measure}_mean"].notna().any() for ablation in cells.values())


def _varied(runs: pd.DataFrame) -> list[str]:
    """The configuration columns in which the runs differ."""
    return [c for c in table.config_columns(runs) if runs[c].nunique(dropna=False) > 1]


def _shown(runs: pd.DataFrame) -> list[str]:
    ordered = dict.fromkeys([*FIRST_METRICS, *table.METRICS])
    metrics = [name for name in ordered if name in runs and runs[name].notna().any()]
    return [*FIRST, *_varied(runs), *metrics]


def _columns(runs: pd.DataFrame) -> list[dict[str, Any]]:
    columns = []
    for key in _shown(runs):
        column = {"key": key, "number": pd.api.types.is_numeric_dtype(runs[key])}
        if key in table.METRICS:
            column["meaning"] = table.METRICS[key].meaning
        columns.append(column)
    return columns


def _rows(runs: pd.DataFrame) -> list[list[Any]]:
    keys = _shown(runs)
    rows = []
    for row in rows_of(runs[keys]):
        rows.append([_cell(row[key]) for key in keys])
    return rows


def _cell(value: Any) -> float | int | str | None:
    """A value as JSON holds it: numbers in DIGITS digits, None for a missing one, else its text."""
    if value is None or value != value:
        return None
    if isinstance(value, (bool, str)):
        return table.printable(value, CELL)
    number = float(f"{float(value):.{DIGITS}g}")
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _same(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """The settings that all runs share, as text."""
    varied = set(_varied(runs))
    pairs = []
    for key in table.config_columns(runs):
        if key not in varied and len(runs):
            pairs.append((key, table.printable(plain(runs[key].iloc[0]), CELL)))
    return pairs


def _axes(
    runs: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame],
    centres: Centres,
    measures: list[str],
) -> list[dict[str, Any]]:
    """The ablation tables, each cell with the rows of its runs."""
    differs = stats.deviations(runs, centres)
    axes = []
    for name, ablation in tables.items():
        columns = swept(ablation)
        elsewhere = differs.drop(columns=columns).any(axis=1)
        members = _by_values(runs[~elsewhere], columns)
        cells = []
        for row in rows_of(ablation):
            values = _values(row, columns)
            cell: dict[str, Any] = {
                "target": str(row["data.name"]),
                "values": [table.printable(value, CELL) for value in values],
                "runs": members.get((row["data.name"], *values), []),
                "n": int(row["n"]),
                "centre": bool(row["is_centre"]),
                "troubles": troubles(row),
            }
            for measure in measures:
                ends = [row[f"{measure}_{part}"] for part in ("mean", "low", "high")]
                cell[measure] = [_cell(end) for end in ends]
            cells.append(cell)
        axes.append({"name": name, "columns": columns, "cells": cells})
    return axes


def _values(row: Mapping[str, Any], columns: list[str]) -> tuple[str, ...]:
    return tuple(plain(row[column]) for column in columns)


def _by_values(runs: pd.DataFrame, columns: list[str]) -> dict[tuple[str, ...], list[int]]:
    """The rows of the runs by target and swept values."""
    members: dict[tuple[str, ...], list[int]] = {}
    for number, row in zip(runs.index, rows_of(runs), strict=True):
        key = (row["data.name"], *_values(row, columns))
        members.setdefault(key, []).append(int(number))
    return members


def _claims(runs: pd.DataFrame, judged: pd.DataFrame, centres: Centres) -> list[dict[str, Any]]:
    """The claims that were judged, each with the rows of the runs that its cells hold."""
    members = _by_cell(runs, centres)
    rows = judged.groupby("claim", sort=False)
    claims = []
    for claim in verdicts(judged).shown:
        used: set[int] = set()
        for row in rows_of(rows.get_group(claim.claim)):
            for target, cells in members.items():
                if row["target"] not in (target, ALL):
                    continue
                used.update(_used(str(row["rows"]), cells))
        known = asdict(claim)
        claims.append(known | {"runs": sorted(used)})
    return claims


def _used(names: str, cells: Mapping[str, list[int]]) -> list[int]:
    """The rows of the runs in the cells that a row of claims.csv names."""
    if names == EVERY_RUN:
        return [number for of_cell in cells.values() for number in of_cell]
    rows: list[int] = []
    for name in names.split(" | "):
        rows += cells.get(name, [])
    return rows


def _by_cell(runs: pd.DataFrame, centres: Centres) -> dict[str, dict[str, list[int]]]:
    """By target and cell, as the claims name it, the rows of its runs."""
    numbered = runs.assign(row=np.arange(len(runs)))
    by_cell: dict[str, dict[str, list[int]]] = {}
    for target, study in stats.studies(runs, centres).items():
        of_target = by_cell.setdefault(target, {})
        for key, part in study.cells.items():
            of_target[stats.cell_name(key)] = numbered.loc[part.index, "row"].tolist()
    return by_cell
