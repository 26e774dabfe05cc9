"""Layers that map each coordinate by itself: affine ones, batch norms among them, and the tail."""

from __future__ import annotations

import math

import numpy as np

from nfexp.flows.elementwise import BatchNorm
from nfexp.flows.kernels.lanes import LANES, fma, inner, load, splat, store
from nfexp.flows.kernels.products import fill

F = np.float32
ZERO = F(0.0)
EPSILON = BatchNorm.epsilon
MOMENTUM = F(BatchNorm.momentum)


@inner
def affine_to_data(z, log_det, mean, log_gain, shift, d, n_points):
    """z ← (z - h) exp(-γ) + m for a coordinate, in place."""
    loss = splat(F(math.exp(-log_gain)))
    for j in range(0, n_points, LANES):
        store(z, d, j, (load(z, d, j) - splat(shift)) * loss + splat(mean))
        store(log_det, 0, j, load(log_det, 0, j) - splat(log_gain))


@inner
def affine(z, log_det, before, mean, log_gain, shift, n_points, drawing):
    """z ← (z - m) exp(γ) + h, in place; z - m stays in `before`.

    With `drawing` z ← (z - h) exp(-γ) + m.

    Shapes: z, before (D, T), log_det (1, T), mean (m) (D,), log_gain (γ) and shift (h) (D, LANES),
    lane 0 alone.
    """
    for d in range(z.shape[0]):
        if drawing:
            affine_to_data(z, log_det, F(mean[d]), log_gain[d, 0], shift[d, 0], d, n_points)
            continue
        gain = splat(F(math.exp(log_gain[d, 0])))
        for j in range(0, n_points, LANES):
            x = load(z, d, j) - splat(F(mean[d]))
            store(before, d, j, x)
            store(z, d, j, fma(x, gain, splat(shift[d, 0])))
            store(log_det, 0, j, load(log_det, 0, j) + splat(log_gain[d, 0]))


@inner
def affine_back(z_grad, det_grad, before, log_gain, gain_grad, shift_grad, n_points):
    """The gradient through :func:`affine` by fixed numbers.

    `z_grad` (D, T) in place, and what those of γ, h gain.
    """
    for d in range(z_grad.shape[0]):
        gain = splat(F(math.exp(log_gain[d, 0])))
        of_gain = load(gain_grad, d, 0)
        of_shift = load(shift_grad, d, 0)
        for j in range(0, n_points, LANES):
            grad = load(z_grad, d, j)
            x_grad = grad * gain
            # ∂z/∂γ = x exp(γ)
            of_gain = of_gain + fma(x_grad, load(before, d, j), load(det_grad, 0, j))
            of_shift = of_shift + grad
            store(z_grad, d, j, x_grad)
        store(gain_grad, d, 0, of_gain)
        store(shift_grad, d, 0, of_shift)


@inner
def divide_by_sd(log_gain, var):
    """γ ← γ - ½ log(v + ε): the gain of a batch norm.

    Shapes: log_gain (D, LANES), the number in lane 0, var (D,).
    """
    for d in range(var.shape[0]):
        log_gain[d, 0] = F(log_gain[d, 0] - 0.5 * math.log(var[d] + EPSILON))


@inner
def moments_of(z, n_points, moments):
    """The mean and the variance of a batch, in float64 and one point after the other, whatever the tiles.

    Shapes: z (Q, D, T), moments (2, D).
    """
    tile_points = z.shape[2]
    for d in range(z.shape[1]):
        total = 0.0
        for begin in range(0, n_points, tile_points):
            of_tile = z[begin // tile_points, d]
            for j in range(min(tile_points, n_points - begin)):
                total += of_tile[j]
        mean = total / n_points
        total = 0.0
        for begin in range(0, n_points, tile_points):
            of_tile = z[begin // tile_points, d]
            for j in range(min(tile_points, n_points - begin)):
                apart = of_tile[j] - mean
                total += apart * apart
        moments[0, d] = mean
        moments[1, d] = total / n_points


@inner
def batch_norm_sums(z_grad, before, k, log_gain, gain_grad, shift_grad, n_points):
    """The gradients of γ and h of a batch norm, over its whole batch, with z = (x - m) exp(l) + h.

    ∂L/∂h = Σ ∂L/∂z. ∂L/∂γ = ∂L/∂l = Σ ∂L/∂z (x - m) exp(l) - 1, the last for l is each point's
    log-det. Shapes: z_grad (Q, D, T), before[:, k] (x - m) (Q, D, T), the others (D, LANES), the
    number in lane 0.
    """
    tile_points = z_grad.shape[2]
    for d in range(z_grad.shape[1]):
        of_shift = 0.0
        of_gain = 0.0
        for begin in range(0, n_points, tile_points):
            of_tile = z_grad[begin // tile_points, d]
            x = before[begin // tile_points, k, d]
            for j in range(min(tile_points, n_points - begin)):
                grad = np.float64(of_tile[j])
                of_shift += grad
                of_gain += grad * x[j]
        shift_grad[d, 0] = F(of_shift)
        gain_grad[d, 0] = F(of_gain * math.exp(log_gain[d, 0]) - 1.0)


@inner
def batch_norm_back(z_grad, before, log_gain, var, gain_grad, shift_grad, n_here, n_points):
    """The gradient through a batch norm for a tile, `z_grad` (D, T) in place, once that of γ and h is known.

    m and v of N points depend on each of them: ∂m/∂x = 1/N, ∂v/∂x = 2 (x - m)/N and ∂l/∂v = -½/(v +
    ε), so that ∂L/∂x = exp(l) (∂L/∂z - ∂L/∂h / N) - (x - m) ∂L/∂l / (N (v + ε)).
    """
    for d in range(z_grad.shape[0]):
        gain = splat(F(math.exp(log_gain[d, 0])))
        by_mean = splat(F(shift_grad[d, 0] / n_points))
        by_var = splat(F(-gain_grad[d, 0] / (n_points * (var[d] + EPSILON))))
        for j in range(0, n_here, LANES):
            of_mean = (load(z_grad, d, j) - by_mean) * gain
            store(z_grad, d, j, fma(load(before, d, j), by_var, of_mean))
        fill(z_grad[d], ZERO, n_here)


@inner
def keep_moments(fixed, e, mean_at, var_at, moments):
    """Take the moments of a batch, (2, D), into the running ones of member e."""
    for d in range(moments.shape[1]):
        fixed[e, mean_at + d] += MOMENTUM * (F(moments[0, d]) - fixed[e, mean_at + d])
        fixed[e, var_at + d] += MOMENTUM * (F(moments[1, d]) - fixed[e, var_at + d])


@inner
def bent(x, power):
    """sinh(b) and cosh(b) of b = power · asinh(x), b itself, and cosh(asinh(x)) = √(1 + x²)."""
    root = math.sqrt(1.0 + x * x)
    b = math.copysign(power * math.log(abs(x) + root), x)
    e = math.exp(abs(b))
    return math.copysign(0.5 * (e - 1 / e), b), 0.5 * (e + 1 / e), b, root


@inner
def tail(z, log_det, before, log_power, n_points, drawing):
    """z ← sinh(d asinh(z)) in float64, in place, d the power of each coordinate.

    With `drawing` 1/d, base → data.

    What came in stays in `before`. Shapes: z, before (D, T), log_det (1, T), log_power (D, LANES).
    """
    for d in range(z.shape[0]):
        log_d = np.float64(-log_power[d, 0] if drawing else log_power[d, 0])
        power = math.exp(log_d)
        for j in range(n_points):
            x = z[d, j]
            before[d, j] = x
            sinh, cosh, _, root = bent(np.float64(x), power)
            z[d, j] = F(sinh)
            log_det[0, j] += F(log_d + math.log(cosh / root))  # dz/dx = d cosh(b) / cosh(asinh(x))
        fill(z[d], z[d, n_points - 1], n_points)
    fill(log_det[0], log_det[0, n_points - 1], n_points)


@inner
def tail_back(z_grad, det_grad, before, log_power, power_grad, n_points):
    """The gradient through :func:`tail`.

    `z_grad` (D, T) in place, and what is added to that of log d (D, LANES).
    """
    for d in range(z_grad.shape[0]):
        power = math.exp(np.float64(log_power[d, 0]))
        for j in range(n_points):
            x = np.float64(before[d, j])
            of_log_det = np.float64(det_grad[0, j])
            sinh, cosh, b, root = bent(x, power)
            of_b = np.float64(z_grad[d, j]) * cosh + of_log_det * sinh / cosh
            power_grad[d, j % LANES] += F(of_log_det + of_b * b)  # ∂b/∂(log d) = b
            # a = asinh(x): ∂b/∂a = d, ∂(log-det)/∂a = -tanh(a) = -x/√(1 + x²), and ∂a/∂x = 1/√(1 +
            # x²)
            z_grad[d, j] = F((of_b * power - of_log_det * x / root) / root)
