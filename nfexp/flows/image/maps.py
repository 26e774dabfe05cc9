"""Maps of a stack: convolutions, products of channels, and sums whose order does not depend on stack mates.

Points of a layer are (E, N, C, H, W). Within a network the members stand side by side as groups of
channels, (N, E · maps, H, W), so that a convolution of the whole stack is one grouped convolution.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# a grouped convolution has the bits of the member alone where the channels of a group are multiples
# of this
GROUP = 16


def padded(channels: int) -> int:
    """The next multiple of :data:`GROUP`.

    >>> padded(1), padded(16), padded(17)
    (16, 16, 32)
    """
    return -(-channels // GROUP) * GROUP


def total(x: Tensor) -> Tensor:
    """Σ over points and pixels.

    (E, N, C, H, W) to (E, C), in an order of its own for each member and channel.

    Rows are summed within, never across: a sum across rows takes them in an order that depends on
    how many there are.
    """
    per_point = x.flatten(3).contiguous().sum(-1)  # (E, N, C)
    return per_point.mT.contiguous().sum(-1)


class _Spread(torch.autograd.Function):
    """(E, C) to (E, N, C, H, W), the same number at every point and pixel; differentiable once."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, like: Tensor) -> Tensor:
        return p[:, None, :, None, None].expand_as(like)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return total(grad), None


def spread(p: Tensor, like: Tensor) -> Tensor:
    """A number per channel (E, C) at every point and pixel of `like` (E, N, C, H, W)."""
    out: Tensor = _Spread.apply(p, like)
    return out


def every_point(log_det: Tensor, x: Tensor) -> Tensor:
    """A log-det that all points of a member share, (E,), for each of the points x (E, N, …).

    Shape (E, N).
    """
    return spread(log_det[:, None], x.flatten(2)[:, :, :1, None, None])[:, :, 0, 0, 0]


class _Products(torch.autograd.Function):
    """W_e X_e for every member: (E, out, in) and (E, in, M) to (E, out, M); differentiable once.

    All factors are laid out alike, whoever made them: how a product is summed depends on that.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor) -> Tensor:
        weight = weight.contiguous()
        x = x.contiguous()
        ctx.save_for_backward(weight, x)
        return torch.bmm(weight, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        weight, x = ctx.saved_tensors
        grad = grad.contiguous()
        return torch.bmm(grad, x.mT), torch.bmm(weight.mT, grad)


def products(weight: Tensor, x: Tensor) -> Tensor:
    """One matrix product per member: (E, out, in) and (E, in, M) to (E, out, M)."""
    out: Tensor = _Products.apply(weight, x)
    return out


def as_groups(x: Tensor, channels: int) -> Tensor:
    """(E, N, C, H, W) to (N, E · channels, H, W), each member's channels filled up with zeros."""
    missing = channels - x.shape[2]
    if missing:
        x = F.pad(x, (0, 0, 0, 0, 0, missing))
    return x.transpose(0, 1).flatten(1, 2)


def conv3x3(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3 x 3 convolution that keeps height and width, each member with its own weights.

    Shapes: h (N, E · in, H, W), with `in` a multiple of :data:`GROUP`; weight (E, out, ≤ in, 3, 3);
    bias (E, out), or None; to (N, E · out, H, W), with `out` filled up to a multiple of
    :data:`GROUP`.
    """
    n_members, n_out, n_in = weight.shape[:3]
    missing_in = h.shape[1] // n_members - n_in
    missing_out = padded(n_out) - n_out
    if missing_in or missing_out:
        weight = F.pad(weight, (0, 0, 0, 0, 0, missing_in, 0, missing_out))
    if bias is not None:
        bias = F.pad(bias, (0, missing_out)).flatten()
    return F.conv2d(h, weight.flatten(0, 1), bias, padding=1, groups=n_members)


def conv1x1(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 1 x 1 convolution as one matrix product per member: (N, E · in, H, W) to (E, N, out, H, W).

    Shapes: weight (E, out, ≤ in), bias (E, out).
    """
    n_members, n_out, n_in = weight.shape
    n_points, _, height, width = h.shape
    own = h.unflatten(1, (n_members, -1))[:, :, :n_in]  # (N, E, in, H, W)
    rows = own.permute(1, 2, 0, 3, 4).reshape(n_members, n_in, n_points * height * width)
    out = products(weight, rows).view(n_members, n_out, n_points, height, width).transpose(1, 2)
    return out + spread(bias, out)


def mixed(x: Tensor, weight: Tensor) -> Tensor:
    """Each pixel's channels times a matrix: x (E, N, C, H, W), weight (E, C, C), y = W x."""
    n_members, n_points, channels, height, width = x.shape
    rows = x.transpose(1, 2).reshape(n_members, channels, n_points * height * width)
    return products(weight, rows).view(n_members, channels, n_points, height, width).transpose(1, 2)


def kept(p_drop: float, shape: tuple[int, ...], generators: list[Generator]) -> Tensor:
    """What dropout multiplies by, 0 or 1 / (share that is kept), (N, E · maps, H, W) for a member's (N, maps, H, W).

    Eight decisions come from one draw of 64 bits, so that the share is a multiple of 1/256.
    """
    n_dropped = round(256 * p_drop)
    size = math.prod(shape)
    parts = []
    for generator in generators:
        words = torch.empty(-(-size // 8), dtype=torch.int64)
        words.random_(-(2**63), None, generator=generator)
        parts.append(words.view(torch.uint8)[:size].view(shape))
    survives = torch.cat(parts, 1) >= n_dropped
    return survives * (256 / (256 - n_dropped))
