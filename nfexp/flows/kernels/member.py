"""A whole flow over the points of its members: log-density, and the gradient of their mean −log-density."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from nfexp.flows.kernels.coupling import coupling, coupling_back
from nfexp.flows.kernels.lanes import LANES, fma, inner, load, splat, store, total
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


@njit(inline="always")
def unpack(plan, row, weights, back, learning):
    """One member's weights from its row of theta into panels; `back` gets those between hidden layers transposed."""
    width = plan.width
    outputs = plan.dim * plan.heads // plan.nets
    for c in range(plan.n_couplings):
        at = plan.net_at[c]
        for g in range(plan.nets):
            for d in range(plan.dim):
                into_panels(row, at + (g * plan.dim + d) * width, width, weights.first[c, g, d])
        at += plan.nets * plan.dim * width
        for i in range(plan.depth):
            for g in range(plan.nets):
                into_panels(row, at + g * width, width, weights.bias[c, g, i])
            at += plan.nets * width
            if i < plan.depth - 1:
                for g in range(plan.nets):
                    matrix_into_panels(row, at + g * width * width, width, weights.hidden[c, g, i])
                    if learning:
                        transposed_into_panels(row, at + g * width * width, width, back.hidden[c, g, i])
                at += plan.nets * width * width
        for head in range(plan.heads):
            g = min(head, plan.nets - 1)
            for d in range(plan.dim):
                column = d if plan.nets == plan.heads else head * plan.dim + d
                begin = at + g * width * outputs + column
                last = weights.last[c, head, d]
                for k in range(width):
                    last[k // LANES, k % LANES] = row[begin + k * outputs]
                weights.last_bias[c, head, d, 0] = row[at + plan.nets * width * outputs + g * outputs + column]
        if plan.scale_at[c] != ABSENT:
            for d in range(plan.dim):
                weights.log_scale[c, d, 0] = row[plan.scale_at[c] + d]
    if plan.diagonal_at != ABSENT:
        for d in range(plan.dim):
            weights.diagonal[d, 0] = row[plan.diagonal_at + d]


@inner
def into_panels(row, at, n, out):
    """`n` numbers of a row from column `at` on into panels, (P, LANES)."""
    for p in range(out.shape[0]):
        first = p * LANES
        for lane in range(min(LANES, n - first)):
            out[p, lane] = row[at + first + lane]


@inner
def from_panels(panels, n, row, at):
    """The inverse of :func:`into_panels`."""
    for p in range(panels.shape[0]):
        first = p * LANES
        for lane in range(min(LANES, n - first)):
            row[at + first + lane] = panels[p, lane]


@inner
def matrix_into_panels(row, at, n, out):
    """A matrix (n, n) of a row into panels of its columns, (P, P LANES, LANES)."""
    for p in range(out.shape[0]):
        first = p * LANES
        n_here = min(LANES, n - first)
        for k in range(n):
            for lane in range(n_here):
                out[p, k, lane] = row[at + k * n + first + lane]


@inner
def transposed_into_panels(row, at, n, out):
    """The transpose of a matrix (n, n) of a row into panels of its columns."""
    for p in range(out.shape[0]):
        first = p * LANES
        n_here = min(LANES, n - first)
        for o in range(n):
            for lane in range(n_here):
                out[p, o, lane] = row[at + (first + lane) * n + o]


@njit(inline="always")
def pack(plan, grads, row):
    """One member's gradients from panels into its row: the inverse of :func:`unpack`."""
    width = plan.width
    outputs = plan.dim * plan.heads // plan.nets
    fill(row, ZERO, 0)  # what a mask keeps from acting has none
    for c in range(plan.n_couplings):
        at = plan.net_at[c]
        for g in range(plan.nets):
            for d in range(plan.dim):
                from_panels(grads.first[c, g, d], width, row, at + (g * plan.dim + d) * width)
        at += plan.nets * plan.dim * width
        for i in range(plan.depth):
            for g in range(plan.nets):
                from_panels(grads.bias[c, g, i], width, row, at + g * width)
            at += plan.nets * width
            if i < plan.depth - 1:
                for g in range(plan.nets):
                    matrix = grads.hidden[c, g, i]
                    begin = at + g * width * width
                    for p in range(matrix.shape[0]):
                        first = p * LANES
                        for k in range(width):
                            for lane in range(min(LANES, width - first)):
                                row[begin + k * width + first + lane] = matrix[p, k, lane]
                at += plan.nets * width * width
        for head in range(plan.heads):
            g = min(head, plan.nets - 1)
            for d in range(plan.dim):
                column = d if plan.nets == plan.heads else head * plan.dim + d
                begin = at + g * width * outputs + column
                last = grads.last[c, head, d]
                for k in range(width):
                    row[begin + k * outputs] = last[k // LANES, k % LANES]
                row[at + plan.nets * width * outputs + g * outputs + column] = total(
                    load(grads.last_bias[c, head], d, 0)
                )
        if plan.scale_at[c] != ABSENT:
            for d in range(plan.dim):
                row[plan.scale_at[c] + d] = total(load(grads.log_scale[c], d, 0))
    if plan.diagonal_at != ABSENT:
        for d in range(plan.dim):
            row[plan.diagonal_at + d] = total(load(grads.diagonal, d, 0))


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
        unpack(plan, theta[e], weights, back, learning)
        if learning:
            clear(grads)
        for begin in range(0, n_points, tile_points):
            n_here = min(tile_points, n_points - begin)
            to_base(plan, weights, fixed[e], x[e], begin, n_here, tile, learning)
            log_densities(plan, tile, n_here, log_q[e], begin)
            if learning:
                to_data(plan, weights, back, grads, fixed[e], tile, n_here, per_point)
        if learning:
            pack(plan, grads, grad[e])
            summed = 0.0
            for j in range(n_points):
                summed -= float(log_q[e, j])
            loss[e] = F(summed / n_points)
