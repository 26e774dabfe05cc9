"""One run, one directory: written whole or not at all, read back without executing anything."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nfexp.files import replacing
from nfexp.record.formats import HISTORY_FILE, MODEL, RESULT, SAMPLES, ReportError, read_if_there
from nfexp.record.loading import load_flow
from nfexp.record.result import (
    code_version,
    code_words,
    git_commit,
    holds_a_run,
    parse_result,
    versions,
    write_result,
)
from nfexp.record.trained import TrainedFlow

if TYPE_CHECKING:  # torch is loaded only where a flow is: outcomes are read without it
    from nfexp.score import Result

__all__ = [
    "Outcome",
    "RunFailed",
    "TrainedFlow",
    "code_version",
    "git_commit",
    "load_flow",
    "objective",
    "outcome",
    "versions",
    "write_run",
]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended, read from its directory."""

    run_id: str
    status: str
    reason: str | None
    val_nll: float  # nats; infinite unless completed
    code: str


def outcome(folder: str | os.PathLike[str]) -> Outcome | None:
    """The outcome of the run in a directory; None if it holds no finished one.

    Raises
    ------
    SpecError
        If its record cannot be read.

    >>> outcome("/nowhere")
    """
    path = os.path.join(folder, RESULT)
    raw = read_if_there(path)
    if raw is None:
        return None
    record = parse_result(path, raw)
    val_nll = math.inf
    try:
        if record["status"] == "completed":
            val_nll = float(record["metrics"]["val_nll"])
        return Outcome(
            run_id=str(record["run_id"]),
            status=record["status"],
            reason=None if record["reason"] is None else str(record["reason"]),
            val_nll=val_nll,
            code=code_words(record["versions"]["nfexp"], record["git_commit"]),
        )
    except (ValueError, LookupError, TypeError) as error:
        raise ReportError(path, "the record of a run", error) from None


class RunFailed(RuntimeError):
    """A run raised; its record says why."""


def objective(end: Outcome | None) -> float:
    """The validation NLL of a run, nats; infinite if it diverged.

    RunFailed is raised if it failed or has not finished.
    """
    if end is None or end.status == "failed":
        raise RunFailed(end.reason if end else "not finished")
    return end.val_nll


def write_run(folder: Path, result: Result) -> None:
    """Write `history.csv`, `samples.npz`, `model.safetensors` and, last, `result.json`.

    Files that an interrupted attempt left there are replaced or removed, the checkpoint last.

    Raises
    ------
    SpecError
        If the folder holds a finished run: a record is never replaced.
    """
    from nfexp.checkpoint import CHECKPOINT

    folder.mkdir(parents=True, exist_ok=True)
    if (folder / RESULT).exists():
        raise holds_a_run(folder)
    _write_history(folder / HISTORY_FILE, result)
    _write_arrays(folder / SAMPLES, result)
    _write_weights(folder / MODEL, result)
    write_result(folder, result)
    (folder / CHECKPOINT).unlink(missing_ok=True)


def _write_history(path: Path, result: Result) -> None:
    """One row per evaluation, under the names of HISTORY; no file without evaluations."""
    if not result.history:
        path.unlink(missing_ok=True)
        return
    columns = [values.tolist() for values in result.history.values()]
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(result.history)
        writer.writerows(zip(*columns, strict=True))


def _write_arrays(path: Path, result: Result) -> None:
    import numpy as np

    if not result.arrays:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **result.arrays)


def _write_weights(path: Path, result: Result) -> None:
    from safetensors.numpy import save

    if not result.state:
        path.unlink(missing_ok=True)
        return
    weights = {name: value.numpy() for name, value in result.state.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(weights))
