"""Parameters: keys of `data` beside its fields, by which one target can be varied."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from nfexp.spec.errors import SpecError, Words
from nfexp.spec.ranges import checked
from nfexp.spec.schema import Data


@dataclass(frozen=True)
class Parameter:
    """A number that a built-in target can be varied by, and the value that it has by itself."""

    usual: int | float
    low: float
    high: float
    exclusive: bool = False


# Keys of `data` that one target has, with the value by which it is what it was before it had them:
# at that value a key is in no record and in no identity. What they mean,
# `nfexp.data.densities.make_target` says.
PARAMETERS: dict[str, dict[str, Parameter]] = {
    "moons": {"shift": Parameter(0.5, -10, 10)},
    "circles": {"factor": Parameter(0.8, 0, 1, exclusive=True)},
    "spiral2": {"turns": Parameter(1.0, 0, 20, exclusive=True)},
    "spiral4": {"turns": Parameter(2.0, 0, 20, exclusive=True)},
    "banana": {"bend": Parameter(0.25, 0, 10)},
    "gaussians8": {"modes": Parameter(8, 1, 1000)},
    "pinwheel": {"arms": Parameter(5, 1, 100)},
    "checkerboard": {"squares": Parameter(4, 2, 64)},
}

LONGEST_PARAMETER = 80  # characters of a text that a target of the user's own takes

_DATA_FIELDS = frozenset(f.name for f in fields(Data))


def is_parameter(data: Mapping[str, Any], key: str) -> bool:
    """Whether a key of `data` is not a field but a parameter of the target that is named there."""
    if key in _DATA_FIELDS:
        return False
    return data.get("kind") == "own" or key in PARAMETERS.get(str(data.get("name")), {})


# The fields that a target of the user's own has a use for
_OF_OWN = (
    "name",
    "kind",
    "target",
    "dim",
    "digest",
    "noise",
    "n_samples",
    "n_val",
    "n_test",
    "parameters",
)


def check_own_names(data: Mapping[str, Any]) -> None:
    """Raise if a target of the user's own is given a key of tables or images, which it would never be told of."""
    for own_field in fields(Data):
        name = own_field.name
        usual = None if own_field.default is MISSING else own_field.default
        if name not in _OF_OWN and data.get(name, usual) != usual:
            expected = (
                "another name for this parameter of data.target, for nfexp has a key of that name"
            )
            raise SpecError(f"data.{name}", expected, data[name])


def parameters_in(row: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters in a flat configuration or a row of a table, by name, but those with their usual value.

    >>> parameters_in({"data.name": "circles", "data.factor": 0.5}), parameters_in({"data.factor": 0.8})
    ({'factor': 0.5}, {'factor': 0.8})
    >>> parameters_in({"data.name": "circles", "data.factor": 0.8, "data.noise": 0.1})
    {}
    """
    usual = PARAMETERS.get(str(row.get("data.name")), {})
    parameters = {}
    for key, value in row.items():
        name = key.removeprefix("data.")
        if not is_parameter_key(key) or value is None or value != value:
            continue
        if name not in usual or value != usual[name].usual:
            parameters[name] = value
    return parameters


def usual_value(name: str, key: str) -> int | float | None:
    """The value that a built-in target has for the key of a parameter by itself.

    None if it has no such one.

    >>> usual_value("circles", "data.factor"), usual_value("moons", "data.factor")
    (0.8, None)
    """
    parameter = PARAMETERS.get(name, {}).get(key.removeprefix("data."))
    return None if parameter is None else parameter.usual


def is_parameter_key(key: str) -> bool:
    """Whether a key of the flat configuration, or a column, is that of a target's parameter.

    >>> is_parameter_key("data.factor"), is_parameter_key("data.noise"), is_parameter_key("flow.mask")
    (True, False, False)
    """
    group, _, leaf = key.partition(".")
    return group == "data" and bool(leaf) and leaf not in _DATA_FIELDS


def checked_parameters(
    kind: str, name: str, given: Mapping[str, Any]
) -> tuple[tuple[str, Any], ...]:
    """The parameters of a target, checked, in the order of their names.

    Without those that are as usual.
    """
    parameters = {}
    for key, value in given.items():
        if kind == "own":
            parameters[key] = _own_parameter(key, value)
        else:
            parameters |= unusual(name, {key: value})
    return tuple(sorted(parameters.items()))


def _own_parameter(key: str, value: Any) -> Any:
    full = f"data.{key}"
    if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z]\w{0,60}", key, re.ASCII):
        raise SpecError(full, "a key of letters, digits and '_'", Words("another"))
    is_number = (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    )
    is_text = isinstance(value, str) and value.isprintable() and len(value) <= LONGEST_PARAMETER
    if not is_number and not is_text:
        raise SpecError(
            full, "a finite number or a short text, for a parameter of data.target", value
        )
    return value


def unusual(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a built-in target that are not as usual, checked.

    >>> unusual("circles", {"factor": 0.5}), unusual("circles", {"factor": 0.8})
    ({'factor': 0.5}, {})
    """
    known = PARAMETERS.get(name, {})
    parameters = {}
    for key, value in given.items():
        if key not in known:
            names = ", ".join(known) or "it has none"
            raise SpecError(f"data.{key}", f"one of the parameters of {name}: {names}", value)
        parameter = known[key]
        meta = {
            "low": parameter.low,
            "high": parameter.high,
            "exclusive": parameter.exclusive,
            "words": (),
            "null": "",
        }
        number = checked(f"data.{key}", value, type(parameter.usual), meta)
        if parameter.exclusive and number == parameter.high:
            raise SpecError(
                f"data.{key}", f"a number > {parameter.low:g} and < {parameter.high:g}", value
            )
        if number != parameter.usual:
            parameters[key] = number
    return parameters
