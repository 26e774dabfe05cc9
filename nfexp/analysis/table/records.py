"""The files of a run and of a sweep, checked: each is read whole, bounded, as data, or refused in one line."""

from __future__ import annotations

import math
import os
import sys
import zipfile
from collections.abc import Container, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, get_type_hints

import numpy as np
import pandas as pd

from nfexp.files import open_plain, parse_json, read_plain, trouble
from nfexp.spec import SCHEMA_VERSION, Spec

METRICS = (
    "train_nll", "val_nll", "test_nll", "test_nll_se", "true_nll", "kl", "kl_se", "clean_distance", "sample_distance",
    "sample_floor", "coverage_50", "coverage_90", "calibration_error", "coordinates_moved", "flattening", "batch_gap",
    "best_step", "steps_to_converge", "inverse_error", "n_parameters", "seconds", "stack_size", "diverged_at",
    "diverged_layer",
)  # fmt: skip
COUNTS = (
    "coordinates_moved", "best_step", "steps_to_converge", "n_parameters", "stack_size", "diverged_at",
    "diverged_layer",
)  # fmt: skip
HISTORY = ("step", "train_nll", "val_nll", "grad_norm", "lr")
STATUSES = ("completed", "diverged", "failed")
LIMITS = {"result.json": 2**20, "sweep.json": 2**26, "history.csv": 2**22, "samples.npz": 2**28}  # bytes, unpacked
LARGEST = 1e100  # of any number, so that squares stay finite
NAME, TEXT = 80, 1000  # characters of a configuration value, and of a LONG one
LONG = ("data.text", "data.path", "data.val_path", "data.test_path", "data.columns", "data.drop")


class ReportError(ValueError):
    """A directory that cannot be reported on; one line with the place, what was expected and what came."""

    def __init__(self, where: object, expected: str, got: object) -> None:
        super().__init__(f"{printable(where, 4096)}: expected {printable(expected, 4096)}; got {printable(got)}")


def cannot_write(folder: object, error: OSError) -> ReportError:
    """What to raise where results cannot be written below `folder`; a limit of the system is named as such."""
    named = OSError(error.errno, error.strerror) if error.errno else error
    place, expected, got = trouble(named, "a folder that can be written", folder)
    return ReportError(place, expected, got)


def printable(text: object, limit: int = 120) -> str:
    """Text for one line of a terminal or page: blanks joined, what has no glyph escaped, cut at `limit` characters.

    >>> printable("two\\nlines \\x1b[31m")
    'two lines \\\\x1b[31m'
    """
    flat = " ".join(str(text)[: 4 * limit].split())
    if not flat.isprintable():
        flat = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in flat)
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def _kinds() -> dict[str, frozenset[type]]:
    """The types each configuration column admits, read off :mod:`nfexp.spec`; a key that may be absent is no column."""
    found: dict[str, Any] = {}
    for key, hint in get_type_hints(Spec).items():
        if is_dataclass(hint):
            hints = get_type_hints(hint)
            found |= {f"{key}.{f.name}": hints[f.name] for f in fields(hint) if f.default is MISSING}
        else:
            found[key] = hint
    return {k: frozenset(getattr(h, "__args__", (h,))) for k, h in found.items()}


def is_config(key: str) -> bool:
    """Whether a key of the flat configuration is a column of the table of runs."""
    return key not in ("name", "device") and not key.startswith("record.")


KINDS = {k: v for k, v in _kinds().items() if is_config(k)}
ANY: frozenset[type] = frozenset({int, float, str, type(None)})
CONFIG = tuple(KINDS)
REQUIRED = (
    "data.name", "data.n_samples", "data.noise", "flow.n_flows", "flow.hidden_depth", "flow.hidden_width",
    "flow.activation", "flow.mask", "flow.coupling", "flow.conditioner", "flow.norm", "flow.base", "train.steps",
    "train.batch_size", "train.lr", "train.select", "seed",
)  # fmt: skip


@lru_cache(maxsize=2**14, typed=True)  # a sweep repeats its values
def _admitted(key: str, value: float | str | None) -> tuple[bool, Any]:
    """Whether a column takes this value, and the value as the column holds it."""
    kinds = KINDS.get(key, ANY)
    if value is None:
        return type(None) in kinds, None
    if isinstance(value, str):
        longest, shown = (TEXT, " ".join(value.split())) if key in LONG else (NAME, value)
        return str in kinds and len(value) <= longest and shown.isprintable(), value
    if not abs(value) < 2**63:
        return False, value
    if isinstance(value, float) and float not in kinds:
        return int in kinds and value.is_integer(), int(value)
    if isinstance(value, int) and int not in kinds:
        return float in kinds, float(value)
    return True, value


def _config_value(where: object, key: str, value: Any) -> Any:
    if type(value) in ANY and not (isinstance(value, str) and len(value) > TEXT):
        fits, held = _admitted(key, value)
        if fits:
            return held
    kinds = KINDS.get(key, ANY)
    names = " or ".join(sorted("null" if k is type(None) else k.__name__ for k in kinds))
    plain = (
        f", printable and at most {TEXT if key in LONG else NAME} characters"
        if isinstance(value, str) and str in kinds
        else ""
    )
    raise ReportError(where, f"{key} to be {names}{plain}", repr(value))


def _metric(where: object, key: str, value: Any) -> float:
    if value is None:
        return math.nan
    largest = 2**53 if key in COUNTS else LARGEST
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < largest:
        return float(value)
    raise ReportError(where, f"the metric {key} to be a finite number or null", repr(value))


def _config(where: object, config: Any) -> dict[str, Any]:
    if not isinstance(config, dict):
        raise ReportError(where, "config to be an object", type(config).__name__)
    if absent := [k for k in REQUIRED if k not in config]:
        raise ReportError(where, f"config to have {absent[0]}", "a config without it")
    extra = [k for k in config if k not in KINDS and is_config(k)]
    if odd := [k for k in extra if not (k.isascii() and k.replace(".", "").replace("_", "").isalnum()) or len(k) > 80]:
        raise ReportError(where, "keys of letters, digits, '.' and '_' in config", repr(odd[0]))
    return {k: _config_value(where, k, config[k]) if k in config else None for k in (*CONFIG, *extra)}


def check_json(path: object, raw: bytes | str, keys: Iterable[str]) -> dict[str, Any]:
    """The object of a known schema with `keys` that a file holds, or ReportError."""
    try:
        record = parse_json(raw)
    except ValueError as error:
        raise ReportError(path, "readable JSON", error) from None
    if not isinstance(record, dict):
        raise ReportError(path, "a JSON object", type(record).__name__)
    version = record.get("schema_version")
    if isinstance(version, bool) or not isinstance(version, int) or version > SCHEMA_VERSION:
        raise ReportError(path, f"schema_version at most {SCHEMA_VERSION}", repr(version))
    for key in keys:
        if key not in record:
            raise ReportError(path, f"the key {key!r}", "an object without it")
    return record


def read_bounded(path: str | os.PathLike[str]) -> tuple[bytes, os.stat_result]:
    """The bytes of a file under one of the names of LIMITS, and its status, or ReportError."""
    try:
        return read_plain(path, LIMITS[os.path.basename(path)])
    except (OSError, ValueError) as error:
        raise ReportError(path, "a readable file", getattr(error, "strerror", None) or error) from None


def check_record(path: object, raw: bytes | str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A result.json as it is, and as a row of the table of runs: status, configuration, metrics."""
    record = check_json(path, raw, ("status", "config", "metrics"))
    status, metrics = record["status"], record["metrics"]
    if not isinstance(status, str) or status not in STATUSES:
        raise ReportError(path, f"status to be one of {', '.join(STATUSES)}", repr(status))
    if not isinstance(metrics, dict):
        raise ReportError(path, "metrics to be an object", type(metrics).__name__)
    config = _config(path, record["config"])
    return record, {"status": status} | config | {k: _metric(path, k, metrics.get(k)) for k in METRICS}


Plan = tuple[str, dict[str, dict[str, Any]], dict[str, dict[str, Any]]]


def read_plan(folder: str | os.PathLike[str]) -> Plan:
    """Name, centres by target, and the configuration of each planned job, of `folder`/sweep.json."""
    path = os.path.join(folder, "sweep.json")
    record = check_json(path, read_bounded(path)[0], ("name", "centres", "jobs"))
    name, centres, jobs = record["name"], record["centres"], record["jobs"]
    for key, value, kind in (("name", name, str), ("centres", centres, dict), ("jobs", jobs, list)):
        if not isinstance(value, kind):
            raise ReportError(path, f"{key} to be a JSON {kind.__name__}", type(value).__name__)
    checked = {t: _config(path, c) | {"data.name": _config_value(path, "data.name", t)} for t, c in centres.items()}
    plan: dict[str, dict[str, Any]] = {}
    for entry in jobs:
        if not isinstance(entry, dict) or not {"job", "data.name", "seed", "config"} <= entry.keys():
            raise ReportError(path, "each job to have job, data.name, seed and config", repr(entry))
        job, target, own = entry["job"], entry["data.name"], entry["config"]
        parts = PurePosixPath(job).parts if isinstance(job, str) and job.isprintable() and len(job) <= TEXT else ()
        if not parts or "/" in parts or ".." in parts or "\\" in job:
            raise ReportError(path, "job to be a path inside the sweep", repr(job))
        if not isinstance(target, str) or target not in checked or not isinstance(own, dict):
            raise ReportError(path, f"job {job} to have a target with a centre, and its config", repr(entry))
        own = {k: v for k, v in own.items() if is_config(k) and k != "data.name"} | {"seed": entry["seed"]}
        if own.keys() <= checked[target].keys():  # only what differs from the centre is left to check
            plan[job] = checked[target] | {k: _config_value(path, k, v) for k, v in own.items()}
        else:
            plan[job] = _config(path, centres[target] | own | {"data.name": target})
    return printable(name, 200), {t: {k: v for k, v in c.items() if k != "seed"} for t, c in checked.items()}, plan


def read_history(path: str | os.PathLike[str]) -> np.ndarray:
    """The rows of a history.csv, shape (evaluations, columns of HISTORY); numbers beyond LARGEST are infinite."""
    raw = read_bounded(path)[0]
    try:
        head, *lines = raw.decode("utf-8-sig").splitlines() or [""]
        block = np.array([line.split(",") for line in lines], dtype=float).reshape(-1, len(HISTORY))
    except ValueError as error:
        raise ReportError(path, "a table of numbers", error) from None
    if head != ",".join(HISTORY):
        raise ReportError(path, f"the heading {','.join(HISTORY)}", head)
    return np.where(np.abs(block) > LARGEST, np.copysign(np.inf, block), block)


def load_arrays(run_dir: str | os.PathLike[str], *, only: Container[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of a run's samples.npz (or those named in `only`), read without pickle; {} if it stored none.

    Only numbers and text are read, and nothing is unpacked before its declared size is known to be small.

    Raises
    ------
    ReportError
        If the file is not an archive of plain arrays.

    >>> load_arrays("/nowhere")
    {}
    """
    path = Path(run_dir) / "samples.npz"
    if path.is_symlink() or not path.is_file():
        return {}
    try:
        with open_plain(path, LIMITS[path.name])[0] as file, _archive(file) as archive:
            members = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
            chosen = {k: i for k, i in members.items() if only is None or k in only}
            if (size := sum(i.file_size for i in chosen.values())) > LIMITS[path.name]:
                raise ValueError(f"{size:,} bytes unpacked (at most {LIMITS[path.name]:,} are read)")
            return {k: _array(archive, i) for k, i in chosen.items()}
    except Exception as error:  # zip, zlib, header and memory errors of a file from elsewhere
        raise ReportError(path, "an archive of plain arrays", error or type(error).__name__) from None


def _archive(file: Any) -> zipfile.ZipFile:
    """A zip as numpy writes it: a plain end record, and a directory of at most a mebibyte before it."""
    file.seek(-42, os.SEEK_END)
    tail = file.read(42)
    if tail[:4] == b"PK\6\7" or tail[20:24] != b"PK\5\6" or int.from_bytes(tail[32:36], "little") > 2**20:
        raise ValueError("no archive, or one with a directory of unusual size")
    return zipfile.ZipFile(file)


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = header(file)
        if dtype.kind not in "fiuU" or len(shape) > 8 or min(shape, default=0) < 0:
            raise ValueError(f"{member.filename}: dtype {dtype}, shape {shape}")
        count = math.prod(shape)
        if count * dtype.itemsize > member.file_size:
            raise ValueError(f"{member.filename}: {count * dtype.itemsize:,} bytes declared, {member.file_size:,} held")
        values = np.frombuffer(file.read(count * dtype.itemsize), dtype=dtype, count=count)
    if dtype.kind == "U" and values.view(dtype.str[0] + "u4").max(initial=0) > sys.maxunicode:
        raise ValueError(f"{member.filename}: no text")
    return values.reshape(shape, order="F" if fortran else "C")


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, by column.

    >>> rows_of(pd.DataFrame({"seed": [0, 1], "kl": [0.1, 0.2]}))
    [{'seed': 0, 'kl': 0.1}, {'seed': 1, 'kl': 0.2}]
    """
    rows: Any = frame.to_dict("records")
    return list(rows)


def known_versions(records: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The releases of each package, and the commits, that `records` name, as short text; at most 20 of each."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        versions = record.get("versions")
        known = versions if isinstance(versions, dict) else {}
        commit = str(record.get("git_commit") or "")[:12]
        for package, release in {**known, "commit": commit}.items():
            if release and (package in found or len(found) < 20):
                releases = found.setdefault(printable(package, 40), {})
                if len(releases) < 20:
                    releases[printable(release, 40)] = None
    return {package: list(releases) for package, releases in found.items()}
