"""Each pixel through its own distribution to the normal law, before any coupling."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from nfexp.flows.image.plan import Image
from nfexp.flows.layers import Batch, Layer, Points, Shapes, Tensors


def level_counts(points: Tensor, levels: int) -> Tensor:
    """In how many images each pixel has each level: points in their cells, (N, D), to (D, levels).

    >>> level_counts(torch.tensor([[0.5, 2.5], [0.1, 1.5]]), 3).tolist()
    [[2, 0, 0], [0, 1, 1]]
    """
    dim = points.shape[1]
    own_bins = levels * torch.arange(dim) + points.long()
    return torch.bincount(own_bins.flatten(), minlength=dim * levels).view(dim, levels)


class Marginals(Layer):
    """z = Φ⁻¹(F(v)), F the distribution of a pixel by itself (Chen, Gopinath 2000).

    F is that of the training images, one straight line in each cell [k, k + 1): it rises by the
    share π_k of the images that have level k there, counted as if one image more had been seen with
    all levels in equal parts. So dz/dv = π_k / φ(z). Outside all cells the density is zero.
    """

    def __init__(self, image: Image) -> None:
        super().__init__("marginals", image.dim)
        self.levels = image.levels

    def fixed_shapes(self) -> Shapes:
        name = f"{self.name}.share"
        return {name: {name: (self.dim, self.levels)}}

    def initialise(self, own: Tensors, points: Points, draws: Generator) -> None:
        if points.counts is None:
            raise ValueError("points: expected the counts of their levels; got moments alone")
        counts = points.counts.double()
        n_seen = counts.sum(1, keepdim=True)
        own[f"{self.name}.share"].copy_((counts + 1 / self.levels) / (n_seen + 1))

    def _shares(self, p: Tensors) -> tuple[Tensor, Tensor, Tensor]:
        """The share of each level, and of all levels below and above it, (E, D, L) each."""
        share = p[f"{self.name}.share"].unflatten(1, (self.dim, self.levels))
        below = share.cumsum(-1) - share
        above = share.flip(-1).cumsum(-1).flip(-1) - share
        return share, below.clamp(min=0), above.clamp(min=0)

    def inverse(self, p: Tensors, x: Tensor, batch: Batch | None = None) -> tuple[Tensor, Tensor]:
        inside = (x >= 0) & (x < self.levels)
        level = torch.where(inside, x, 0.0).detach().floor()
        nearest = self.levels * torch.finfo(x.dtype).eps
        place = (x - level).clamp(nearest, 1 - nearest)
        share, below, above = (_at(part, level) for part in self._shares(p))
        # Each half by the mass of its own tail: Φ⁻¹ of a number near 1 would lose its digits.
        lower = below + share * place
        upper = above + share * (1 - place)
        is_low = lower < upper
        tail = torch.special.ndtri(torch.where(is_low, lower, upper))
        z = torch.where(is_low, tail, -tail)
        log_slope = torch.log(share) + _minus_log_normal(z)
        return z, torch.where(inside, log_slope, -math.inf).sum(-1)

    def forward(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        of_levels = self._shares(p)
        is_low = z < 0
        tail = torch.special.ndtr(-z.abs())
        from_below = _first_cell(of_levels[0], tail)
        from_above = self.levels - 1 - _first_cell(of_levels[0].flip(-1), tail)
        level = torch.where(is_low, from_below, from_above)
        share, below, above = (_at(part, level) for part in of_levels)
        place = torch.where(is_low, (tail - below) / share, 1 - (tail - above) / share)
        nearest = self.levels * torch.finfo(z.dtype).eps
        log_slope = torch.log(share) + _minus_log_normal(z)
        return level + place.clamp(nearest, 1 - nearest), -log_slope.sum(-1)


def _minus_log_normal(z: Tensor) -> Tensor:
    return 0.5 * z.square() + 0.5 * math.log(2 * math.pi)


def _at(table: Tensor, level: Tensor) -> Tensor:
    """What a table (E, D, L) says of the level of each pixel: (E, N, D)."""
    return table.gather(2, level.long().mT).mT


def _first_cell(share: Tensor, mass: Tensor) -> Tensor:
    """The first cell at whose end more than this mass (E, N, D) is reached, by shares (E, D, L)."""
    ends = share.cumsum(-1)[..., :-1].contiguous()  # nothing reaches beyond the last
    return torch.searchsorted(ends, mass.mT.contiguous(), right=True).mT.to(mass)
