"""Stacked multilayer perceptrons, base distributions and random streams: the pieces a flow is made of.

Every tensor has a leading axis E, the members of a stack. A member's numbers never depend on its stack mates.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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


def _in_place(sigma: Callable[[Tensor], Tensor], backward: Callable[[Tensor, Tensor], Tensor]) -> Activation:
    def forward(a: Tensor) -> tuple[Tensor, Tensor]:
        y = sigma(a)
        return y, y

    return Activation(forward, backward)


ACTIVATIONS: dict[str, Activation] = {
    "relu": _in_place(torch.relu_, lambda g, y: _aten.threshold_backward.grad_input(g, y, 0, grad_input=g)),
    "leaky_relu": _in_place(
        partial(F.leaky_relu, inplace=True),
        lambda g, y: _aten.leaky_relu_backward.grad_input(g, y, 0.01, True, grad_input=g),
    ),
    "tanh": _in_place(torch.tanh_, lambda g, y: _aten.tanh_backward.grad_input(g, y, grad_input=g)),
    "silu": Activation(lambda a: (F.silu(a), a), lambda g, a: _aten.silu_backward.grad_input(g, a, grad_input=g)),
    "elu": _in_place(
        partial(F.elu, inplace=True), lambda g, y: _aten.elu_backward.grad_input(g, 1, 1, 1, True, y, grad_input=g)
    ),
}


def stream(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose of one run, independent of every other purpose and seed.

    Draws are made on the CPU on every device, so that a run is the same fact on each of them.

    >>> torch.equal(torch.rand(3, generator=stream(0, "init")), torch.rand(3, generator=stream(0, "init")))
    True
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def mlp_shapes(widths: Sequence[int], nets: int) -> list[tuple[int, int, int]]:
    """The shapes of weight and bias of every layer in turn: (G, in, out), (G, 1, out), …"""
    return [shape for n_in, n_out in pairwise(widths) for shape in ((nets, n_in, n_out), (nets, 1, n_out))]


class _MLP(torch.autograd.Function):
    """:func:`mlp` with its derivative written out: σ' in place, products in one layout. Differentiable once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, widths: Sequence[int], nets: int, sigma: Activation) -> Tensor:
        n_members, shapes = len(x), mlp_shapes(widths, nets)
        parts = weights.split([math.prod(shape) for shape in shapes], 1)
        flat = [part.reshape(-1, *shape[1:]) for part, shape in zip(parts, shapes, strict=True)]  # (E G, ·, ·)
        inputs, kept = [x.unsqueeze(1).expand(-1, nets, -1, -1).reshape(n_members * nets, *x.shape[1:])], []
        for weight, bias in zip(flat[:-2:2], flat[1:-2:2], strict=True):
            h, keep = sigma.forward(torch.baddbmm(bias.mT, weight.mT, inputs[-1]))
            inputs.append(h)
            kept.append(keep)
        ctx.sigma, ctx.shapes = sigma, shapes
        ctx.save_for_backward(*flat[::2], *inputs, *kept)
        return torch.baddbmm(flat[-1].mT, flat[-2].mT, inputs[-1]).view(n_members, nets * widths[-1], x.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, depth = ctx.saved_tensors, len(ctx.shapes) // 2
        weights, inputs, kept = saved[:depth], saved[depth : 2 * depth], saved[2 * depth :]
        (n_members, _, n), nets = grad.shape, ctx.shapes[0][0]
        of_weights = grad.new_empty(n_members, sum(map(math.prod, ctx.shapes)))
        parts = of_weights.split([math.prod(shape) for shape in ctx.shapes], 1)
        grad = grad.reshape(n_members * nets, weights[-1].shape[-1], n)
        for i in reversed(range(depth)):
            h, weight, bias = inputs[i], *(part.unflatten(1, (nets, -1)) for part in parts[2 * i : 2 * i + 2])
            thin = grad.shape[1] < h.shape[1]  # the product with the fewer rows is the faster one
            of_weight = torch.bmm(grad, h.mT).mT if thin else torch.bmm(h, grad.mT)
            weight.copy_(of_weight.reshape(n_members, nets, -1))
            bias.copy_(grad.sum(2).view(n_members, nets, -1))
            if i:
                grad = ctx.sigma.backward(torch.bmm(weights[i], grad), kept[i - 1])
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = torch.bmm(weights[0], grad).view(n_members, nets, weights[0].shape[1], n).sum(1)
        return of_x, of_weights, None, None, None


def mlp(x: Tensor, weights: Tensor, widths: Sequence[int], *, nets: int, activation: str) -> Tensor:
    """Evaluate G networks per member on the same input, as batched matrix products.

    h ← σ(Wᵀh + b) for all layers but the last, which is affine. Points run along the last axis, so that a thin layer
    (2 → H, H → 2) is read and written in whole rows.

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
    return _MLP.apply(x, weights, widths, nets, ACTIVATIONS[activation])


_MIX_MEAN, _MIX_SD = 0.8, 0.6  # 0.8² + 0.6² = 1: unit variance
_STUDENT_DF = 5


def _normal(z: Tensor) -> Tensor:
    return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)


def _logistic(z: Tensor) -> Tensor:
    return -z.abs() - 2 * torch.log1p(torch.exp(-z.abs()))


def _laplace(z: Tensor) -> Tensor:
    return -z.abs() - math.log(2)


def _student_t(z: Tensor) -> Tensor:
    nu = _STUDENT_DF
    constant = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - 0.5 * math.log(nu * math.pi)
    return constant - (nu + 1) / 2 * torch.log1p(z.square() / nu)


def _mixture(z: Tensor) -> Tensor:
    # ½N(-m, s²) + ½N(m, s²) = N(|z|; m, s²) (1 + exp(-2 m |z| / s²)) / 2
    gap = torch.log1p(torch.exp(-2 * _MIX_MEAN * z.abs() / _MIX_SD**2)) - math.log(2)
    return _normal((z.abs() - _MIX_MEAN) / _MIX_SD) - math.log(_MIX_SD) + gap


_BASES: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": _normal,
    "logistic": _logistic,
    "laplace": _laplace,
    "student_t": _student_t,
    "mixture": _mixture,
}


def base_log_prob(base: str, z: Tensor) -> Tensor:
    """Log-density of a base distribution: log p(z) = Σ_d log p(z_d), every coordinate independent.

    `normal` N(0, 1); `logistic` (a uniform base seen through a sigmoid); `laplace` with scale 1; `student_t`
    with 5 degrees of freedom; `mixture` ½N(-0.8, 0.6²) + ½N(0.8, 0.6²) in every coordinate.

    Shapes: (…, D) to (…,), nats.

    >>> round(base_log_prob("normal", torch.zeros(1, 2)).item(), 4)
    -1.8379
    """
    return _BASES[base](z).sum(-1)


def base_sample(base: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw from a base distribution with an explicit generator; float64, on the CPU.

    >>> base_sample("laplace", (4, 2), stream(0, "base")).shape
    torch.Size([4, 2])
    """
    if base in ("normal", "student_t", "mixture"):
        z = torch.randn(shape, generator=generator, dtype=torch.float64)
        if base == "student_t":
            chi2 = torch.randn((_STUDENT_DF, *shape), generator=generator, dtype=torch.float64).square().sum(0)
            z = z / torch.sqrt(chi2 / _STUDENT_DF)
        if base == "mixture":
            sign = torch.randint(2, shape, generator=generator) * 2 - 1
            z = _MIX_MEAN * sign + _MIX_SD * z
        return z
    tiny = torch.finfo(torch.float64).tiny
    u = torch.rand(shape, generator=generator, dtype=torch.float64).clamp_(tiny, 1 - 2**-53)
    if base == "logistic":
        return torch.log(u) - torch.log1p(-u)
    if base == "laplace":
        return torch.where(u < 0.5, torch.log(2 * u), -torch.log(2 * (1 - u)))
    raise ValueError(f"base: expected one of {', '.join(_BASES)}; got {base!r}")
