"""What the parts of a training step cost, fitted to measured steps: the prices of :mod:`nfexp.flows.cost`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from scipy.optimize import nnls

from benchmarks.cases import Case, stack_of
from benchmarks.kernel import Setting, Way
from nfexp.flows.cost import FUSED, TORCH, amounts
from nfexp.run import reuse_freed_memory

ROUNDS = 5
PRICES = {"fused": FUSED, "torch": TORCH}
CASES = (
    *(Case(members=16, width=w, batch=b) for w in (16, 24, 32, 64) for b in (64, 256)),
    Case(members=16, width=48, depth=3, batch=128),
    Case(members=16, depth=1, width=128),
    Case(members=16, depth=4, width=32),
    Case(members=16, depth=6, width=16, batch=1000),
    Case(members=16, n_flows=2, batch=32),
    Case(members=16, n_flows=12, width=24, batch=64),
    Case(members=16, conditioner="shared", batch=1000),
    Case(members=4, width=128),
    Case(members=4, width=256, batch=128),
)


def measured(cases: Sequence[Case], rounds: int) -> pd.DataFrame:
    """Median CPU seconds per member-step of each case by both kernels; each round visits all of them."""
    ways = {}
    for number, case in enumerate(cases):
        for kernel in PRICES:
            ways[number, kernel] = Way(Setting(case=case), kernel)
    seconds: dict[tuple[int, str], list[float]] = {key: [] for key in ways}
    for _ in range(rounds):
        for key, way in ways.items():
            seconds[key].append(way.per_member_step())
    rows = []
    for (number, kernel), of_rounds in seconds.items():
        rows.append({"case": number, "kernel": kernel, "seconds": statistics.median(of_rounds)})
    return pd.DataFrame(rows)


def fitted(
    cases: Sequence[Case], seconds: np.ndarray, panel: int
) -> tuple[dict[str, float], np.ndarray]:
    """The prices, in nanoseconds, that fit the measured seconds best, and the seconds by these prices.

    Non-negative least squares of relative errors: a small network counts as much as a large one.
    """
    rows = []
    for case in cases:
        (spec,) = stack_of(replace(case, members=1))
        rows.append(amounts(spec, case.batch, panel))
    table = pd.DataFrame(rows)  # a column for each part that has a price
    relative = table.to_numpy() / seconds[:, None]
    scale = relative.max(0)  # the columns differ by six orders of magnitude
    found, _ = nnls(relative / scale, np.ones(len(cases)))
    prices = found / scale  # seconds
    return dict(zip(table.columns, 1e9 * prices, strict=True)), table.to_numpy() @ prices


def prices(*, cases: Sequence[Case] = CASES, rounds: int = ROUNDS) -> pd.DataFrame:
    """Measured and fitted ms per member-step by case and kernel; prints the prices for `nfexp/flows/cost.py`."""
    torch.set_num_threads(1)
    reuse_freed_memory()
    frame = measured(cases, rounds)
    parts = []
    for kernel, old in PRICES.items():
        seconds = frame.loc[frame["kernel"] == kernel, "seconds"].to_numpy()
        found, estimated = fitted(cases, seconds, old.panel)
        print(
            f"{kernel.upper()}: "
            + ", ".join(f"{part}={price:.3g}" for part, price in found.items())
        )
        for case, each, estimate in zip(cases, seconds, estimated, strict=True):
            parts.append({
                "network": Setting(case=case).network, "batch": case.batch, "members": case.members, "kernel": kernel,
                "ms": 1e3 * each, "fitted_ms": 1e3 * estimate, "ratio": estimate / each,
            })  # fmt: skip
    return pd.DataFrame(parts)
