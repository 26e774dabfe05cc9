"""Stacked multilayer perceptrons.

G small networks for each of E members, as batched matrix products.

Every tensor has a leading axis E, the members of a stack. A member's numbers never depend on its
stack mates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """An elementwise σ and its derivative, both written over their first argument where that is possible.

    `forward` maps a to (σ(a), what `backward` needs); `backward` maps (∂L/∂σ(a), that) to ∂L/∂a.
    """

    forward: Callable[[Tensor], tuple[Tensor, Tensor]]
    backward: Callable[[Tensor, Tensor], Tensor]


# For four of the five, σ'(a) follows from y = σ(a) alone, so that a itself need not be kept.


def _relu(a: Tensor) -> tuple[Tensor, Tensor]:
    y = torch.relu_(a)
    return y, y


def _relu_backward(grad: Tensor, y: Tensor) -> Tensor:
    return _aten.threshold_backward.grad_input(grad, y, 0, grad_input=grad)


def _leaky_relu(a: Tensor) -> tuple[Tensor, Tensor]:
    y = F.leaky_relu(a, inplace=True)
    return y, y


def _leaky_relu_backward(grad: Tensor, y: Tensor) -> Tensor:
    return _aten.leaky_relu_backward.grad_input(grad, y, 0.01, True, grad_input=grad)


def _tanh(a: Tensor) -> tuple[Tensor, Tensor]:
    y = torch.tanh_(a)
    return y, y


def _tanh_backward(grad: Tensor, y: Tensor) -> Tensor:
    return _aten.tanh_backward.grad_input(grad, y, grad_input=grad)


def _elu(a: Tensor) -> tuple[Tensor, Tensor]:
    y = F.elu(a, inplace=True)
    return y, y


def _elu_backward(grad: Tensor, y: Tensor) -> Tensor:
    return _aten.elu_backward.grad_input(grad, 1, 1, 1, True, y, grad_input=grad)


def _silu(a: Tensor) -> tuple[Tensor, Tensor]:
    return F.silu(a), a  # silu is not monotone: a cannot be found from σ(a)


def _silu_backward(grad: Tensor, a: Tensor) -> Tensor:
    return _aten.silu_backward.grad_input(grad, a, grad_input=grad)


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(_relu, _relu_backward),
    "leaky_relu": Activation(_leaky_relu, _leaky_relu_backward),
    "tanh": Activation(_tanh, _tanh_backward),
    "silu": Activation(_silu, _silu_backward),
    "elu": Activation(_elu, _elu_backward),
}


def mlp_shapes(widths: Sequence[int], nets: int) -> list[tuple[int, int, int]]:
    """The shapes of weight and bias of every layer in turn: (G, in, out), (G, 1, out), …

    >>> mlp_shapes((2, 8, 1), nets=3)
    [(3, 2, 8), (3, 1, 8), (3, 8, 1), (3, 1, 1)]
    """
    shapes = []
    for n_in, n_out in pairwise(widths):
        shapes.append((nets, n_in, n_out))
        shapes.append((nets, 1, n_out))
    return shapes


class _MLP(torch.autograd.Function):
    """:func:`mlp` with its derivative written out: σ' in place, products in one layout.

    Differentiable once.

    Member and network share one axis of length E G, so that all networks of all members are one
    batched product.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, widths: Sequence[int], nets: int, sigma: Activation
    ) -> Tensor:
        n_members, n_in, n_points = x.shape
        shapes = mlp_shapes(widths, nets)
        flat = []  # weight, bias, weight, bias, …, each (E G, ·, ·)
        for part, shape in zip(_split(weights, shapes), shapes, strict=True):
            flat.append(part.reshape(n_members * nets, *shape[1:]))
        of_weights = flat[0::2]
        of_biases = flat[1::2]
        seen_by_each = x.unsqueeze(1).expand(-1, nets, -1, -1)  # each network reads the same x
        h = seen_by_each.reshape(n_members * nets, n_in, n_points)
        inputs = [h]
        kept = []
        for weight, bias in zip(of_weights[:-1], of_biases[:-1], strict=True):
            h, keep = sigma.forward(torch.baddbmm(bias.mT, weight.mT, h))
            inputs.append(h)
            kept.append(keep)
        ctx.sigma = sigma
        ctx.shapes = shapes
        ctx.save_for_backward(*of_weights, *inputs, *kept)
        out = torch.baddbmm(of_biases[-1].mT, of_weights[-1].mT, h)
        return out.view(n_members, nets * widths[-1], n_points)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        depth = len(ctx.shapes) // 2
        weights = saved[:depth]
        inputs = saved[depth : 2 * depth]
        kept = saved[2 * depth :]
        n_members, _, n_points = grad.shape
        nets = ctx.shapes[0][0]
        sizes = [math.prod(shape) for shape in ctx.shapes]
        grad_weights = grad.new_empty(n_members, sum(sizes))
        parts = grad_weights.split(sizes, 1)  # views: what is copied into them fills `grad_weights`
        grad = grad.reshape(n_members * nets, weights[-1].shape[-1], n_points)
        for i in reversed(range(depth)):
            h = inputs[i]
            # of the two equal products the one with fewer rows is quicker
            if grad.shape[1] < h.shape[1]:
                of_weight = torch.bmm(grad, h.mT).mT
            else:
                of_weight = torch.bmm(h, grad.mT)
            parts[2 * i].unflatten(1, (nets, -1)).copy_(of_weight.reshape(n_members, nets, -1))
            parts[2 * i + 1].unflatten(1, (nets, -1)).copy_(grad.sum(2).view(n_members, nets, -1))
            if i > 0:
                grad = ctx.sigma.backward(torch.bmm(weights[i], grad), kept[i - 1])
        grad_x = None
        if ctx.needs_input_grad[0]:
            n_in = weights[0].shape[1]  # in words: of no points a -1 could be any number
            of_networks = torch.bmm(weights[0], grad).view(n_members, nets, n_in, n_points)
            grad_x = of_networks.sum(1)
        return grad_x, grad_weights, None, None, None


def _split(weights: Tensor, shapes: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
    """The columns of `weights` (E, S) that belong to each shape."""
    return weights.split([math.prod(shape) for shape in shapes], 1)


def mlp(x: Tensor, weights: Tensor, widths: Sequence[int], *, nets: int, activation: str) -> Tensor:
    """Evaluate G networks per member on the same input, as batched matrix products.

    h ← σ(Wᵀh + b) for all layers but the last, which is affine. Points run along the last axis, so
    that a thin layer (2 → H, H → 2) is read and written in whole rows.

    Parameters
    ----------
    x
        Input, shape (E, D, N).
    weights
        All weights and biases, shape (E, S), in the order and shapes of :func:`mlp_shapes`.
    widths
        Numbers of inputs, of every hidden layer's units and of outputs.
    nets
        G, the number of networks.
    activation
        A key of ``ACTIVATIONS``.

    Returns
    -------
    Tensor
        Shape (E, G · out, N) of the last layer, network by network.

    Examples
    --------
    >>> mlp(torch.ones(3, 4, 7), torch.zeros(3, 2 * (4 * 5 + 5)), (4, 5), nets=2, activation="relu").shape
    torch.Size([3, 10, 7])
    """
    out: Tensor = _MLP.apply(x, weights, widths, nets, ACTIVATIONS[activation])
    return out
