"""The optimiser as an operation on rows: one pass over the weights of a member, its moments and its gradient."""

from __future__ import annotations

import math

import numpy as np

F = np.float32
ZERO = F(0.0)
# A unit that ceased to act leaves moments that decay towards 0 and get stuck in denormal numbers, with which a core
# computes a hundred times slower. These are far below what ε hides.
LEAST = F(1e-18)
LEAST_SQUARE = F(1e-36)


def move(theta, first, second, grad, members, lr, decay, of_grad, of_first, beta1, beta2, epsilon, step):
    """m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², θ ← (1 − lr decay) θ − lr (a g + b m) / (√(v / (1 − β₂ᵗ)) + ε).

    In place, on the rows of these members: theta, first (m), second (v) and grad (E, P), lr and decay (E,). What a
    (`of_grad`) and b (`of_first`) are at step t makes the optimiser: Adam or NAdam.
    """
    a = F(of_grad)
    b = F(of_first)
    new_1 = F(1 - beta1)
    old_2 = F(beta2)
    new_2 = F(1 - beta2)
    correction = F(1 / (1 - beta2**step))
    least = F(epsilon)
    for e in members:
        kept = F(1 - lr[e] * decay[e])
        rate = F(lr[e])
        for k in range(theta.shape[1]):
            g = grad[e, k]
            g = ZERO if abs(g) < LEAST else g
            m = first[e, k] + (g - first[e, k]) * new_1
            m = ZERO if abs(m) < LEAST else m
            v = second[e, k] * old_2 + g * g * new_2
            v = ZERO if v < LEAST_SQUARE else v
            first[e, k] = m
            second[e, k] = v
            theta[e, k] = theta[e, k] * kept - rate * (a * g + b * m) / (math.sqrt(v * correction) + least)
