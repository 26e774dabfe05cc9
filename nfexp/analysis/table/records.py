"""Records of runs and of a sweep as rows of the table of runs, and training curves, all checked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nfexp.analysis.contrasts import OwnContrast, contrasts_of
from nfexp.analysis.sequential import Rounds, rounds_of
from nfexp.analysis.table.cells import (
    LARGEST,
    config_row,
    config_value,
    is_config,
    is_inside,
    metric_value,
)
from nfexp.files import trouble
from nfexp.record.formats import PLAN, ReportError, printable, read_bounded
from nfexp.record.metrics import HISTORY, METRICS
from nfexp.record.plan import read_plan
from nfexp.record.result import parse_result
from nfexp.spec import SpecError

LISTED = 20  # packages, and releases of each, that a report names


def cannot_write(folder: object, error: OSError) -> ReportError:
    """What to raise where results cannot be written below `folder`.

    A limit of the system is named as such.
    """
    named = OSError(error.errno, error.strerror) if error.errno else error
    path, expected, got = trouble(named, "a folder that can be written", folder)
    return ReportError(path, expected, got)


def check_record(path: object, raw: bytes | str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A result.json as it is, and as a row of the table of runs: status, configuration, metrics."""
    record = parse_result(path, raw)
    row = {"status": record["status"]} | config_row(path, record["config"])
    for name in METRICS:
        row[name] = metric_value(path, name, record["metrics"].get(name))
    return record, row


@dataclass(frozen=True)
class PlannedRuns:
    """What a table needs of a sweep.json: its name, the centres, the configuration of each job."""

    name: str
    centres: dict[str, dict[str, Any]]
    rows: dict[str, dict[str, Any]]  # by job
    rounds: Rounds | None  # if its seeds come in rounds
    contrasts: tuple[OwnContrast, ...] = ()


def planned_runs(folder: str | os.PathLike[str]) -> PlannedRuns:
    """The plan of the sweep in `folder`, every value checked."""
    path = os.path.join(folder, PLAN)
    plan = read_plan(folder)
    if plan is None:
        raise ReportError(path, "a readable file", "nothing there")
    centres = {}
    for target, centre in plan.centres.items():
        centres[target] = config_row(path, centre)
        centres[target]["data.name"] = config_value(path, "data.name", target)
    rows = {}
    for job in plan.jobs:
        name = job["job"]
        if not is_inside(name) or "\\" in name:  # on Windows "C:\\" leads out of any folder
            raise ReportError(path, "job to be a path inside the sweep", repr(name))
        rows[name] = _planned_row(path, job, plan.centres, centres)
    for centre in centres.values():
        del centre["seed"]
    try:
        rounds = rounds_of(plan.rounds) if plan.rounds else None
    except ValueError as error:
        raise ReportError(path, str(error), repr(plan.rounds)) from None
    try:
        contrasts = contrasts_of(plan.contrasts)
    except SpecError as error:
        raise ReportError(path, f"{error.key}: {error.expected}", error.got) from None
    return PlannedRuns(printable(plan.name, 200), centres, rows, rounds, contrasts)


def _planned_row(
    path: str,
    job: Mapping[str, Any],
    raw_centres: Mapping[str, Mapping[str, Any]],
    centres: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The configuration of a job: the centre of its target, changed as the job says."""
    target = job["data.name"]
    differs = {}
    for key, value in job["config"].items():
        if is_config(key) and key != "data.name":
            differs[key] = value
    differs["seed"] = job["seed"]
    # A key that the centre lacks: its name has not been checked yet.
    if differs.keys() - centres[target].keys():
        return config_row(path, {**raw_centres[target], **differs, "data.name": target})
    # Plans are long, and the centre is checked already: only what differs is checked here.
    row = dict(centres[target])
    for key, value in differs.items():
        row[key] = config_value(path, key, value)
    return row


def read_history(path: str | os.PathLike[str]) -> np.ndarray:
    """The rows of a history.csv, shape (evaluations, columns of HISTORY).

    Numbers beyond LARGEST become infinite.
    """
    raw = read_bounded(path)[0]
    try:
        lines = raw.decode("utf-8-sig").splitlines() or [""]
        cells = [line.split(",") for line in lines[1:]]
        block = np.array(cells, dtype=float).reshape(-1, len(HISTORY))
    except ValueError as error:
        raise ReportError(path, "a table of numbers", error) from None
    if lines[0] != ",".join(HISTORY):
        raise ReportError(path, f"the heading {','.join(HISTORY)}", lines[0])
    return np.where(np.abs(block) > LARGEST, np.copysign(np.inf, block), block)


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, by column.

    >>> rows_of(pd.DataFrame({"seed": [0, 1], "kl": [0.1, 0.2]}))
    [{'seed': 0, 'kl': 0.1}, {'seed': 1, 'kl': 0.2}]
    """
    rows: Any = frame.to_dict("records")
    return list(rows)


def known_versions(records: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The releases of each package, and the commits, that `records` name; LISTED at most."""
    releases_of: dict[str, list[str]] = {}
    for record in records:
        versions = record.get("versions")
        named = dict(versions) if isinstance(versions, dict) else {}
        named["commit"] = str(record.get("git_commit") or "")[:12]
        for package, release in named.items():
            if not release or (package not in releases_of and len(releases_of) >= LISTED):
                continue
            releases = releases_of.setdefault(printable(package, 40), [])
            text = printable(release, 40)
            if text not in releases and len(releases) < LISTED:
                releases.append(text)
    return releases_of
