"""The format of `result.json`, the record of one run.

It is written last: a run without it has not finished.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfexp.files import replacing
from nfexp.record.formats import RESULT, ReportError, parse_document
from nfexp.spec import SCHEMA_VERSION, SpecError, Words, flatten, run_id

if TYPE_CHECKING:
    from nfexp.score import Result

STATUSES = ("completed", "diverged", "failed")


@functools.cache
def versions() -> dict[str, str | None]:
    """Versions of nfexp and of what its numbers rest on."""
    numbers: dict[str, str | None] = {}
    for package in ("nfexp", "torch", "numpy", "hydra-core", "omegaconf"):
        try:
            numbers[package] = version(package)
        except PackageNotFoundError:
            numbers[package] = None
    return numbers


@functools.cache
def git_commit() -> str | None:
    """The commit of the checkout nfexp runs from ("-dirty" if it differs), or None outside one."""
    home = Path(__file__).parents[2]
    if not (home / ".git").exists():
        return None
    command = ["git", "-C", str(home), "describe", "--always", "--dirty"]
    command += ["--abbrev=40", "--exclude=*"]  # the whole commit, and no tag
    # Within a git hook GIT_DIR and the like name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=10
        )
        return answer.stdout.strip()
    return None


def code_version() -> str:
    """The code that runs are made by: the version of nfexp and, in a checkout, its commit."""
    return code_words(versions()["nfexp"], git_commit())


def code_words(release: object, commit: object) -> str:
    """A version of nfexp and its commit, in words."""
    words = f"nfexp {release or '(not installed)'}"
    if commit:
        words += f" at commit {commit}"
    return words


def holds_a_run(folder: Path) -> SpecError:
    """What to raise where a run would be written over another."""
    return SpecError(str(folder), "a new or empty folder", Words(f"one that holds {RESULT}"))


def write_result(folder: Path, result: Result) -> None:
    """Write the record of a run.

    Raises
    ------
    SpecError
        If there is one: a record is never replaced.
    """
    record = {
        "schema_version": SCHEMA_VERSION,
        "status": result.status,
        "reason": result.reason,
        "run_id": run_id(result.spec),
        "config": flatten(result.spec),
        "kernel": result.kernel,
        "metrics": result.metrics,
        "versions": versions(),
        "git_commit": git_commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if result.members:
        record["members"] = result.members  # of an ensemble: what each of its flows is alone
    try:
        with replacing(folder / RESULT, once=True) as path:
            path.write_text(json.dumps(record, indent=1, allow_nan=False))
    except FileExistsError:
        raise holds_a_run(folder) from None


def parse_result(path: object, raw: bytes | str) -> dict[str, Any]:
    """The record that the text of a `result.json` holds; `path` is for messages.

    Its status is one of STATUSES, its config and metrics are objects. Their contents are checked
    where they are used: :func:`nfexp.record.load_flow` checks them as a configuration, the table of
    runs column by column.

    Raises
    ------
    ReportError
        If it is no record of a known schema.
    """
    record = parse_document(path, raw, ("status", "config", "metrics"))
    status = record["status"]
    if not isinstance(status, str) or status not in STATUSES:
        raise ReportError(path, f"status to be one of {', '.join(STATUSES)}", repr(status))
    for key in ("metrics", "config"):
        if not isinstance(record[key], dict):
            raise ReportError(path, f"{key} to be an object", type(record[key]).__name__)
    return record
