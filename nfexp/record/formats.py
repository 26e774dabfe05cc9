"""Names and largest sizes of the files of runs and sweeps, and how JSON among them is read.

A file may come from anywhere: it is read whole, bounded and as data, or refused in one line.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from nfexp.files import parse_json, read_plain
from nfexp.spec import SCHEMA_VERSION, SpecError, Words

RESULT = "result.json"
PLAN = "sweep.json"
HISTORY_FILE = "history.csv"
SAMPLES = "samples.npz"
MODEL = "model.safetensors"
# The most that is read of each, in bytes, unpacked.
LIMITS = {RESULT: 2**20, PLAN: 2**26, HISTORY_FILE: 2**22, SAMPLES: 2**28, MODEL: 2**31}


class ReportError(SpecError):
    """A file or folder that does not hold what it should.

    One line with the place, what was expected and what came.
    """

    def __init__(self, where: object, expected: object, got: object) -> None:
        super().__init__(printable(where, 4096), printable(expected, 4096), Words(printable(got)))


def printable(text: object, limit: int = 120) -> str:
    """Text for one line of a terminal or page, cut at `limit` characters.

    Blanks are joined, and what has no glyph is escaped.

    >>> printable("two\\nlines \\x1b[31m")
    'two lines \\\\x1b[31m'
    """
    flat = " ".join(str(text)[: 4 * limit].split())
    if not flat.isprintable():
        letters = ""
        for letter in flat:
            letters += letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        flat = letters
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def reason(error: Exception) -> object:
    """Why a file could not be read: what the system says, without the path, or the error itself."""
    return getattr(error, "strerror", None) or error


def read_bounded(path: str | os.PathLike[str]) -> tuple[bytes, os.stat_result]:
    """The bytes of a file under one of the names of LIMITS, and its status.

    Raises
    ------
    ReportError
        If there is no such file, or it is a link, a pipe or larger than its limit.
    """
    try:
        return read_plain(path, LIMITS[os.path.basename(path)])
    except (OSError, ValueError) as error:
        raise ReportError(path, "a readable file", reason(error)) from error


def read_if_there(path: str | os.PathLike[str]) -> bytes | None:
    """The bytes of a file as of :func:`read_bounded`; None where there is none of that name."""
    try:
        return read_bounded(path)[0]
    except ReportError as error:
        if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
            return None
        raise


def parse_document(path: object, raw: bytes | str, keys: Iterable[str]) -> dict[str, Any]:
    """The JSON object of a known schema that a file holds; `path` is for messages.

    Raises
    ------
    ReportError
        If it is no such object, or lacks one of `keys`.
    """
    try:
        document = parse_json(raw)
    except ValueError as error:
        raise ReportError(path, "readable JSON", error) from None
    if not isinstance(document, dict):
        raise ReportError(path, "a JSON object", type(document).__name__)
    version = document.get("schema_version")
    if isinstance(version, bool) or not isinstance(version, int) or version > SCHEMA_VERSION:
        raise ReportError(path, f"schema_version at most {SCHEMA_VERSION}", repr(version))
    for key in keys:
        if key not in document:
            raise ReportError(path, f"the key {key!r}", "an object without it")
    return document
