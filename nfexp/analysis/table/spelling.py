"""How text is spelled in a CSV, so that no reader takes it for something else."""

from __future__ import annotations

from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the start of a formula
# What pandas takes for a missing value (its STR_NA_VALUES), and what it or a spreadsheet takes for
# a truth value.
MISSING = ["#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "1.#IND", "1.#QNAN", "<NA>", "N/A"]
MISSING += ["NA", "NULL", "NaN", "None", "n/a", "nan", "null"]
TRUTH = ["True", "TRUE", "true", "False", "FALSE", "false"]
WORDS = frozenset([*MISSING, *TRUTH])


def mistakable(text: str) -> bool:
    """Whether a reader could take a text for a number, a missing or truth value, or a formula.

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
    if isinstance(value, str) and mistakable(value):
        return "'" + value
    return value


def inert_value(value: Any) -> Any:
    """A value of the configuration as a cell. An empty text is a quote: an empty cell is null."""
    if isinstance(value, str) and value == "":
        return "'"
    return inert(value)


def inert_path(path: Any) -> Any:
    """A path as a cell of a CSV.

    It stays a path: job 0000, which looks like a number, is ./0000.
    """
    if isinstance(path, str) and mistakable(path):
        return "./" + path
    return path


def live(cell: str) -> str:
    """The text of a cell, without the quote that :func:`inert` or :func:`inert_value` added.

    >>> live("'0000"), live("'"), live("relu"), live("'quoted'")
    ('0000', '', 'relu', "'quoted'")
    """
    if cell == "'" or (cell.startswith("'") and mistakable(cell[1:])):
        return cell[1:]
    return cell
