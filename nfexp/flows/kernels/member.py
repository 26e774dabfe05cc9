"""A whole flow over the points of its members: log-density, and the gradient of their mean −log-density."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from nfexp.flows.kernels.coupling import coupling, coupling_back
from nfexp.flows.kernels.lanes import BLOCK, LANES, fma, inner, load, splat, store, transpose_block
from nfexp.flows.kernels.plan import ABSENT
from nfexp.flows.kernels.products import fill

F = np.float32
ZERO = F(0.0)
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
MIX_MEAN = 0.8
MIX_SD = 0.6
STUDENT_DF = 5
STUDENT_CONSTANT = math.lgamma(3.0) - math.lgamma(2.5) - 0.5 * math.log(5 * math.pi)
NORMAL, LOGISTIC, LAPLACE, STUDENT_T, MIXTURE = range(5)


@inner
def log_law(code, z):
    """The log-density of a base law at z, and its derivative, in float64."""
    if code == NORMAL:
        return -0.5 * z * z - HALF_LOG_2PI, -z
    if code == STUDENT_T:
        value = STUDENT_CONSTANT - 0.5 * (STUDENT_DF + 1) * math.log1p(z * z / STUDENT_DF)
        return value, -(STUDENT_DF + 1) * z / (STUDENT_DF + z * z)
    size = abs(z)
    sign = float(np.sign(z))  # 0 at 0
    if code == LAPLACE:
        return -size - math.log(2.0), -sign
    if code == LOGISTIC:
        e = math.exp(-size)
        return -size - 2 * math.log1p(e), -sign * (1 - e) / (1 + e)
    # ½N(-m, s²) + ½N(m, s²) = N(|z|; m, s²) (1 + exp(-2 m |z| / s²)) / 2
    variance = MIX_SD * MIX_SD
    e = math.exp(-2 * MIX_MEAN * size / variance)
    from_centre = (size - MIX_MEAN) / MIX_SD
    value = -0.5 * from_centre * from_centre - HALF_LOG_2PI - math.log(MIX_SD) + math.log1p(e) - math.log(2.0)
    return value, -sign * (from_centre / MIX_SD + 2 * MIX_MEAN / variance * e / (1 + e))


@njit(inline="always")
def read_in(plan, fixed, x, begin, n_points, tile):
    """Standardise the points from `begin` on into `tile.z`; what fills the lanes up is a copy of the last point."""
    log_det = 0.0
    for d in range(plan.dim):
        log_det -= 0.5 * math.log(fixed[plan.var_at + d])
        mean = fixed[plan.mean_at + d]
        gain = F(math.exp(-0.5 * math.log(fixed[plan.var_at + d])))
        for j in range(n_points):
            tile.z[d, j] = (x[begin + j, d] - mean) * gain
        fill(tile.z[d], tile.z[d, n_points - 1], n_points)
    fill(tile.log_det[0], F(log_det), 0)


@njit(inline="always")
def to_base(plan, weights, fixed, x, begin, n_points, tile, keep):
    """Carry a tile from data to base; with `keep` what each coupling needs for the way back stays."""
    read_in(plan, fixed, x, begin, n_points, tile)
    for c in range(plan.n_couplings):
        slot = c if keep else 0
        mask = fixed[plan.mask_at[c] : plan.mask_at[c] + plan.dim]
        coupling(plan, weights, mask, tile, c, slot, n_points)
    if plan.diagonal_at != ABSENT:
        for d in range(plan.dim):
            log_gain = weights.diagonal[d, 0]
            gain = splat(F(math.exp(log_gain)))
            for j in range(0, n_points, LANES):
                store(tile.z, d, j, load(tile.z, d, j) * gain)
                store(tile.log_det, 0, j, load(tile.log_det, 0, j) + splat(log_gain))


@njit(inline="always")
def log_densities(plan, tile, n_points, out, begin):
    """log q of the points of a tile, and in `tile.z_grad` its derivative by z."""
    for j in range(n_points):
        log_p = 0.0
        for d in range(plan.dim):
            value, slope = log_law(plan.base, float(tile.z[d, j]))
            log_p += value
            tile.z_grad[d, j] = F(slope)
        out[begin + j] = F(log_p + tile.log_det[0, j])


@njit(inline="always")
def to_data(plan, weights, back, grads, fixed, tile, n_points, per_point):
    """The way back: from ∂(log q)/∂z in `tile.z_grad` to what a tile adds to the gradient of the mean −log q."""
    for d in range(plan.dim):
        for j in range(n_points):
            tile.z_grad[d, j] *= -per_point
        fill(tile.z_grad[d], ZERO, n_points)
    fill(tile.det_grad[0], -per_point, 0)
    fill(tile.det_grad[0], ZERO, n_points)
    if plan.diagonal_at != ABSENT:
        for d in range(plan.dim):
            gain = splat(F(math.exp(weights.diagonal[d, 0])))
            for j in range(0, n_points, LANES):
                z_grad = load(tile.z_grad, d, j)
                of_gain = fma(z_grad, load(tile.z, d, j), load(tile.det_grad, 0, j))  # ∂z/∂γ = z
                store(grads.diagonal, d, 0, load(grads.diagonal, d, 0) + of_gain)
                store(tile.z_grad, d, j, z_grad * gain)
    for c in range(plan.n_couplings - 1, -1, -1):
        mask = fixed[plan.mask_at[c] : plan.mask_at[c] + plan.dim]
        coupling_back(plan, weights, back, grads, mask, tile, c, n_points)


@inner
def row_in(theta, e, at, n, out):
    """`n` numbers of member e from column `at` on into panels, (P, LANES)."""
    for p in range(out.shape[0]):
        first = p * LANES
        if n - first >= LANES:
            store(out, p, 0, load(theta, e, at + first))
        else:
            for lane in range(n - first):
                out[p, lane] = theta[e, at + first + lane]


@inner
def row_out(theta, e, at, n, panels):
    """The inverse of :func:`row_in`."""
    for p in range(panels.shape[0]):
        first = p * LANES
        if n - first >= LANES:
            store(theta, e, at + first, load(panels, p, 0))
        else:
            for lane in range(n - first):
                theta[e, at + first + lane] = panels[p, lane]


@inner
def matrix_in(theta, e, at, n, out):
    """A matrix (n, n) of member e into panels of its columns, (P, P LANES, LANES)."""
    for p in range(out.shape[0]):
        first = p * LANES
        for k in range(n):
            if n - first >= LANES:
                store(out, p, k, load(theta, e, at + k * n + first))
            else:
                for lane in range(n - first):
                    out[p, k, lane] = theta[e, at + k * n + first + lane]


@inner
def matrix_out(theta, e, at, n, panels):
    """The inverse of :func:`matrix_in`."""
    for p in range(panels.shape[0]):
        first = p * LANES
        for k in range(n):
            if n - first >= LANES:
                store(theta, e, at + k * n + first, load(panels, p, k))
            else:
                for lane in range(n - first):
                    theta[e, at + k * n + first + lane] = panels[p, k, lane]


@inner
def transpose(out, panels):
    """The transpose of a matrix in panels of its columns, (P, P LANES, LANES)."""
    for p in range(out.shape[0]):  # panel of the result
        for q in range(out.shape[0]):  # panel of the matrix: rows q LANES … of the result
            for i in range(0, LANES, BLOCK):
                for k in range(0, LANES, BLOCK):
                    transpose_block(out, p, q * LANES + i, k, panels, q, p * LANES + k, i)


@njit(inline="always")
def unpack(plan, theta, e, weights, back, learning):
    """The weights of member e from its row of theta into panels; to `back` those between hidden layers, transposed."""
    width = plan.width
    outputs = plan.dim * plan.heads // plan.nets
    for c in range(plan.n_couplings):
        at = plan.net_at[c]
        for g in range(plan.nets):
            for d in range(plan.dim):
                row_in(theta, e, at + (g * plan.dim + d) * width, width, weights.first[c, g, d])
        at += plan.nets * plan.dim * width
        for i in range(plan.depth):
            for g in range(plan.nets):
                row_in(theta, e, at + g * width, width, weights.bias[c, g, i])
            at += plan.nets * width
            if i < plan.depth - 1:
                for g in range(plan.nets):
                    matrix_in(theta, e, at + g * width * width, width, weights.hidden[c, g, i])
                    if learning:
                        transpose(back.hidden[c, g, i], weights.hidden[c, g, i])
                at += plan.nets * width * width
        for head in range(plan.heads):
            g = min(head, plan.nets - 1)
            for d in range(plan.dim):
                column = d if plan.nets == plan.heads else head * plan.dim + d
                begin = at + g * width * outputs + column
                last = weights.last[c, head, d]
                for k in range(width):
                    last[k // LANES, k % LANES] = theta[e, begin + k * outputs]
                bias_at = at + plan.nets * width * outputs + g * outputs + column
                weights.last_bias[c, head, d, 0] = theta[e, bias_at]
        if plan.scale_at[c] != ABSENT:
            for d in range(plan.dim):
                weights.log_scale[c, d, 0] = theta[e, plan.scale_at[c] + d]
    if plan.diagonal_at != ABSENT:
        for d in range(plan.dim):
            weights.diagonal[d, 0] = theta[e, plan.diagonal_at + d]


@njit(inline="always")
def pack(plan, grads, grad, e):
    """The gradients of member e from panels into its row: the inverse of :func:`unpack`.

    What a mask keeps from acting has a gradient of zero, as `grads` were before the first tile.
    """
    width = plan.width
    outputs = plan.dim * plan.heads // plan.nets
    for c in range(plan.n_couplings):
        at = plan.net_at[c]
        for g in range(plan.nets):
            for d in range(plan.dim):
                row_out(grad, e, at + (g * plan.dim + d) * width, width, grads.first[c, g, d])
        at += plan.nets * plan.dim * width
        for i in range(plan.depth):
            for g in range(plan.nets):
                row_out(grad, e, at + g * width, width, grads.bias[c, g, i])
            at += plan.nets * width
            if i < plan.depth - 1:
                for g in range(plan.nets):
                    matrix_out(grad, e, at + g * width * width, width, grads.hidden[c, g, i])
                at += plan.nets * width * width
        for head in range(plan.heads):
            g = min(head, plan.nets - 1)
            for d in range(plan.dim):
                column = d if plan.nets == plan.heads else head * plan.dim + d
                begin = at + g * width * outputs + column
                last = grads.last[c, head, d]
                for k in range(width):
                    grad[e, begin + k * outputs] = last[k // LANES, k % LANES]
                bias_at = at + plan.nets * width * outputs + g * outputs + column
                grad[e, bias_at] = lane_sum(grads.last_bias[c, head, d])
        if plan.scale_at[c] != ABSENT:
            for d in range(plan.dim):
                grad[e, plan.scale_at[c] + d] = lane_sum(grads.log_scale[c, d])
    if plan.diagonal_at != ABSENT:
        for d in range(plan.dim):
            grad[e, plan.diagonal_at + d] = lane_sum(grads.diagonal[d])


@inner
def lane_sum(numbers):
    """The sum of all lanes, (LANES,)."""
    summed = ZERO
    for lane in range(LANES):
        summed += numbers[lane]
    return summed


@inner
def clear(grads):
    """Set all gradients to zero."""
    fill(grads.first.reshape(-1), ZERO, 0)
    fill(grads.bias.reshape(-1), ZERO, 0)
    fill(grads.hidden.reshape(-1), ZERO, 0)
    fill(grads.last.reshape(-1), ZERO, 0)
    fill(grads.last_bias.reshape(-1), ZERO, 0)
    fill(grads.log_scale.reshape(-1), ZERO, 0)
    fill(grads.diagonal.reshape(-1), ZERO, 0)


def passes(plan, weights, back, grads, theta, fixed, tile, x, log_q, loss, grad, learning):
    """log q of every member's points and, if `learning`, the gradient of their mean −log q.

    Shapes: theta (E, P), fixed (E, S), x (E, N, D) to log_q (E, N), loss (E,), grad (E, P).
    """
    n_points = x.shape[1]
    tile_points = tile.z.shape[1]
    per_point = F(1.0 / n_points)
    for e in range(theta.shape[0]):
        unpack(plan, theta, e, weights, back, learning)
        if learning:
            clear(grads)
        for begin in range(0, n_points, tile_points):
            n_here = min(tile_points, n_points - begin)
            to_base(plan, weights, fixed[e], x[e], begin, n_here, tile, learning)
            log_densities(plan, tile, n_here, log_q[e], begin)
            if learning:
                to_data(plan, weights, back, grads, fixed[e], tile, n_here, per_point)
        if learning:
            pack(plan, grads, grad, e)
            summed = 0.0
            for j in range(n_points):
                summed -= float(log_q[e, j])
            loss[e] = F(summed / n_points)
