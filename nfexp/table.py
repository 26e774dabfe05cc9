"""From run directories to one tidy DataFrame: every file is checked here, once, and none is executed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path, PurePosixPath
from typing import Any, get_type_hints

import numpy as np
import pandas as pd

from nfexp.files import replacing
from nfexp.spec import SCHEMA_VERSION, Spec

METRICS = (
    "train_nll", "val_nll", "test_nll", "test_nll_se", "true_nll", "kl", "kl_se", "clean_distance",
    "best_step", "steps_to_converge", "inverse_error", "n_parameters", "seconds", "stack_size", "diverged_at",
)  # fmt: skip
COUNTS = ("best_step", "steps_to_converge", "n_parameters", "stack_size", "diverged_at")
HISTORY = ("step", "train_nll", "val_nll", "grad_norm", "lr")
STATUSES = ("completed", "diverged", "failed")


class ReportError(ValueError):
    """A directory that cannot be reported on; one line with the place, what was expected and what came."""

    def __init__(self, where: object, expected: str, got: object) -> None:
        shown = " ".join(str(got).split())
        shown = shown if len(shown) <= 120 else shown[:117] + "..."
        super().__init__(f"{' '.join(str(where).split())}: expected {expected}; got {shown}")


def _kinds() -> dict[str, frozenset[type]]:
    """The types each configuration column admits, read off :mod:`nfexp.spec`."""
    found: dict[str, frozenset[type]] = {}
    for key, hint in get_type_hints(Spec).items():
        if is_dataclass(hint):
            hints = get_type_hints(hint)
            found |= {f"{key}.{f.name}": hints[f.name] for f in fields(hint)}
        else:
            found[key] = hint
    return {k: frozenset(getattr(h, "__args__", (h,))) for k, h in found.items()}


def _is_config(key: str) -> bool:
    return key not in ("name", "device") and not key.startswith("record.")


KINDS = {k: v for k, v in _kinds().items() if _is_config(k)}
CONFIG = tuple(KINDS)
REQUIRED = (
    "data.name", "data.n_samples", "data.noise", "flow.n_flows", "flow.hidden_depth", "flow.hidden_width",
    "flow.activation", "flow.mask", "flow.coupling", "flow.conditioner", "flow.norm", "flow.base", "train.steps",
    "train.batch_size", "train.lr", "train.select", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """What a sweep set out to do: its name, the centre of each target and the number of jobs planned."""

    name: str
    centres: dict[str, dict[str, Any]]
    planned: int


def _config_value(where: object, key: str, value: Any) -> Any:
    kinds = KINDS.get(key, frozenset({int, float, str, type(None)}))
    if value is None and type(None) in kinds:
        return None
    if isinstance(value, str) and str in kinds:
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**63:
        if isinstance(value, float) and int in kinds and value.is_integer():
            return int(value) if float not in kinds else value
        if isinstance(value, int) and kinds & {int, float}:
            return value if int in kinds else float(value)
        if isinstance(value, float) and float in kinds:
            return value
    names = " or ".join(sorted("null" if k is type(None) else k.__name__ for k in kinds))
    raise ReportError(where, f"{key} to be {names}", repr(value))


def _metric(where: object, key: str, value: Any) -> float:
    if value is None:
        return math.nan
    largest = 2**53 if key in COUNTS else 1e100  # so that squares stay finite
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < largest:
        return float(value)
    raise ReportError(where, f"the metric {key} to be a finite number or null", repr(value))


def _config(where: object, config: Any) -> dict[str, Any]:
    if not isinstance(config, dict):
        raise ReportError(where, "config to be an object", type(config).__name__)
    if absent := [k for k in REQUIRED if k not in config]:
        raise ReportError(where, f"config to have {absent[0]}", "a config without it")
    extra = [k for k in config if k not in KINDS and _is_config(k)]
    return {k: _config_value(where, k, config[k]) if k in config else None for k in (*CONFIG, *extra)}


def _no_constant(name: str) -> float:
    raise ValueError(f"the literal {name}")


def _read_json(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    """An object of a known schema with `keys`, or ReportError."""
    try:
        raw = path.read_bytes()
        record = json.loads(raw, parse_constant=_no_constant)
        if b"\\ud" in raw.lower():
            json.dumps(record, ensure_ascii=False).encode()  # raises for half of a surrogate pair
    except (OSError, ValueError, RecursionError) as error:
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


def _search(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Directories at or below `folder` with result.json (True) or sweep.json (False); no symlink is followed."""
    pending = [folder]
    while pending:
        here = pending.pop()
        try:
            with os.scandir(here) as entries:
                found = list(entries)
        except OSError as error:
            raise ReportError(here, "a readable directory", error) from None
        files = {e.name for e in found if e.is_file(follow_symlinks=False)}
        if "sweep.json" in files:
            yield here, False
        if "result.json" in files:
            yield here, True
        else:
            pending += [here / e.name for e in found if e.is_dir(follow_symlinks=False) and e.name[0] != "."]


def _folders(dirs: Iterable[str | os.PathLike[str]]) -> list[Path]:
    folders = [Path(os.path.abspath(d)) for d in dirs]
    if not folders:
        raise ReportError("dirs", "at least one directory", "none")
    for folder in folders:
        if not folder.is_dir():
            raise ReportError(folder, "a directory", "a file" if folder.exists() else "nothing there")
    return folders


def _run_row(folder: Path) -> dict[str, Any]:
    path = folder / "result.json"
    record = _read_json(path, ("status", "config", "metrics"))
    status, metrics = record["status"], record["metrics"]
    if not isinstance(status, str) or status not in STATUSES:
        raise ReportError(path, f"status to be one of {', '.join(STATUSES)}", repr(status))
    if not isinstance(metrics, dict):
        raise ReportError(path, "metrics to be an object", type(metrics).__name__)
    config = _config(path, record["config"])
    return {"status": status} | config | {k: _metric(path, k, metrics.get(k)) for k in METRICS}


def _read_plan(folder: Path) -> tuple[str, dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Name, centres by target, and the configuration of each planned job, of `folder`/sweep.json."""
    path = folder / "sweep.json"
    record = _read_json(path, ("name", "centres", "jobs"))
    name, centres, jobs = record["name"], record["centres"], record["jobs"]
    for key, value, kind in (("name", name, str), ("centres", centres, dict), ("jobs", jobs, list)):
        if not isinstance(value, kind):
            raise ReportError(path, f"{key} to be a JSON {kind.__name__}", type(value).__name__)
    checked = {t: _config(path, c) for t, c in centres.items()}
    plan: dict[str, dict[str, Any]] = {}
    for entry in jobs:
        if not isinstance(entry, dict) or not {"job", "data.name", "seed", "config"} <= entry.keys():
            raise ReportError(path, "each job to have job, data.name, seed and config", repr(entry))
        job, target, own = entry["job"], entry["data.name"], entry["config"]
        parts = PurePosixPath(job).parts if isinstance(job, str) and job.isprintable() else ()
        if not parts or "/" in parts or ".." in parts or "\\" in job:
            raise ReportError(path, "job to be a path inside the sweep", repr(job))
        if not isinstance(target, str) or target not in checked or not isinstance(own, dict):
            raise ReportError(path, f"job {job} to have a target with a centre, and its config", repr(entry))
        plan[job] = _config(path, checked[target] | own | {"data.name": target, "seed": entry["seed"]})
    return name, {t: {k: v for k, v in c.items() if k != "seed"} for t, c in checked.items()}, plan


def load_runs(*dirs: str | os.PathLike[str]) -> pd.DataFrame:
    """Gather every run at or below `dirs` in one table, one row per run.

    Columns: job (path inside its directory), status, the configuration keys, the metrics (nats per point, data
    units, steps, seconds), dir (absolute path). A planned job without a result has the status "missing" and no
    metrics; divergence is a status too, never an exception.

    Raises
    ------
    ReportError
        If a directory is absent or holds no finished run, or a record is unreadable or of a newer schema.

    >>> load_runs("/nowhere")
    Traceback (most recent call last):
    nfexp.table.ReportError: /nowhere: expected a directory; got nothing there
    """
    rows: dict[str, dict[str, Any]] = {}
    for top in _folders(dirs):
        finished, planned = 0, {}
        for folder, has_result in _search(top):
            job = top.name if folder == top else folder.relative_to(top).as_posix()
            if has_result:
                finished += 1
                rows.setdefault(str(folder), {"job": job} | _run_row(folder))
            else:
                planned |= {folder / job: config for job, config in _read_plan(folder)[2].items()}
        if not finished:
            raise ReportError(top, "a finished run (a directory with result.json)", "none")
        for folder, row in planned.items():
            job = folder.relative_to(top).as_posix()
            rows.setdefault(str(folder), {"job": job, "status": "missing"} | row)
    table = pd.DataFrame([row | {"dir": folder} for folder, row in rows.items()])
    extra = [c for c in table if c not in ("job", "status", *CONFIG, *METRICS, "dir")]
    table = table[["job", "status", *CONFIG, *extra, *METRICS, "dir"]]
    return table.sort_values("dir", kind="stable", ignore_index=True)


def load_sweep(dirs: Iterable[str | os.PathLike[str]] | str | os.PathLike[str], runs: pd.DataFrame) -> Sweep:
    """Read name, centres and number of planned jobs from the sweep.json files at or below `dirs`.

    Several names are joined by " + "; where two sweeps give a target different centres the first one counts.
    A target without a planned centre gets the one that :func:`infer_centres` finds in `runs`.

    Raises
    ------
    ReportError
        As :func:`load_runs`.
    """
    names, centres, places = [], {}, set(runs["dir"])
    for top in _folders([dirs] if isinstance(dirs, (str, os.PathLike)) else dirs):
        plans = [(folder, *_read_plan(folder)) for folder, has_result in _search(top) if not has_result]
        for folder, name, found, plan in plans:
            names.append(name)
            centres = found | centres
            places |= {str(folder / job) for job in plan}
        names += [] if plans else [top.name]
    present = set(runs["data.name"])
    inferred = infer_centres(runs[~runs["data.name"].isin(list(centres))])
    centres = {t: c for t, c in (centres | inferred).items() if t in present}
    return Sweep(" + ".join(dict.fromkeys(names)), centres, len(places))


def infer_centres(runs: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The most common value of each configuration column per target; of tied numbers the (lower) median one.

    >>> infer_centres(pd.DataFrame({"data.name": "moons", "flow.n_flows": [3, 6, 9], "flow.norm": "none"}))
    {'moons': {'data.name': 'moons', 'flow.n_flows': 6, 'flow.norm': 'none'}}
    """
    columns = config_columns(runs)
    return {
        str(target): {"data.name": str(target)} | {c: _most_common(group[c]) for c in columns}
        for target, group in runs.groupby("data.name", sort=True)
    }


def _most_common(column: pd.Series) -> Any:
    counts = column.value_counts(dropna=False)
    tied = [None if pd.isna(v) else v for v in counts.index[counts == counts.max()]]
    values = [v for v in tied if v is not None]
    if not values:
        return None
    if any(isinstance(v, str) for v in values):
        return min(values, key=str)
    value = sorted(values)[(len(values) - 1) // 2]
    return value.item() if isinstance(value, np.generic) else value


def config_columns(runs: pd.DataFrame) -> list[str]:
    """The configuration columns of a table of runs, without data.name and seed.

    >>> config_columns(pd.DataFrame(columns=["job", "data.name", "flow.n_flows", "seed", "kl", "dir"]))
    ['flow.n_flows']
    """
    return [c for c in runs if c not in ("job", "status", "dir", "data.name", "seed", *METRICS) and _is_config(c)]


def load_histories(runs: pd.DataFrame) -> pd.DataFrame:
    """Stack the training curves of `runs`: job, dir, step, train_nll, val_nll (nats per point), grad_norm, lr.

    Runs without a history.csv add no rows.

    Raises
    ------
    ReportError
        If a history.csv is not a table of numbers under these headings.
    """
    jobs, places, blocks = [], [], [np.empty((0, len(HISTORY)))]
    for job, folder in zip(runs["job"], runs["dir"], strict=True):
        path = Path(folder) / "history.csv"
        if path.is_symlink() or not path.is_file():
            continue
        try:
            head, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
            block = np.array([line.split(",") for line in lines], dtype=float).reshape(-1, len(HISTORY))
        except (OSError, ValueError) as error:
            raise ReportError(path, "a table of numbers", error) from None
        if head != ",".join(HISTORY):
            raise ReportError(path, f"the heading {','.join(HISTORY)}", head)
        blocks.append(block)
        jobs += [job] * len(block)
        places += [folder] * len(block)
    frame = pd.DataFrame(np.concatenate(blocks), columns=list(HISTORY))
    frame.insert(0, "job", pd.Series(jobs, dtype=str))
    frame.insert(1, "dir", pd.Series(places, dtype=str))
    return frame


def load_arrays(run_dir: str | os.PathLike[str], *, only: Container[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of a run's samples.npz (or those named in `only`), read without pickle; {} if it stored none.

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
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {k: archive[k] for k in archive.files if only is None or k in only}
    except Exception as error:  # zip, zlib, header and memory errors of a file from elsewhere
        raise ReportError(path, "an archive of plain arrays", error) from None


def write_csv(frame: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write `frame` without its index, whole or not at all.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_csv(pd.DataFrame({"kl": [0.5], "best_step": [20.0]}), Path(folder) / "runs.csv")
    ...     print((Path(folder) / "runs.csv").read_text().split())
    ['kl,best_step', '0.5,20']
    """
    path = Path(path)
    whole = {c: "Int64" for c in COUNTS if c in frame and (frame[c].isna() | (frame[c] % 1 == 0)).all()}
    with (
        replacing(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        frame.astype(whole).to_csv(file, index=False, lineterminator="\n")
