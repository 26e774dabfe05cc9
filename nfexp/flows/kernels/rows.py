"""A member's row of weights into panels, and its gradients out of them."""

from __future__ import annotations

import numpy as np
from numba import njit

from nfexp.flows.kernels.lanes import (
    VECTOR,
    folded,
    inner,
    load,
    load_part,
    load_vector,
    store_part,
    store_vector,
    total,
    transpose_block,
)
from nfexp.flows.kernels.plan import ABSENT
from nfexp.flows.kernels.products import fill

F = np.float32
ZERO = F(0.0)
ONE = F(1.0)


@inner
def row_in(theta, e, at, n, out):
    """`n` numbers of member e from column `at` on into panels, (P, 16)."""
    for p in range(out.shape[0]):
        first = p * VECTOR
        store_vector(out, p, 0, load_part(theta, e, at + first, n - first))


@inner
def row_out(theta, e, at, n, sums):
    """The inverse of :func:`row_in`, of sums (P, LANES)."""
    for p in range(sums.shape[0]):
        first = p * VECTOR
        store_part(theta, e, at + first, n - first, folded(load(sums, p, 0)))


@inner
def matrix_in(theta, e, at, n, out):
    """A matrix (n, n) of member e into panels of its columns, (P, 16 P, 16)."""
    for p in range(out.shape[0]):
        first = p * VECTOR
        for k in range(n):
            store_vector(out[p], k, 0, load_part(theta, e, at + k * n + first, n - first))


@inner
def matrix_out(theta, e, at, n, panels):
    """The inverse of :func:`matrix_in`.

    A row's last vector may end where the next row comes, and there alone it is written whole: a
    store of a part takes some processors as long as ten others.
    """
    for k in range(n):
        for p in range(panels.shape[0]):
            first = p * VECTOR
            place = at + k * n + first
            vector = load_vector(panels[p], k, 0)
            if place + VECTOR <= at + n * n:
                store_vector(theta, e, place, vector)
            else:
                store_part(theta, e, place, n - first, vector)


@inner
def transpose(out, panels):
    """The transpose of a matrix in panels of its columns, (P, 16 P, 16)."""
    for p in range(out.shape[0]):  # panel of the result
        for q in range(out.shape[0]):  # panel of the matrix: rows 16 q … of the result
            transpose_block(out, p, q * VECTOR, panels, q, p * VECTOR)


@inner
def is_read(mask, d):
    """Whether networks read number d: a coordinate that passes, or one of the context behind them."""
    return d >= mask.shape[0] or mask[d] == ONE


@inner
def place_of(compact, mask, d):
    """Which row or column of a coupling's weights is that of number d.

    With `compact` among those of its kind.
    """
    if not compact:
        return d
    place = 0
    for other in range(d):
        if is_read(mask, other) == is_read(mask, d):
            place += 1
    return place


@njit(inline="always")
def parts_of(plan, c):
    """Columns of a network's last layer in coupling c.

    Where in a row hidden layers, last layer and its bias begin.
    """
    width = plan.width
    columns = plan.stations[c].outputs * plan.heads // plan.nets
    hidden_at = plan.stations[c].net + plan.nets * plan.stations[c].inputs * width
    last_at = hidden_at + plan.nets * (plan.depth * width + (plan.depth - 1) * width * width)
    return columns, hidden_at, last_at, last_at + plan.nets * width * columns


@njit(inline="always")
def unpack(plan, theta, fixed, e, weights, transposed, learning):
    """The weights of member e from its row of theta into panels.

    Those between hidden layers transposed, too.
    """
    width = plan.width
    for c in range(plan.n_couplings):
        mask = fixed[e, plan.stations[c].mask : plan.stations[c].mask + plan.dim]
        n_in = plan.stations[c].inputs
        n_out = plan.stations[c].outputs
        columns, hidden_at, last_at, last_bias_at = parts_of(plan, c)
        for d in range(plan.dim + plan.n_context):
            place = place_of(plan.compact, mask, d)
            if is_read(mask, d) or not plan.compact:
                for g in range(plan.nets):
                    row_in(
                        theta,
                        e,
                        plan.stations[c].net + (g * n_in + place) * width,
                        width,
                        weights.first[c, g, d],
                    )
            if d < plan.dim and (mask[d] != ONE or not plan.compact):
                for head in range(plan.heads):
                    g = min(head, plan.nets - 1)
                    column = place if plan.nets == plan.heads else head * n_out + place
                    column_in(
                        theta,
                        e,
                        last_at + g * width * columns + column,
                        columns,
                        width,
                        weights.last[c, head, d],
                    )
                    weights.last_bias[c, head, d, 0] = theta[e, last_bias_at + g * columns + column]
                if plan.stations[c].scale != ABSENT:
                    weights.log_scale[c, d, 0] = theta[e, plan.stations[c].scale + place]
        at = hidden_at
        for i in range(plan.depth):
            for g in range(plan.nets):
                row_in(theta, e, at + g * width, width, weights.bias[c, g, i])
            at += plan.nets * width
            if i < plan.depth - 1:
                for g in range(plan.nets):
                    matrix_in(theta, e, at + g * width * width, width, weights.hidden[c, g, i])
                    if learning:
                        transpose(transposed[c, g, i], weights.hidden[c, g, i])
                at += plan.nets * width * width
    for k in range(plan.n_couplings + 1):
        numbers_in(theta, e, plan.stations[k].gain, weights.log_gain[k])
        numbers_in(theta, e, plan.stations[k].shift, weights.shift[k])
    numbers_in(theta, e, plan.tail_at, weights.log_power)


@njit(inline="always")
def pack(plan, grads, fixed, grad, e, row):
    """The gradients of member e from panels into a row: the inverse of :func:`unpack`.

    What a mask keeps from acting has a gradient of zero, as `grads` were before the first tile.
    """
    width = plan.width
    for c in range(plan.n_couplings):
        mask = fixed[e, plan.stations[c].mask : plan.stations[c].mask + plan.dim]
        n_in = plan.stations[c].inputs
        n_out = plan.stations[c].outputs
        columns, hidden_at, last_at, last_bias_at = parts_of(plan, c)
        for d in range(plan.dim + plan.n_context):
            place = place_of(plan.compact, mask, d)
            if is_read(mask, d) or not plan.compact:
                for g in range(plan.nets):
                    row_out(
                        grad,
                        row,
                        plan.stations[c].net + (g * n_in + place) * width,
                        width,
                        grads.first[c, g, d],
                    )
            if d < plan.dim and (mask[d] != ONE or not plan.compact):
                for head in range(plan.heads):
                    g = min(head, plan.nets - 1)
                    column = place if plan.nets == plan.heads else head * n_out + place
                    column_out(
                        grad,
                        row,
                        last_at + g * width * columns + column,
                        columns,
                        width,
                        grads.last[c, head, d],
                    )
                    grad[row, last_bias_at + g * columns + column] = total(
                        load(grads.last_bias[c, head], d, 0)
                    )
                if plan.stations[c].scale != ABSENT:
                    grad[row, plan.stations[c].scale + place] = total(
                        load(grads.log_scale[c], d, 0)
                    )
        at = hidden_at
        for i in range(plan.depth):
            for g in range(plan.nets):
                row_out(grad, row, at + g * width, width, grads.bias[c, g, i])
            at += plan.nets * width
            if i < plan.depth - 1:
                for g in range(plan.nets):
                    matrix_out(grad, row, at + g * width * width, width, grads.hidden[c, g, i])
                at += plan.nets * width * width
    for k in range(plan.n_couplings + 1):
        sums_out(grad, row, plan.stations[k].gain, grads.log_gain[k])
        sums_out(grad, row, plan.stations[k].shift, grads.shift[k])
    sums_out(grad, row, plan.tail_at, grads.log_power)


@inner
def column_in(theta, e, at, step, n, out):
    """`n` numbers of member e, every `step`-th from column `at` on, into panels (P, 16)."""
    for k in range(n):
        out[k // VECTOR, k % VECTOR] = theta[e, at + k * step]


@inner
def column_out(theta, e, at, step, n, sums):
    """The inverse of :func:`column_in`, of sums (P, LANES)."""
    for p in range(sums.shape[0]):
        store_vector(sums, p, 0, folded(load(sums, p, 0)))
    for k in range(n):
        theta[e, at + k * step] = sums[k // VECTOR, k % VECTOR]


@inner
def numbers_in(theta, e, at, out):
    """One number of member e for each coordinate into lane 0 of `out` (D, LANES), if there are any."""
    if at != ABSENT:
        for d in range(out.shape[0]):
            out[d, 0] = theta[e, at + d]


@inner
def sums_out(theta, e, at, lanes):
    """The sums of `lanes` (D, LANES) into the row of member e, if they have a place there."""
    if at != ABSENT:
        for d in range(lanes.shape[0]):
            theta[e, at + d] = total(load(lanes, d, 0))


@inner
def clear(grads):
    """Set all gradients to zero."""
    fill(grads.first.reshape(-1), ZERO, 0)
    fill(grads.bias.reshape(-1), ZERO, 0)
    fill(grads.hidden.reshape(-1), ZERO, 0)
    fill(grads.last.reshape(-1), ZERO, 0)
    fill(grads.last_bias.reshape(-1), ZERO, 0)
    fill(grads.log_scale.reshape(-1), ZERO, 0)
    fill(grads.log_gain.reshape(-1), ZERO, 0)
    fill(grads.shift.reshape(-1), ZERO, 0)
    fill(grads.log_power.reshape(-1), ZERO, 0)
