"""A flow over the points of its members, station by station.

To the base, to data, back with the gradient, and a step of the weights.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

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
from nfexp.flows.kernels.ends import log_densities, read_context, read_in, start_back, write_out
from nfexp.flows.kernels.lanes import inner
from nfexp.flows.kernels.moments import move, norm_of_sum
from nfexp.flows.kernels.plan import ABSENT
from nfexp.flows.kernels.rows import clear, pack, unpack

F = np.float32
ONE = F(1.0)
DENSITY, TO_BASE, TO_DATA, GRADIENT, STEPS = range(5)  # what can be asked for


class Results(NamedTuple):
    """What the kernel finds: `points` (E, N, D) at the other end, `log_det` (E, N) or log q in its place.

    Where something is learned also how many steps each member `made` (E,), and at its last one the
    `loss` (E,) and the `norm` (E,) of the gradient.
    """

    points: np.ndarray
    log_det: np.ndarray
    loss: np.ndarray
    norm: np.ndarray
    made: np.ndarray


class Steps(NamedTuple):
    """What steps of training need: `order` (S, E, N) says which points each of S steps learns from.

    The `members` that are trained; the optimiser's moments `first`, `second` (E, P); of each member
    the `clip` of its gradient, the learning rate `lr` and the weight `decay` (E,); of each step
    `factor`, `of_grad` and `of_first` (S,), see :func:`move`; `begun`, the steps before these.

    A batch is cut into shares of `share` points. The gradient of each has a row of its own in
    `grad` (R, P), and the first row becomes the sum of all.

    One call of the kernel makes the steps from `from_step` to `to_step` with the points from
    `from_point` to `to_point` of each batch. Only a call that `ends` steps adds the shares up and
    moves the weights.
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


@njit(inline="always")
def learn(plan, theta, fixed, e, moments, steps, results, i, n_points, task):
    """End step i of member e: its loss, its gradient (the sum of all shares), the norm of that.

    Where both are finite, it is moved if steps are asked for, and its batch norms keep the moments
    of the batch. Returns whether they are finite.
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
        of_optimiser = theta, steps.first, steps.second
        move(*of_optimiser, e, steps.grad, 0, clip, rate, steps.decay[e], law, number)
        for k in range(plan.n_couplings):
            mean_at = plan.stations[k].running_mean
            if mean_at != ABSENT:
                keep_moments(fixed, e, mean_at, plan.stations[k].running_var, moments[k])
    return True


@inner
def normalise_by_running(plan, weights, fixed, e, moments):
    """Let the batch norms of member e normalise by their running averages."""
    for k in range(plan.n_couplings):
        mean_at = plan.stations[k].running_mean
        var_at = plan.stations[k].running_var
        if mean_at != ABSENT:
            for d in range(plan.dim):
                moments[k, 0, d] = fixed[e, mean_at + d]
                moments[k, 1, d] = fixed[e, var_at + d]
            divide_by_sd(weights.log_gain[k], moments[k, 1])


@njit(inline="always")
def behind_couplings(plan, weights, tiles, q, n_points, drawing):
    """Carry tile q through what lies between the couplings and the base: a diagonal layer, the tail."""
    n = plan.n_couplings
    z = tiles.z[q]
    log_det = tiles.log_det[q]
    straight = tiles.straight[q]
    has_tail = plan.tail_at != ABSENT
    if has_tail and drawing:
        tail(z, log_det, straight, weights.log_power, n_points, drawing)
    if plan.stations[n].gain != ABSENT:
        before = tiles.before[q, tiles.before.shape[1] - 1]
        of_layer = tiles.moments[n, 0], weights.log_gain[n], weights.shift[n]
        affine(z, log_det, before, *of_layer, n_points, drawing)
    if has_tail and not drawing:
        tail(z, log_det, straight, weights.log_power, n_points, drawing)


@njit(inline="always")
def station(plan, weights, fixed, tiles, e, q, k, slot, n_points, drawing):
    """Carry tile q through station k: the affine layer behind coupling k - 1, then coupling k.

    With `drawing` the coupling first. What the way back needs of coupling k stays in `slot`.
    """
    n = plan.n_couplings
    z = tiles.z[q]
    log_det = tiles.log_det[q]
    has_norm = k > 0 and plan.stations[k - 1].gain != ABSENT
    if has_norm and not drawing:
        before = tiles.before[q, max(slot - 1, 0)]
        of_norm = tiles.moments[k - 1, 0], weights.log_gain[k - 1], weights.shift[k - 1]
        affine(z, log_det, before, *of_norm, n_points, drawing)
    if k < n:
        mask = fixed[e, plan.stations[k].mask : plan.stations[k].mask + plan.dim]
        coupling(plan, weights, mask, tiles, q, k, slot, n_points, drawing)
    else:
        behind_couplings(plan, weights, tiles, q, n_points, drawing)
    if has_norm and drawing:
        before = tiles.before[q, 0]
        of_norm = tiles.moments[k - 1, 0], weights.log_gain[k - 1], weights.shift[k - 1]
        affine(z, log_det, before, *of_norm, n_points, drawing)


@njit(inline="always")
def begin_way(plan, fixed, tiles, e, x, context, order, first, q, n_points, drawing):
    """Points from number `first` of a batch on into tile q, with their context."""
    mean = fixed[e, plan.mean_at : plan.mean_at + plan.dim]
    var = fixed[e, plan.var_at : plan.var_at + plan.dim]
    read_in(tiles.z[q], tiles.log_det[q], mean, var, x[e], order, first, n_points, drawing)
    mean = fixed[e, plan.context_mean_at : plan.context_mean_at + plan.n_context]
    var = fixed[e, plan.context_var_at : plan.context_var_at + plan.n_context]
    read_context(tiles.given[q], mean, var, context[e], order, first, n_points)


@njit(inline="always")
def end_way(plan, fixed, tiles, e, results, first, q, n_points, task):
    """What is asked for of the points in tile q, from number `first` on into `results`."""
    z = tiles.z[q]
    log_det = tiles.log_det[q]
    out = results.log_det[e]
    if task in (TO_BASE, TO_DATA):
        mean = fixed[e, plan.mean_at : plan.mean_at + plan.dim]
        var = fixed[e, plan.var_at : plan.var_at + plan.dim]
        drawing = task == TO_DATA
        write_out(z, log_det, mean, var, results.points[e], out, first, n_points, drawing)
    else:
        log_densities(plan.base, z, log_det, tiles.z_grad[q], out, first, n_points)


@njit(inline="always")
def through(plan, weights, fixed, tiles, e, x, context, order, points, results, task):
    """Carry `points`, a range of those of a batch, from data to base or, drawing, back.

    They go on together from one stop to the next, a tile at a time; at a stop a batch norm takes
    their moments. Without stops the range is that of one tile.
    """
    n = plan.n_couplings
    drawing = task == TO_DATA
    learning = task in (GRADIENT, STEPS)
    tile_points = tiles.z.shape[2]
    # unless something is learned batch norms have running averages, and nobody waits
    n_legs = plan.stops.shape[0] - 1 if learning else 1
    for leg in range(n_legs):
        begin = plan.stops[leg]
        end = plan.stops[leg + 1] if learning else n + 1
        if leg > 0:
            moments = tiles.moments[begin - 1]
            moments_of(tiles.z, len(points), moments)
            divide_by_sd(weights.log_gain[begin - 1], moments[1])
        for first in range(points.start, points.stop, tile_points):  # tile by tile
            q = (first - points.start) // tile_points
            n_here = min(tile_points, points.stop - first)
            if leg == 0:
                begin_way(plan, fixed, tiles, e, x, context, order, first, q, n_here, drawing)
            for i in range(begin, end):  # from data or, drawing, from the base
                k = n - i if drawing else i
                slot = k if learning else 0
                station(plan, weights, fixed, tiles, e, q, k, slot, n_here, drawing)
            if leg == n_legs - 1:
                end_way(plan, fixed, tiles, e, results, first, q, n_here, task)


@njit(inline="always")
def behind_couplings_back(plan, weights, grads, tiles, q, n_points):
    """The gradient through :func:`behind_couplings`."""
    n = plan.n_couplings
    z_grad = tiles.z_grad[q]
    det_grad = tiles.det_grad[q]
    if plan.tail_at != ABSENT:
        of_tail = tiles.straight[q], weights.log_power, grads.log_power
        tail_back(z_grad, det_grad, *of_tail, n_points)
    if plan.stations[n].gain != ABSENT:
        of_layer = tiles.before[q, n], weights.log_gain[n], grads.log_gain[n], grads.shift[n]
        affine_back(z_grad, det_grad, *of_layer, n_points)


@njit(inline="always")
def station_back(plan, weights, transposed, grads, fixed, tiles, e, q, k, n_points):
    """The gradient through :func:`station`, but for its batch norm: that one ends a leg."""
    if k < plan.n_couplings:
        mask = fixed[e, plan.stations[k].mask : plan.stations[k].mask + plan.dim]
        coupling_back(plan, weights, transposed, grads, mask, tiles, q, k, n_points)
    else:
        behind_couplings_back(plan, weights, grads, tiles, q, n_points)
    has_norm = k > 0 and plan.stations[k - 1].gain != ABSENT
    if has_norm and plan.stations[k - 1].running_mean == ABSENT:
        of_gain = weights.log_gain[k - 1], grads.log_gain[k - 1]
        z_grad = tiles.z_grad[q]
        before = tiles.before[q, k - 1]
        affine_back(z_grad, tiles.det_grad[q], before, *of_gain, grads.shift[k - 1], n_points)


@njit(inline="always")
def way_back(plan, weights, transposed, grads, fixed, tiles, e, points, n_points):
    """Carry a gradient from the base to the first coupling, for a range of `points` of a batch.

    It is that of the mean −log q of all `n_points` of the batch: from ∂(log q)/∂z in `z_grad` to
    what these points add to `grads`. They wait for one another at a batch norm, too.
    """
    per_point = F(1.0 / n_points)
    tile_points = tiles.z.shape[2]
    n_legs = plan.stops.shape[0] - 1
    for leg in range(n_legs - 1, -1, -1):
        begin = plan.stops[leg]
        end = plan.stops[leg + 1]
        for first in range(points.start, points.stop, tile_points):  # tile by tile
            q = (first - points.start) // tile_points
            n_here = min(tile_points, points.stop - first)
            z_grad = tiles.z_grad[q]
            if leg == n_legs - 1:
                start_back(z_grad, tiles.det_grad[q], per_point, n_here)
            else:  # through the batch norm that this leg ends at
                of_norm = (
                    tiles.before[q, end - 1],
                    weights.log_gain[end - 1],
                    tiles.moments[end - 1, 1],
                )
                sums = grads.log_gain[end - 1], grads.shift[end - 1]
                batch_norm_back(z_grad, *of_norm, *sums, n_here, n_points)
            for k in range(end - 1, begin - 1, -1):
                station_back(plan, weights, transposed, grads, fixed, tiles, e, q, k, n_here)
        if leg > 0:
            of_norm = weights.log_gain[begin - 1], grads.log_gain[begin - 1], grads.shift[begin - 1]
            batch_norm_sums(tiles.z_grad, tiles.before, begin - 1, *of_norm, n_points)


def work(plan, weights, transposed, grads, tiles, theta, fixed, x, context, steps, results, task):
    """For each member all that is asked for (`task`), share by share of its points, a tile at a time.

    Shapes: theta (E, P), fixed (E, S), x (E, N, D), context (E, N, C).
    """
    n_points = steps.order.shape[2]
    learning = task in (GRADIENT, STEPS)
    # the tiles of a batch wait for one another at stops; without any each goes its way alone
    waiting = learning and plan.stops.shape[0] > 2
    together = n_points if waiting else tiles.z.shape[2]
    for e in steps.members:
        for i in range(steps.from_step, steps.to_step):
            order = steps.order[i, min(e, steps.order.shape[1] - 1)]  # one row may be for all
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
