"""One coupling layer over a tile of points: its networks, z = x ⊙ exp(s) + t, and the way back through both."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from nfexp.flows.kernels.elementary import SILU, activated, exp, sigmoid, slope_of, tanh
from nfexp.flows.kernels.lanes import LANES, fma, inner, load, magnitude, splat, store
from nfexp.flows.kernels.products import (
    add_dots,
    add_outer_products,
    add_rows,
    add_spread,
    add_weighted_rows,
    copy,
    fill,
    fill_rows,
    product,
)
from nfexp.flows.layers import SOFT_BOUND

F = np.float32
ZERO = F(0.0)
ONE = F(1.0)
PER_BOUND = F(1 / SOFT_BOUND)
TANH, SOFT, EXP = range(3)  # of `Plan.scale`


@inner
def activate(code, h, slope, n_points):
    """h ← σ(h), in place, for the points of a tile; for silu σ'(h) goes to `slope`. Shapes (P, T, LANES)."""
    one = splat(ONE)
    for p in range(h.shape[0]):
        for j in range(n_points):
            a = load(h, p, j)
            if code == SILU:
                share = sigmoid(a)
                y = a * share
                store(slope, p, j, fma(one - share, y, share))  # σ' = share + a share (1 - share)
                store(h, p, j, y)
            else:
                store(h, p, j, activated(code, a))


@inner
def through_activation(code, grad, y, slope, n_points):
    """grad ← grad ⊙ σ'(a), in place, with y = σ(a) or, for silu, the slope that was kept. Shapes (P, T, LANES)."""
    for p in range(grad.shape[0]):
        for j in range(n_points):
            if code == SILU:
                by = load(slope, p, j)
            else:
                by = slope_of(code, load(y, p, j))
            store(grad, p, j, load(grad, p, j) * by)


@njit(inline="always")
def networks(plan, weights, mask, tile, c, slot, n_points):
    """What the networks of coupling c say of b ⊙ x: `tile.raw` for the coordinates that move.

    Their hidden layers stay in `tile.hidden[slot]`.
    """
    x = tile.x[slot]
    for g in range(plan.nets):
        first = tile.hidden[slot, g, 0]
        fill_rows(first, weights.bias[c, g, 0], n_points)
        for d in range(plan.dim):
            if mask[d] == ONE:  # a coordinate that passes is an input
                add_spread(first, x[d], weights.first[c, g, d], n_points)
        activate(plan.activation, first, tile.slope[slot, g, 0], n_points)
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


@njit(inline="always")
def coupling(plan, weights, mask, tile, c, slot, n_points):
    """Data → base through coupling c, in place on `tile.z`; its log-det is added to `tile.log_det`."""
    copy(tile.x[slot], tile.z)
    networks(plan, weights, mask, tile, c, slot, n_points)
    for d in range(plan.dim):
        if mask[d] == ONE:
            continue
        bound = splat(bound_of(weights, c, d))
        for j in range(0, n_points, LANES):
            x = load(tile.x[slot], d, j)
            shift = load(tile.raw[plan.heads - 1], d, j)
            if plan.heads == 1:  # additive
                store(tile.z, d, j, x + shift)
            else:
                squashed = squash(plan.scale, load(tile.raw[0], d, j))
                s = squashed * bound
                gain = exp(s)
                store(tile.squashed[slot], d, j, squashed)
                store(tile.gain[slot], d, j, gain)
                store(tile.z, d, j, fma(x, gain, shift))
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


@njit(inline="always")
def networks_back(plan, weights, back, grads, mask, tile, c, n_points):
    """The gradient through the networks of coupling c, from `tile.raw_grad` down to the inputs."""
    for g in range(plan.nets):
        nothing = back.bias[c, g, 0]
        upper = tile.upper
        lower = tile.lower
        top = tile.hidden[c, g, plan.depth - 1]
        fill_rows(upper, nothing, n_points)
        for head in range(plan.heads):
            if min(head, plan.nets - 1) != g:
                continue
            for d in range(plan.dim):
                if mask[d] != ONE:
                    add_weighted_rows(grads.last[c, head, d], tile.raw_grad[head, d], top, n_points)
                    add_spread(upper, tile.raw_grad[head, d], weights.last[c, head, d], n_points)
        for i in range(plan.depth - 1, -1, -1):
            through_activation(plan.activation, upper, tile.hidden[c, g, i], tile.slope[c, g, i], n_points)
            add_rows(grads.bias[c, g, i], upper, n_points)
            if i > 0:
                below = tile.hidden[c, g, i - 1]
                add_outer_products(grads.hidden[c, g, i - 1], below, upper, n_points, plan.width)
                product(lower, upper, back.hidden[c, g, i - 1], back.bias[c, g, i], n_points, plan.width)
                upper, lower = lower, upper
        for d in range(plan.dim):
            if mask[d] == ONE:
                add_weighted_rows(grads.first[c, g, d], tile.x[c, d], upper, n_points)
                if c > 0:  # nothing is learned before the first coupling
                    add_dots(tile.z_grad[d], upper, weights.first[c, g, d], n_points)
