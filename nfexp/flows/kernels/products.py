"""The products of a network with a tile of points, in register blocks of four rows by one value of lanes.

Features lie in panels: an array (P, T, LANES) holds feature p · LANES + l of point j at [p, j, l]. The last panel is
filled up with zeros. Every sum runs in one order, over features or over points, however the loops are cut.
"""

from __future__ import annotations

from nfexp.flows.kernels.lanes import LANES, fma, inner, load, splat, splat_at, store, totals

ROWS = 4  # of a register block


@inner
def product(out, a, weights, start, n_points, n_in):
    """out[j] = start + Σ_k a[j, k] weights[k] for the points j of a tile.

    Shapes: out (P, T, LANES), a (Q, T, LANES), weights (P, n_in, LANES), start (P, LANES). Rows up to the next multiple
    of four are written, too.
    """
    for p in range(out.shape[0]):  # panel of outputs
        for q in range(a.shape[0]):  # panel of inputs
            first = q * LANES
            n_here = min(LANES, n_in - first)
            for j in range(0, n_points, ROWS):
                if q == 0:
                    sum_0 = load(start, p, 0)
                    sum_1 = sum_0
                    sum_2 = sum_0
                    sum_3 = sum_0
                else:
                    sum_0 = load(out, p, j)
                    sum_1 = load(out, p, j + 1)
                    sum_2 = load(out, p, j + 2)
                    sum_3 = load(out, p, j + 3)
                for k in range(n_here):
                    w = load(weights, p, first + k)
                    sum_0 = fma(splat_at(a, q, j, k), w, sum_0)
                    sum_1 = fma(splat_at(a, q, j + 1, k), w, sum_1)
                    sum_2 = fma(splat_at(a, q, j + 2, k), w, sum_2)
                    sum_3 = fma(splat_at(a, q, j + 3, k), w, sum_3)
                store(out, p, j, sum_0)
                store(out, p, j + 1, sum_1)
                store(out, p, j + 2, sum_2)
                store(out, p, j + 3, sum_3)


@inner
def add_outer_products(out, a, g, n_points, n_in):
    """out[k] += Σ_j a[j, k] g[j]: what a tile adds to the gradient of a layer's weights.

    Shapes: out (P, Q · LANES, LANES), a (Q, T, LANES), g (P, T, LANES).
    """
    for p in range(out.shape[0]):  # panel of outputs
        for q in range(a.shape[0]):  # panel of inputs
            first = q * LANES
            n_here = min(LANES, n_in - first)
            for k in range(0, n_here, ROWS):
                row = first + k
                sum_0 = load(out, p, row)
                sum_1 = load(out, p, row + 1)
                sum_2 = load(out, p, row + 2)
                sum_3 = load(out, p, row + 3)
                for j in range(n_points):
                    of_point = load(g, p, j)
                    sum_0 = fma(splat_at(a, q, j, k), of_point, sum_0)
                    sum_1 = fma(splat_at(a, q, j, k + 1), of_point, sum_1)
                    sum_2 = fma(splat_at(a, q, j, k + 2), of_point, sum_2)
                    sum_3 = fma(splat_at(a, q, j, k + 3), of_point, sum_3)
                store(out, p, row, sum_0)
                store(out, p, row + 1, sum_1)
                store(out, p, row + 2, sum_2)
                store(out, p, row + 3, sum_3)


@inner
def add_weighted_rows(out, weight, a, n_points):
    """out += Σ_j weight[j] a[j]. Shapes: out (P, LANES), weight (T,), a (P, T, LANES)."""
    for p in range(out.shape[0]):
        running = load(out, p, 0)
        for j in range(n_points):
            running = fma(splat(weight[j]), load(a, p, j), running)
        store(out, p, 0, running)


@inner
def add_dots(out, a, row, n_points):
    """out[j] += Σ_k a[j, k] row[k]. Shapes: out (T,), a (P, T, LANES), row (P, LANES).

    Up to the next multiple of four `out` is written, too.
    """
    for j in range(0, n_points, ROWS):
        w = load(row, 0, 0)
        sum_0 = load(a, 0, j) * w
        sum_1 = load(a, 0, j + 1) * w
        sum_2 = load(a, 0, j + 2) * w
        sum_3 = load(a, 0, j + 3) * w
        for p in range(1, a.shape[0]):
            w = load(row, p, 0)
            sum_0 = fma(load(a, p, j), w, sum_0)
            sum_1 = fma(load(a, p, j + 1), w, sum_1)
            sum_2 = fma(load(a, p, j + 2), w, sum_2)
            sum_3 = fma(load(a, p, j + 3), w, sum_3)
        of_rows = totals(sum_0, sum_1, sum_2, sum_3)
        out[j] += of_rows[0]
        out[j + 1] += of_rows[1]
        out[j + 2] += of_rows[2]
        out[j + 3] += of_rows[3]


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
