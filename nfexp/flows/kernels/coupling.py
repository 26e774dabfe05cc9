"""One coupling layer over a tile of points.

Its networks, z = x ⊙ exp(s) + t, its inverse, and the way back.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from nfexp.flows.kernels.elementary import SILU, activated, exp, sigmoid, slope_of, tanh
from nfexp.flows.kernels.lanes import (
    LANES,
    POINTS,
    fma,
    inner,
    load,
    magnitude,
    repeated,
    splat,
    spread,
    store,
    where_less,
)
from nfexp.flows.kernels.products import (
    add_dots,
    add_outer_products,
    add_weighted_rows,
    copy,
    fill,
    product,
)
from nfexp.flows.kernels.rows import is_read
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
    """h ← σ(h), in place, for the points of a tile. Shapes (P, T, 16)."""
    for p in range(h.shape[0]):
        for j in range(0, n_points, POINTS):
            keep_activated(code, h, slope, p, j, load(h, p, j))


@inner
def first_layer(code, h, slope, x, mask, weights, bias, n_points):
    """h = σ(bias + Σ_d x[d] weights[d]) over the coordinates d that pass, and the context.

    Shapes: h and slope (P, T, 16), x (R, T), mask (D,), weights (R, P, 16), bias (P, 16).
    """
    for p in range(h.shape[0]):
        start = repeated(bias, p)
        for j in range(0, n_points, POINTS):
            a = start
            for d in range(x.shape[0]):
                if is_read(mask, d):
                    a = fma(spread(x, d, j), repeated(weights[d], p), a)
            keep_activated(code, h, slope, p, j, a)


@inner
def slope_at(code, y, slope, p, j):
    """σ'(a) at [p, j], with y = σ(a) or, for silu, the slope that was kept."""
    if code == SILU:
        return load(slope, p, j)
    return slope_of(code, load(y, p, j))


@inner
def from_outputs(code, grad, raw_grad, mask, weights, y, slope, bias_grad, n_points, begin, end):
    """grad = σ'(a) ⊙ Σ raw_grad[head, d] weights[head, d]; bias_grad += Σ_j grad[j].

    The sum is over the heads of a network and the coordinates d that move. Shapes: raw_grad (heads,
    D, T), weights (heads, D, P, 16), bias_grad (P, LANES), all others (P, T, 16).
    """
    for p in range(grad.shape[0]):
        running = load(bias_grad, p, 0)
        for j in range(0, n_points, POINTS):
            summed = splat(ZERO)
            for head in range(begin, end):
                for d in range(mask.shape[0]):
                    if mask[d] != ONE:
                        summed = fma(
                            spread(raw_grad[head], d, j), repeated(weights[head, d], p), summed
                        )
            below = summed * slope_at(code, y, slope, p, j)
            store(grad, p, j, below)
            running = running + below
        store(bias_grad, p, 0, running)


@inner
def through_activation(code, grad, y, slope, bias_grad, n_points):
    """grad ← grad ⊙ σ'(a), in place; bias_grad += Σ_j grad[j].

    Shapes: bias_grad (P, LANES), all others (P, T, 16).
    """
    for p in range(grad.shape[0]):
        running = load(bias_grad, p, 0)
        for j in range(0, n_points, POINTS):
            below = load(grad, p, j) * slope_at(code, y, slope, p, j)
            store(grad, p, j, below)
            running = running + below
        store(bias_grad, p, 0, running)


@inner
def clamp(out, begin, x, bound, n_points):
    """out[begin + d] = x[d] within ±bound. What is not a number stays so.

    Shapes: out (R, T), x (D, T).
    """
    highest = splat(bound)
    lowest = splat(-bound)
    for d in range(x.shape[0]):
        for j in range(0, n_points, LANES):
            value = load(x, d, j)
            value = where_less(highest, value, highest, value)
            store(out, begin + d, j, where_less(value, lowest, lowest, value))


@inner
def networks(
    code, width, first, bias, hidden, last, last_bias, mask, seen, outputs, slope, raw, n_points
):
    """The outputs of a coupling's networks at [b ⊙ x, c], into `raw` for the coordinates that move.

    Shapes: first (G, R, P, 16), bias (G, K, P, 16), hidden (G, K - 1, P, 16 P, 16), last (heads, D,
    P, 16), last_bias (heads, D, L), seen (R, T), raw (heads, D, T), the `outputs` of hidden layers
    and their `slope` (G, K, P, T, 16).
    """
    nets, depth = bias.shape[:2]
    for g in range(nets):
        first_layer(code, outputs[g, 0], slope[g, 0], seen, mask, first[g], bias[g, 0], n_points)
        for i in range(1, depth):
            product(outputs[g, i], outputs[g, i - 1], hidden[g, i - 1], bias[g, i], n_points, width)
            activate(code, outputs[g, i], slope[g, i], n_points)
    for head in range(last.shape[0]):
        top = outputs[min(head, nets - 1), depth - 1]
        for d in range(mask.shape[0]):
            if mask[d] != ONE:  # a coordinate that moves is an output
                fill(raw[head, d], last_bias[head, d, 0], 0)
                add_dots(raw[head, d], top, last[head, d], n_points)
                # lanes behind the last point: copies of it
                fill(raw[head, d], raw[head, d, n_points - 1], n_points)


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
def bound_of(log_scale, d):
    """exp(c) for a coordinate: its learned bound on |s|, 1 where none is learned (c = 0)."""
    return F(math.exp(log_scale[d, 0]))


@inner
def shift_only(z, x, shift, d, n_points, drawing):
    """z = x + t for a coordinate of an additive coupling, or x - t from base to data."""
    for j in range(0, n_points, LANES):
        by = load(shift, d, j)
        if drawing:
            by = splat(ZERO) - by
        store(z, d, j, load(x, d, j) + by)


@inner
def scale_and_shift(z, log_det, x, raw, squashed, gain, code, bound, d, n_points):
    """z = x exp(s) + t for a coordinate.

    What the gradient needs goes to `squashed` and `gain`, all (D, T).
    """
    for j in range(0, n_points, LANES):
        y = squash(code, load(raw[0], d, j))
        s = y * splat(bound)
        e = exp(s)
        store(squashed, d, j, y)
        store(gain, d, j, e)
        store(z, d, j, fma(load(x, d, j), e, load(raw[1], d, j)))
        store(log_det, 0, j, load(log_det, 0, j) + s)


@inner
def to_data(z, log_det, x, raw, code, bound, d, n_points):
    """z = (x - t) exp(-s) for a coordinate: base → data."""
    for j in range(0, n_points, LANES):
        s = squash(code, load(raw[0], d, j)) * splat(bound)
        store(z, d, j, (load(x, d, j) - load(raw[1], d, j)) * exp(splat(ZERO) - s))
        store(log_det, 0, j, load(log_det, 0, j) - s)


@njit(inline="always")
def coupling(plan, weights, mask, tiles, q, c, slot, n_points, drawing):
    """Data → base through coupling c, in place on `z` of tile q; its log-det is added to `log_det`.

    Its hidden layers stay in `hidden[q, slot]`. With `drawing` base → data.
    """
    z = tiles.z[q]
    log_det = tiles.log_det[q]
    x = tiles.x[q, slot]
    copy(x, z)
    clamp(tiles.seen[q, slot], 0, x, plan.bound, n_points)
    clamp(tiles.seen[q, slot], plan.dim, tiles.given[q], plan.bound, n_points)
    networks(
        plan.activation,
        plan.width,
        weights.first[c],
        weights.bias[c],
        weights.hidden[c],
        weights.last[c],
        weights.last_bias[c],
        mask,
        tiles.seen[q, slot],
        tiles.hidden[q, slot],
        tiles.slope[q, slot],
        tiles.raw,
        n_points,
    )
    for d in range(plan.dim):
        if mask[d] == ONE:
            continue
        bound = bound_of(weights.log_scale[c], d)
        if plan.heads == 1:
            shift_only(z, x, tiles.raw[0], d, n_points, drawing)
        elif drawing:
            to_data(z, log_det, x, tiles.raw, plan.scale, bound, d, n_points)
        else:
            of_gradient = tiles.squashed[q, slot], tiles.gain[q, slot]
            scale_and_shift(z, log_det, x, tiles.raw, *of_gradient, plan.scale, bound, d, n_points)


@inner
def add_within(z_grad, seen_grad, x, bound, d, n_points):
    """z_grad[d] += seen_grad where the bound left x[d] as it is.

    The gradient through :func:`clamp`.
    """
    zero = splat(ZERO)
    for j in range(0, n_points, LANES):
        grad = where_less(splat(bound), magnitude(load(x, d, j)), zero, load(seen_grad, 0, j))
        store(z_grad, d, j, load(z_grad, d, j) + grad)


@inner
def sum_up(sums, grad, d, n_points):
    """sums[d] += the lanes of grad[d]. Shapes: sums (D, L), grad (D, T)."""
    for j in range(0, n_points, LANES):
        store(sums, d, 0, load(sums, d, 0) + load(grad, d, j))


@inner
def scale_back(z_grad, raw_grad, scale_grad, x, squashed, gain, det_grad, code, bound, d, n_points):
    """The gradient through :func:`scale_and_shift` for a coordinate.

    By x, in place, by the output r of s, and by c.
    """
    for j in range(0, n_points, LANES):
        y = load(squashed, d, j)
        x_grad = load(z_grad, d, j) * load(gain, d, j)  # ∂z/∂x = exp(s)
        s_grad = fma(x_grad, load(x, d, j), load(det_grad, 0, j))  # ∂z/∂s = x exp(s)
        store(z_grad, d, j, x_grad)
        store(raw_grad, d, j, s_grad * splat(bound) * squash_slope(code, y))
        store(scale_grad, d, 0, fma(s_grad, y * splat(bound), load(scale_grad, d, 0)))  # ∂s/∂c = s


@njit(inline="always")
def outputs_back(plan, weights, grads, mask, tiles, q, c, n_points):
    """The gradient of tile q through the affine map of coupling c: by x, by the networks' outputs, by c."""
    z_grad = tiles.z_grad[q]
    of_shift = tiles.raw_grad[plan.heads - 1]
    of_scale = tiles.raw_grad[0]
    copy(of_shift, z_grad)
    for d in range(plan.dim):
        if mask[d] == ONE:
            continue
        sum_up(grads.last_bias[c, plan.heads - 1], of_shift, d, n_points)
        if plan.heads == 2:
            kept = tiles.x[q, c], tiles.squashed[q, c], tiles.gain[q, c], tiles.det_grad[q]
            bound = bound_of(weights.log_scale[c], d)
            scale_back(z_grad, of_scale, grads.log_scale[c], *kept, plan.scale, bound, d, n_points)
            sum_up(grads.last_bias[c, 0], of_scale, d, n_points)


@njit(inline="always")
def inputs_back(plan, weights, grads, mask, tiles, q, c, g, n_points):
    """The gradient of tile q through the first layer of network g of coupling c: by its weights and by x."""
    # network_back() leaves it in one of the two, layers taking turns
    first_grad = tiles.upper if plan.depth % 2 == 1 else tiles.lower
    seen_grad = tiles.seen_grad
    for d in range(plan.dim + plan.n_context):
        if is_read(mask, d):
            add_weighted_rows(grads.first[c, g, d], tiles.seen[q, c], d, first_grad, n_points)
            # nothing is learned before the first coupling, nor before the context
            if c > 0 and d < plan.dim:
                fill(seen_grad[0], ZERO, 0)
                add_dots(seen_grad[0], first_grad, weights.first[c, g, d], n_points)
                fill(seen_grad[0], ZERO, n_points)
                add_within(tiles.z_grad[q], seen_grad, tiles.x[q, c], plan.bound, d, n_points)


@njit(inline="always")
def coupling_back(plan, weights, transposed, grads, mask, tiles, q, c, n_points):
    """The gradient through coupling c.

    `z_grad` of tile q from ∂L/∂z to ∂L/∂x, and what the tile adds to `grads`.

    `transposed` (C, G, K - 1, P, 16 P, 16) are the weights between hidden layers.
    """
    outputs_back(plan, weights, grads, mask, tiles, q, c, n_points)
    for g in range(plan.nets):
        begin = g if plan.nets == plan.heads else 0  # the heads of this network: one, or all
        end = g + 1 if plan.nets == plan.heads else plan.heads
        network_back(
            plan.activation,
            plan.width,
            weights.last[c],
            tiles.nothing,
            transposed[c, g],
            grads.bias[c, g],
            grads.hidden[c, g],
            grads.last[c],
            mask,
            tiles.raw_grad,
            tiles.hidden[q, c, g],
            tiles.slope[q, c, g],
            tiles.upper,
            tiles.lower,
            begin,
            end,
            n_points,
        )
        inputs_back(plan, weights, grads, mask, tiles, q, c, g, n_points)


@inner
def network_back(
    code, width, last, zeros, hidden, bias_grad, hidden_grad, last_grad, mask, raw_grad, outputs, slope, upper, lower,
    begin, end, n_points,
):  # fmt: skip
    """The gradient through a network, from its heads (`raw_grad`, from `begin` to `end`) down to its first layer.

    Adds to those of its weights. `upper` and `lower` (P, T, 16) take turns: the one ends up with
    the gradient of the first layer's sums if there is an odd number of layers, the other if it is
    even. `hidden` (K - 1, P, 16 P, 16) are the weights between hidden layers, transposed, `zeros`
    (P, 16) what their products start from.
    """
    depth = outputs.shape[0]
    for head in range(begin, end):
        for d in range(mask.shape[0]):
            if mask[d] != ONE:
                add_weighted_rows(
                    last_grad[head, d], raw_grad[head], d, outputs[depth - 1], n_points
                )
    top = outputs[depth - 1], slope[depth - 1], bias_grad[depth - 1]
    from_outputs(code, upper, raw_grad, mask, last, *top, n_points, begin, end)
    for i in range(depth - 1, 0, -1):
        add_outer_products(hidden_grad[i - 1], outputs[i - 1], upper, n_points, width)
        product(lower, upper, hidden[i - 1], zeros, n_points, width)
        through_activation(code, lower, outputs[i - 1], slope[i - 1], bias_grad[i - 1], n_points)
        upper, lower = lower, upper
