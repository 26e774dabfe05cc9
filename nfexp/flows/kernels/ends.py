"""The two ends of a tile's way: points are read in and written out, at the base the gradient begins."""

from __future__ import annotations

import math

import numpy as np

from nfexp.flows.kernels.bases import log_law
from nfexp.flows.kernels.lanes import inner
from nfexp.flows.kernels.products import fill

F = np.float32
ZERO = F(0.0)
ONE = F(1.0)


@inner
def read_in(z, log_det, mean, var, x, order, begin, n_points, drawing):
    """The points from `begin` on into `z` (D, T), standardised unless they are draws of the base.

    Lanes behind the last point are filled with copies of it.
    """
    total = 0.0
    for d in range(z.shape[0]):
        centre = ZERO
        gain = ONE
        if not drawing:
            total -= 0.5 * math.log(var[d])
            centre = mean[d]
            gain = F(math.exp(-0.5 * math.log(var[d])))
        for j in range(n_points):
            z[d, j] = (x[order[begin + j], d] - centre) * gain
        fill(z[d], z[d, n_points - 1], n_points)
    fill(log_det[0], F(total), 0)


@inner
def read_context(given, mean, var, context, order, begin, n_points):
    """The context of the points from `begin` on into `given` (C, T), standardised.

    Lanes behind the last point are filled with copies of its context.
    """
    for c in range(given.shape[0]):
        gain = F(math.exp(-0.5 * math.log(var[c])))
        for j in range(n_points):
            given[c, j] = (context[order[begin + j], c] - mean[c]) * gain
        fill(given[c], given[c, n_points - 1], n_points)


@inner
def write_out(z, log_det, mean, var, points, log_dets, begin, n_points, drawing):
    """The points of a tile, in data units if they are drawn, and their log-det."""
    total = 0.0
    for d in range(z.shape[0]):
        centre = ZERO
        sd = ONE
        if drawing:
            total += 0.5 * math.log(var[d])
            centre = mean[d]
            sd = F(math.exp(0.5 * math.log(var[d])))
        for j in range(n_points):
            points[begin + j, d] = z[d, j] * sd + centre
    for j in range(n_points):
        log_dets[begin + j] = log_det[0, j] + F(total)


@inner
def log_densities(code, z, log_det, z_grad, out, begin, n_points):
    """log q of the points of a tile, and in `z_grad` its derivative by z."""
    for j in range(n_points):
        log_p = 0.0
        for d in range(z.shape[0]):
            value, slope = log_law(code, z[d, j])
            log_p += value
            z_grad[d, j] = F(slope)
        out[begin + j] = F(log_p + log_det[0, j])


@inner
def start_back(z_grad, det_grad, per_point, n_points):
    """From ∂(log q)/∂z to the gradient of the mean −log q by z, in place, and by each log-det.

    It is zero in the lanes behind the last point.
    """
    for d in range(z_grad.shape[0]):
        for j in range(n_points):
            z_grad[d, j] *= -per_point
        fill(z_grad[d], ZERO, n_points)
    fill(det_grad[0], -per_point, 0)
    fill(det_grad[0], ZERO, n_points)
