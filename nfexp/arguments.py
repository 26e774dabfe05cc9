"""Arguments of a command, compared by what they say and not by how they are spelled."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
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
    """What an override is about, whatever its spelling: ``++seed=0``, ``+seed=0`` and ``seed=0`` share a key.

    `kind` is change, add, force or remove. `line` is the override as Hydra is to read it. `swept` says that
    it lists several values (``seed=0,1``); `value` is then Hydra's own description of them.
    """

    key: str
    value: Any
    kind: str
    line: str
    swept: bool = False


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def key_of_override(override: Override) -> str:
    """The key without ``+``, ``++`` or ``~``, and without a package that says where its group is anyway."""
    key, package = override.key_or_group, override.package
    if package in (None, "_group_", key.replace("/", ".")) or (key, package) == ("experiment", "_global_"):
        return key
    return f"{key}@{package}"


def described(override: Override) -> Argument:
    """The argument that Hydra's parser has read."""
    key, line = key_of_override(override), override.input_line or ""
    if key != override.key_or_group + (f"@{override.package}" if override.package is not None else ""):
        line = line.replace(f"@{override.package}", "", 1)  # Hydra takes no package that changes nothing
    swept = override.is_sweep_override()
    return Argument(key, override.value(), KINDS[override.type], line, swept)


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


def key_of(text: str) -> str:
    """What an argument of a command is about: the key of an override, the name of a flag.

    >>> key_of("++redo=failed"), key_of("--config-dir=mine")
    ('redo', '--config-dir')
    """
    return text.split("=")[0] if text.startswith("-") else argument(text).key


def each(override: Override) -> Iterator[Argument]:
    """The values that a sweep over discrete values lists, an argument each; else the override itself."""
    if not override.is_sweep_override():
        yield described(override)
        return
    for element in override.sweep_iterator():
        one = replace(override, value_type=ValueType.ELEMENT, _value=element)
        one.input_line = f"{override.get_key_element()}={one.get_value_element_as_str()}"
        yield described(one)


WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
NO_TEXT = re.compile("true|false|null|inf|nan", re.IGNORECASE)  # words that Hydra reads as something else


def literal(text: str) -> str:
    """A text as OmegaConf is to hold it, so that it is read as that text: no ``${`` in it interpolates.

    >>> print(literal("costs ${x}"))
    costs \\${x}
    """
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)


def quoted(value: Any) -> str:
    """A null, truth, number or text as the command line spells it, so that exactly that arrives.

    >>> [quoted(value) for value in (None, True, 1e-3, "moons", "2024", "A, B")]
    ['null', 'true', '0.001', 'moons', "'2024'", "'A, B'"]
    """
    if not isinstance(value, str):
        return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
    if WORD.fullmatch(value) and not NO_TEXT.fullmatch(value):
        return value
    return QuotedString(text=literal(value), quote=Quote.single).with_quotes()


def given(key: str, value: Any) -> Argument:
    """The argument that gives a key a value of YAML: the value itself, whatever text it is."""
    return replace(argument(f"{key}={quoted(value)}"), value=value)
