"""A checked spec from plain dicts, and values from text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from nfexp.spec.checks import check_together
from nfexp.spec.errors import SpecError, Words, near
from nfexp.spec.parameters import (
    check_own_names,
    checked_parameters,
    is_parameter,
    is_parameter_key,
)
from nfexp.spec.ranges import checked
from nfexp.spec.schema import Data, Spec

_hints = cache(get_type_hints)


def from_mapping(config: Mapping[str, Any], cls: type = Spec, prefix: str = "") -> Any:
    """Build a checked spec from nested plain dicts.

    Raises
    ------
    SpecError
        For the first unknown, missing, mistyped or out-of-range key; the message has its full name.
    """
    known = {f.name: f for f in fields(cls) if f.name != "parameters"}
    hints = _hints(cls)
    parameters: dict[str, Any] = {}
    if cls is Data:
        parameters = {key: config[key] for key in config if is_parameter(config, key)}
        config = {key: value for key, value in config.items() if key not in parameters}
        if config.get("kind") == "own":
            check_own_names(config)
    for key in config:
        if key not in known:
            got = f"an unknown key{near(str(key), known)}"
            raise SpecError(prefix + str(key), f"one of the keys {', '.join(known)}", Words(got))
    values = {}
    for key, spec_field in known.items():
        full = prefix + key
        if key not in config:
            if spec_field.default is MISSING:
                raise SpecError(full, "a value", Words("nothing"))
            values[key] = spec_field.default
            continue
        value = config[key]
        if is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise SpecError(full, "a group of keys", value)
            values[key] = from_mapping(value, hints[key], full + ".")
        else:
            if full == "train.warmup":
                value = steps_up_to(value, config.get("steps"))
                if isinstance(value, str):
                    expected = "an integer >= 0, up_to_N or up_to_N_or_a_third"
                    raise SpecError(full, expected, value)
            values[key] = checked(full, value, hints[key], spec_field.metadata)
    if cls is Data:
        values["parameters"] = checked_parameters(values["kind"], values["name"], parameters)
    spec = cls(**values)
    if cls is Spec:
        check_together(spec)
    return spec


def steps_up_to(value: Any, steps: Any) -> Any:
    """The number of steps that "up_to_50" stands for, never more than there are.

    Any other value is given back.

    With "up_to_50_or_a_third" it is never more than a third of the steps.

    >>> steps_up_to("up_to_50", 2000), steps_up_to("up_to_50", 20), steps_up_to(100, 20)
    (50, 20, 100)
    >>> steps_up_to("up_to_50_or_a_third", 2000), steps_up_to("up_to_50_or_a_third", 20)
    (50, 6)
    """
    match = (
        re.fullmatch(r"up_to_(\d{1,9})(_or_a_third)?", value) if isinstance(value, str) else None
    )
    if match is None:
        return value
    largest = int(match[1])
    if type(steps) is not int or steps <= 0:
        return largest
    # Not a third for all: older recipes of fewer than 3 N steps would get another run_id
    most = steps // 3 if match[2] else steps
    return min(largest, most)


NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def from_text(key: str, text: str) -> Any:
    """The number that a text spells exactly, where the key takes one; else the text.

    >>> from_text("seed", "3"), from_text("train.lr", "1e-3"), from_text("data.text", "3")
    (3, 0.001, '3')
    """
    cls: Any = Spec
    *groups, leaf = key.split(".")
    for group in groups:
        cls = _hints(cls).get(group)
        if not is_dataclass(cls):
            return text
    hint = _hints(cls).get(leaf)
    if is_parameter_key(key):
        hint = int | float
    kinds = {hint, *getattr(hint, "__args__", ())}
    if int in kinds and re.fullmatch(r"[+-]?[0-9]{1,30}", text):
        return int(text)
    if float in kinds and NUMBER.fullmatch(text):
        return float(text)
    return text
