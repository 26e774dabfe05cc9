"""The fields of the schema.

Which values one key admits, and the check of one value against that.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, field
from typing import Any

from nfexp.spec.errors import SpecError

NAME = r"[\w-][\w.-]*"

LONGEST_TEXT = 1000  # characters of a path or of a list of columns


# A key with a `default` may be absent. At that value it is no part of a record, an identity or a
# table of runs, so that a key can be added without a change to any run there is.
def choice(*options: str, default: Any = MISSING) -> Any:
    """One of some words; the field's type says whether null is allowed, too."""
    return field(default=default, metadata={"choices": options})


def within(
    low: float,
    high: float = math.inf,
    *,
    exclusive: bool = False,
    words: tuple[str, ...] = (),
    null: str = "null",
    default: Any = MISSING,
    meaning: str = "",
) -> Any:
    """A number in [low, high] ((low, high] if exclusive), or one of `words`; the field's type says int or float.

    `null` says in an error message what null is for, where the type admits it. `meaning` is for a
    key that stands in no file of `conf/`; of all others the comment there says it.
    """
    metadata = {
        "low": low,
        "high": high,
        "exclusive": exclusive,
        "words": words,
        "null": null,
        "meaning": meaning,
    }
    return field(default=default, metadata=metadata)


def named() -> Any:
    """A name that may stand in a file's name and on a page as it is."""
    return field(metadata={"pattern": NAME})


def listed() -> Any:
    """Names, as a list or as one text with commas; the text is what the spec holds."""
    return field(default=None, metadata={"listed": True})


def filled_in(meaning: str) -> Any:
    """Text that nfexp fills in itself; its meaning stands here, for it is in no file of `conf/`."""
    return field(default=None, metadata={"meaning": meaning})


def checked(key: str, value: Any, hint: Any, meta: Mapping[str, Any]) -> Any:
    """The value of a key, in the type that its annotation says, or :class:`SpecError`."""
    optional = type(None) in getattr(hint, "__args__", ())
    if value is None and optional:
        return None
    if "choices" in meta:
        if value not in meta["choices"]:
            null = " or null" if optional else ""
            raise SpecError(key, f"one of {', '.join(meta['choices'])}{null}", value)
        return value
    if "listed" in meta:
        return _listed(key, value)
    if "low" not in meta:
        if not isinstance(value, str):
            raise SpecError(key, "a string", value)
        if "pattern" in meta and not re.fullmatch(meta["pattern"], value):
            raise SpecError(key, "letters, digits, '_', '-' and '.' only", value)
        return value
    if value in meta["words"] and isinstance(value, str):
        return value
    whole = hint is int or int in getattr(hint, "__args__", ())
    low = meta["low"]
    high = meta["high"]
    allowed = (int,) if whole else (int, float)
    good = isinstance(value, allowed) and not isinstance(value, bool) and value == value
    if not good or value > high or value < low or (meta["exclusive"] and value == low):
        bound = f"{'>' if meta['exclusive'] else '>='} {low:g} and <= {high:g}"
        words = "".join(f" or {w!r}" for w in meta["words"]) + (
            f" or {meta['null']}" if optional else ""
        )
        raise SpecError(key, f"{'an integer' if whole else 'a number'} {bound}{words}", value)
    return value if whole else float(value)


def _listed(key: str, value: Any) -> str:
    """Names with commas between them, as a line of a CSV file has them."""
    if isinstance(value, str):
        return value
    names = [value] if isinstance(value, int) else value
    if not isinstance(names, list | tuple) or not names:
        raise SpecError(key, "a list of names or positions of columns", value)
    for name in names:
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise SpecError(key, "names or positions of columns", name)
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return line.getvalue()


def names_of(text: str) -> list[str]:
    """The names that a text with commas lists.

    >>> names_of('age,"height, cm",3')
    ['age', 'height, cm', '3']
    """
    return next(csv.reader([text], skipinitialspace=True))
