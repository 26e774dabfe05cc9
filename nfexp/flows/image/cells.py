"""Layers of single pixels.

Where in the cell of its level a point lies, from cells to the line, and scales.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor
from torch.autograd.function import once_differentiable

from nfexp.flows.elementwise import Standardise
from nfexp.flows.image.maps import spread
from nfexp.flows.image.networks import ResidualNet
from nfexp.flows.image.plan import Image
from nfexp.flows.layers import Batch, Layer, Points, Shapes, Tensors
from nfexp.spec import Flow


class _Lookup(torch.autograd.Function):
    """Entries of a table (E, L) at positions (E, M); each member's gradient is summed by itself."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, at: Tensor) -> Tensor:
        ctx.save_for_backward(at)
        ctx.length = table.shape[1]
        return table.gather(1, at)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (at,) = ctx.saved_tensors
        sums = grad.new_zeros(len(at), ctx.length)
        for e in range(len(at)):
            sums[e].index_add_(0, at[e], grad[e])
        return sums, None


def _log_slope_of_sigmoid(a: Tensor) -> Tensor:
    """log σ'(a), the log-density of a logistic."""
    return -a.abs() - 2 * torch.log1p(torch.exp(-a.abs()))


class Dequantise(Layer):
    """Where in its cell a level is put.

    k + ε ↦ k + u with logit u = exp(a) logit ε + b, and outside all cells nothing.

    For uniform dequantisation u = ε. Otherwise a and b are learned. "table": a pair for each level;
    "net": to this pair a small network adds, for each pixel, what it makes of the levels of the
    whole image. With ε uniform in the cell, the flow's log-density at k + ε is the single-sample
    bound on log P(k) (Ho et al. 2019, eq. 12).
    """

    maps = 16
    blocks = 1

    def __init__(self, flow: Flow, image: Image) -> None:
        super().__init__("dequantise", image.dim)
        self.image = image
        self.learned = flow.dequantisation != "uniform"
        self.net: ResidualNet | None = None
        if flow.dequantisation == "net":
            n = image.channels
            self.net = ResidualNet(
                "dequantise.net", flow, n, 2 * n, maps=self.maps, blocks=self.blocks
            )

    def learned_shapes(self) -> Shapes:
        shapes: Shapes = {}
        if self.learned:
            for key in ("log_slope", "shift"):
                name = f"{self.name}.{key}"
                shapes[name] = {name: (1, self.image.levels)}
        if self.net is not None:
            shapes |= self.net.learned_shapes()
        return shapes

    def fixed_shapes(self) -> Shapes:
        return {} if self.net is None else self.net.fixed_shapes()

    def initialise(self, own: Tensors, points: Points, draws: Generator) -> None:
        if self.net is not None:
            self.net.initialise(own, draws)

    def _coefficients(
        self, p: Tensors, level: Tensor, batch: Batch | None
    ) -> tuple[Tensor, Tensor]:
        """a and b at every pixel, (E, N, D)."""
        at = level.long().flatten(1)
        a = _Lookup.apply(p[f"{self.name}.log_slope"], at).view_as(level)
        b = _Lookup.apply(p[f"{self.name}.shift"], at).view_as(level)
        if self.net is not None:
            centred = 2 * level / (self.image.levels - 1) - 1
            of_a, of_b = self.net(p, centred.unflatten(-1, self.image.shape), batch).chunk(2, 2)
            a = a + of_a.flatten(2)
            b = b + of_b.flatten(2)
        return a, b

    def _cells(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which points lie in a cell, the level below each, and the logit of where in the cell it lies."""
        levels = self.image.levels
        inside = (x >= 0) & (x < levels)
        safe = torch.where(inside, x, 0.0)
        level = safe.floor()
        # As near to the edge of a cell as the precision of a point can tell.
        nearest = levels * torch.finfo(x.dtype).eps
        return inside, level, torch.logit((safe - level).clamp(nearest, 1 - nearest))

    def inverse(self, p: Tensors, x: Tensor, batch: Batch | None = None) -> tuple[Tensor, Tensor]:
        if not self.learned:
            return x, x.new_zeros(())
        inside, level, logit = self._cells(x)
        a, b = self._coefficients(p, level, batch)
        moved = torch.exp(a) * logit + b
        return self._placed(
            x, inside, level, moved, a + _log_slope_of_sigmoid(moved) - _log_slope_of_sigmoid(logit)
        )

    def forward(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        if not self.learned:
            return z, z.new_zeros(())
        inside, level, moved = self._cells(z)
        a, b = self._coefficients(p, level, None)
        logit = (moved - b) * torch.exp(-a)
        return self._placed(
            z, inside, level, logit, _log_slope_of_sigmoid(logit) - a - _log_slope_of_sigmoid(moved)
        )

    def _placed(
        self, x: Tensor, inside: Tensor, level: Tensor, logit: Tensor, log_slope: Tensor
    ) -> tuple[Tensor, Tensor]:
        nearest = self.image.levels * torch.finfo(x.dtype).eps
        moved = level + torch.sigmoid(logit).clamp(nearest, 1 - nearest)
        log_det = torch.where(inside, log_slope, 0.0).sum(-1)
        return torch.where(inside, moved, x), log_det


class Logit(Layer):
    """z = logit(α + (1 − 2 α) v / L) for v in [0, L]: from the cells of L levels to the line.

    Source: Dinh et al. 2017, sec. 4.1, which prints α + (1 − α) v / L. That runs to infinity at the
    top level; the released code, and this, keep away from both ends. On the way back v may lie a
    little outside [0, L].
    """

    def __init__(self, flow: Flow, image: Image) -> None:
        super().__init__("logit", image.dim)
        self.alpha = float(flow.alpha or 0.0)
        self.slope = (1 - 2 * self.alpha) / image.levels

    def inverse(self, p: Tensors, x: Tensor, batch: Batch | None = None) -> tuple[Tensor, Tensor]:
        z = torch.logit(self.alpha + self.slope * x)
        return z, (math.log(self.slope) - _log_slope_of_sigmoid(z)).sum(-1)

    def forward(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        x = (torch.sigmoid(z) - self.alpha) / self.slope
        return x, (_log_slope_of_sigmoid(z) - math.log(self.slope)).sum(-1)


class PixelStandardise(Standardise):
    """z = (x − m) / σ by each pixel's moments over the training images, or the identity.

    Points are (E, N, D).
    """

    def _own(self, p: Tensors, key: str) -> Tensor:
        """A tensor of this layer as (E, 1, D)."""
        return p[f"{self.name}.{key}"].unsqueeze(1)

    def inverse(self, p: Tensors, x: Tensor, batch: Batch | None = None) -> tuple[Tensor, Tensor]:
        var = self._own(p, "var")
        return (x - self._own(p, "mean")) * var.rsqrt(), -0.5 * var.log().sum(-1)

    def forward(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        var = self._own(p, "var")
        return z * var.sqrt() + self._own(p, "mean"), 0.5 * var.log().sum(-1)


class PixelScale(Layer):
    """z = x exp(γ) with a learned γ per number.

    What additive couplings, which cannot scale, end with (NICE).
    """

    def learned_shapes(self) -> Shapes:
        return self._per_coordinate("log_gain")

    def _log_gain(self, p: Tensors, x: Tensor) -> Tensor:
        return spread(p[f"{self.name}.log_gain"], x[..., None, None])[..., 0, 0]

    def inverse(self, p: Tensors, x: Tensor, batch: Batch | None = None) -> tuple[Tensor, Tensor]:
        log_gain = self._log_gain(p, x)
        return x * torch.exp(log_gain), log_gain.sum(-1)

    def forward(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        log_gain = self._log_gain(p, z)
        return z * torch.exp(-log_gain), -log_gain.sum(-1)
