"""Two-dimensional targets with independent draws and an exact log-density.

Every target is a noise-free law on a curve, a ring or a set of boxes, convolved with N(0, noise²
I). Its density is a finite mixture: of oriented Gaussians, of blurred rings or of blurred boxes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from nfexp.data.lettering import text_boxes
from nfexp.data.mixtures import (
    REACH,
    Boxes,
    Gaussians,
    Mixture,
    Rings,
    normal,
    polar,
    quadrature,
    uniform,
)
from nfexp.spec import PARAMETERS, unusual

_BLOCK = 2**18  # elements of a (points, components) block: 2 MiB

Draw = Callable[[int, torch.Generator], Tensor]


@dataclass(frozen=True)
class Window:
    """A square to plot in: its centre and half its side, in data units."""

    x: float
    y: float
    half: float


@dataclass(frozen=True)
class Law:
    """What a builder gives for a noise: a window, the noise-free draw, the density with noise."""

    window: Window
    draw: Draw
    density: Mixture


# --- Builders: one for each target, from the noise s to its law ------------------------


def _moons(s: float, *, shift: float) -> Law:
    corner = [1.0, shift]

    def rate(t: np.ndarray) -> np.ndarray:
        return np.full_like(t, math.sqrt(1 + REACH * s) / s)

    t, w = quadrature(rate, 0.0, math.pi)
    upper = polar(1.0, t)
    mean = np.concatenate([upper, corner - upper])
    density = Gaussians(np.tile(np.log(w / (2 * math.pi)), 2), mean, np.eye(2) / s)

    def draw(n: int, generator: torch.Generator) -> Tensor:
        arc = polar(1.0, math.pi * uniform(n, generator=generator))
        is_lower = uniform(n, 1, generator=generator) < 0.5
        return torch.where(is_lower, arc.new_tensor(corner) - arc, arc)

    low = min(0.0, shift - 1)
    high = max(1.0, shift)
    half = max(1.5, (high - low) / 2)
    return Law(Window(0.5, (low + high) / 2, half + 5 * s), draw, density)


def _circles(s: float, *, factor: float) -> Law:
    def draw(n: int, generator: torch.Generator) -> Tensor:
        radius = torch.where(uniform(n, generator=generator) < 0.5, 1.0, factor)
        return polar(radius, 2 * math.pi * uniform(n, generator=generator))

    return Law(Window(0.0, 0.0, 1 + 5 * s), draw, Rings((1.0, factor), s))


def _spiral(s: float, *, turns: float) -> Law:
    T = 2 * math.pi * turns

    def rate(t: np.ndarray) -> np.ndarray:
        r = 2 * t + math.pi
        return np.sqrt(r**2 + 4 + REACH * s * np.sqrt(r**2 + 16)) / s

    t, w = quadrature(rate, 0.0, T)
    log_weight = np.log(w * 2 * t / T**2)  # t = T √u has the density 2 t / T²
    density = Gaussians(log_weight, polar(2 * t + math.pi, t), np.eye(2) / s)

    def draw(n: int, generator: torch.Generator) -> Tensor:
        t = T * uniform(n, generator=generator).sqrt()
        return polar(2 * t + math.pi, t)

    return Law(Window(0.0, 0.0, 2 * T + math.pi + 5 * s), draw, density)


def _log_normal(t: np.ndarray, mean: float, sd: float) -> np.ndarray:
    """log N(t; mean, sd²)."""
    standardised = (t - mean) / sd
    return -0.5 * standardised**2 - math.log(sd * math.sqrt(2 * math.pi))


def _banana(s: float, *, bend: float) -> Law:
    v = 1 + s**2  # variance of x₁, given x₂ before the noise

    def rate(z: np.ndarray) -> np.ndarray:
        curve = 2 * bend * REACH / math.sqrt(v)
        return np.sqrt(1 / 16 + 1 / s**2 + (2 * bend * z) ** 2 / v + curve)

    z, w = quadrature(rate, -32.0, 32.0)
    log_weight = np.log(w) + _log_normal(z, 0.0, 4.0)
    mean = np.stack([bend * z**2, z], 1)
    white = np.diag([1 / math.sqrt(v), 1 / s])
    density = Gaussians(log_weight, mean, white)

    def draw(n: int, generator: torch.Generator) -> Tensor:
        z = 4 * normal(n, generator=generator)
        return torch.stack([bend * z**2 + normal(n, generator=generator), z], 1)

    low = -5.0
    high = 228 * bend  # x₂ = 15.1, almost four standard deviations
    half = max(16.0, (high - low) / 2)
    return Law(Window((low + high) / 2, 0.0, half + 5 * s), draw, density)


def _gaussians8(s: float, *, modes: int) -> Law:
    turn = 2 * math.pi / modes
    mean = polar(4.0, np.arange(modes) * turn)
    density = Gaussians(np.full(modes, -math.log(modes)), mean, np.eye(2) / s)

    def draw(n: int, generator: torch.Generator) -> Tensor:
        k = torch.randint(modes, (n,), generator=generator).double()
        return polar(4.0, k * turn)

    return Law(Window(0.0, 0.0, 4 + 5 * s), draw, density)


def _pinwheel(s: float, *, arms: int) -> Law:
    across = math.sqrt(0.2**2 + s**2)  # standard deviation across an arm; along it, it is s

    def rate(rho: np.ndarray) -> np.ndarray:
        turn = 0.25 * np.exp(rho)  # of the frame, per unit of ρ
        along_arm = (2 + REACH * across * turn) / s
        across_arm = (2 * np.abs(rho) + REACH * s) * turn / across
        return 1 / 0.3 + along_arm + across_arm

    rho, w = quadrature(rate, 1 - 0.3 * 7.5, 1 + 0.3 * 7.5)
    angle = np.add.outer(2 * math.pi / arms * np.arange(arms), 0.25 * np.exp(rho))  # (arms, K)
    along = polar(1.0, angle)  # unit vectors, (arms, K, 2)
    normals = polar(1.0, angle + math.pi / 2)
    white = np.stack([along / s, normals / across], -2).reshape(-1, 2, 2)
    mean = (2 * rho[:, None] * along).reshape(-1, 2)
    log_weight = np.tile(np.log(w / arms) + _log_normal(rho, 1.0, 0.3), arms)
    density = Gaussians(log_weight, mean, white)

    def draw(n: int, generator: torch.Generator) -> Tensor:
        rho = 1 + 0.3 * normal(n, generator=generator)
        tau = 0.1 * normal(n, generator=generator)
        arm = torch.randint(arms, (n,), generator=generator)
        angle = 2 * math.pi / arms * arm + 0.25 * rho.exp()
        return 2 * (polar(rho, angle) + polar(tau, angle + math.pi / 2))

    return Law(Window(0.0, 0.0, 5 + 5 * s), draw, density)


def _checkerboard(s: float, *, squares: int) -> Law:
    side = 8 / squares
    boxes = []
    for i in range(squares):
        for j in range(squares):
            if (i + j) % 2 == 0:
                x = side * i - 4
                y = side * j - 4
                boxes.append((x, x + side, y, y + side))
    density = Boxes(np.array(boxes), s)
    return Law(Window(0.0, 0.0, 4 + 5 * s), density.draw, density)


def _text(s: float, *, text: str | None) -> Law:
    density = Boxes(text_boxes(text), s)
    return Law(Window(0.0, 0.0, 4 + 5 * s), density.draw, density)


_BUILDERS: dict[str, Callable[..., Law]] = {
    "moons": _moons,
    "circles": _circles,
    "spiral2": _spiral,
    "spiral4": _spiral,
    "banana": _banana,
    "gaussians8": _gaussians8,
    "pinwheel": _pinwheel,
    "checkerboard": _checkerboard,
    "text": _text,
}
TARGET_NAMES: tuple[str, ...] = tuple(_BUILDERS)


# --- Targets ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Target:
    """A law on the plane with independent draws and an exact log-density; made by `make_target`.

        p(x) = ∫ N(x; y, noise² I) dπ(y),    π the noise-free law

    `noise` is a standard deviation in data units. `density` is the finite mixture; checkerboard and
    text publish their rectangles as `density.boxes` (K, 4): xmin, xmax, ymin, ymax.

    Example:
        >>> target = make_target("circles", noise=0.05)
        >>> x = target.sample(1000, torch.Generator().manual_seed(0))
        >>> (target.log_prob(x).mean() > target.log_prob(1.5 * x).mean()).item()
        True
    """

    name: str
    noise: float
    law: Law
    dim: ClassVar[int] = 2

    @property
    def density(self) -> Mixture:
        return self.law.density

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n independent points of the noise-free law, (n, 2) float64, in data units."""
        return self.law.draw(n, generator)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n independent points, (n, 2) float64, in data units, from the CPU `generator` alone.

        Example:
            >>> make_target("moons", noise=0.05).sample(3, torch.Generator().manual_seed(0)).shape
            torch.Size([3, 2])
        """
        noise_free = self.draw(n, generator)
        return noise_free + self.noise * normal(n, 2, generator=generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats: x (n, 2) of any float dtype, in data units, to (n,) float64 on the CPU.

        Finite at every finite float32 point; takes less than 100 MB.

        Raises:
            ValueError: For another shape.

        Example:
            >>> make_target("gaussians8", noise=0.5).log_prob(torch.tensor([[4.0, 0.0]]))  # -log 4π
            tensor([-2.5310], dtype=torch.float64)
        """
        if x.ndim != 2 or x.shape[1] != 2:
            raise ValueError(f"x: expected shape (n, 2); got {tuple(x.shape)}")
        chunks = x.to("cpu", torch.float64).split(max(1, _BLOCK // self.density.size))
        parts = [self.density.log_prob(chunk) for chunk in chunks]
        return torch.cat(parts)

    def extent(self) -> tuple[float, float, float, float]:
        """A square window to plot in, xmin, xmax, ymin, ymax, with at least 99.9% of the mass.

        Example:
            >>> make_target("checkerboard", noise=0.1).extent()
            (-4.5, 4.5, -4.5, 4.5)
        """
        window = self.law.window
        half = window.half
        return window.x - half, window.x + half, window.y - half, window.y + half


@lru_cache(maxsize=64)
def make_target(name: str, *, noise: float, text: str | None = None, **parameters: float) -> Target:
    """The target `name`: the noise-free law below plus N(0, noise² I), noise in data units.

    | name | noise-free law | `parameters` |
    | --- | --- | --- |
    | moons | (cos t, sin t) or (1 - cos t, shift - sin t), equally likely, t ~ U(0, π): `make_moons` | shift = ½ |
    | circles | radius 1 or factor, equally likely, uniform angle: `make_circles` | factor = 0.8 |
    | spiral2, spiral4 | (2t + π) (cos t, sin t), t = 2π turns √u, u ~ U(0, 1) | turns = 1, 2 |
    | banana | x₂ ~ N(0, 4²), x₁ ~ N(bend x₂², 1) | bend = ¼ |
    | gaussians8 | equal atoms on a circle of radius 4, so that the noise is the spread | modes = 8 |
    | pinwheel | 2 R(2πk/arms + exp(ρ)/4) (ρ, τ), ρ ~ N(1, 0.3²), τ ~ N(0, 0.1²), k uniform | arms = 5 |
    | checkerboard | uniform over dark squares of a board on [-4, 4]², the lower left one is dark | squares = 4 a side |
    | text | uniform over the cells of side 1/64 that have their centre in the ink of `text` | |

    R(a) turns anticlockwise; Johnson's code multiplies rows, so its arms are mirrored in the first
    axis. Text is in DejaVu Sans Bold, centred, 8 wide or, if that comes first, 4 high: the cells
    *are* the target. The integral along a curve is a Gauss-Legendre sum, relative error below 1e-6
    for noise ≥ 0.005 within 8 standard deviations of the curve (banana: |x₂| < 28; pinwheel: |ρ -
    1| < 2); its cost grows as 1/noise.

    Raises:
        ValueError: For an unknown name, parameter or value of one; for a noise that is not finite
            and > 0, or so small that it takes over 4 million nodes; for a text that does not print
            in that font, or that comes with another target.

    Sources: Kataria's RealNVP report (spirals); `make_moons`, `make_circles` of scikit-learn;
    Johnson et al., "Composing graphical models with neural networks", 2016 (pinwheel).

    Example:
        >>> make_target("moons", noise=0.1).extent()
        (-1.5, 2.5, -1.75, 2.25)
    """
    if name not in _BUILDERS:
        raise ValueError(f"data.name: expected one of {', '.join(TARGET_NAMES)}; got {name!r}")
    is_number = isinstance(noise, int | float) and not isinstance(noise, bool)
    if not is_number or not math.isfinite(noise) or noise <= 0:
        raise ValueError(f"data.noise: expected a finite number > 0; got {noise!r}")
    if name != "text" and text is not None:
        raise ValueError(f"data.text: expected no text for data.name={name}; got {text!r}")
    options: dict[str, Any] = {"text": text} if name == "text" else {}
    for key, parameter in PARAMETERS.get(name, {}).items():
        options[key] = parameter.usual
    law = _BUILDERS[name](float(noise), **options | unusual(name, parameters))
    return Target(name, float(noise), law)
