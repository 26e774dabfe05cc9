"""Layers that map each coordinate by itself.

Affine ones (normalisation), and the learned tail next to the base.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from nfexp.flows.layers import CONTEXT, Batch, Layer, Points, Shapes, Tensors
from nfexp.spec import Flow


class Elementwise(Layer):
    """z = (x − m) exp(l) + h, coordinate by coordinate; what m, l and h are, each subclass says."""

    epsilon = 1e-5  # added to a variance before it divides

    def _coefficients(self, p: Tensors) -> tuple[Tensor | float, Tensor, Tensor | float]:
        """m, l and h; tensors are (E, D, 1)."""
        raise NotImplementedError

    def _tensor(self, p: Tensors, key: str) -> Tensor:
        """A tensor of this layer as (E, D, 1)."""
        return p[f"{self.name}.{key}"].unsqueeze(-1)

    def inverse(self, p: Tensors, x: Tensor, batch: Batch | None = None) -> tuple[Tensor, Tensor]:
        m, log_gain, h = self._coefficients(p)
        return (x - m) * torch.exp(log_gain) + h, log_gain.sum(1)

    def forward(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        m, log_gain, h = self._coefficients(p)
        return (z - h) * torch.exp(-log_gain) + m, -log_gain.sum(1)


class Standardise(Elementwise):
    """z = (x − m) / σ by the moments of the training points, or the identity if `standardise` is "none"."""

    def __init__(self, flow: Flow, dim: int) -> None:
        super().__init__("standardise", dim)
        self.by_moments = flow.standardise == "moments"

    def fixed_shapes(self) -> Shapes:
        return self._per_coordinate("mean", "var")

    def initialise(self, tensors: Tensors, points: Points, draws: Generator) -> None:
        tensors[f"{self.name}.var"].fill_(1.0)
        if self.by_moments:
            tensors[f"{self.name}.mean"].copy_(points.mean)
            tensors[f"{self.name}.var"].copy_(points.var)

    def _coefficients(self, p: Tensors) -> tuple[Tensor | float, Tensor, Tensor | float]:
        return self._tensor(p, "mean"), -0.5 * torch.log(self._tensor(p, "var")), 0.0


class ContextMoments(Standardise):
    """The context c as networks read it, (c − m) / σ by its moments over the training points.

    It is no layer on the way of the points: it moves none, and its log-det is not counted.
    """

    def __init__(self, n_context: int) -> None:
        Elementwise.__init__(self, CONTEXT, n_context)
        self.by_moments = True  # whatever `standardise` says of x: the units of c are in no density


class ActNorm(Elementwise):
    """z = x exp(γ) + h, both learned, set so that the first batch comes out standardised (Kingma, Dhariwal 2018)."""

    def learned_shapes(self) -> Shapes:
        return self._per_coordinate("log_gain", "shift")

    def inverse(self, p: Tensors, x: Tensor, batch: Batch | None = None) -> tuple[Tensor, Tensor]:
        if batch is not None and batch.initialise:
            log_gain = -0.5 * torch.log(x.var(2, correction=0) + self.epsilon)
            from_batch = {
                f"{self.name}.log_gain": log_gain,
                f"{self.name}.shift": -x.mean(2) * torch.exp(log_gain),
            }
            batch.updates |= from_batch
            p = {**p, **from_batch}
        return super().inverse(p, x, batch)

    def _coefficients(self, p: Tensors) -> tuple[Tensor | float, Tensor, Tensor | float]:
        return 0.0, self._tensor(p, "log_gain"), self._tensor(p, "shift")


class BatchNorm(Elementwise):
    """z = (x − m) / √(v + ε) · exp(γ) + h with learned γ and h (Dinh et al. 2017, sec. 3.7).

    m and v are those of the batch while training, and running averages of them otherwise.
    """

    momentum = 0.1  # share of a batch in the running averages

    def learned_shapes(self) -> Shapes:
        return self._per_coordinate("log_gain", "shift")

    def fixed_shapes(self) -> Shapes:
        return self._per_coordinate("mean", "var")

    def initialise(self, tensors: Tensors, points: Points, draws: Generator) -> None:
        tensors[f"{self.name}.var"].fill_(1.0)

    def inverse(self, p: Tensors, x: Tensor, batch: Batch | None = None) -> tuple[Tensor, Tensor]:
        if batch is not None:
            from_batch = {
                f"{self.name}.mean": x.mean(2),
                f"{self.name}.var": x.var(2, correction=0),
            }
            for name, value in from_batch.items():
                batch.updates[name] = torch.lerp(p[name], value.detach(), self.momentum)
            p = {**p, **from_batch}
        return super().inverse(p, x, batch)

    def _coefficients(self, p: Tensors) -> tuple[Tensor | float, Tensor, Tensor | float]:
        log_gain = self._tensor(p, "log_gain") - 0.5 * torch.log(
            self._tensor(p, "var") + self.epsilon
        )
        return self._tensor(p, "mean"), log_gain, self._tensor(p, "shift")


class Diagonal(Elementwise):
    """z = x exp(γ) with learned γ.

    The last layer of NICE, whose couplings cannot scale (Dinh et al. 2015).
    """

    def learned_shapes(self) -> Shapes:
        return self._per_coordinate("log_gain")

    def _coefficients(self, p: Tensors) -> tuple[Tensor | float, Tensor, Tensor | float]:
        return 0.0, self._tensor(p, "log_gain"), 0.0


def _log_cosh(x: Tensor) -> Tensor:
    """log cosh x where cosh x itself may overflow."""
    return x.abs() + torch.log1p(torch.exp(-2 * x.abs())) - math.log(2)


class Tail(Layer):
    """z = sinh(d asinh(x)) with a learned d > 0 per coordinate.

    z ~ x^d far out, so that d < 1 draws tails in.

    It stands next to the base, whose tails it thereby learns, and starts as the identity, d = 1.
    Source: Jones and Pewsey 2009.
    """

    def learned_shapes(self) -> Shapes:
        return self._per_coordinate("log_power")

    def inverse(self, p: Tensors, x: Tensor, batch: Batch | None = None) -> tuple[Tensor, Tensor]:
        log_d = p[f"{self.name}.log_power"].unsqueeze(-1)
        a = torch.asinh(x)
        b = torch.exp(log_d) * a
        log_det = log_d + _log_cosh(b) - _log_cosh(a)  # dz/dx = d cosh(b) / cosh(a)
        return torch.sinh(b), log_det.sum(1)

    def forward(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        log_d = p[f"{self.name}.log_power"].unsqueeze(-1)
        b = torch.asinh(z)
        a = torch.exp(-log_d) * b
        log_det = _log_cosh(a) - _log_cosh(b) - log_d
        return torch.sinh(a), log_det.sum(1)


NORMS: dict[str, type[Elementwise]] = {"actnorm": ActNorm, "batchnorm": BatchNorm}
