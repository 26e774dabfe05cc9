"""A flow over the points of its members.

To the base, to data, back with the gradient, and on with the weights.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from nfexp.flows.kernels.bases import log_law
from nfexp.flows.kernels.coupling import coupling, coupling_back
from nfexp.flows.kernels.elementwise import (
    affine,
    affine_back,
    batch_norm_back,
    batch_norm_sums,
    divide_by_sd,
    keep_moments,
    moments_of,
    tail,
    tail_back,
)
from nfexp.flows.kernels.lanes import inner
from nfexp.flows.kernels.moments import move, norm_of_sum
from nfexp.flows.kernels.plan import ABSENT
from nfexp.flows.kernels.products import fill
from nfexp.flows.kernels.rows import clear, pack, unpack

F = np.float32
ZERO = F(0.0)
ONE = F(1.0)
DENSITY, TO_BASE, TO_DATA, GRADIENT, STEPS = range(5)  # what can be asked for


class Results(NamedTuple):
    """What comes of points (E, N, D): `points` (E, N, D) at the other end.

    `log_det` (E, N), or log q in its place.

    Where something is learned also each member's `loss` (E,) and `norm` (E,) of its gradient, at
    its last step, and how many steps it `made` (E,).
    """

    points: np.ndarray
    log_det: np.ndarray
    loss: np.ndarray
    norm: np.ndarray
    made: np.ndarray


class Steps(NamedTuple):
    """What steps of training need: `order` (S, E, N) says which points each of S steps learns from.

    The optimiser's moments `first`, `second` (E, P), the `members` that are trained, the `clip` of
    each, its learning rate `lr` and its `decay` (E,); by step `factor`, `of_grad` and `of_first`
    (S,), see :func:`move`; `begun`, the steps before these.

    Each `share` of so many points has a row of its own in `grad` (R, P), for its part of the
    gradient; the first row becomes their sum. One call makes the steps from `from_step` to
    `to_step` with the points from `from_point` to `to_point` of each batch; only one that `ends`
    steps adds the shares up and moves.
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
    share: int
    from_step: int
    to_step: int
    from_point: int
    to_point: int
    ends: bool


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
def read_context(given, mean, var, context, order, begin, n_points):
    """The context of the points from `begin` on into `given` (C, T), standardised.

    What fills the lanes up is a copy of the last point's.
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
def behind_couplings(
    z,
    log_det,
    tail_power,
    before_tail,
    has_tail,
    before,
    mean,
    log_gain,
    shift,
    has_diagonal,
    n_points,
    drawing,
):
    """Carry a tile through what lies between the couplings and the base.

    The diagonal layer, then the tail.
    """
    if drawing and has_tail:
        tail(z, log_det, before_tail, tail_power, n_points, drawing)
    if has_diagonal:
        affine(z, log_det, before, mean, log_gain, shift, n_points, drawing)
    if has_tail and not drawing:
        tail(z, log_det, before_tail, tail_power, n_points, drawing)


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

    Zero in idle lanes.
    """
    for d in range(z_grad.shape[0]):
        for j in range(n_points):
            z_grad[d, j] *= -per_point
        fill(z_grad[d], ZERO, n_points)
    fill(det_grad[0], -per_point, 0)
    fill(det_grad[0], ZERO, n_points)


@njit(inline="always")
def learn(plan, theta, fixed, e, moments, steps, results, i, n_points, task):
    """End a step of member e: its loss, the sum of the gradients of all shares and its norm.

    The optimiser moves it if loss and norm are finite.

    Its batch norms then keep the moments of the batch. Says whether they are finite.
    """
    summed = 0.0
    for j in range(n_points):
        summed -= results.log_det[e, j]
    results.loss[e] = F(summed / n_points)
    results.norm[e] = norm_of_sum(steps.grad)
    if not (math.isfinite(results.loss[e]) and math.isfinite(results.norm[e])):
        return False
    if task == STEPS:
        clip = min(F(steps.clip[e]) / results.norm[e], ONE)
        rate = steps.lr[e] * steps.factor[i]
        law = steps.of_grad[i], steps.of_first[i], steps.beta1, steps.beta2, steps.epsilon
        number = steps.begun + i + 1
        move(
            theta,
            steps.first,
            steps.second,
            e,
            steps.grad,
            0,
            clip,
            rate,
            steps.decay[e],
            law,
            number,
        )
        for k in range(plan.n_couplings):
            if plan.stations[k].running_mean != ABSENT:
                keep_moments(
                    fixed,
                    e,
                    plan.stations[k].running_mean,
                    plan.stations[k].running_var,
                    moments[k],
                )
    return True


@inner
def normalise_by_running(plan, weights, fixed, e, moments):
    """Let the batch norms of member e normalise by their running averages."""
    for k in range(plan.n_couplings):
        if plan.stations[k].running_mean != ABSENT:
            for d in range(plan.dim):
                moments[k, 0, d] = fixed[e, plan.stations[k].running_mean + d]
                moments[k, 1, d] = fixed[e, plan.stations[k].running_var + d]
            divide_by_sd(weights.log_gain[k], moments[k, 1])


@njit(inline="always")
def through(plan, weights, fixed, tiles, e, x, context, order, points, results, task):
    """Carry `points`, a range of those of a batch, from data to base or, drawing, back.

    Those of one tile, or all.

    They go on together from one stop to the next, a tile at a time; there a batch norm takes their
    moments.
    """
    n = plan.n_couplings
    stations = plan.stations
    drawing = task == TO_DATA
    learning = task in (GRADIENT, STEPS)
    mean = fixed[e, plan.mean_at : plan.mean_at + plan.dim]
    var = fixed[e, plan.var_at : plan.var_at + plan.dim]
    context_mean = fixed[e, plan.context_mean_at : plan.context_mean_at + plan.n_context]
    context_var = fixed[e, plan.context_var_at : plan.context_var_at + plan.n_context]
    log_gain = weights.log_gain
    shift = weights.shift
    moments = tiles.moments
    before = tiles.before
    tile_points = before.shape[3]
    n_legs = plan.stops.shape[0] - 1 if learning else 1
    for leg in range(n_legs):
        begin = plan.stops[leg]
        end = plan.stops[leg + 1] if learning else n + 1
        if leg > 0:
            moments_of(tiles.z, len(points), moments[begin - 1])
            divide_by_sd(log_gain[begin - 1], moments[begin - 1, 1])
        for first in range(points.start, points.stop, tile_points):  # tile by tile
            q = (first - points.start) // tile_points
            n_here = min(tile_points, points.stop - first)
            z = tiles.z[q]
            log_det = tiles.log_det[q]
            if leg == 0:
                read_in(z, log_det, mean, var, x[e], order, first, n_here, drawing)
                given = tiles.given[q]
                read_context(given, context_mean, context_var, context[e], order, first, n_here)
            for i in range(begin, end):  # station by station, from data or, drawing, from the base
                k = n - i if drawing else i
                slot = k if learning else 0
                has_norm = k > 0 and stations[k - 1].gain != ABSENT
                if has_norm and not drawing:
                    of_norm = (
                        before[q, max(slot - 1, 0)],
                        moments[k - 1, 0],
                        log_gain[k - 1],
                        shift[k - 1],
                    )
                    affine(z, log_det, *of_norm, n_here, drawing)
                if k < n:
                    mask = fixed[e, stations[k].mask : stations[k].mask + plan.dim]
                    coupling(plan, weights, mask, tiles, q, k, slot, n_here, drawing)
                else:
                    of_tail = weights.log_power, tiles.straight[q], plan.tail_at != ABSENT
                    diagonal = before[q, before.shape[1] - 1], moments[n, 0], log_gain[n], shift[n]
                    behind_couplings(
                        z, log_det, *of_tail, *diagonal, stations[n].gain != ABSENT, n_here, drawing
                    )
                if has_norm and drawing:
                    of_norm = before[q, 0], moments[k - 1, 0], log_gain[k - 1], shift[k - 1]
                    affine(z, log_det, *of_norm, n_here, drawing)
            if leg == n_legs - 1:
                if task in (TO_BASE, TO_DATA):
                    found = results.points[e], results.log_det[e]
                    write_out(z, log_det, mean, var, *found, first, n_here, drawing)
                else:
                    log_densities(
                        plan.base, z, log_det, tiles.z_grad[q], results.log_det[e], first, n_here
                    )


@njit(inline="always")
def way_back(plan, weights, transposed, grads, fixed, tiles, e, points, n_points):
    """Carry the gradient of the mean −log q of `n_points` from the base to the first coupling, for `points` of them.

    From ∂(log q)/∂z in `z_grad` to what these points add to `grads`. They wait for one another at a
    batch norm, too.
    """
    n = plan.n_couplings
    stations = plan.stations
    per_point = F(1.0 / n_points)
    log_gain = weights.log_gain
    gain_grad = grads.log_gain
    shift_grad = grads.shift
    before = tiles.before
    tile_points = before.shape[3]
    n_legs = plan.stops.shape[0] - 1
    for leg in range(n_legs - 1, -1, -1):
        begin = plan.stops[leg]
        end = plan.stops[leg + 1]
        for first in range(points.start, points.stop, tile_points):  # tile by tile
            q = (first - points.start) // tile_points
            n_here = min(tile_points, points.stop - first)
            z_grad = tiles.z_grad[q]
            det_grad = tiles.det_grad[q]
            if leg == n_legs - 1:
                start_back(z_grad, det_grad, per_point, n_here)
            else:  # through the batch norm that this leg ends at
                of_norm = before[q, end - 1], log_gain[end - 1], tiles.moments[end - 1, 1]
                batch_norm_back(
                    z_grad, *of_norm, gain_grad[end - 1], shift_grad[end - 1], n_here, n_points
                )
            for k in range(end - 1, begin - 1, -1):  # station by station
                if k < n:
                    mask = fixed[e, stations[k].mask : stations[k].mask + plan.dim]
                    coupling_back(plan, weights, transposed, grads, mask, tiles, q, k, n_here)
                elif plan.tail_at != ABSENT:
                    tail_back(
                        z_grad,
                        det_grad,
                        tiles.straight[q],
                        weights.log_power,
                        grads.log_power,
                        n_here,
                    )
                if k == n and stations[n].gain != ABSENT:
                    affine_back(
                        z_grad,
                        det_grad,
                        before[q, n],
                        log_gain[n],
                        gain_grad[n],
                        shift_grad[n],
                        n_here,
                    )
                if (
                    k > 0
                    and stations[k - 1].gain != ABSENT
                    and stations[k - 1].running_mean == ABSENT
                ):
                    of_norm = before[q, k - 1], log_gain[k - 1], gain_grad[k - 1], shift_grad[k - 1]
                    affine_back(z_grad, det_grad, *of_norm, n_here)
        if leg > 0:
            of_norm = log_gain[begin - 1], gain_grad[begin - 1], shift_grad[begin - 1]
            batch_norm_sums(tiles.z_grad, before, begin - 1, *of_norm, n_points)


def work(plan, weights, transposed, grads, tiles, theta, fixed, x, context, steps, results, task):
    """For each member all that is asked for (`task`), share by share of its points, a tile at a time.

    Shapes: theta (E, P), fixed (E, S), x (E, N, D), context (E, N, C).
    """
    n_points = steps.order.shape[2]
    learning = task in (GRADIENT, STEPS)
    # all tiles, for one another; otherwise each goes its way alone
    waiting = learning and plan.stops.shape[0] > 2
    together = n_points if waiting else tiles.z.shape[2]
    for e in steps.members:
        for i in range(steps.from_step, steps.to_step):
            order = steps.order[i, min(e, steps.order.shape[1] - 1)]
            if steps.from_point < steps.to_point:
                unpack(plan, theta, fixed, e, weights, transposed, learning)
            if not learning:
                normalise_by_running(plan, weights, fixed, e, tiles.moments)
            for begin in range(steps.from_point, steps.to_point, steps.share):
                end = min(begin + steps.share, steps.to_point)
                if learning:
                    clear(grads)
                for first in range(begin, end, together):
                    points = range(first, min(first + together, end))
                    through(
                        plan, weights, fixed, tiles, e, x, context, order, points, results, task
                    )
                    if learning:
                        way_back(
                            plan, weights, transposed, grads, fixed, tiles, e, points, n_points
                        )
                if learning:
                    pack(plan, grads, fixed, steps.grad, e, begin // steps.share)
            if learning and steps.ends:
                if not learn(
                    plan, theta, fixed, e, tiles.moments, steps, results, i, n_points, task
                ):
                    break
                results.made[e] = i + 1
