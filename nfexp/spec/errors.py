"""The one error of a value that nfexp cannot run with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SpecError(ValueError):
    """A value that nfexp cannot run with.

    Its message names the key, what was expected and what came.
    """

    def __init__(self, key: str, expected: str, got: object) -> None:
        self.key = key
        self.expected = expected
        self.got = got
        shown = got if isinstance(got, Words) else repr(got)
        super().__init__(f"{key}: expected {expected}; got {shown}")

    def __reduce__(self) -> tuple[type[SpecError], tuple[str, str, object]]:
        return SpecError, (self.key, self.expected, self.got)  # a worker's error comes back whole


class Words(str):
    """Text that :class:`SpecError` shows as it is, without quotes."""


def counted(n: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "run"), counted(0, "duplicate row")
    ('1 run', '0 duplicate rows')
    """
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def near(asked: str, names: Iterable[str]) -> str:
    """The name that was probably meant, as the end of a message; empty if none is near.

    >>> near("flow.n_flow", ["flow.n_flows", "flow.mask"]), near("seed", ["flow.mask"])
    (" (near: 'flow.n_flows')", '')
    """
    matches = difflib.get_close_matches(asked, list(names), n=1)
    return f" (near: {matches[0]!r})" if matches else ""
