"""A table as the dataset of a run: which rows it trains on, and the jitter of coarse columns."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nfexp.columns import check_vary, few_values
from nfexp.spec import Data, SpecError, Words
from nfexp.streams import stream
from nfexp.tables import Source, source, split_rows


def checked_source(data: Data) -> Source:
    """The tables that `data` names, once they are known to be those that the run was planned with."""
    tables = source(data)
    if data.digest is not None and tables.digest != data.digest:
        raise SpecError(
            "data.path",
            f"{tables.main.label} as it was when the run was planned",
            Words("another content"),
        )
    return tables


def load_parts(data: Data, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points for training, validation and test, (N, D + C) in float64, data units.

    C columns are given, not learned.

    Raises
    ------
    SpecError
        For a file that changed since the run was planned, and for a column that is constant where
        the run trains.
    """
    tables = checked_source(data)
    main = tables.main
    rows = split_rows(
        data,
        seed,
        len(main.values),
        val_has_file=tables.val is not None,
        test_has_file=tables.test is not None,
    )
    train = main.values[rows.train]
    check_vary(main.names, train, f"the rows of {main.label} to train on", n_context=main.n_context)
    _, n_val, n_test = data.points
    val = main.values[rows.val] if tables.val is None else tables.val.values[:n_val]
    test = main.values[rows.test] if tables.test is None else tables.test.values[:n_test]
    parts = {"train": train, "val": val, "test": test}
    if data.jitter != 0.0:
        width = _widths(data, tables)
        split_seed = seed if data.split is None else data.split
        for name, values in parts.items():
            parts[name] = values + width * _centred(values.shape, split_seed, name)
    return _tensor(parts["train"]), _tensor(parts["val"]), _tensor(parts["test"])


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _widths(data: Data, tables: Source) -> np.ndarray:
    """The width of the uniform noise of each column, (D + C,).

    0 where a column has many values, or is given.
    """
    few = few_values(tables.main)
    widths = []
    for name in tables.main.names:
        gap = few.get(name, 0.0)
        widths.append(gap if data.jitter == "gap" or gap == 0.0 else float(data.jitter))
    return np.array(widths)


def _centred(shape: tuple[int, ...], seed: int, part: str) -> np.ndarray:
    """Uniform numbers in ±½."""
    draws = stream(seed, f"jitter/{part}")
    return torch.rand(shape, generator=draws, dtype=torch.float64).numpy() - 0.5
