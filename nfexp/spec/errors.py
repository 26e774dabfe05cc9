"""The one error of a value that nfexp cannot run with."""

from __future__ import annotations


class SpecError(ValueError):
    """A value that nfexp cannot run with; its message names the key, what was expected and what came."""

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
