"""exp, tanh, sigmoid and the activations over lanes, without branches.

The largest errors, in units in the last place (ulp) of the exact value, over float32 numbers of
every exponent whose result is a normal number; a test measures them anew:

==============================  ===
:func:`exp`                     1.1
:func:`expm1_of_negative`       0.9
:func:`tanh`                    2.5
:func:`sigmoid`                 2.1
==============================  ===

Overflow gives infinity, NaN stays NaN.
"""

from __future__ import annotations

import numpy as np

from nfexp.flows.kernels.lanes import (
    fma,
    inner,
    magnitude,
    power_of_two,
    splat,
    where_less,
    with_sign,
)

F = np.float32
ZERO = F(0.0)
ONE = F(1.0)
LOG2_E = F(1.4426950408889634)
ROUND = F(1.5 * 2.0**23)  # adding and taking away this rounds to a whole number
LN2_HIGH = F(0.693359375)  # a few bits only: times a whole number it is exact
LN2_LOW = F(-2.12194440e-4)
LOWEST = F(-104.0)  # exp of anything lower is 0
HIGHEST = F(89.0)  # and of anything higher infinity
LEAK = F(0.01)


# (exp(r) - 1 - r) / r² for |r| ≤ ln 2 / 2: coefficients of a minimax polynomial
C2 = F(0.5)
C3 = F(1.6666654611e-1)
C4 = F(4.1666524112e-2)
C5 = F(8.3344541490e-3)
C6 = F(1.3890211238e-3)
C7 = F(1.9843730e-4)


@inner
def _reduced(x):
    """n and r with x = n ln 2 + r, n whole, |r| ≤ ln 2 / 2."""
    n = fma(x, splat(LOG2_E), splat(ROUND)) - splat(ROUND)
    r = fma(n, splat(-LN2_HIGH), x)
    r = fma(n, splat(-LN2_LOW), r)
    return n, r


@inner
def _expm1_near_zero(r):
    """exp(r) - 1 for |r| ≤ ln 2 / 2, by r + r² (1/2 + r/6 + …)."""
    q = fma(splat(C7), r, splat(C6))
    q = fma(q, r, splat(C5))
    q = fma(q, r, splat(C4))
    q = fma(q, r, splat(C3))
    q = fma(q, r, splat(C2))
    return fma(q * r, r, r)


@inner
def exp(x):
    """eˣ."""
    low = splat(LOWEST)
    high = splat(HIGHEST)
    x = where_less(x, low, low, x)
    x = where_less(high, x, high, x)
    n, r = _reduced(x)
    # 2ⁿ in two factors: one alone would leave the range of normal numbers too early
    half = fma(n, splat(F(0.5)), splat(ROUND)) - splat(ROUND)
    y = (_expm1_near_zero(r) + splat(ONE)) * power_of_two(half)
    return y * power_of_two(n - half)


@inner
def expm1_of_negative(x):
    """eˣ - 1 for x ≤ 0."""
    low = splat(F(-25.0))  # below it the result is -1
    x = where_less(x, low, low, x)
    n, r = _reduced(x)
    power = power_of_two(n)
    return fma(power, _expm1_near_zero(r), power - splat(ONE))


@inner
def tanh(x):
    """tanh x = (1 - e) / (1 + e) with e = exp(-2|x|), and the sign of x."""
    size = magnitude(x)
    less_one = expm1_of_negative(size * splat(F(-2.0)))
    return with_sign(less_one / (less_one + splat(F(2.0))), x)


@inner
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return splat(ONE) / (splat(ONE) + exp(splat(ZERO) - x))


RELU, LEAKY_RELU, TANH, SILU, ELU = range(5)
ACTIVATIONS = {"relu": RELU, "leaky_relu": LEAKY_RELU, "tanh": TANH, "silu": SILU, "elu": ELU}


@inner
def activated(code, a):
    """σ(a), for all but silu."""
    zero = splat(ZERO)
    if code == RELU:
        return where_less(a, zero, zero, a)
    if code == LEAKY_RELU:
        return where_less(a, zero, a * splat(LEAK), a)
    if code == TANH:
        return tanh(a)
    below = where_less(a, zero, a, zero)  # elu
    return where_less(a, zero, expm1_of_negative(below), a)


@inner
def slope_of(code, y):
    """σ'(a) from y = σ(a), for all but silu, which is not monotone: a cannot be found from σ(a)."""
    zero = splat(ZERO)
    one = splat(ONE)
    if code == RELU:
        return where_less(zero, y, one, zero)
    if code == LEAKY_RELU:
        return where_less(zero, y, one, splat(LEAK))
    if code == TANH:
        return fma(zero - y, y, one)
    return where_less(zero, y, one, y + one)  # elu
