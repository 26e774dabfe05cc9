"""What a cell of the table of runs may hold; every value of a record is checked here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, get_type_hints

from nfexp.record.formats import ReportError
from nfexp.record.metrics import COUNTS
from nfexp.spec import ADDED, READING, Spec, is_relevant

LARGEST = 1e100  # of any number, so that squares stay finite
LARGEST_COUNT = 2**53  # of a whole number, which a float64 still holds exactly
NAME = 80  # characters of a value of the configuration, or of a key
TEXT = 1000  # characters of a job, of data.text, and of a value of LONG
LONG = ("data.path", "data.val_path", "data.test_path", "data.columns", "data.drop", "data.target")


def is_config(key: str) -> bool:
    """Whether a key of the flat configuration is a column of the table of runs."""
    return is_relevant(key) or key in READING  # where a table was read is worth a column


def _kinds() -> dict[str, frozenset[type]]:
    """The types that each configuration column admits, read off :mod:`nfexp.spec`."""
    hints: dict[str, Any] = {}
    for group, group_type in get_type_hints(Spec).items():
        if not is_dataclass(group_type):
            hints[group] = group_type
            continue
        of_group = get_type_hints(group_type)
        for field in fields(group_type):
            if field.default is MISSING:  # a key that may be absent is a column where it is there
                hints[f"{group}.{field.name}"] = of_group[field.name]
    kinds = {}
    for key, hint in hints.items():
        if is_config(key):
            # A union such as int | str has __args__, a type such as int has none.
            kinds[key] = frozenset(getattr(hint, "__args__", (hint,)))
    return kinds


KINDS = _kinds()
# What a key that this version does not know may hold.
ANY: frozenset[type] = frozenset({int, float, str, type(None)})
CONFIG = tuple(KINDS)
REQUIRED = (
    "data.name",
    "data.n_samples",
    "data.noise",
    "flow.n_flows",
    "flow.hidden_depth",
    "flow.hidden_width",
    "flow.activation",
    "flow.mask",
    "flow.coupling",
    "flow.conditioner",
    "flow.norm",
    "flow.base",
    "train.steps",
    "train.batch_size",
    "train.lr",
    "train.select",
    "seed",
)


# Cached, for a sweep repeats its values; typed, for 1 and 1.0 are different values.
@lru_cache(maxsize=2**14, typed=True)
def _admitted(key: str, value: float | str | None) -> tuple[bool, Any]:
    """Whether a column takes this value, and the value as the column holds it."""
    kinds = KINDS.get(key, ANY)
    if value is None:
        return type(None) in kinds, None
    if isinstance(value, str):
        return str in kinds and _is_short(key, value), value
    if not abs(value) < 2**63:  # NaN too: a comparison with it is false
        return False, value
    if isinstance(value, float) and float not in kinds:
        return int in kinds and value.is_integer(), int(value)
    if isinstance(value, int) and int not in kinds:
        return float in kinds, float(value)
    return True, value


def _is_short(key: str, text: str) -> bool:
    """Whether a text fits its column, and a line; only data.text may have line breaks."""
    if key == "data.text":
        return len(text) <= TEXT and " ".join(text.split()).isprintable()
    return len(text) <= _limit(key) and text.isprintable()


def _limit(key: str) -> int:
    """The most characters of a text in a column."""
    return TEXT if key == "data.text" or key in LONG else NAME


def config_value(where: object, key: str, value: Any) -> Any:
    """A value of the configuration as its column holds it.

    ReportError if it is of another type or too long.
    """
    if type(value) in ANY and not (isinstance(value, str) and len(value) > TEXT):
        fits, held = _admitted(key, value)
        if fits:
            return held
    kinds = KINDS.get(key, ANY)
    names = sorted("null" if kind is type(None) else kind.__name__ for kind in kinds)
    expected = f"{key} to be {' or '.join(names)}"
    if isinstance(value, str) and str in kinds:
        expected += f", printable and at most {_limit(key)} characters"
    raise ReportError(where, expected, repr(value))


def config_row(where: object, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a row: the columns of this version (None where absent), then others."""
    for key in REQUIRED:
        if key not in config:
            raise ReportError(where, f"config to have {key}", "a config without it")
    known = ADDED | dict(config)  # an older record lacks the younger keys
    row = dict.fromkeys(CONFIG)
    for key in config:
        if is_config(key) and key not in KINDS:
            if not _is_plain_key(key):
                expected = "keys of letters, digits, '.' and '_' in config"
                raise ReportError(where, expected, repr(key))
            row[key] = None
    for key in row:
        if key in known:
            row[key] = config_value(where, key, known[key])
    return row


def _is_plain_key(key: str) -> bool:
    letters = key.replace(".", "").replace("_", "")
    return len(key) <= NAME and letters.isascii() and letters.isalnum()


def metric_value(where: object, key: str, value: Any) -> float:
    """A metric as a float, NaN where it is missing; ReportError if it is no finite number."""
    if value is None:
        return math.nan
    largest = LARGEST_COUNT if key in COUNTS else LARGEST
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < largest:
        return float(value)
    raise ReportError(where, f"the metric {key} to be a finite number or null", repr(value))


def is_inside(job: object) -> bool:
    """Whether the name of a job is a path that leads down from the folder of its sweep.

    >>> is_inside("moons/0000"), is_inside("../0000"), is_inside("/etc"), is_inside(".")
    (True, False, False, False)
    """
    if not isinstance(job, str) or not job.isprintable() or len(job) > TEXT:
        return False
    parts = PurePosixPath(job.replace("\\", "/")).parts  # the parts of "." are none
    return bool(parts) and "/" not in parts and ".." not in parts
