"""What `hydra.sweeper` says, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nfexp.spec import SpecError


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keys of `hydra.sweeper`; conf/hydra/sweeper/grids.yaml says what each means."""

    params: Mapping[str, Any]
    zip: Mapping[str, Any]
    grids: Mapping[str, Any] | Sequence[Any]
    exclude: Sequence[Any]
    repeats: int
    sample: int | None
    resume: bool


def checked_options(values: Mapping[str, Any]) -> Options:
    """The options of a sweeper, from plain containers.

    Raises
    ------
    SpecError
        For one of another kind, with its key.
    """

    def container(key: str, expected: str, kinds: tuple[type, ...]) -> Any:
        value = values[key]
        if value is None:
            return kinds[0]()
        if not isinstance(value, kinds):
            raise SpecError(f"hydra.sweeper.{key}", expected, value)
        return value

    params = container("params", "a group of keys", (dict,))
    zip_ = container("zip", "keys with lists of values", (dict,))
    grids = container("grids", "grids by name, or a list of grids", (dict, list))
    exclude = container("exclude", "a list of {key: value}", (list,))
    repeats = values["repeats"]
    if not _is_count(repeats):
        raise SpecError("hydra.sweeper.repeats", "an integer >= 1", repeats)
    sample = values["sample"]
    if sample is not None and not _is_count(sample):
        raise SpecError("hydra.sweeper.sample", "an integer >= 1, or null", sample)
    resume = values["resume"]
    if not isinstance(resume, bool):
        raise SpecError("hydra.sweeper.resume", "true or false", resume)
    return Options(
        params=params,
        zip=zip_,
        grids=grids,
        exclude=exclude,
        repeats=repeats,
        sample=sample,
        resume=resume,
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
