"""One coupling layer over a tile of points: its networks, z = x ⊙ exp(s) + t, its inverse, and the way back."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from nfexp.flows.kernels.elementary import SILU, activated, exp, sigmoid, slope_of, tanh
from nfexp.flows.kernels.lanes import LANES, fma, inner, load, magnitude, splat, store, where_less
from nfexp.flows.kernels.products import (
    add_dots,
    add_outer_products,
    add_weighted_rows,
    copy,
    fill,
    product,
)
from nfexp.flows.layers import SOFT_BOUND

F = np.float32
ZERO = F(0.0)
ONE = F(1.0)
PER_BOUND = F(1 / SOFT_BOUND)
TANH, SOFT, EXP = range(3)  # of `Plan.scale`


@inner
def keep_activated(code, h, slope, p, j, a):
    """h[p, j] = σ(a); for silu σ'(a) goes to `slope`."""
    if code == SILU:
        one = splat(ONE)
        share = sigmoid(a)
        y = a * share
        store(slope, p, j, fma(one - share, y, share))  # σ' = share + a share (1 - share)
        store(h, p, j, y)
    else:
        store(h, p, j, activated(code, a))


@inner
def activate(code, h, slope, n_points):
    """h ← σ(h), in place, for the points of a tile. Shapes (P, T, LANES)."""
    for p in range(h.shape[0]):
        for j in range(n_points):
            keep_activated(code, h, slope, p, j, load(h, p, j))


@inner
def first_layer(code, h, slope, x, mask, weights, bias, n_points):
    """h = σ(bias + Σ_d x[d] weights[d]) over the coordinates d that pass.

    Shapes: h and slope (P, T, LANES), x (D, T), mask (D,), weights (D, P, LANES), bias (P, LANES).
    """
    for p in range(h.shape[0]):
        start = load(bias, p, 0)
        for j in range(n_points):
            a = start
            for d in range(x.shape[0]):
                if mask[d] == ONE:
                    a = fma(splat(x[d, j]), load(weights[d], p, 0), a)
            keep_activated(code, h, slope, p, j, a)


@inner
def from_outputs(grad, raw_grad, mask, weights, n_points, begin, end):
    """grad = Σ raw_grad[head, d] weights[head, d] over the heads of a network and the coordinates d that move.

    Shapes: grad (P, T, LANES), raw_grad (heads, D, T), weights (heads, D, P, LANES).
    """
    for p in range(grad.shape[0]):
        for j in range(n_points):
            summed = splat(ZERO)
            for head in range(begin, end):
                for d in range(mask.shape[0]):
                    if mask[d] != ONE:
                        summed = fma(splat(raw_grad[head, d, j]), load(weights[head, d], p, 0), summed)
            store(grad, p, j, summed)


@inner
def through_activation(code, grad, y, slope, bias_grad, n_points):
    """grad ← grad ⊙ σ'(a), in place, with y = σ(a) or, for silu, the slope that was kept; bias_grad += Σ_j grad[j].

    Shapes: bias_grad (P, LANES), all others (P, T, LANES).
    """
    for p in range(grad.shape[0]):
        running = load(bias_grad, p, 0)
        for j in range(n_points):
            if code == SILU:
                by = load(slope, p, j)
            else:
                by = slope_of(code, load(y, p, j))
            below = load(grad, p, j) * by
            store(grad, p, j, below)
            running = running + below
        store(bias_grad, p, 0, running)


@inner
def clamp(out, x, bound, n_points):
    """out = x within ±bound; both (D, T). What is not a number stays so."""
    highest = splat(bound)
    lowest = splat(-bound)
    for d in range(x.shape[0]):
        for j in range(0, n_points, LANES):
            value = load(x, d, j)
            value = where_less(highest, value, highest, value)
            store(out, d, j, where_less(value, lowest, lowest, value))


@njit(inline="always")
def networks(plan, weights, mask, tile, c, slot, n_points):
    """What the networks of coupling c say of b ⊙ x, within its bound: `tile.raw` for the coordinates that move.

    Their hidden layers stay in `tile.hidden[slot]`.
    """
    seen = tile.seen[slot]
    clamp(seen, tile.x[slot], plan.bound, n_points)
    for g in range(plan.nets):
        h = tile.hidden[slot, g, 0]
        slope = tile.slope[slot, g, 0]
        first_layer(plan.activation, h, slope, seen, mask, weights.first[c, g], weights.bias[c, g, 0], n_points)
        for i in range(1, plan.depth):
            h = tile.hidden[slot, g, i]
            below = tile.hidden[slot, g, i - 1]
            product(h, below, weights.hidden[c, g, i - 1], weights.bias[c, g, i], n_points, plan.width)
            activate(plan.activation, h, tile.slope[slot, g, i], n_points)
    for head in range(plan.heads):
        top = tile.hidden[slot, min(head, plan.nets - 1), plan.depth - 1]
        for d in range(plan.dim):
            if mask[d] != ONE:  # a coordinate that moves is an output
                raw = tile.raw[head, d]
                fill(raw, weights.last_bias[c, head, d, 0], 0)
                add_dots(raw, top, weights.last[c, head, d], n_points)
                fill(raw, raw[n_points - 1], n_points)  # what fills the lanes up is a copy of a real point


@inner
def squash(code, r):
    """y with s = exp(c) · y, from a network's output."""
    if code == TANH:
        return tanh(r)
    if code == SOFT:
        return r / fma(magnitude(r), splat(PER_BOUND), splat(ONE))
    return r


@inner
def squash_slope(code, y):
    """∂y/∂r."""
    if code == TANH:
        return fma(splat(ZERO) - y, y, splat(ONE))
    if code == SOFT:
        root = fma(magnitude(y), splat(-PER_BOUND), splat(ONE))  # 1 - |y|/B = 1 / (1 + |r|/B)
        return root * root
    return splat(ONE)


@inner
def bound_of(weights, c, d):
    """exp(c) for a coordinate: its learned bound on |s|, 1 where none is learned (c = 0)."""
    return F(math.exp(weights.log_scale[c, d, 0]))


@inner
def shift_only(z, x, shift, d, n_points, drawing):
    """z = x + t for a coordinate of an additive coupling, or x - t from base to data."""
    for j in range(0, n_points, LANES):
        by = load(shift, d, j)
        if drawing:
            by = splat(ZERO) - by
        store(z, d, j, load(x, d, j) + by)


@inner
def scale_back(z, log_det, x, raw, code, bound, d, n_points):
    """z = (x - t) exp(-s) for a coordinate: base → data."""
    for j in range(0, n_points, LANES):
        s = squash(code, load(raw[0], d, j)) * splat(bound)
        store(z, d, j, (load(x, d, j) - load(raw[1], d, j)) * exp(splat(ZERO) - s))
        store(log_det, 0, j, load(log_det, 0, j) - s)


@njit(inline="always")
def coupling(plan, weights, mask, tile, c, slot, n_points, drawing):
    """Data → base through coupling c, in place on `tile.z`; its log-det is added to `tile.log_det`.

    With `drawing` base → data.
    """
    copy(tile.x[slot], tile.z)
    networks(plan, weights, mask, tile, c, slot, n_points)
    for d in range(plan.dim):
        if mask[d] == ONE:
            continue
        if plan.heads == 1:
            shift_only(tile.z, tile.x[slot], tile.raw[0], d, n_points, drawing)
            continue
        if drawing:
            scale_back(tile.z, tile.log_det, tile.x[slot], tile.raw, plan.scale, bound_of(weights, c, d), d, n_points)
            continue
        bound = splat(bound_of(weights, c, d))
        for j in range(0, n_points, LANES):
            squashed = squash(plan.scale, load(tile.raw[0], d, j))
            s = squashed * bound
            gain = exp(s)
            store(tile.squashed[slot], d, j, squashed)
            store(tile.gain[slot], d, j, gain)
            store(tile.z, d, j, fma(load(tile.x[slot], d, j), gain, load(tile.raw[1], d, j)))
            store(tile.log_det, 0, j, load(tile.log_det, 0, j) + s)


@njit(inline="always")
def coupling_back(plan, weights, back, grads, mask, tile, c, n_points):
    """The gradient through coupling c: `tile.z_grad` from ∂L/∂z to ∂L/∂x, and what the tile adds to `grads`.

    `back` holds the weights between hidden layers transposed.
    """
    for d in range(plan.dim):
        if mask[d] == ONE:
            continue
        bound = splat(bound_of(weights, c, d))
        for j in range(0, n_points, LANES):
            z_grad = load(tile.z_grad, d, j)
            store(tile.raw_grad[plan.heads - 1], d, j, z_grad)  # of the shift
            bias_grad = load(grads.last_bias[c, plan.heads - 1], d, 0)
            store(grads.last_bias[c, plan.heads - 1], d, 0, bias_grad + z_grad)
            if plan.heads == 2:
                gain = load(tile.gain[c], d, j)
                squashed = load(tile.squashed[c], d, j)
                x_grad = z_grad * gain  # ∂z/∂x = exp(s)
                s_grad = fma(x_grad, load(tile.x[c], d, j), load(tile.det_grad, 0, j))  # ∂z/∂s = x exp(s)
                raw_grad = s_grad * bound * squash_slope(plan.scale, squashed)
                store(tile.z_grad, d, j, x_grad)
                store(tile.raw_grad[0], d, j, raw_grad)
                store(grads.last_bias[c, 0], d, 0, load(grads.last_bias[c, 0], d, 0) + raw_grad)
                scale_grad = fma(s_grad, squashed * bound, load(grads.log_scale[c], d, 0))  # ∂s/∂c = s
                store(grads.log_scale[c], d, 0, scale_grad)
    networks_back(plan, weights, back, grads, mask, tile, c, n_points)


@inner
def add_within(z_grad, seen_grad, x, bound, d, n_points):
    """z_grad[d] += seen_grad where the bound left x[d] as it is: the gradient through :func:`clamp`."""
    zero = splat(ZERO)
    for j in range(0, n_points, LANES):
        grad = where_less(splat(bound), magnitude(load(x, d, j)), zero, load(seen_grad, 0, j))
        store(z_grad, d, j, load(z_grad, d, j) + grad)


@njit(inline="always")
def networks_back(plan, weights, back, grads, mask, tile, c, n_points):
    """The gradient through the networks of coupling c, from `tile.raw_grad` down to the inputs."""
    for g in range(plan.nets):
        upper = tile.upper
        lower = tile.lower
        top = tile.hidden[c, g, plan.depth - 1]
        begin = g if plan.nets == plan.heads else 0  # the heads of this network: one, or all
        end = g + 1 if plan.nets == plan.heads else plan.heads
        for head in range(begin, end):
            for d in range(plan.dim):
                if mask[d] != ONE:
                    add_weighted_rows(grads.last[c, head, d], tile.raw_grad[head, d], top, n_points)
        from_outputs(upper, tile.raw_grad, mask, weights.last[c], n_points, begin, end)
        for i in range(plan.depth - 1, -1, -1):
            y = tile.hidden[c, g, i]
            through_activation(plan.activation, upper, y, tile.slope[c, g, i], grads.bias[c, g, i], n_points)
            if i > 0:
                below = tile.hidden[c, g, i - 1]
                add_outer_products(grads.hidden[c, g, i - 1], below, upper, n_points, plan.width)
                # `back` has no biases: its zeros are what the sums start from
                product(lower, upper, back.hidden[c, g, i - 1], back.bias[c, g, i], n_points, plan.width)
                upper, lower = lower, upper
        for d in range(plan.dim):
            if mask[d] == ONE:
                add_weighted_rows(grads.first[c, g, d], tile.seen[c, d], upper, n_points)
                if c > 0:  # nothing is learned before the first coupling
                    fill(tile.seen_grad[0], ZERO, 0)
                    add_dots(tile.seen_grad[0], upper, weights.first[c, g, d], n_points)
                    fill(tile.seen_grad[0], ZERO, n_points)
                    add_within(tile.z_grad, tile.seen_grad, tile.x[c], plan.bound, d, n_points)
