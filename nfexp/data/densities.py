"""Two-dimensional targets with independent draws and an exact log-density.

Every target is a noise-free law on a curve, a ring or a set of boxes, convolved with N(0, noise² I). Its
density is a finite mixture: of oriented Gaussians, of blurred rings or of blurred boxes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from nfexp.surroundings import load_matplotlib

_ORDER = 16  # Gauss-Legendre nodes per panel
_PANEL = 8.0  # width of a panel, in standard deviations of the integrand: relative error below 1e-9
_REACH = 8.0  # panels stay that narrow as far as 8 standard deviations off the curve
_MAX_NODES = 2**22
_BLOCK = 2**18  # elements of a (points, components) block: 2 MiB
_CELL = 1 / 64  # side of a raster cell of the text target
_MAX_TEXT = 40


def _normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _uniform(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def _polar(r, angle):
    lib = torch if isinstance(angle, Tensor) else np
    return lib.stack([r * lib.cos(angle), r * lib.sin(angle)], -1)


def _logsumexp(q: Tensor) -> Tensor:
    """Row-wise; clamped, for a term below e⁻⁷⁰⁰ of the largest is lost anyway, and underflow is slow."""
    top = q.detach().amax(1, keepdim=True)
    return (q - top).clamp(min=-700).exp().sum(1).log() + top[:, 0]


class _Gaussians:
    """Mixture Σₖ wₖ N(x; mₖ, (Wₖᵀ Wₖ)⁻¹), its logarithm one matrix product of monomials.

    `log_weight` (K,); `mean` (K, 2); `white` (K, 2, 2) or (2, 2), row i of Wₖ a whitening direction.
    """

    def __init__(self, log_weight: np.ndarray, mean: np.ndarray, white: np.ndarray):
        P = np.broadcast_to(np.swapaxes(white, -1, -2) @ white, (len(mean), 2, 2))  # precisions
        h = np.einsum("kij,kj->ki", P, mean)
        c = log_weight + np.log(np.abs(np.linalg.det(white)) / (2 * math.pi)) - (mean * h).sum(1) / 2
        terms = [c, h[:, 0], h[:, 1], -P[:, 0, 0] / 2, -P[:, 0, 1], -P[:, 1, 1] / 2]
        self.coefficients, self.size = torch.from_numpy(np.stack(terms)), len(mean)  # (6, K)

    def log_prob(self, x: Tensor) -> Tensor:
        a, b = x.unbind(1)
        monomials = torch.stack([torch.ones_like(a), a, b, a * a, a * b, b * b], 1)  # (n, 6)
        return _logsumexp(monomials @ self.coefficients)


class _Rings:
    """Equal mixture of circles of radius R about the origin: log I₀ carries the integral over the angle."""

    def __init__(self, radii: tuple[float, ...], noise: float):
        self.R, self.s, self.size = torch.tensor(radii, dtype=torch.float64), noise, len(radii)

    def log_prob(self, x: Tensor) -> Tensor:
        r, v = torch.hypot(x[:, :1], x[:, 1:]), self.s**2
        ring = torch.log(torch.special.i0e(r * self.R / v)) - (r - self.R).square() / (2 * v)
        return _logsumexp(ring) - math.log(2 * math.pi * v * self.size)


class _Boxes:
    """Uniform law over disjoint boxes, blurred: p(x) = Σₖ P(x₁ + ε in side 1) P(x₂ + ε in side 2) / area.

    `boxes` (K, 4) holds xmin, xmax, ymin, ymax. Boxes share sides: each is evaluated once, then gathered.
    """

    def __init__(self, boxes: np.ndarray, noise: float):
        self.boxes, self.s, self.size = torch.from_numpy(boxes), noise, len(boxes)
        self.sides = [torch.unique(side, dim=0, return_inverse=True) for side in self.boxes.split(2, 1)]
        self.areas = self.boxes[:, 0::2].sub(self.boxes[:, 1::2]).prod(1)

    def log_prob(self, x: Tensor) -> Tensor:
        sides = zip(x.split(1, 1), self.sides, strict=True)
        in_x, in_y = (_log_interval(part, side, self.s)[:, index] for part, (side, index) in sides)  # (n, K)
        return _logsumexp(in_x + in_y) - torch.log(self.areas.sum())

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        ends = self.areas.cumsum(0)
        box = torch.searchsorted(ends, ends[-1] * _uniform(n, generator=generator), right=True)
        low, high = self.boxes[box, 0::2], self.boxes[box, 1::2]
        return low + (high - low) * _uniform(n, 2, generator=generator)


def _log_interval(x: Tensor, sides: Tensor, s: float) -> Tensor:
    """log ∫ N(x; y, s²) dy over each interval, free of cancellation: x (n, 1), sides (k, 2) -> (n, k)."""
    low, high = sides.unbind(1)
    m, w = (x - (low + high) / 2).abs() / s, (high - low) / (2 * s)
    p, q = (m - w) / math.sqrt(2), (m + w) / math.sqrt(2)  # near and far edge; inside p < 0; q² - p² = 2 m w
    near = p.clamp(min=0)
    tail = torch.special.erfcx(near) - torch.exp(-2 * m * w) * torch.special.erfcx(q)  # times exp(-p²)
    return torch.log(torch.where(p < 0, torch.erf(q) - torch.erf(p), tail) / 2) - near.square()


def _quadrature(rate: Callable, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of ∫ f(t) dt by Gauss-Legendre on panels of equal ∫ rate dt.

    rate(t)² bounds the curvature of -log f: for points x at most _REACH standard deviations off the
    curve m(t), d²/dt² |W(t) (x - m(t))|² / 2 ≤ rate(t)².
    """
    t = np.linspace(low, high, 8193)
    speed = rate(t)
    effort = np.concatenate([[0.0], np.cumsum(np.diff(t) * (speed[1:] + speed[:-1]) / 2)])
    n_panels = max(4, math.ceil(effort[-1] / _PANEL))
    if n_panels * _ORDER > _MAX_NODES:
        n = n_panels * _ORDER
        raise ValueError(
            f"data.noise: expected at most {_MAX_NODES} quadrature nodes; got a noise so small that it takes {n}"
        )
    edges = np.interp(np.linspace(0.0, effort[-1], n_panels + 1), effort, t)
    node, weight = np.polynomial.legendre.leggauss(_ORDER)
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half * (node + 1)).ravel(), (half * weight).ravel()


# A builder takes the noise s and gives the window (centre, half side), the noise-free draw and the density.


def _moons(s: float):
    t, w = _quadrature(lambda t: np.full_like(t, math.sqrt(1 + _REACH * s) / s), 0.0, math.pi)
    mean = np.concatenate([_polar(1.0, t), [1.0, 0.5] - _polar(1.0, t)])
    density = _Gaussians(np.tile(np.log(w / (2 * math.pi)), 2), mean, np.eye(2) / s)

    def draw(n, generator):
        arc = _polar(1.0, math.pi * _uniform(n, generator=generator))
        lower = _uniform(n, 1, generator=generator) < 0.5
        return torch.where(lower, arc.new_tensor([1.0, 0.5]) - arc, arc)

    return (0.5, 0.25, 1.5 + 5 * s), draw, density


def _circles(s: float):
    def draw(n, generator):
        radius = torch.where(_uniform(n, generator=generator) < 0.5, 1.0, 0.8)
        return _polar(radius, 2 * math.pi * _uniform(n, generator=generator))

    return (0.0, 0.0, 1 + 5 * s), draw, _Rings((1.0, 0.8), s)


def _spiral(s: float, *, turns: int):
    T = 2 * math.pi * turns

    def rate(t):
        r = 2 * t + math.pi
        return np.sqrt(r**2 + 4 + _REACH * s * np.sqrt(r**2 + 16)) / s

    t, w = _quadrature(rate, 0.0, T)
    # t = T √u has the density 2 t / T²
    density = _Gaussians(np.log(w * 2 * t / T**2), _polar(2 * t + math.pi, t), np.eye(2) / s)

    def draw(n, generator):
        t = T * _uniform(n, generator=generator).sqrt()
        return _polar(2 * t + math.pi, t)

    return (0.0, 0.0, 2 * T + math.pi + 5 * s), draw, density


def _log_normal(t: np.ndarray, mean: float, sd: float) -> np.ndarray:
    return -0.5 * ((t - mean) / sd) ** 2 - math.log(sd * math.sqrt(2 * math.pi))


def _banana(s: float):
    v = 1 + s**2  # given x₂ before the noise

    def rate(z):
        return np.sqrt(1 / 16 + 1 / s**2 + (z / 2) ** 2 / v + _REACH / (2 * math.sqrt(v)))

    z, w = _quadrature(rate, -32.0, 32.0)
    white = np.diag([1 / math.sqrt(v), 1 / s])
    density = _Gaussians(np.log(w) + _log_normal(z, 0.0, 4.0), np.stack([z**2 / 4, z], 1), white)

    def draw(n, generator):
        z = 4 * _normal(n, generator=generator)
        return torch.stack([z**2 / 4 + _normal(n, generator=generator), z], 1)

    return (26.0, 0.0, 31 + 5 * s), draw, density


def _gaussians8(s: float):
    density = _Gaussians(np.full(8, -math.log(8)), _polar(4.0, np.arange(8) * math.pi / 4), np.eye(2) / s)

    def draw(n, generator):
        return _polar(4.0, torch.randint(8, (n,), generator=generator).double() * (math.pi / 4))

    return (0.0, 0.0, 4 + 5 * s), draw, density


def _pinwheel(s: float):
    across = math.sqrt(0.2**2 + s**2)  # given ρ; along the arm it is s

    def rate(rho):
        turn = 0.25 * np.exp(rho)  # of the frame, per unit of ρ
        return 1 / 0.3 + (2 + _REACH * across * turn) / s + (2 * np.abs(rho) + _REACH * s) * turn / across

    rho, w = _quadrature(rate, 1 - 0.3 * 7.5, 1 + 0.3 * 7.5)
    angle = np.add.outer(2 * math.pi / 5 * np.arange(5), 0.25 * np.exp(rho))  # (5, K)
    along, normal = _polar(1.0, angle), _polar(1.0, angle + math.pi / 2)
    white = np.stack([along / s, normal / across], -2).reshape(-1, 2, 2)
    log_weight = np.tile(np.log(w / 5) + _log_normal(rho, 1.0, 0.3), 5)
    density = _Gaussians(log_weight, (2 * rho[:, None] * along).reshape(-1, 2), white)

    def draw(n, generator):
        rho, tau = 1 + 0.3 * _normal(n, generator=generator), 0.1 * _normal(n, generator=generator)
        arm = torch.randint(5, (n,), generator=generator)
        angle = 2 * math.pi / 5 * arm + 0.25 * rho.exp()
        return 2 * (_polar(rho, angle) + _polar(tau, angle + math.pi / 2))

    return (0.0, 0.0, 5 + 5 * s), draw, density


def _checkerboard(s: float):
    corners = [(i, j) for i in (-4.0, -2.0, 0.0, 2.0) for j in (-4.0, -2.0, 0.0, 2.0) if (i + j) % 4 == 0]
    density = _Boxes(np.array([(i, i + 2, j, j + 2) for i, j in corners]), s)
    return (0.0, 0.0, 4 + 5 * s), density.draw, density


def _text(s: float, *, text: str | None):
    ink = _raster(text)
    y, x = ((np.arange(n + 1) - n / 2) * _CELL for n in ink.shape)
    density = _Boxes(np.array([(x[i], x[j], y[k], y[m]) for i, j, k, m in _rectangles(ink)]), s)
    return (0.0, 0.0, 4 + 5 * s), density.draw, density


def _raster(text: str | None) -> np.ndarray:
    """Whether the centre of a cell lies in the ink of the text: (rows from the bottom, columns)."""
    load_matplotlib()
    import matplotlib
    from matplotlib.font_manager import FontProperties, get_font
    from matplotlib.path import Path
    from matplotlib.textpath import text_to_path

    font = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans-Bold.ttf"
    if not isinstance(text, str) or not _has_ink(text) or not all(get_font(font).get_char_index(ord(c)) for c in text):
        what = f"1 to {_MAX_TEXT} printable characters with ink, all in DejaVu Sans Bold"
        raise ValueError(f"data.text: expected {what}; got {text!r}")
    vertices, codes = text_to_path.get_text_path(FontProperties(fname=font), text, ismath=False)
    path = Path(vertices, codes)
    low, high = path.get_extents().get_points()
    scale = min(8 / (high[0] - low[0]), 4 / (high[1] - low[1])) / _CELL
    columns, rows = np.ceil((high - low) * scale - 1e-9).astype(int)
    # 16 units to a cell, for to_polygons flattens curves to a fraction of a unit; the origin is in the middle
    path = Path((path.vertices - (low + high) / 2) * scale * 16, path.codes)
    x, y = ((np.arange(n) + 0.5 - n / 2) * 16 for n in (columns, rows))
    centres = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    # contains_points of the whole path fills holes: wind about each contour by its sign, as TrueType does
    winding = np.zeros(len(centres))
    for polygon in path.to_polygons():
        x, y = np.asarray(polygon).T
        sign = np.sign(x[:-1] @ y[1:] - x[1:] @ y[:-1])
        winding += sign * Path(polygon).contains_points(centres)
    return (winding != 0).reshape(rows, columns)


def _has_ink(text: str) -> bool:
    return len(text) <= _MAX_TEXT and text.isprintable() and text.strip() != ""


def _rectangles(ink: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Splits a raster into (i, j, k, m), columns i … j-1 of rows k … m-1; equal runs of rows are merged."""
    done: list[tuple[int, int, int, int]] = []
    pending: dict[tuple[int, int], int] = {}
    for k, row in enumerate(np.pad(ink, ((0, 1), (1, 1))).astype(int)):
        flips = np.flatnonzero(np.diff(row)).tolist()
        runs = list(zip(flips[0::2], flips[1::2], strict=True))
        done += [(*run, start, k) for run, start in pending.items() if run not in runs]
        pending = {run: pending.get(run, k) for run in runs}
    return done


@dataclass(frozen=True, eq=False)
class Target:
    """A law on the plane with independent draws and an exact log-density; made by `make_target`.

        p(x) = ∫ N(x; y, noise² I) dπ(y),    π the noise-free law

    `noise` is a standard deviation in data units. `density` is the finite mixture; checkerboard and text
    publish their rectangles as `density.boxes` (K, 4): xmin, xmax, ymin, ymax.

    Example:
        >>> target = make_target("circles", noise=0.05)
        >>> x = target.sample(1000, torch.Generator().manual_seed(0))
        >>> (target.log_prob(x).mean() > target.log_prob(1.5 * x).mean()).item()
        True
    """

    name: str
    noise: float
    window: tuple[float, float, float]
    draw: Callable[[int, torch.Generator], Tensor]
    density: _Gaussians | _Rings | _Boxes
    dim: ClassVar[int] = 2

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws n independent points, (n, 2) float64, in data units, from the CPU `generator` alone.

        Example:
            >>> make_target("moons", noise=0.05).sample(3, torch.Generator().manual_seed(0)).shape
            torch.Size([3, 2])
        """
        return self.draw(n, generator) + self.noise * _normal(n, 2, generator=generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """Gives log p(x) in nats: x (n, 2) of any float dtype, in data units -> (n,) float64, on the CPU.

        Finite at every finite float32 point; takes less than 100 MB. Raises `ValueError` for another shape.

        Example:
            >>> make_target("gaussians8", noise=0.5).log_prob(torch.tensor([[4.0, 0.0]]))  # -log 4π
            tensor([-2.5310], dtype=torch.float64)
        """
        if x.ndim != 2 or x.shape[1] != 2:
            raise ValueError(f"x: expected shape (n, 2); got {tuple(x.shape)}")
        chunks = x.to("cpu", torch.float64).split(max(1, _BLOCK // self.density.size))
        return torch.cat([self.density.log_prob(chunk) for chunk in chunks])

    def extent(self) -> tuple[float, float, float, float]:
        """Gives a square plotting window (xmin, xmax, ymin, ymax), in data units, with ≥ 99.9% of the mass.

        Example:
            >>> make_target("checkerboard", noise=0.1).extent()
            (-4.5, 4.5, -4.5, 4.5)
        """
        x, y, half = self.window
        return x - half, x + half, y - half, y + half


_BUILDERS: dict[str, Callable] = {
    "moons": _moons,
    "circles": _circles,
    "spiral2": partial(_spiral, turns=1),
    "spiral4": partial(_spiral, turns=2),
    "banana": _banana,
    "gaussians8": _gaussians8,
    "pinwheel": _pinwheel,
    "checkerboard": _checkerboard,
    "text": _text,
}
TARGET_NAMES: tuple[str, ...] = tuple(_BUILDERS)


@lru_cache(maxsize=64)
def make_target(name: str, *, noise: float, text: str | None = None) -> Target:
    """Makes the target `name`: the noise-free law below plus N(0, noise² I), noise in data units.

    | name | noise-free law |
    | --- | --- |
    | moons | (cos t, sin t) or (1 - cos t, ½ - sin t), equally likely, t ~ U(0, π): `make_moons` |
    | circles | radius 1 or 0.8, equally likely, uniform angle: `make_circles(factor=0.8)` |
    | spiral2, spiral4 | (2t + π) (cos t, sin t), t = T √u, u ~ U(0, 1), T = 2π or 4π |
    | banana | x₂ ~ N(0, 4²), x₁ ~ N(x₂²/4, 1) |
    | gaussians8 | 8 equal atoms on a circle of radius 4, so that the noise is the spread |
    | pinwheel | 2 R(2πk/5 + exp(ρ)/4) (ρ, τ), ρ ~ N(1, 0.3²), τ ~ N(0, 0.1²), k uniform in 0 … 4 |
    | checkerboard | uniform over 8 of the squares of side 2 on [-4, 4]², the lower left one among them |
    | text | uniform over the cells of side 1/64 that have their centre in the ink of `text` |

    R(a) turns anticlockwise; Johnson's code multiplies rows, so its arms are mirrored in the first axis.
    Text is in DejaVu Sans Bold, centred, 8 wide or, if that comes first, 4 high: the cells *are* the target.
    The integral along a curve is a Gauss-Legendre sum, relative error below 1e-6 for noise ≥ 0.005 within 8
    standard deviations of the curve (banana: |x₂| < 28; pinwheel: |ρ - 1| < 2); its cost grows as 1/noise.

    Raises `ValueError` for an unknown name, for a noise that is not finite and > 0 or takes over 4 million
    nodes, and for a text that does not print in that font, or that comes with another target.

    Sources: Kataria's RealNVP report (spirals); `make_moons`, `make_circles` of scikit-learn; Johnson et al.,
    "Composing graphical models with neural networks", 2016 (pinwheel).

    Example:
        >>> make_target("moons", noise=0.1).extent()
        (-1.5, 2.5, -1.75, 2.25)
    """
    if name not in _BUILDERS:
        raise ValueError(f"data.name: expected one of {', '.join(TARGET_NAMES)}; got {name!r}")
    number = isinstance(noise, int | float) and not isinstance(noise, bool)
    if not number or not math.isfinite(noise) or noise <= 0:
        raise ValueError(f"data.noise: expected a finite number > 0; got {noise!r}")
    if name != "text" and text is not None:
        raise ValueError(f"data.text: expected no text for data.name={name}; got {text!r}")
    options = {"text": text} if name == "text" else {}
    return Target(name, float(noise), *_BUILDERS[name](float(noise), **options))
