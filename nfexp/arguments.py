"""Arguments of a command, compared by what they say and not by how they are spelled."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString, ValueType

KINDS = {
    OverrideType.CHANGE: "change",
    OverrideType.ADD: "add",
    OverrideType.FORCE_ADD: "force",
    OverrideType.DEL: "remove",
}


@dataclass(frozen=True)
class Argument:
    """What an override is about, however it is spelled: ``++seed=0`` and ``seed=0`` share a key."""

    key: str
    value: Any  # of a swept one, Hydra's own description of its values
    kind: str  # change, add, force or remove
    line: str  # the override as Hydra is to read it
    swept: bool = False  # whether it lists several values: seed=0,1


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def key_of_override(override: Override) -> str:
    """The key without ``+``, ``++`` or ``~``, and without a package that changes nothing."""
    key = override.key_or_group
    package = override.package
    usual = [None, "_group_", key.replace("/", ".")]
    if key == "experiment":
        usual.append("_global_")  # as the first line of every experiment file says
    return key if package in usual else f"{key}@{package}"


def described(override: Override) -> Argument:
    """The argument that Hydra's parser has read."""
    key = key_of_override(override)
    line = override.input_line or ""
    if override.package is not None and key == override.key_or_group:
        # Hydra takes no package that changes nothing
        line = line.replace(f"@{override.package}", "", 1)
    return Argument(
        key=key,
        value=override.value(),
        kind=KINDS[override.type],
        line=line,
        swept=override.is_sweep_override(),
    )


def argument(line: str) -> Argument:
    """Read one override.

    Raises
    ------
    OverrideParseException
        If it is none.

    >>> [argument(line).key for line in ("seed=3", "++seed=3", "+seed=3", "~seed", "data@data=moons")]
    ['seed', 'seed', 'seed', 'seed', 'data']
    """
    return described(_parser().parse_override(line))


@lru_cache(maxsize=2**16)  # the jobs of a sweep repeat a few overrides thousands of times
def key_of(text: str) -> str:
    """What an argument of a command is about: the key of an override, the name of a flag.

    >>> key_of("++redo=failed"), key_of("--config-dir=mine")
    ('redo', '--config-dir')
    """
    if text.startswith("-"):
        return text.split("=")[0]
    return argument(text).key


def each(override: Override) -> Iterator[Argument]:
    """The values that a sweep over discrete values lists, an argument each; else the override."""
    if not override.is_sweep_override():
        yield described(override)
        return
    for element in override.sweep_iterator():
        one = replace(override, value_type=ValueType.ELEMENT, _value=element)
        one.input_line = f"{override.get_key_element()}={one.get_value_element_as_str()}"
        yield described(one)


WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
# words that Hydra reads as something else
NO_TEXT = re.compile("true|false|null|inf|nan", re.IGNORECASE)


def literal(text: str) -> str:
    """A text as OmegaConf is to hold it: no ``${`` in it interpolates.

    OmegaConf takes a backslash before ``${`` away, and of the backslashes before that every second
    one.

    >>> print(literal("costs ${x}"))
    costs \\${x}
    """
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)


def quoted(value: Any) -> str:
    """A null, truth, number or text as the command line spells it, so that exactly that arrives.

    >>> [quoted(value) for value in (None, True, 1e-3, "moons", "2024", "A, B")]
    ['null', 'true', '0.001', 'moons', "'2024'", "'A, B'"]
    """
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if not isinstance(value, str):
        return str(value)
    if WORD.fullmatch(value) and not NO_TEXT.fullmatch(value):
        return value
    return QuotedString(text=literal(value), quote=Quote.single).with_quotes()


def given(key: str, value: Any) -> Argument:
    """The argument that gives a key a value of YAML: the value itself, whatever text it is."""
    return replace(argument(f"{key}={quoted(value)}"), value=value)
