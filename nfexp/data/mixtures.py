"""Log-densities of mixtures on the plane: oriented Gaussians, blurred rings, blurred boxes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

ORDER = 16  # Gauss-Legendre nodes per panel
PANEL = 8.0  # width of a panel, in standard deviations of the integrand: relative error below 1e-9
REACH = 8.0  # panels stay that narrow as far as 8 standard deviations off the curve
MAX_NODES = 2**22


class Mixture(Protocol):
    """A density that is a sum of `size` components."""

    size: int

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x): (n, 2) to (n,), float64."""
        ...


def log_sum_exp(q: Tensor) -> Tensor:
    """log Σₖ exp qₖ of each row, (n, K) to (n,).

    Differences are clamped: a term below e⁻⁷⁰⁰ of the largest is lost anyway, and underflow is
    slow.
    """
    top = q.detach().amax(1, keepdim=True)
    return (q - top).clamp(min=-700).exp().sum(1).log() + top[:, 0]


class Gaussians:
    """Mixture Σₖ wₖ N(x; mₖ, (Wₖᵀ Wₖ)⁻¹), its logarithm one matrix product of monomials.

    `log_weight` (K,); `mean` (K, 2); `white` (K, 2, 2) or (2, 2), row i of Wₖ a whitening
    direction.
    """

    def __init__(self, log_weight: np.ndarray, mean: np.ndarray, white: np.ndarray) -> None:
        # log wₖ N(x; mₖ, Pₖ⁻¹) = cₖ + hₖᵀ x - xᵀ Pₖ x / 2  with  Pₖ = Wₖᵀ Wₖ  and  hₖ = Pₖ mₖ
        P = np.broadcast_to(np.swapaxes(white, -1, -2) @ white, (len(mean), 2, 2))
        h = np.einsum("kij,kj->ki", P, mean)
        log_norm = np.log(np.abs(np.linalg.det(white)) / (2 * math.pi))
        c = log_weight + log_norm - (mean * h).sum(1) / 2
        terms = [c, h[:, 0], h[:, 1], -P[:, 0, 0] / 2, -P[:, 0, 1], -P[:, 1, 1] / 2]
        self.coefficients = torch.from_numpy(np.stack(terms))  # (6, K)
        self.size = len(mean)

    def log_prob(self, x: Tensor) -> Tensor:
        a, b = x.unbind(1)
        monomials = torch.stack([torch.ones_like(a), a, b, a * a, a * b, b * b], 1)  # (n, 6)
        return log_sum_exp(monomials @ self.coefficients)


class Rings:
    """Equal mixture of circles about the origin, each blurred by N(0, noise² I).

    With r = |x|, the integral over the angle is a Bessel function:

        p(x) = mean over R of  exp(-(r² + R²) / 2s²) I₀(r R / s²) / 2πs²
    """

    def __init__(self, radii: tuple[float, ...], noise: float) -> None:
        self.radii = torch.tensor(radii, dtype=torch.float64)
        self.noise = noise
        self.size = len(radii)

    def log_prob(self, x: Tensor) -> Tensor:
        r = torch.hypot(x[:, :1], x[:, 1:])  # (n, 1)
        R = self.radii  # (K,)
        variance = self.noise**2
        # i0e(t) = exp(-t) I₀(t) does not overflow; the factor completes the square (r - R)².
        ring = torch.log(torch.special.i0e(r * R / variance)) - (r - R).square() / (2 * variance)
        return log_sum_exp(ring) - math.log(2 * math.pi * variance * self.size)


@dataclass(frozen=True, eq=False)
class _Sides:
    """The sides of boxes along one axis: distinct intervals (k, 2), and which each box has (K,)."""

    intervals: Tensor
    of_box: Tensor


class Boxes:
    """Uniform law over disjoint boxes, blurred by N(0, noise² I).

        p(x) = Σₖ P(x₁ + ε in side 1 of box k) P(x₂ + ε in side 2) / total area,    ε ~ N(0, noise²)

    `boxes` (K, 4) holds xmin, xmax, ymin, ymax. Boxes share sides: each side is evaluated once.
    """

    def __init__(self, boxes: np.ndarray, noise: float) -> None:
        self.boxes = torch.from_numpy(boxes)
        self.noise = noise
        self.size = len(boxes)
        self.horizontal = self._sides(self.boxes[:, 0:2])
        self.vertical = self._sides(self.boxes[:, 2:4])
        low = self.boxes[:, 0::2]
        high = self.boxes[:, 1::2]
        self.areas = low.sub(high).prod(1)  # two minus signs cancel

    def _sides(self, ends: Tensor) -> _Sides:
        intervals, of_box = torch.unique(ends, dim=0, return_inverse=True)
        return _Sides(intervals, of_box)

    def log_prob(self, x: Tensor) -> Tensor:
        horizontal = log_interval(x[:, :1], self.horizontal.intervals, self.noise)  # (n, k)
        vertical = log_interval(x[:, 1:], self.vertical.intervals, self.noise)
        in_x = horizontal[:, self.horizontal.of_box]  # (n, K)
        in_y = vertical[:, self.vertical.of_box]
        return log_sum_exp(in_x + in_y) - torch.log(self.areas.sum())

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n points without the noise, (n, 2): a box by its area, then a point in it."""
        ends = self.areas.cumsum(0)
        box = torch.searchsorted(ends, ends[-1] * uniform(n, generator=generator), right=True)
        low = self.boxes[box, 0::2]
        high = self.boxes[box, 1::2]
        return low + (high - low) * uniform(n, 2, generator=generator)


def log_interval(x: Tensor, intervals: Tensor, s: float) -> Tensor:
    """log ∫ N(x; y, s²) dy over each interval, free of cancellation.

    x (n, 1), intervals (k, 2) to (n, k).

    The mass between the edges p < q, in units of √2 s from x, is (erf q - erf p) / 2. Where x lies
    outside (p > 0) both are nearly 1: there it is (erfc p - erfc q) / 2 with erfc t = exp(-t²)
    erfcx t, and exp(-p²) taken out of the logarithm.
    """
    low, high = intervals.unbind(1)
    m = (x - (low + high) / 2).abs() / s  # from the middle of the interval
    w = (high - low) / (2 * s)  # half its width
    p = (m - w) / math.sqrt(2)  # the near edge; negative where x lies inside
    q = (m + w) / math.sqrt(2)  # the far edge
    near = p.clamp(min=0)
    inside = torch.erf(q) - torch.erf(p)
    # exp(p² - q²) = exp(-2 m w)
    outside = torch.special.erfcx(near) - torch.exp(-2 * m * w) * torch.special.erfcx(q)
    return torch.log(torch.where(p < 0, inside, outside) / 2) - near.square()


def quadrature(
    rate: Callable[[np.ndarray], np.ndarray],
    low: float,
    high: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of ∫ f(t) dt by Gauss-Legendre on panels of equal ∫ rate dt.

    rate(t)² bounds the curvature of -log f: for points x at most REACH standard deviations off the
    curve m(t), d²/dt² |W(t) (x - m(t))|² / 2 ≤ rate(t)².
    """
    t = np.linspace(low, high, 8193)
    speed = rate(t)
    steps = np.diff(t) * (speed[1:] + speed[:-1]) / 2
    effort = np.concatenate([[0.0], np.cumsum(steps)])  # ∫ rate from `low` to t
    n_panels = max(4, math.ceil(effort[-1] / PANEL))
    n_nodes = n_panels * ORDER
    if n_nodes > MAX_NODES:
        got = f"a noise so small that it takes {n_nodes}"
        raise ValueError(f"data.noise: expected at most {MAX_NODES} quadrature nodes; got {got}")
    edges = np.interp(np.linspace(0.0, effort[-1], n_panels + 1), effort, t)
    node, weight = np.polynomial.legendre.leggauss(ORDER)  # on [-1, 1]
    half = np.diff(edges)[:, None] / 2
    nodes = edges[:-1, None] + half * (node + 1)  # (n_panels, ORDER)
    return nodes.ravel(), (half * weight).ravel()


# --- Small things that densities and draws share ---------------------------------------


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def uniform(*shape: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers on [0, 1), float64."""
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def polar(r: Any, angle: Any) -> Any:
    """The points at these radii and angles, (…, 2): tensors to a tensor, arrays to an array."""
    lib: Any = torch if isinstance(angle, Tensor) else np
    return lib.stack([r * lib.cos(angle), r * lib.sin(angle)], -1)
