"""The optimiser as an operation on rows.

One pass over the weights of a member, its moments and its gradient.
"""

from __future__ import annotations

import math

import numpy as np

from nfexp.flows.kernels.lanes import LANES, fma, inner, load, splat, store, total

F = np.float32
ZERO = F(0.0)
# A unit that ceased to act leaves moments that decay towards 0 and get stuck in denormal numbers,
# with which a core computes a hundred times slower. These are far below what ε hides.
LEAST = F(1e-18)
LEAST_SQUARE = F(1e-36)


@inner
def norm_of_sum(rows):
    """The Euclidean norm of the sum of `rows` (R, P), which replaces the first of them.

    They are added in their order: what threads found side by side has the same bits as from one.
    """
    n = rows.shape[1]
    whole = n - n % LANES
    squares = splat(ZERO)
    for k in range(0, whole, LANES):
        part = load(rows, 0, k)
        for row in range(1, rows.shape[0]):
            part = part + load(rows, row, k)
        store(rows, 0, k, part)
        squares = fma(part, part, squares)
    summed = np.float64(total(squares))
    for k in range(whole, n):
        for row in range(1, rows.shape[0]):
            rows[0, k] += rows[row, k]
        summed += np.float64(rows[0, k]) * np.float64(rows[0, k])
    return F(math.sqrt(summed))


@inner
def move(theta, first, second, e, grad, row, clip, lr, decay, law, step):
    """m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², θ ← (1 − lr decay) θ − lr (a g + b m) / (√(v/(1 − β₂ᵗ)) + ε).

    In place, on row e of theta, first (m) and second (v), (E, P); g is `clip` times a row of
    `grad`. The law: a, b, β₁, β₂ and ε; what a and b are at step t = 1, 2, … makes the optimiser:
    Adam or NAdam.
    """
    of_grad, of_first, beta1, beta2, epsilon = law
    a = F(of_grad)
    b = F(of_first)
    new_1 = F(1 - beta1)
    old_2 = F(beta2)
    new_2 = F(1 - beta2)
    correction = F(1 / (1 - beta2**step))
    least = F(epsilon)
    kept = F(1 - lr * decay)
    rate = F(lr)
    for k in range(theta.shape[1]):
        g = grad[row, k] * clip
        g = ZERO if abs(g) < LEAST else g
        m = first[e, k] + (g - first[e, k]) * new_1
        m = ZERO if abs(m) < LEAST else m
        v = second[e, k] * old_2 + g * g * new_2
        v = ZERO if v < LEAST_SQUARE else v
        first[e, k] = m
        second[e, k] = v
        theta[e, k] = theta[e, k] * kept - rate * (a * g + b * m) / (
            math.sqrt(v * correction) + least
        )
