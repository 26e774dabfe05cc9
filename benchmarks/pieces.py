"""CPU time of the parts of the fused kernel on one tile of points, each alone in a loop, by width."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numba import njit

from nfexp.flows.kernels.compiled import TILE
from nfexp.flows.kernels.coupling import first_layer, from_outputs, through_activation
from nfexp.flows.kernels.elementary import ACTIVATIONS, RELU
from nfexp.flows.kernels.lanes import LANES, OPTIONS, VECTOR, inner
from nfexp.flows.kernels.moments import move
from nfexp.flows.kernels.plan import zeros
from nfexp.flows.kernels.products import (
    add_dots,
    add_outer_products,
    add_weighted_rows,
    product,
    rounded_up,
)
from nfexp.flows.kernels.rows import matrix_in, matrix_out, transpose

WIDTHS = (16, 24, 32, 48, 64, 128)
ROUNDS = 9
SECONDS = 0.01  # of one part in one round, about
LAW = (0.1, 0.9, 0.9, 0.999, 1e-8)  # of an optimiser: any

Part = tuple[Callable[..., Any], tuple[Any, ...]]  # a function of the kernel and its arguments


def looped(function: Callable[..., Any]) -> Callable[..., None]:
    """A function of the kernel, so many times."""

    @njit(**OPTIONS)
    def run(times, arguments):
        for _ in range(times):
            function(*arguments)

    return run


@inner
def one_product(out, a, weights, start, n_points, n_in):
    """As a function of its own: what is copied into its caller cannot be given a tuple of arguments."""
    product(out, a, weights, start, n_points, n_in)


@inner
def outer_products(out, a, g, n_points, n_in):
    """Likewise."""
    add_outer_products(out, a, g, n_points, n_in)


def filled(draws: np.random.Generator, *shape: int) -> np.ndarray:
    """Random numbers where the kernel would keep them."""
    array = zeros(*shape)
    array[...] = draws.standard_normal(shape)
    return array


def parts(width: int) -> dict[str, Part]:
    """What a step makes of one network with two hidden layers in 2-D, for a tile, and of its matrix once a step."""
    draws = np.random.default_rng(0)
    p = rounded_up(width, VECTOR) // VECTOR
    out, a, slope, grad = (filled(draws, p, TILE, VECTOR) for _ in range(4))
    matrix, transposed, sums = (filled(draws, p, p * VECTOR, VECTOR) for _ in range(3))
    first = filled(draws, 2, p, VECTOR)
    last = filled(draws, 1, 2, p, VECTOR)
    bias = filled(draws, p, VECTOR)
    bias_sums = filled(draws, p, LANES)
    x = filled(draws, 2, TILE)
    raw_grad = filled(draws, 1, 2, TILE)
    mask = np.array([1, 0], dtype=np.float32)
    row, row_grad, moment, square = (filled(draws, 1, width * width) for _ in range(4))
    np.square(square, out=square)
    found: dict[str, Part] = {
        "product": (one_product, (out, a, matrix, bias, TILE, width)),
        "outer products": (outer_products, (sums, a, grad, TILE, width)),
    }
    for name, code in ACTIVATIONS.items():
        found[f"first layer, {name}"] = first_layer, (code, out, slope, x, mask, first, bias, TILE)
    found |= {
        "last layer": (add_dots, (x[0], a, bias, TILE)),
        "back through the last layer": (
            from_outputs,
            (RELU, grad, raw_grad, mask, last, a, slope, bias_sums, TILE, 0, 1),
        ),
        "back through relu": (through_activation, (RELU, grad, a, slope, bias_sums, TILE)),
        "gradient of a thin layer": (add_weighted_rows, (bias_sums, x, 0, a, TILE)),
        "matrix into panels": (matrix_in, (row, 0, 0, width, matrix)),
        "matrix transposed": (transpose, (transposed, matrix)),
        "matrix out of panels": (matrix_out, (row, 0, 0, width, sums)),
        "optimiser on a matrix": (
            move,
            (row, moment, square, 0, row_grad, 0, np.float32(1), 1e-3, 0.0, LAW, 9),
        ),
    }
    return found


def pieces(*, widths: Sequence[int] = WIDTHS, rounds: int = ROUNDS) -> pd.DataFrame:
    """Median CPU µs of each part, and GFLOP/s of the products; each round visits all parts of all widths."""
    cases = []
    for width in widths:
        for name, (function, arguments) in parts(width).items():
            cases.append((width, name, function, arguments))
    compiled = {function: looped(function) for _, _, function, _ in cases}
    times = []
    for _, _, function, arguments in cases:
        compiled[function](1, arguments)
        begun = time.process_time()
        compiled[function](100, arguments)
        times.append(max(1, round(100 * SECONDS / max(time.process_time() - begun, 1e-6))))
    seconds: list[list[float]] = [[] for _ in cases]
    for _ in range(rounds):
        for i, (_, _, function, arguments) in enumerate(cases):
            begun = time.process_time()
            compiled[function](times[i], arguments)
            seconds[i].append((time.process_time() - begun) / times[i])
    rows = []
    for (width, name, _, _), measured in zip(cases, seconds, strict=True):
        us = 1e6 * statistics.median(measured)
        flop = 2 * TILE * width**2 if "product" in name else 0
        rows.append({"part": name, "width": width, "us": us, "gflops": 1e-3 * flop / us})
    return pd.DataFrame(rows)
