"""The products of a network with a tile of points, in register blocks of four rows by one value of lanes.

Features lie in panels: an array (P, T, LANES) holds feature p · LANES + l of point j at [p, j, l]. The last panel is
filled up with zeros. Every sum runs in one order, over features or over points, however the loops are cut.
"""

from __future__ import annotations

from nfexp.flows.kernels.lanes import LANES, fma, inner, load, splat, splat_at, store, total

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
def add_rows(out, g, n_points):
    """out += Σ_j g[j]: what a tile adds to the gradient of a bias. Shapes: out (P, LANES), g (P, T, LANES)."""
    for p in range(out.shape[0]):
        running = load(out, p, 0)
        for j in range(n_points):
            running = running + load(g, p, j)
        store(out, p, 0, running)


@inner
def add_weighted_rows(out, weight, a, n_points):
    """out += Σ_j weight[j] a[j]. Shapes: out (P, LANES), weight (T,), a (P, T, LANES)."""
    for p in range(out.shape[0]):
        running = load(out, p, 0)
        for j in range(n_points):
            running = fma(splat(weight[j]), load(a, p, j), running)
        store(out, p, 0, running)


@inner
def add_spread(out, weight, row, n_points):
    """out[j] += weight[j] row. Shapes: out (P, T, LANES), weight (T,), row (P, LANES)."""
    for p in range(out.shape[0]):
        same = load(row, p, 0)
        for j in range(n_points):
            store(out, p, j, fma(splat(weight[j]), same, load(out, p, j)))


@inner
def add_dots(out, a, row, n_points):
    """out[j] += Σ_k a[j, k] row[k]. Shapes: out (T,), a (P, T, LANES), row (P, LANES)."""
    for j in range(n_points):
        running = load(a, 0, j) * load(row, 0, 0)
        for p in range(1, a.shape[0]):
            running = fma(load(a, p, j), load(row, p, 0), running)
        out[j] += total(running)


@inner
def fill_rows(out, row, n_points):
    """out[j] = row. Shapes: out (P, T, LANES), row (P, LANES)."""
    for p in range(out.shape[0]):
        same = load(row, p, 0)
        for j in range(n_points):
            store(out, p, j, same)


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
