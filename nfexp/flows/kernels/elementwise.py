"""Layers that map each coordinate by itself, over a tile of points: affine ones and the tail."""

from __future__ import annotations

import math

import numpy as np

from nfexp.flows.kernels.lanes import LANES, fma, inner, load, splat, store
from nfexp.flows.kernels.products import fill

F = np.float32


@inner
def affine(z, log_det, before, log_gain, shift, n_points):
    """z ← z exp(γ) + h, in place; what came in stays in `before`.

    Shapes: z, before (D, T), log_det (1, T), log_gain (γ) and shift (h) (D, LANES), the number in lane 0.
    """
    for d in range(z.shape[0]):
        gain = splat(F(math.exp(log_gain[d, 0])))
        for j in range(0, n_points, LANES):
            x = load(z, d, j)
            store(before, d, j, x)
            store(z, d, j, fma(x, gain, splat(shift[d, 0])))
            store(log_det, 0, j, load(log_det, 0, j) + splat(log_gain[d, 0]))


@inner
def affine_to_data(z, log_det, log_gain, shift, n_points):
    """z ← (z - h) exp(-γ), in place."""
    for d in range(z.shape[0]):
        loss = splat(F(math.exp(-log_gain[d, 0])))
        for j in range(0, n_points, LANES):
            store(z, d, j, (load(z, d, j) - splat(shift[d, 0])) * loss)
            store(log_det, 0, j, load(log_det, 0, j) - splat(log_gain[d, 0]))


@inner
def affine_back(z_grad, det_grad, before, log_gain, gain_grad, shift_grad, n_points):
    """The gradient through :func:`affine`: `z_grad` (D, T) in place, and what is added to those of γ and h."""
    for d in range(z_grad.shape[0]):
        gain = splat(F(math.exp(log_gain[d, 0])))
        of_gain = load(gain_grad, d, 0)
        of_shift = load(shift_grad, d, 0)
        for j in range(0, n_points, LANES):
            grad = load(z_grad, d, j)
            x_grad = grad * gain
            of_gain = of_gain + fma(x_grad, load(before, d, j), load(det_grad, 0, j))  # ∂z/∂γ = x exp(γ)
            of_shift = of_shift + grad
            store(z_grad, d, j, x_grad)
        store(gain_grad, d, 0, of_gain)
        store(shift_grad, d, 0, of_shift)


@inner
def bent(x, power):
    """sinh(b) and cosh(b) of b = power · asinh(x), b itself, and cosh(asinh(x)) = √(1 + x²)."""
    root = math.sqrt(1.0 + x * x)
    b = math.copysign(power * math.log(abs(x) + root), x)
    e = math.exp(abs(b))
    return math.copysign(0.5 * (e - 1 / e), b), 0.5 * (e + 1 / e), b, root


@inner
def tail(z, log_det, before, log_power, n_points, drawing):
    """z ← sinh(d asinh(z)) in float64, in place, d the power of each coordinate; with `drawing` 1/d, base → data.

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
    """The gradient through :func:`tail`: `z_grad` (D, T) in place, and what is added to that of log d (D, LANES)."""
    for d in range(z_grad.shape[0]):
        power = math.exp(np.float64(log_power[d, 0]))
        for j in range(n_points):
            x = np.float64(before[d, j])
            of_log_det = np.float64(det_grad[0, j])
            sinh, cosh, b, root = bent(x, power)
            of_b = np.float64(z_grad[d, j]) * cosh + of_log_det * sinh / cosh
            power_grad[d, j % LANES] += F(of_log_det + of_b * b)  # ∂b/∂(log d) = b
            # a = asinh(x): ∂b/∂a = d, ∂(log-det)/∂a = -tanh(a) = -x/√(1 + x²), and ∂a/∂x = 1/√(1 + x²)
            z_grad[d, j] = F((of_b * power - of_log_det * x / root) / root)
