"""A table as the dataset of a run: which rows it trains on, and the jitter of coarse columns."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nfexp.spec import Data, SpecError, Words
from nfexp.streams import stream
from nfexp.tables import Source, check_vary, few_values, source, split_rows


def checked_source(data: Data) -> Source:
    """The tables that `data` names, once they are known to be those that the run was planned with."""
    found = source(data)
    if data.digest is not None and found.digest != data.digest:
        raise SpecError(
            "data.path",
            f"{found.main.place} as it was when the run was planned",
            Words("another content"),
        )
    return found


def load_parts(data: Data, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points for training, validation and test, (N, D + C) in float64, data units: C columns are given, not learned.

    Raises
    ------
    SpecError
        For a file that changed since the run was planned, and for a column that is constant where
        the run trains.
    """
    found = checked_source(data)
    main = found.main
    rows = split_rows(data, seed, len(main.values), own_val=found.val is not None, own_test=found.test is not None)
    train = main.values[rows.train]
    check_vary(main.names, train, f"the rows of {main.place} to train on", n_context=main.n_context)
    _, n_val, n_test = data.points
    val = main.values[rows.val] if found.val is None else found.val.values[:n_val]
    test = main.values[rows.test] if found.test is None else found.test.values[:n_test]
    parts = {"train": train, "val": val, "test": test}
    if data.jitter != 0.0:
        width = _widths(data, found)
        by = seed if data.split is None else data.split
        for name, values in parts.items():
            parts[name] = values + width * _centred(values.shape, by, name)
    train, val, test = (torch.from_numpy(np.ascontiguousarray(values)) for values in parts.values())
    return train, val, test


def _widths(data: Data, found: Source) -> np.ndarray:
    """The width of the uniform noise of each column, (D + C,): 0 where a column has many values, or is given."""
    few = few_values(found.main)
    widths = []
    for name in found.main.names:
        gap = few.get(name, 0.0)
        widths.append(gap if data.jitter == "gap" or gap == 0.0 else float(data.jitter))
    return np.array(widths)


def _centred(shape: tuple[int, ...], seed: int, part: str) -> np.ndarray:
    """Uniform numbers in ±½."""
    return torch.rand(shape, generator=stream(seed, f"jitter/{part}"), dtype=torch.float64).numpy() - 0.5
