"""Couplings of images, by checkerboard or by channel."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from nfexp.flows.image.maps import spread
from nfexp.flows.image.networks import ResidualNet
from nfexp.flows.image.plan import Image, Stage
from nfexp.flows.image.shapes import ActiveLayer
from nfexp.flows.layers import INITIAL_SCALE, SQUASH, Batch, Points, Shapes, Tensors
from nfexp.spec import Flow


class ImageCoupling(ActiveLayer):
    """z = x exp(s) + t where pixels or channels move, z = x where they pass.

    s and t by a network of what passes.

    s is bounded as in a coupling of vectors, by a learned factor per channel where `scale` is
    "learned".
    """

    def __init__(self, flow: Flow, index: int, image: Image, stage: Stage) -> None:
        super().__init__(f"coupling.{index}", image, stage.shape)
        self.flow = flow
        self.heads = flow.heads
        self.stage = stage
        self.learned_scale = self.heads == 2 and flow.scale == "learned"
        n_in, self.n_moved = self._channels()
        self.net = ResidualNet(f"{self.name}.net", flow, n_in, self.heads * self.n_moved)

    def _channels(self) -> tuple[int, int]:
        """How many channels the network sees, and for how many it gives s and t."""
        raise NotImplementedError

    def _conditioned(
        self, p: Tensors, x: Tensor, batch: Batch | None
    ) -> tuple[Tensor | None, Tensor]:
        """s (None if additive) and t of all pixels that may move."""
        raise NotImplementedError

    def learned_shapes(self) -> Shapes:
        shapes = self.net.learned_shapes()
        if self.learned_scale:
            name = f"{self.name}.log_scale"
            shapes[name] = {name: (1, self.n_moved)}
        return shapes

    def fixed_shapes(self) -> Shapes:
        return self.net.fixed_shapes()

    def initialise(self, own: Tensors, points: Points, draws: Generator) -> None:
        self.net.initialise(own, draws)
        if self.learned_scale:
            own[f"{self.name}.log_scale"].fill_(math.log(INITIAL_SCALE))

    def _scale_and_shift(
        self, p: Tensors, passing: Tensor, batch: Batch | None
    ) -> tuple[Tensor | None, Tensor]:
        raw = self.net(p, passing, batch)
        if self.heads == 1:
            return None, raw
        raw_s, t = raw.chunk(2, 2)
        squash, _ = SQUASH[self.flow.scale]
        s = squash(raw_s)
        if self.learned_scale:
            s = s * spread(torch.exp(p[f"{self.name}.log_scale"]), s)
        return s, t


def moved_by(x: Tensor, s: Tensor | None, t: Tensor) -> tuple[Tensor, Tensor]:
    """x exp(s) + t, and the log-det Σ s."""
    if s is None:
        return x + t, x.new_zeros(())
    return x * torch.exp(s) + t, s.flatten(2).sum(-1)


def moved_back(z: Tensor, s: Tensor | None, t: Tensor) -> tuple[Tensor, Tensor]:
    """(z − t) exp(−s), and the log-det −Σ s."""
    if s is None:
        return z - t, z.new_zeros(())
    return (z - t) * torch.exp(-s), -s.flatten(2).sum(-1)


def checkerboard(height: int, width: int, parity: int) -> Tensor:
    """1 where a pixel passes, 0 where it moves, (H, W).

    Row + column is even, or odd where the parity is 1.

    >>> checkerboard(2, 3, 0).tolist()
    [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    row = torch.arange(height)[:, None]
    column = torch.arange(width)
    return ((row + column) % 2 == parity).float()


class CheckerboardCoupling(ImageCoupling):
    """Every second pixel moves, by s and t that a network makes of the others."""

    def _channels(self) -> tuple[int, int]:
        return self.shape[0], self.shape[0]

    def _conditioned(
        self, p: Tensors, x: Tensor, batch: Batch | None
    ) -> tuple[Tensor | None, Tensor]:
        passes = checkerboard(self.shape[1], self.shape[2], self.stage.parity).to(x)
        s, t = self._scale_and_shift(p, x * passes, batch)
        moves = 1 - passes
        return None if s is None else s * moves, t * moves

    def inverse_active(self, p: Tensors, x: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
        return moved_by(x, *self._conditioned(p, x, batch))

    def forward_active(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.unflatten(-1, self.shape)
        return moved_back(z, *self._conditioned(p, z, None))


class ChannelCoupling(ImageCoupling):
    """Half of the channels move, by s and t that a network makes of the other half."""

    def _channels(self) -> tuple[int, int]:
        half = self.shape[0] // 2
        first = self.shape[0] - half
        return (first, half) if self.stage.parity == 0 else (half, first)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What passes and what moves."""
        first, second = x.tensor_split([self.shape[0] - self.shape[0] // 2], 2)
        return (first, second) if self.stage.parity == 0 else (second, first)

    def _whole(self, passing: Tensor, moving: Tensor) -> Tensor:
        parts = [passing, moving] if self.stage.parity == 0 else [moving, passing]
        return torch.cat(parts, 2)

    def inverse_active(self, p: Tensors, x: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
        passing, moving = self._parts(x)
        moved, log_det = moved_by(moving, *self._scale_and_shift(p, passing, batch))
        return self._whole(passing, moved), log_det

    def forward_active(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        passing, moving = self._parts(z.unflatten(-1, self.shape))
        back, log_det = moved_back(moving, *self._scale_and_shift(p, passing, None))
        return self._whole(passing, back), log_det
