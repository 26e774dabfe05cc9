"""Layers of the active part of an image, and those that only move its numbers about.

Squeeze and order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nfexp.flows.image.plan import Image, Shape, squeezed
from nfexp.flows.layers import Batch, Layer, Shapes, Tensors


class ActiveLayer(Layer):
    """A layer of the active part of an image, of shape (C, H, W); what is factored out passes.

    Subclasses say what happens to x (E, N, C, H, W).
    """

    def __init__(self, name: str, image: Image, shape: Shape) -> None:
        super().__init__(name, image.dim)
        self.shape = shape
        self.n_active = math.prod(shape)

    def _per_channel(self, *keys: str) -> Shapes:
        shapes: Shapes = {}
        for key in keys:
            name = f"{self.name}.{key}"
            shapes[name] = {name: (1, self.shape[0])}
        return shapes

    def _active(self, x: Tensor) -> Tensor:
        return x[..., : self.n_active].unflatten(-1, self.shape)

    def _joined(self, active: Tensor, x: Tensor) -> Tensor:
        """The points x with another active part."""
        return torch.cat([active.flatten(2), x[..., self.n_active :]], -1)

    def inverse(self, p: Tensors, x: Tensor, batch: Batch | None = None) -> tuple[Tensor, Tensor]:
        active, log_det = self.inverse_active(p, self._active(x), batch)
        return self._joined(active, x), log_det

    def forward(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        active, log_det = self.forward_active(p, z[..., : self.n_active])
        return self._joined(active, z), log_det

    def inverse_active(self, p: Tensors, x: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def forward_active(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        """Of z (E, N, C · H · W).

        Its shape is that after the layer, which may differ from `shape`.
        """
        raise NotImplementedError


# of 2 x 2 pixels, in the order of the channels that they become
CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))

# those on one diagonal first: half of the channels is then a checkerboard of pixels
DIAGONALS = (0, 3, 1, 2)


def squeeze(x: Tensor) -> Tensor:
    """(…, C, H, W) to (…, 4 C, H/2, W/2).

    Each channel's 2 x 2 pixels become four channels in a row.
    """
    corners = [x[..., i::2, j::2] for i, j in CORNERS]
    return torch.stack(corners, -3).flatten(-4, -3)


def unsqueeze(x: Tensor) -> Tensor:
    """The inverse of :func:`squeeze`."""
    *lead, channels, height, width = x.shape
    corners = x.reshape(*lead, channels // 4, 2, 2, height, width)  # (…, C, i, j, h, w)
    rows = corners.movedim(-2, -4)  # (…, C, h, i, j, w)
    pixels = rows.movedim(-1, -2)  # (…, C, h, i, w, j)
    return pixels.reshape(*lead, channels // 4, 2 * height, 2 * width)


class Squeeze(ActiveLayer):
    """2 x 2 pixels become four channels; nothing is computed, so the log-det is 0."""

    def inverse_active(self, p: Tensors, x: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
        return squeeze(x), x.new_zeros(())

    def forward_active(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        return unsqueeze(z.unflatten(-1, squeezed(self.shape))), z.new_zeros(())


class Reorder(ActiveLayer):
    """Squeezed channels in the order in which half is factored out.

    First the two pixels on one diagonal of every 2 x 2, of all channels, then the others, as in the
    released code of Dinh et al. 2017: what stays active are the pixels of a checkerboard.
    """

    def inverse_active(self, p: Tensors, x: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
        corners = x.unflatten(2, (-1, 4))
        return torch.cat([corners[:, :, :, k] for k in DIAGONALS], 2), x.new_zeros(())

    def forward_active(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        by_corner = z.unflatten(-1, self.shape).unflatten(2, (4, -1))
        corners = [by_corner[:, :, DIAGONALS.index(k)] for k in range(4)]
        return torch.stack(corners, 3).flatten(2, 3), z.new_zeros(())
