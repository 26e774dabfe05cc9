"""baselines.csv: what density estimates without a flow reach on the draws of the runs beside it."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from nfexp.analysis.table.cells import LARGEST
from nfexp.analysis.table.spelling import live
from nfexp.files import read_plain
from nfexp.record.formats import ReportError, reason
from nfexp.spec import Data, from_mapping, from_text, is_parameter_key, parameters_in

BASELINES = "baselines.csv"
MODELS = {
    "gaussian": "Gaussian",
    "mixture": "Gaussian mixture",
    "mixture_val": "Gaussian mixture, validation points too",
    "kde": "kernel density",
    "kde_val": "kernel density, validation points too",
}
# A flow chooses its step by the validation points. These models are fitted to them, too.
WITH_VALIDATION = ("mixture_val", "kde_val")
KERNELS = ("kde", "kde_val")
OF_IMAGES = {
    "uniform": "uniform",
    "histogram": "histogram of each pixel",
    "gaussian_logit": "Gaussian of logits",
    "mixture_logit": "Gaussian mixture of logits",
    "categoricals": "mixture of categoricals",
    "flat": "flat RealNVP",
}
ALL_MODELS = MODELS | OF_IMAGES
# What, with a seed, fixes the draws.
DATA = ("data.name", "data.n_samples", "data.noise", "data.n_test", "data.text")
# What fixes the rows of a table besides; a file without tables lacks these columns.
OF_A_TABLE = ("data.digest", "data.n_val", "data.split", "data.jitter")
# What a fit came to: n_components is a mixture's, bandwidth a kernel's.
FACTS = ("n_used", "n_components", "bandwidth", "n_parameters")
SCORES = ("test_nll", "true_nll", "kl", "kl_se", "seconds")
COLUMNS = (*DATA, "seed", "model", *FACTS, *SCORES)
LIMIT = 2**25  # bytes


def data_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The values of DATA of a run, a baseline or a centre: with equal ones a seed draws the same.

    Where there is a digest, of a table or of a target of the user's own, there are those of
    OF_A_TABLE, too; then, by name, the parameters of a target that are not as usual.

    >>> data_key({"data.name": "moons", "data.n_samples": 200.0, "data.noise": 0.05, "seed": 3})
    ('moons', 200.0, 0.05, None, None)
    """
    keys: tuple[str, ...] = DATA
    digest = row.get("data.digest")
    if isinstance(digest, str) and digest:
        keys += OF_A_TABLE
    values = []
    for key in keys:
        value = row.get(key)
        if value != value:  # NaN
            value = None
        values.append(value)
    return (*values, *sorted(parameters_in(row).items()))


def load_baselines(
    *dirs: str | os.PathLike[str],
    skipped: list[ReportError] | None = None,
) -> pd.DataFrame:
    """The baselines.csv of each of `dirs` that has one, as one table, each fit once.

    Its columns are COLUMNS. NLL and KL in nats per point, data units; `bandwidth` in standard
    deviations of the training points; `n_used` of `n_samples` points were fitted to. A number that
    is missing is NaN.

    Parameters
    ----------
    skipped
        Gets the errors of files that cannot be read; without it the first one is raised.

    Raises
    ------
    ReportError
        If a file is not a table as `nfexp-baselines` writes it.

    >>> load_baselines("/nowhere").empty
    True
    """
    rows: list[dict[str, Any]] = []
    for folder in dirs:
        path = os.path.join(folder, BASELINES)
        if not os.path.lexists(path):
            continue
        try:
            rows += _read(path)
        except ReportError as error:
            if skipped is None:
                raise
            skipped.append(error)
    table = pd.DataFrame(rows, columns=list(columns_of(rows)))
    keys = [key for key in (*DATA, *OF_A_TABLE, "seed", "model") if key in table]
    keys += [str(column) for column in table if is_parameter_key(str(column))]
    return table.drop_duplicates(keys, ignore_index=True)


def columns_of(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The columns of a baselines.csv with these rows."""
    has_table = False
    parameters: set[str] = set()
    for row in rows:
        has_table = has_table or isinstance(row.get("data.digest"), str)
        parameters |= {f"data.{name}" for name in parameters_in(row)}
    return COLUMNS + OF_A_TABLE * has_table + tuple(sorted(parameters))


def _read(path: str) -> list[dict[str, Any]]:
    try:
        text = read_plain(path, LIMIT)[0].decode("utf-8-sig")
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True)) or [[]]
    except (OSError, ValueError, csv.Error) as error:
        raise ReportError(path, "a readable table", reason(error)) from None
    head = lines[0]
    plain = tuple(column for column in head if not is_parameter_key(column))
    if plain not in (COLUMNS, COLUMNS + OF_A_TABLE) or len(set(head)) < len(head):
        raise ReportError(path, f"the heading {','.join(COLUMNS)}", ",".join(head))
    rows = []
    for number, line in enumerate(lines[1:], 2):
        try:
            rows.append(_row(dict(zip(head, line, strict=True))))
        except ValueError as error:
            raise ReportError(path, f"line {number} as nfexp-baselines writes it", error) from None
    return rows


def _row(cells: Mapping[str, str]) -> dict[str, Any]:
    """The values of a line; ValueError if one is not what its column holds."""
    row = _draws(cells)
    row["seed"] = _whole("seed", cells["seed"], 0)
    if cells["model"] not in ALL_MODELS:
        raise ValueError(f"model: expected one of {', '.join(ALL_MODELS)}; got {cells['model']!r}")
    row["model"] = cells["model"]
    for key in (*FACTS, *SCORES):
        if cells[key] == "":
            row[key] = math.nan
        elif key in FACTS and key != "bandwidth":
            row[key] = _whole(key, cells[key], 1)
        else:
            row[key] = _finite(key, cells[key])
    return row


def _draws(cells: Mapping[str, str]) -> dict[str, Any]:
    """The columns that fix the draws of a line, in the ranges of :class:`nfexp.spec.Data`."""
    has_digest = bool(cells.get("data.digest"))  # a table, or a target of the user's own
    parameters = {}
    for column, cell in cells.items():
        if is_parameter_key(column) and cell:
            parameters[column.removeprefix("data.")] = from_text(column, cell)
    values: dict[str, Any] = {
        "name": cells["data.name"],
        "n_samples": int(cells["data.n_samples"]),
        "noise": None if has_digest and not cells["data.noise"] else float(cells["data.noise"]),
        "n_test": int(cells["data.n_test"]),
        "n_val": 2,  # is not in the file of a target: of a model that uses them, n_used counts them
        **parameters,
        "text": live(cells["data.text"]) if cells["data.text"] else None,
    }
    if has_digest:
        values |= {"digest": cells["data.digest"], "n_val": int(cells["data.n_val"])}
        if parameters or values["noise"] is not None:  # no table has these
            values |= {"kind": "own", "target": "-:_"}  # says nothing of the draws
        else:
            jitter = cells["data.jitter"]
            values |= {
                "kind": "table",
                "path": "-",  # says nothing of the rows
                "split": int(cells["data.split"]) if cells["data.split"] else None,
                "jitter": jitter if jitter == "gap" else float(jitter or 0),
            }
    data = from_mapping(values, Data, "data.")
    return draws_of(data)


def draws_of(data: Data) -> dict[str, Any]:
    """What fixes the draws of a seed, by column; as in a run's record, None for what is usual."""
    keys = DATA if data.digest is None else DATA + OF_A_TABLE
    draws = {key: getattr(data, key.removeprefix("data.")) for key in keys}
    draws |= {f"data.{name}": value for name, value in data.parameters}
    if draws.get("data.jitter") == 0.0:
        draws["data.jitter"] = None
    return draws


def _whole(key: str, cell: str, least: int) -> int:
    value = int(cell)
    if not least <= value < 2**63:
        raise ValueError(f"{key}: expected a whole number >= {least}; got {cell}")
    return value


def _finite(key: str, cell: str) -> float:
    value = float(cell)
    if not abs(value) < LARGEST:
        raise ValueError(f"{key}: expected a finite number; got {cell}")
    return value
