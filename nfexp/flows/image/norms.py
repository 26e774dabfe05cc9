"""Layers between couplings.

Normalisation of channels, and the 1 x 1 convolution that mixes them.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from nfexp.flows.image.maps import every_point, mixed, spread
from nfexp.flows.image.networks import EPSILON, batch_moments, first_gains
from nfexp.flows.image.shapes import ActiveLayer
from nfexp.flows.layers import Batch, Points, Shapes, Tensors


class ChannelNorm(ActiveLayer):
    """z = (x − m) exp(l) + h, channel by channel.

    Subclasses say what m, l and h are, (E, C) each.
    """

    def _coefficients(self, p: Tensors) -> tuple[Tensor | None, Tensor, Tensor]:
        raise NotImplementedError

    def inverse_active(self, p: Tensors, x: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
        m, log_gain, h = self._coefficients(p)
        if m is not None:
            x = x - spread(m, x)
        z = x * spread(torch.exp(log_gain), x) + spread(h, x)
        return z, every_point(self._log_det(log_gain), x)

    def forward_active(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.unflatten(-1, self.shape)
        m, log_gain, h = self._coefficients(p)
        x = (z - spread(h, z)) * spread(torch.exp(-log_gain), z)
        if m is not None:
            x = x + spread(m, z)
        return x, -every_point(self._log_det(log_gain), x)

    def _log_det(self, log_gain: Tensor) -> Tensor:
        """The same for all points: (E,). Each channel's gain acts on H · W numbers."""
        return self.shape[1] * self.shape[2] * log_gain.sum(-1)


class ChannelActNorm(ChannelNorm):
    """l and h are learned, m is 0.

    The first batch sets them and comes out standardised (Kingma, Dhariwal 2018).
    """

    def learned_shapes(self) -> Shapes:
        return self._per_channel("log_gain", "shift")

    def inverse_active(self, p: Tensors, x: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
        if batch is not None and batch.initialise:
            log_gain, shift = first_gains(self.name, x, batch)
            p = {**p, f"{self.name}.log_gain": log_gain, f"{self.name}.shift": shift}
        return super().inverse_active(p, x, batch)

    def _coefficients(self, p: Tensors) -> tuple[Tensor | None, Tensor, Tensor]:
        return None, p[f"{self.name}.log_gain"], p[f"{self.name}.shift"]


class ChannelBatchNorm(ChannelNorm):
    """By the moments of the batch while training, by running averages otherwise, with learned gain and shift.

    Statistics are taken over all pixels of the active part after the coupling, never over masked
    zeros. Source: Dinh et al. 2017, sec. 3.7.
    """

    def learned_shapes(self) -> Shapes:
        return self._per_channel("log_gain", "shift")

    def fixed_shapes(self) -> Shapes:
        return self._per_channel("mean", "var")

    def initialise(self, own: Tensors, points: Points, draws: Generator) -> None:
        own[f"{self.name}.var"].fill_(1.0)

    def inverse_active(self, p: Tensors, x: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
        if batch is not None:
            mean, var = batch_moments(p, self.name, x, batch)
            p = {**p, f"{self.name}.mean": mean, f"{self.name}.var": var}
        return super().inverse_active(p, x, batch)

    def _coefficients(self, p: Tensors) -> tuple[Tensor | None, Tensor, Tensor]:
        log_gain = p[f"{self.name}.log_gain"] - 0.5 * torch.log(p[f"{self.name}.var"] + EPSILON)
        return p[f"{self.name}.mean"], log_gain, p[f"{self.name}.shift"]


CHANNEL_NORMS: dict[str, type[ChannelNorm]] = {
    "actnorm": ChannelActNorm,
    "batchnorm": ChannelBatchNorm,
}


class Mixing(ActiveLayer):
    """An invertible 1 x 1 convolution.

    The channels of each pixel times a matrix W (Kingma, Dhariwal 2018, sec. 3.2).

    log-det H · W · log|det W|; W starts as a random rotation.
    """

    def learned_shapes(self) -> Shapes:
        name = f"{self.name}.matrix"
        return {name: {name: (self.shape[0], self.shape[0])}}

    def initialise(self, own: Tensors, points: Points, draws: Generator) -> None:
        n = self.shape[0]
        square = torch.randn(n, n, generator=draws, dtype=torch.float64)
        own[f"{self.name}.matrix"].copy_(torch.linalg.qr(square)[0])

    def _matrix(self, p: Tensors) -> Tensor:
        return p[f"{self.name}.matrix"].unflatten(1, (self.shape[0], self.shape[0]))

    def _log_det(self, matrix: Tensor) -> Tensor:
        # One by one: a batch of decompositions has other bits than each alone.
        of_members = [torch.linalg.slogdet(own).logabsdet for own in matrix.unbind(0)]
        return self.shape[1] * self.shape[2] * torch.stack(of_members)

    def inverse_active(self, p: Tensors, x: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
        matrix = self._matrix(p)
        return mixed(x, matrix), every_point(self._log_det(matrix), x)

    def forward_active(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        matrix = self._matrix(p)
        x = mixed(
            z.unflatten(-1, self.shape),
            torch.stack([torch.linalg.inv(own) for own in matrix.unbind(0)]),
        )
        return x, -every_point(self._log_det(matrix), x)
