"""What the estimator is given.

Rows and contexts as arrays, checked, and as the dataset of a run.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_array, check_random_state

from nfexp.columns import DISTINCT, lost_in_float32
from nfexp.data import Context, Dataset
from nfexp.tables import Rows

LARGEST_SEED = 2**31 - 1


def seed_of(random_state: Any) -> int:
    """The seed that a random_state stands for; a number is its own."""
    if isinstance(random_state, int | np.integer) and random_state >= 0:
        return int(random_state)
    return int(check_random_state(random_state).randint(LARGEST_SEED))


def plain(value: Any) -> Any:
    """A number of Python's in place of one of numpy's, as a grid search gives."""
    return value.item() if isinstance(value, np.generic) else value


def digest_of(values: np.ndarray) -> str:
    """16 hexadecimal digits of a hash of an array, which name its runs."""
    content = repr(values.shape).encode() + np.ascontiguousarray(values).tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


# --- A context -------------------------------------------------------------------------


def context_rows(context: Any) -> np.ndarray:
    """A context as rows of finite numbers, (N, C)."""
    # a copy, which can be written, for torch
    return check_array(context, dtype=np.float64, input_name="context", copy=True)


def context_names(context: Any) -> tuple[str, ...] | None:
    """The names of the columns of a table; None of an array, or where some are no strings."""
    columns = tuple(getattr(context, "columns", ()))
    are_names = all(isinstance(name, str) for name in columns)
    return columns if columns and are_names else None


def matching_context(
    context: Any,
    n: int,
    *,
    width: int,
    fitted_names: tuple[str, ...] | None,
    one_for_all: bool = False,
) -> np.ndarray:
    """The context of `n` rows, (n, C), for a flow that was fitted with C = `width` numbers in each.

    C = 0 where it was fitted without one. With `one_for_all` a single row serves all.

    Raises
    ------
    ValueError
        For a context that the flow was not fitted with, and for one that is missing.
    """
    if width == 0 and context is None:
        return np.empty((n, 0))
    if width == 0:
        raise ValueError("context: expected no context, as in fit(X); got one")
    if context is None:
        expected = f"rows of {width} numbers, as in fit(X, context=…)"
        raise ValueError(f"context: expected {expected}; got none")
    names = context_names(context)
    if names is not None and fitted_names is not None and names != fitted_names:
        expected = f"the columns {', '.join(fitted_names)}, as in fit"
        raise ValueError(f"context: expected {expected}; got {', '.join(names)}")
    rows = context_rows(context)
    if one_for_all and len(rows) == 1:
        rows = np.repeat(rows, n, axis=0)
    if rows.shape != (n, width):
        raise ValueError(f"context: expected shape {(n, width)}; got {rows.shape}")
    return rows


# --- Rows to train on ------------------------------------------------------------------


def check_learnable(X: np.ndarray, context: np.ndarray, *, standardised: bool) -> None:
    """Raise for a column, of the rows to train on, that is constant or that float32 does not hold.

    Where points are not standardised, those of X may be so.
    """
    if standardised:
        _check_varies("X", X)
    _check_varies("context", context)
    if standardised:
        _check_held("X", X)
    _check_held("context", context)


def _check_varies(name: str, values: np.ndarray) -> None:
    constant = np.flatnonzero(values.min(0) == values.max(0))
    if len(constant):
        expected = "columns that vary where they are trained on"
        raise ValueError(f"{name}: expected {expected}; got a constant one, {constant[0]}")


def _check_held(name: str, values: np.ndarray) -> None:
    lost = lost_in_float32(values)
    if lost is not None:
        column, what = lost
        raise ValueError(f"{name}: expected {DISTINCT}; got {what} in column {column}")


def dataset_of(X: np.ndarray, context: np.ndarray, rows: Rows) -> Dataset:
    """The dataset of an estimator's run: the rows that train and those that choose.

    None to test on.
    """
    n_columns = X.shape[1]
    n_given = context.shape[1]
    return Dataset(
        event_shape=(n_columns,),
        train=torch.from_numpy(X[rows.train]),
        val=torch.from_numpy(X[rows.val]),
        test=torch.empty(0, n_columns, dtype=torch.float64),
        context=Context(
            train=torch.from_numpy(context[rows.train]),
            val=torch.from_numpy(context[rows.val]),
            test=torch.empty(0, n_given, dtype=torch.float64),
        ),
    )
