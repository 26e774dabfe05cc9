"""Records as the rows of one table: each is read once, checked, and refused or admitted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from nfexp.analysis.table.cells import CONFIG
from nfexp.analysis.table.index import Place, identity
from nfexp.analysis.table.records import PlannedRuns, check_record
from nfexp.record.formats import PLAN, RESULT, ReportError, printable, read_bounded
from nfexp.record.metrics import METRICS
from nfexp.spec import is_parameter_key, usual_value

# The most targets, and the most keys that this version does not know, of one table: each of them is
# a panel or a column.
MANY = 64

Row = dict[str, Any]


class Vocabulary:
    """Refuses what brings too many targets or unknown configuration keys into one table."""

    def __init__(self) -> None:
        self.targets: set[str] = set()
        self.keys: set[str] = set()

    def admit(self, where: object, row: Mapping[str, Any]) -> None:
        target = {row["data.name"]}
        keys = row.keys() - {*CONFIG, *METRICS, "status", "job"}
        _check_few(where, "targets", target, self.targets)
        _check_few(where, "unknown configuration keys", keys, self.keys)
        self.targets |= target  # only now: a row that is refused adds nothing
        self.keys |= keys


def _check_few(where: object, kind: str, new: set[str], seen: set[str]) -> None:
    if len(seen | new) > MANY:
        raise ReportError(where, f"at most {MANY} {kind} in one table", f"{min(new - seen)!r} more")


class Reading:
    """The rows of one table while its records are read, by the directory of the run."""

    def __init__(self, home: Path, known: Mapping[str, str]) -> None:
        self.home = home  # the folder that all runs are in
        self.known = known  # records as text, by the identity of their file
        self.rows: dict[str, Row] = {}
        self.records: dict[str, dict[str, Any]] = {}
        self.refused: dict[str, ReportError] = {}
        self.kept: dict[str, dict[str, Any]] = {}  # records, by the identity of their file
        self.words = Vocabulary()

    def read_records(self, places: Iterable[Place]) -> None:
        """A row for each place with a record that can be read, once."""
        for place in places:
            folder = place.folder
            if not place.result or folder in self.rows or folder in self.refused:
                continue
            try:
                self._read_record(folder, place.result)
            except ReportError as error:
                self.refused[folder] = error

    def _read_record(self, folder: str, key: str) -> None:
        path = os.path.join(folder, RESULT)
        raw: bytes | str
        if key in self.known:
            raw = self.known[key]
        else:
            raw, status = read_bounded(path)
            key = identity(status)  # of what was read: the file may have changed since it was found
        record, row = check_record(path, raw)
        self.words.admit(path, row)
        self.rows[folder] = {"job": self._job(folder)} | row
        self.records[folder] = record
        self.kept[key] = record

    def add_missing(self, folder: str, plan: PlannedRuns, skipped: list[ReportError]) -> None:
        """A row for each planned job that has no record."""
        for job, row in plan.rows.items():
            path = os.path.join(folder, os.path.normpath(job))
            if path in self.rows:
                continue
            try:
                self.words.admit(os.path.join(folder, PLAN), row)
            except ReportError as error:
                skipped.append(error)
                break
            self.rows[path] = {"job": self._job(path), "status": "missing"} | row

    def _job(self, folder: str) -> str:
        """A name that no other run has: the path from the folder that holds all of them."""
        inside = folder.removeprefix(str(self.home)).replace(os.sep, "/").lstrip("/")
        return printable(inside or self.home.name, 1000)

    def table(self) -> pd.DataFrame:
        table = tabulate(row | {"dir": folder} for folder, row in self.rows.items())
        return table.sort_values("dir", kind="stable", ignore_index=True)

    def reasons(self) -> dict[str, str]:
        """Why runs did not complete, by directory."""
        reasons = {}
        for folder, record in self.records.items():
            if isinstance(record.get("reason"), str):
                reasons[folder] = printable(record["reason"], 300)
        return reasons | dict.fromkeys(self.refused, "skipped: not a readable record")


def tabulate(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a table, its columns in order; keys unknown to this version follow the known ones."""
    table = pd.DataFrame(list(rows))
    known = {"job", "status", *CONFIG, *METRICS, "dir"}
    unknown = [column for column in table if column not in known]
    for column in unknown:
        if is_parameter_key(str(column)):  # no record holds a parameter that is as usual
            usual = [usual_value(target, str(column)) for target in table["data.name"]]
            table[column] = table[column].where(table[column].notna(), usual)
    return table[["job", "status", *CONFIG, *unknown, *METRICS, "dir"]]
