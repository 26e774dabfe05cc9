"""The products of a network with a tile of points, in blocks of registers.

Features lie in panels of 16: an array (P, T, 16) holds feature 16 p + l of point j at [p, j, l].
The last panel is filled up with zeros, so that a layer costs what its width does, rounded up to 16.
Every sum runs in one order, over features or over points, however the loops are cut.

A block is as many rows by as many panels as keep the multipliers busy: 16 sums where there are 32
registers. Sums over points are kept apart for each row of a `Lanes`, (P, LANES);
:func:`nfexp.flows.kernels.vectors.folded` adds them up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from nfexp.flows.kernels.blocks import (
    add_by_lane,
    add_columns,
    add_rows,
    add_totals,
    load_block,
    same_rows,
    store_block,
    zero_block,
)
from nfexp.flows.kernels.lanes import LANES, POINTS, VECTOR, fma, inner, load, spread, store

MANY = LANES == 64  # registers, 32 of them: blocks of several panels; otherwise of one
ROWS = {1: 16, 2: 8, 4: 4} if MANY else {1: 4, 2: 2, 4: 1}  # of a block of so many panels
TOGETHER = 4  # panels of inputs whose weights stay in the L1 cache while all points pass
DOTS = ROWS[1]  # dot products made at once


def _product(panels: int) -> Callable[..., Any]:
    """The product with so many panels of outputs."""
    rows = ROWS[panels]

    @inner
    def product_of_panels(out, a, weights, start, p, n_points, n_in):
        """Of outputs in panel p and those behind it, for :func:`product`."""
        for begin in range(0, a.shape[0], TOGETHER):  # panels of inputs
            end = min(begin + TOGETHER, a.shape[0])
            for j in range(0, n_points, rows):  # points
                if begin == 0:
                    block = same_rows(rows, panels, start, p)
                else:
                    block = load_block(rows, panels, out, p, j)
                for q in range(begin, end):
                    first = q * VECTOR
                    for k in range(min(VECTOR, n_in - first)):  # inputs
                        block = add_rows(block, a, q, j, k, weights, p, first + k)
                store_block(out, p, j, block)

    return product_of_panels


def _outer_product(panels: int) -> Callable[..., Any]:
    """The outer products with so many panels of gradients."""
    rows = min(ROWS[panels], 8)

    @inner
    def outer_product_of_panels(out, a, g, p, n_points, n_in):
        """Of columns in panel p and those behind it, for :func:`add_outer_products`."""
        for q in range(a.shape[0]):  # panel of inputs
            first = q * VECTOR
            for k in range(0, min(VECTOR, n_in - first), rows):  # inputs
                block = load_block(rows, panels, out, p, first + k)
                for j in range(n_points):
                    block = add_columns(block, a, q, j, k, g, p, j)
                store_block(out, p, first + k, block)

    return outer_product_of_panels


product_1, product_2, product_4 = (_product(panels) for panels in (1, 2, 4))
outer_product_1, outer_product_2, outer_product_4 = (_outer_product(panels) for panels in (1, 2, 4))


@njit(inline="always")
def product(out, a, weights, start, n_points, n_in):
    """out[j] = start + Σ_k a[j, k] weights[k] for the points j of a tile.

    Shapes: out (P, T, 16), a (Q, T, 16), weights (P, n_in, 16), start (P, 16). Rows up to the next
    multiple of sixteen are written, too.
    """
    p = 0
    while p + 4 <= out.shape[0] and MANY:
        product_4(out, a, weights, start, p, n_points, n_in)
        p += 4
    while p + 2 <= out.shape[0] and MANY:
        product_2(out, a, weights, start, p, n_points, n_in)
        p += 2
    while p < out.shape[0]:
        product_1(out, a, weights, start, p, n_points, n_in)
        p += 1


@njit(inline="always")
def add_outer_products(out, a, g, n_points, n_in):
    """out[k] += Σ_j a[j, k] g[j]: what a tile adds to the gradient of a layer's weights.

    Shapes: out (P, 16 Q, 16), a (Q, T, 16), g (P, T, 16).
    """
    p = 0
    while p + 4 <= out.shape[0] and MANY:
        outer_product_4(out, a, g, p, n_points, n_in)
        p += 4
    while p + 2 <= out.shape[0] and MANY:
        outer_product_2(out, a, g, p, n_points, n_in)
        p += 2
    while p < out.shape[0]:
        outer_product_1(out, a, g, p, n_points, n_in)
        p += 1


@inner
def add_weighted_rows(out, weight, d, a, n_points):
    """out += Σ_j weight[d, j] a[j]. Shapes: out (P, LANES), weight (D, T), a (P, T, 16).

    Up to the next multiple of four `weight` must be zero behind the last point.
    """
    for p in range(out.shape[0]):
        running = load(out, p, 0)
        for j in range(0, n_points, POINTS):
            running = fma(spread(weight, d, j), load(a, p, j), running)
        store(out, p, 0, running)


@inner
def add_dots(out, a, row, n_points):
    """out[j] += Σ_k a[j, k] row[k]. Shapes: out (T,), a (P, T, 16), row (P, 16).

    Up to the next multiple of sixteen `out` is written, too.
    """
    for j in range(0, n_points, DOTS):
        block = zero_block(DOTS, 1)
        for p in range(a.shape[0]):
            block = add_by_lane(block, a, p, j, row)
        add_totals(out, j, block)


@inner
def fill(row, number, begin):
    """row[j] = number from `begin` on; row (T,)."""
    for j in range(begin, row.shape[0]):
        row[j] = number


@inner
def copy(out, rows):
    """out = rows, both (D, T)."""
    for d in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            out[d, j] = rows[d, j]


def rounded_up(n: int, multiple: int) -> int:
    """The next multiple.

    >>> rounded_up(5, 4), rounded_up(8, 4)
    (8, 8)
    """
    return -(-n // multiple) * multiple
