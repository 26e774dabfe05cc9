"""Base distributions: what a flow maps data to.

Every coordinate is independent, so a base is a law on the line.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

# 0.8² + 0.6² = 1: unit variance
MIX_MEAN = 0.8
MIX_SD = 0.6
STUDENT_DF = 5
# Of the contaminated normal: the share that is Student's, and its scale
OUTLIERS = 0.01
OUTLIER_SCALE = 2.0
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Base:
    """A law on the line.

    Its log-density, elementwise, and draws of a shape (float64, on the CPU).
    """

    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[[Shape, Generator], Tensor]


def _normal(z: Tensor) -> Tensor:
    return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)


def _sample_normal(shape: Shape, generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _logistic(z: Tensor) -> Tensor:
    return -z.abs() - 2 * torch.log1p(torch.exp(-z.abs()))


def _sample_uniform(shape: Shape, generator: Generator) -> Tensor:
    """Uniform in the open interval (0, 1): its logarithm and that of 1 − u are finite."""
    tiny = torch.finfo(torch.float64).tiny
    return torch.rand(shape, generator=generator, dtype=torch.float64).clamp_(tiny, 1 - 2**-53)


def _sample_logistic(shape: Shape, generator: Generator) -> Tensor:
    u = _sample_uniform(shape, generator)
    # the inverse of the distribution function 1 / (1 + exp(-z))
    return torch.log(u) - torch.log1p(-u)


def _laplace(z: Tensor) -> Tensor:
    return -z.abs() - math.log(2)


def _sample_laplace(shape: Shape, generator: Generator) -> Tensor:
    u = _sample_uniform(shape, generator)
    return torch.where(u < 0.5, torch.log(2 * u), -torch.log(2 * (1 - u)))


def _student_t(z: Tensor) -> Tensor:
    nu = STUDENT_DF
    constant = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - 0.5 * math.log(nu * math.pi)
    return constant - (nu + 1) / 2 * torch.log1p(z.square() / nu)


def _sample_student_t(shape: Shape, generator: Generator) -> Tensor:
    z = _sample_normal(shape, generator)
    chi2 = _sample_normal((STUDENT_DF, *shape), generator).square().sum(0)
    return z / torch.sqrt(chi2 / STUDENT_DF)


def _mixture(z: Tensor) -> Tensor:
    # ½N(-m, s²) + ½N(m, s²) = N(|z|; m, s²) (1 + exp(-2 m |z| / s²)) / 2
    other_half = torch.log1p(torch.exp(-2 * MIX_MEAN * z.abs() / MIX_SD**2)) - math.log(2)
    return _normal((z.abs() - MIX_MEAN) / MIX_SD) - math.log(MIX_SD) + other_half


def _sample_mixture(shape: Shape, generator: Generator) -> Tensor:
    z = _sample_normal(shape, generator)
    sign = torch.randint(2, shape, generator=generator) * 2 - 1
    return MIX_MEAN * sign + MIX_SD * z


def _contaminated(z: Tensor) -> Tensor:
    outlier = _student_t(z / OUTLIER_SCALE) + math.log(OUTLIERS / OUTLIER_SCALE)
    return torch.logaddexp(_normal(z) + math.log1p(-OUTLIERS), outlier)


def _sample_contaminated(shape: Shape, generator: Generator) -> Tensor:
    z = _sample_normal(shape, generator)
    outlier = OUTLIER_SCALE * _sample_student_t(shape, generator)
    return torch.where(_sample_uniform(shape, generator) < OUTLIERS, outlier, z)


BASES: dict[str, Base] = {
    "normal": Base(_normal, _sample_normal),
    "logistic": Base(_logistic, _sample_logistic),
    "laplace": Base(_laplace, _sample_laplace),
    "student_t": Base(_student_t, _sample_student_t),
    "mixture": Base(_mixture, _sample_mixture),
    "contaminated": Base(_contaminated, _sample_contaminated),
}


def base_log_prob(base: str, z: Tensor) -> Tensor:
    """Log-density of a base distribution: log p(z) = Σ_d log p(z_d), every coordinate independent.

    `normal` N(0, 1); `logistic` (a uniform base seen through a sigmoid); `laplace` with scale 1;
    `student_t` with 5 degrees of freedom; `mixture` ½N(-0.8, 0.6²) + ½N(0.8, 0.6²) in every
    coordinate; `contaminated` .99 N(0, 1) + .01 T, T Student's with 5 degrees of freedom and scale
    2: a normal (Tukey 1960) whose far points cost a logarithm, not a square.

    Shapes: (…, D) to (…,), nats.

    >>> round(base_log_prob("normal", torch.zeros(1, 2)).item(), 4)
    -1.8379
    """
    return BASES[base].log_prob(z).sum(-1)


def base_sample(base: str, shape: Shape, generator: Generator) -> Tensor:
    """Draw from a base distribution with an explicit generator; float64, on the CPU.

    >>> base_sample("laplace", (4, 2), torch.Generator().manual_seed(0)).shape
    torch.Size([4, 2])
    """
    return BASES[base].sample(shape, generator)
