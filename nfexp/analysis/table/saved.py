"""How text is spelled in a CSV, and a runs.csv read back: each cell is checked as those of a record are."""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from nfexp.analysis.table.records import ANY, KINDS, METRICS, REQUIRED, STATUSES, TEXT, ReportError, _config, _metric
from nfexp.files import read_plain

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the start of a formula
LIMIT = 2**28  # bytes, unpacked
NUMBER = re.compile(r"-?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?", re.ASCII)
WORDS = frozenset(  # what pandas or a spreadsheet takes for a missing value or a truth value
    ("#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None",
     "n/a", "nan", "null", "True", "TRUE", "true", "False", "FALSE", "false")
)  # fmt: skip


def mistakable(text: str) -> bool:
    """Whether a reader of a CSV could take this text for a number, a missing or truth value, or a formula.

    >>> [mistakable(text) for text in ("0000", "1e3", "NA", "=1+1", "relu", "none")]
    [True, True, True, True, False, False]
    """
    if text.startswith((*FORMULA, "'")) or text in WORDS:
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


def inert(value: Any) -> Any:
    """Text as a cell of a CSV: with a leading quote where it could be taken for something else."""
    return "'" + value if isinstance(value, str) and mistakable(value) else value


def inert_value(value: Any) -> Any:
    """A value of the configuration as a cell: as :func:`inert`, and an empty text is a quote, which null is not."""
    return "'" if value == "" and isinstance(value, str) else inert(value)


def inert_path(path: Any) -> Any:
    """A path as a cell of a CSV, still a path: job 0000 is ./0000."""
    return "./" + path if isinstance(path, str) and mistakable(path) else path


def saved_rows(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row of a runs.csv (or runs.csv.gz) stands, and the row: job, status, configuration, metrics, dir."""
    try:
        table = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
        head = next(table, [])
        if twice := [c for c in head if head.count(c) > 1]:
            raise ReportError(path, "each heading once", f"{twice[0]!r} twice")
        if absent := [c for c in ("job", "status") if c not in head]:
            raise ReportError(path, f"the heading {absent[0]!r}", "a table without it")
        for cells in table:
            where = f"{path}, line {table.line_num}"
            if len(cells) != len(head):
                raise ReportError(where, f"{len(head)} cells", len(cells))
            yield where, _row(where, dict(zip(head, cells, strict=True)))
    except csv.Error as error:
        raise ReportError(path, "comma-separated values", error) from None


def _text(path: str | os.PathLike[str]) -> str:
    try:
        raw = read_plain(path, LIMIT)[0]
        if str(path).endswith(".gz"):
            raw = gzip.GzipFile(fileobj=io.BytesIO(raw)).read(LIMIT + 1)
            if len(raw) > LIMIT:
                raise ValueError(f"more than {LIMIT:,} bytes unpacked")
        return raw.decode("utf-8-sig")  # with a byte-order mark or without
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise ReportError(path, "a readable file", getattr(error, "strerror", None) or error) from None


def _row(where: str, cells: dict[str, str]) -> dict[str, Any]:
    job = live(cells["job"]).removeprefix("./")
    status = cells["status"]
    parts = PurePosixPath(job.replace("\\", "/")).parts
    if not parts or "/" in parts or ".." in parts or not job.isprintable() or len(job) > TEXT:
        raise ReportError(where, "job to be a path inside the sweep", repr(job))
    if status not in (*STATUSES, "missing"):
        raise ReportError(where, f"status to be one of {', '.join(STATUSES)}, missing", repr(status))
    own = {k: v for k, v in cells.items() if k not in ("job", "status", "dir", *METRICS)}
    config = {k: _value(k, v) for k, v in own.items() if v or k in REQUIRED}
    metrics = {k: _metric(where, k, _number(cells[k]) if cells.get(k) else None) for k in METRICS}
    place = cells.get("dir") or job
    if "\0" in place:
        raise ReportError(where, "dir to be a path", repr(place))
    return {"job": job, "status": status} | _config(where, config) | metrics | {"dir": place}


def live(cell: str) -> str:
    """The text that :func:`inert` or :func:`inert_value` made a cell of."""
    return cell[1:] if cell == "'" or (cell.startswith("'") and mistakable(cell[1:])) else cell


def _number(cell: str) -> int | float | str:
    """The number that a cell spells, or its text."""
    if len(cell) > 40 or not NUMBER.fullmatch(cell):
        return cell
    return float(cell) if "." in cell or "e" in cell else int(cell)


def _value(key: str, cell: str) -> int | float | str | None:
    if not cell:
        return None
    is_text = live(cell) != cell or not KINDS.get(key, ANY) & {int, float}
    return live(cell) if is_text else _number(cell)
