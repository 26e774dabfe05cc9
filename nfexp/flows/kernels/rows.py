"""A member's row of weights into panels, and its gradients out of them."""

from __future__ import annotations

import numpy as np
from numba import njit

from nfexp.flows.kernels.lanes import VECTOR, inner, load, total
from nfexp.flows.kernels.plan import ABSENT
from nfexp.flows.kernels.products import fill
from nfexp.flows.kernels.vectors import (
    folded,
    load_part,
    load_vector,
    store_part,
    store_vector,
    transpose_block,
)

F = np.float32
ZERO = F(0.0)
ONE = F(1.0)


@inner
def carry_row(matrix, e, at, n, panels, inward):
    """`n` numbers of row e from column `at` on, inward into panels (P, 16).

    Outward the lanes of panels (P, LANES) are summed up.
    """
    for p in range(panels.shape[0]):
        first = p * VECTOR
        if inward:
            store_vector(panels, p, 0, load_part(matrix, e, at + first, n - first))
        else:
            store_part(matrix, e, at + first, n - first, folded(load(panels, p, 0)))


@inner
def carry_column(matrix, e, at, step, n, panels, inward):
    """As :func:`carry_row`, of every `step`-th number from column `at` on."""
    if not inward:
        for p in range(panels.shape[0]):
            store_vector(panels, p, 0, folded(load(panels, p, 0)))
    for k in range(n):
        if inward:
            panels[k // VECTOR, k % VECTOR] = matrix[e, at + k * step]
        else:
            matrix[e, at + k * step] = panels[k // VECTOR, k % VECTOR]


@inner
def carry_number(matrix, e, at, lanes, d, inward):
    """The number in column `at` of row e, inward into lane 0 of lanes[d], (D, LANES).

    Outward all lanes are summed up.
    """
    if inward:
        lanes[d, 0] = matrix[e, at]
    else:
        matrix[e, at] = total(load(lanes, d, 0))


@inner
def carry_numbers(matrix, e, at, lanes, inward):
    """As :func:`carry_number`, one for each coordinate, if they have a place in the row."""
    if at != ABSENT:
        for d in range(lanes.shape[0]):
            carry_number(matrix, e, at + d, lanes, d, inward)


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

    With `compact` weights are for the numbers alone that are read (rows) or move (columns).
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
    """Where the parts of coupling c begin in a row; before them, how many columns a last layer has.

    They lie in this order, each part for all networks: first layers; the biases of the first hidden
    layer, the matrices to the second one, its biases, and so on; last layers; their biases.
    """
    station = plan.stations[c]
    width = plan.width
    columns = station.outputs * plan.heads // plan.nets
    hidden_at = station.net + plan.nets * station.inputs * width
    last_at = hidden_at + plan.nets * (plan.depth * width + (plan.depth - 1) * width * width)
    last_bias_at = last_at + plan.nets * width * columns
    return columns, hidden_at, last_at, last_bias_at


@njit(inline="always")
def carry_ends(plan, matrix, row, mask, panels, c, d, inward):
    """What coupling c has for number d: a row of first layers, a column of last ones, a bias, a scale."""
    station = plan.stations[c]
    width = plan.width
    columns, _, last_at, last_bias_at = parts_of(plan, c)
    place = place_of(plan.compact, mask, d)
    if is_read(mask, d) or not plan.compact:
        for g in range(plan.nets):
            at = station.net + (g * station.inputs + place) * width
            carry_row(matrix, row, at, width, panels.first[c, g, d], inward)
    if d < plan.dim and (mask[d] != ONE or not plan.compact):
        for head in range(plan.heads):
            g = min(head, plan.nets - 1)
            # a network of several heads has their columns side by side
            column = place if plan.nets == plan.heads else head * station.outputs + place
            at = last_at + g * width * columns + column
            carry_column(matrix, row, at, columns, width, panels.last[c, head, d], inward)
            at = last_bias_at + g * columns + column
            carry_number(matrix, row, at, panels.last_bias[c, head], d, inward)
        if station.scale != ABSENT:
            carry_number(matrix, row, station.scale + place, panels.log_scale[c], d, inward)


@njit(inline="always")
def carry_hidden(plan, matrix, row, panels, c, inward):
    """The biases of the hidden layers of coupling c, and the matrices between them."""
    width = plan.width
    _, at, _, _ = parts_of(plan, c)
    for i in range(plan.depth):
        for g in range(plan.nets):
            carry_row(matrix, row, at, width, panels.bias[c, g, i], inward)
            at += width
        if i < plan.depth - 1:
            for g in range(plan.nets):
                if inward:
                    matrix_in(matrix, row, at, width, panels.hidden[c, g, i])
                else:
                    matrix_out(matrix, row, at, width, panels.hidden[c, g, i])
                at += width * width


@njit(inline="always")
def carry(plan, matrix, row, fixed, e, panels, inward):
    """All numbers of member e: inward its weights from a row of `matrix` into panels.

    Outward its gradients from panels into a row.
    """
    for c in range(plan.n_couplings):
        mask = fixed[e, plan.stations[c].mask : plan.stations[c].mask + plan.dim]
        for d in range(plan.dim + plan.n_context):
            carry_ends(plan, matrix, row, mask, panels, c, d, inward)
        carry_hidden(plan, matrix, row, panels, c, inward)
    for k in range(plan.n_couplings + 1):
        carry_numbers(matrix, row, plan.stations[k].gain, panels.log_gain[k], inward)
        carry_numbers(matrix, row, plan.stations[k].shift, panels.shift[k], inward)
    carry_numbers(matrix, row, plan.tail_at, panels.log_power, inward)


@njit(inline="always")
def unpack(plan, theta, fixed, e, weights, transposed, learning):
    """The weights of member e from its row of theta into panels.

    For learning those between hidden layers transposed, too.
    """
    carry(plan, theta, e, fixed, e, weights, True)
    if learning:
        for c in range(plan.n_couplings):
            for g in range(plan.nets):
                for i in range(plan.depth - 1):
                    transpose(transposed[c, g, i], weights.hidden[c, g, i])


@njit(inline="always")
def pack(plan, grads, fixed, grad, e, row):
    """The gradients of member e from panels into a row of `grad`: the inverse of :func:`unpack`.

    What a mask keeps from acting has a gradient of zero, as `grads` were before the first tile.
    """
    carry(plan, grad, row, fixed, e, grads, False)


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
