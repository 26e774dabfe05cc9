"""Numbers that a user gives, whatever they come in."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def numbers(x: object, name: str) -> np.ndarray:
    """A float64 copy of an array, list or table, which later changes of that do not reach."""
    import numpy as np

    try:
        array = np.asarray(x)
        if array.dtype.kind == "c":
            raise ValueError("complex numbers")
        return np.array(array, dtype=np.float64)
    except (ValueError, TypeError) as error:
        got = " ".join(str(error).split())
        raise ValueError(f"{name}: expected an array of real numbers; got {got}") from None


def integer(value: object, name: str) -> int:
    try:
        if not isinstance(value, bool):
            return operator.index(value)  # type: ignore[arg-type]  # TypeError for no integer
    except TypeError:
        pass
    raise ValueError(f"{name}: expected an integer; got {value!r}")
