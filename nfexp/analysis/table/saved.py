"""The table of runs as a CSV file: written for any reader, and read back cell by cell."""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from nfexp.analysis.table.cells import ANY, KINDS, REQUIRED, config_row, is_inside, metric_value
from nfexp.analysis.table.spelling import inert, inert_path, inert_value, live
from nfexp.files import read_plain, replacing
from nfexp.record.formats import ReportError, reason
from nfexp.record.metrics import COUNTS, METRICS
from nfexp.record.result import STATUSES

LIMIT = 2**28  # bytes, unpacked
NUMBER = re.compile(r"-?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?", re.ASCII)


def write_csv(frame: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write `frame` without its index, whole or not at all.

    Text that could be taken for another value gets a leading quote.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_csv(pd.DataFrame({"kl": [0.5], "best_step": [20.0]}), Path(folder) / "runs.csv")
    ...     print((Path(folder) / "runs.csv").read_text().split())
    ['kl,best_step', '0.5,20']
    """
    path = Path(path)
    text_columns = [str(column) for column in frame.select_dtypes(exclude="number")]
    spelled = frame.copy()
    for column in text_columns:
        spelled[column] = frame[column].map(_spelling(column))
    # A metric that is missing in some row makes a column of counts float64: "Int64" writes 20, not
    # 20.0.
    counts = [column for column in COUNTS if column in frame and _is_whole(frame[column])]
    spelled = spelled.astype(dict.fromkeys(counts, "Int64"))
    # Minimal quoting leaves a carriage return bare, and readers take it for the end of the line.
    quoting: Any = csv.QUOTE_MINIMAL
    for column in text_columns:
        if spelled[column].astype(str).str.contains("\r", regex=False).any():
            quoting = csv.QUOTE_NONNUMERIC
    how: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    with replacing(path) as temporary, open(temporary, "w", **how) as file:
        spelled.to_csv(file, index=False, lineterminator="\n", quoting=quoting)


def _is_whole(column: pd.Series) -> bool:
    return bool((column.isna() | (column % 1 == 0)).all())


def _spelling(column: str) -> Callable[[Any], Any]:
    """How the text of a column is written."""
    if column in ("job", "dir"):
        return inert_path
    if "." in column:  # a key of the configuration
        return inert_value
    return inert


def write_runs(runs: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write the table of :func:`load_runs` so that :func:`read_runs` gives every run its directory.

    The column dir is left out if every run lies beside the file, in the folder that is named as its
    job: then all of them can be moved together. Otherwise it comes last, and holds paths relative
    to the file's folder.
    """
    folder = os.path.dirname(os.path.realpath(path))
    run_paths = [os.path.relpath(os.path.realpath(run), folder) for run in runs["dir"]]
    if run_paths == [os.path.normpath(job) for job in runs["job"]]:
        write_csv(runs.drop(columns="dir"), path)
    else:
        write_csv(runs.assign(dir=run_paths), path)


def saved_rows(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a runs.csv or runs.csv.gz, each with the place where it stands.

    A row holds job, status, configuration, metrics and dir.
    """
    try:
        table = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
        head = next(table, [])
        for heading in head:
            if head.count(heading) > 1:
                raise ReportError(path, "each heading once", f"{heading!r} twice")
        for heading in ("job", "status"):
            if heading not in head:
                raise ReportError(path, f"the heading {heading!r}", "a table without it")
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
            # A small file may unpack to terabytes.
            raw = gzip.GzipFile(fileobj=io.BytesIO(raw)).read(LIMIT + 1)
            if len(raw) > LIMIT:
                raise ValueError(f"more than {LIMIT:,} bytes unpacked")
        return raw.decode("utf-8-sig")  # with a byte-order mark or without
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise ReportError(path, "a readable file", reason(error)) from None


def _row(where: str, cells: Mapping[str, str]) -> dict[str, Any]:
    job = live(cells["job"]).removeprefix("./")
    if not is_inside(job):
        raise ReportError(where, "job to be a path inside the sweep", repr(job))
    status = cells["status"]
    statuses = (*STATUSES, "missing")
    if status not in statuses:
        raise ReportError(where, f"status to be one of {', '.join(statuses)}", repr(status))
    config = {}
    for key, cell in cells.items():
        is_setting = key not in METRICS and key not in ("job", "status", "dir")
        if is_setting and (cell or key in REQUIRED):
            config[key] = _value(key, cell)
    metrics = {}
    for name in METRICS:
        cell = cells.get(name, "")
        metrics[name] = metric_value(where, name, _number(cell) if cell else None)
    path = cells.get("dir") or job
    if "\0" in path:
        raise ReportError(where, "dir to be a path", repr(path))
    return {"job": job, "status": status, **config_row(where, config), **metrics, "dir": path}


def _number(cell: str) -> int | float | str:
    """The number that a cell spells, or its text."""
    # The length first: int() of 10⁶ digits takes long.
    if len(cell) > 40 or not NUMBER.fullmatch(cell):
        return cell
    if "." in cell or "e" in cell:
        return float(cell)
    return int(cell)


def _value(key: str, cell: str) -> int | float | str | None:
    """The value of a configuration key that a cell spells; an empty cell is null."""
    if not cell:
        return None
    text = live(cell)
    takes_numbers = bool(KINDS.get(key, ANY) & {int, float})
    if text != cell or not takes_numbers:  # a leading quote says that it is text
        return text
    return _number(cell)
