"""A flow over the points of its members: to the base, to data, back with the gradient, and on with the weights."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from nfexp.flows.kernels.bases import log_law
from nfexp.flows.kernels.coupling import coupling, coupling_back
from nfexp.flows.kernels.elementwise import affine, affine_back, affine_to_data, tail, tail_back
from nfexp.flows.kernels.lanes import inner
from nfexp.flows.kernels.moments import move, norm_of
from nfexp.flows.kernels.plan import ABSENT
from nfexp.flows.kernels.products import fill
from nfexp.flows.kernels.rows import clear, pack, unpack

F = np.float32
ZERO = F(0.0)
ONE = F(1.0)
DENSITY, TO_BASE, TO_DATA, GRADIENT, STEPS = range(5)  # what can be asked for


class Results(NamedTuple):
    """What comes of points (E, N, D): `points` (E, N, D) at the other end; `log_det` (E, N), or log q in its place.

    Where something is learned also each member's `loss` (E,) and `norm` (E,) of its gradient, at its last step, and
    how many steps it `made` (E,).
    """

    points: np.ndarray
    log_det: np.ndarray
    loss: np.ndarray
    norm: np.ndarray
    made: np.ndarray


class Steps(NamedTuple):
    """What steps of training need: `order` (S, E, N) says which points each of S steps learns from.

    The optimiser's moments `first`, `second` (E, P), the `members` that are trained, the `clip` of each, its learning
    rate `lr` and its `decay` (E,); by step `factor`, `of_grad` and `of_first` (S,), see :func:`move`; `begun`, the
    steps before these; `grad` (1, P), scratch, or (E, P) where gradients are asked for.
    """

    order: np.ndarray
    first: np.ndarray
    second: np.ndarray
    grad: np.ndarray
    members: np.ndarray
    clip: np.ndarray
    lr: np.ndarray
    decay: np.ndarray
    factor: np.ndarray
    of_grad: np.ndarray
    of_first: np.ndarray
    beta1: float
    beta2: float
    epsilon: float
    begun: int


@inner
def read_in(z, log_det, mean, var, x, order, begin, n_points, drawing):
    """The points from `begin` on into `z` (D, T), standardised unless they are draws of the base.

    What fills the lanes up is a copy of the last point.
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


@njit(inline="always")
def through(plan, weights, fixed, n_points, tile, keep, drawing):
    """Carry a tile from data to base or, `drawing`, back; with `keep` what the gradient needs of each layer stays."""
    n = plan.n_couplings
    if drawing:
        if plan.tail_at != ABSENT:
            tail(tile.z, tile.log_det, tile.straight, weights.log_power, n_points, drawing)
        if plan.gain_at[n] != ABSENT:
            affine_to_data(tile.z, tile.log_det, weights.log_gain[n], weights.shift[n], n_points)
    for i in range(n):
        c = n - 1 - i if drawing else i
        slot = c if keep else 0
        mask = fixed[plan.mask_at[c] : plan.mask_at[c] + plan.dim]
        if drawing and plan.gain_at[c] != ABSENT:
            affine_to_data(tile.z, tile.log_det, weights.log_gain[c], weights.shift[c], n_points)
        coupling(plan, weights, mask, tile, c, slot, n_points, drawing)
        if not drawing and plan.gain_at[c] != ABSENT:
            affine(tile.z, tile.log_det, tile.before[slot], weights.log_gain[c], weights.shift[c], n_points)
    if not drawing:
        if plan.gain_at[n] != ABSENT:
            last = tile.before[tile.before.shape[0] - 1]
            affine(tile.z, tile.log_det, last, weights.log_gain[n], weights.shift[n], n_points)
        if plan.tail_at != ABSENT:
            tail(tile.z, tile.log_det, tile.straight, weights.log_power, n_points, drawing)


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
    """From ∂(log q)/∂z to the gradient of the mean −log q by z, in place, and by each log-det; zero in idle lanes."""
    for d in range(z_grad.shape[0]):
        for j in range(n_points):
            z_grad[d, j] *= -per_point
        fill(z_grad[d], ZERO, n_points)
    fill(det_grad[0], -per_point, 0)
    fill(det_grad[0], ZERO, n_points)


@njit(inline="always")
def way_back(plan, weights, back, grads, fixed, tile, n_points, per_point):
    """From ∂(log q)/∂z in `tile.z_grad` to what a tile adds to the gradient of the mean −log q."""
    start_back(tile.z_grad, tile.det_grad, per_point, n_points)
    if plan.tail_at != ABSENT:
        tail_back(tile.z_grad, tile.det_grad, tile.straight, weights.log_power, grads.log_power, n_points)
    for k in range(plan.n_couplings, -1, -1):
        if plan.gain_at[k] != ABSENT:
            before = tile.before[k]
            gain_grad = grads.log_gain[k]
            affine_back(tile.z_grad, tile.det_grad, before, weights.log_gain[k], gain_grad, grads.shift[k], n_points)
        if k < plan.n_couplings:
            mask = fixed[plan.mask_at[k] : plan.mask_at[k] + plan.dim]
            coupling_back(plan, weights, back, grads, mask, tile, k, n_points)


@njit(inline="always")
def learn(plan, theta, e, steps, results, i, n_points, task):
    """End a step of member e: its loss and the norm of its gradient; the optimiser moves it if both are finite.

    Says whether they are.
    """
    row = e if task == GRADIENT else 0
    summed = 0.0
    for j in range(n_points):
        summed -= results.log_det[e, j]
    results.loss[e] = F(summed / n_points)
    results.norm[e] = norm_of(steps.grad, row)
    if not (math.isfinite(results.loss[e]) and math.isfinite(results.norm[e])):
        return False
    if task == STEPS:
        clip = min(F(steps.clip[e]) / results.norm[e], ONE)
        rate = steps.lr[e] * steps.factor[i]
        law = steps.of_grad[i], steps.of_first[i], steps.beta1, steps.beta2, steps.epsilon
        number = steps.begun + i + 1
        move(theta, steps.first, steps.second, e, steps.grad, row, clip, rate, steps.decay[e], law, number)
    return True


def work(plan, weights, back, grads, tile, theta, fixed, x, steps, results, task):
    """For each member all that is asked for (`task`), a tile of points at a time.

    Shapes: theta (E, P), fixed (E, S), x (E, N, D).
    """
    tile_points = tile.z.shape[1]
    n_points = steps.order.shape[2]
    per_point = F(1.0 / n_points)
    learning = task in (GRADIENT, STEPS)
    drawing = task == TO_DATA
    for e in steps.members:
        mean = fixed[e, plan.mean_at : plan.mean_at + plan.dim]
        var = fixed[e, plan.var_at : plan.var_at + plan.dim]
        for i in range(steps.order.shape[0]):
            order = steps.order[i, min(e, steps.order.shape[1] - 1)]
            unpack(plan, theta, fixed, e, weights, back, learning)
            if learning:
                clear(grads)
            for begin in range(0, n_points, tile_points):
                n_here = min(tile_points, n_points - begin)
                read_in(tile.z, tile.log_det, mean, var, x[e], order, begin, n_here, drawing)
                through(plan, weights, fixed[e], n_here, tile, learning, drawing)
                if task in (TO_BASE, TO_DATA):
                    found = results.points[e], results.log_det[e]
                    write_out(tile.z, tile.log_det, mean, var, *found, begin, n_here, drawing)
                else:
                    log_q = results.log_det[e]
                    log_densities(plan.base, tile.z, tile.log_det, tile.z_grad, log_q, begin, n_here)
                if learning:
                    way_back(plan, weights, back, grads, fixed[e], tile, n_here, per_point)
            if learning:
                pack(plan, grads, fixed, steps.grad, e, e if task == GRADIENT else 0)
                if not learn(plan, theta, e, steps, results, i, n_points, task):
                    break
                results.made[e] = i + 1
