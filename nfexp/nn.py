"""Stacked multilayer perceptrons, base distributions and random streams: the pieces a flow is made of.

Every tensor has a leading axis E, the members of a stack. A member's numbers never depend on its stack mates.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# In place where the derivative follows from the result: one pass over memory less.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "leaky_relu": partial(F.leaky_relu, inplace=True),
    "tanh": torch.tanh_,
    "silu": F.silu,
    "elu": partial(F.elu, inplace=True),
}


def stream(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose of one run, independent of every other purpose and seed.

    Draws are made on the CPU on every device, so that a run is the same fact on each of them.

    >>> torch.equal(torch.rand(3, generator=stream(0, "init")), torch.rand(3, generator=stream(0, "init")))
    True
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


class _Affine(torch.autograd.Function):
    """h W + b, batched, with thin outputs (W much narrower than h) in the order that a matrix library is fast at."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, h: Tensor, weight: Tensor) -> Tensor:
        ctx.thin = 8 * weight.shape[2] <= weight.shape[1]
        if ctx.thin:
            weight = weight.mT.contiguous().mT
        ctx.save_for_backward(h, weight)
        return torch.baddbmm(bias, h, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        h, weight = ctx.saved_tensors
        grad_h = torch.bmm(grad, weight.mT) if ctx.needs_input_grad[1] else None
        grad_weight = torch.bmm(grad.mT, h).mT if ctx.thin else torch.bmm(h.mT, grad)
        return grad.sum(1, keepdim=True), grad_h, grad_weight


def mlp(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]], activation: str) -> Tensor:
    """Evaluate G networks per member on the same input, as batched matrix products.

    h ← σ(h W + b) for all layers but the last, which is affine.

    Parameters
    ----------
    x
        Input, shape (E, N, D).
    layers
        Weights of shape (E, G, in, out) and biases of shape (E, G, 1, out).
    activation
        A key of ``ACTIVATIONS``.

    Returns
    -------
    Tensor
        Shape (E, G, N, out) of the last layer.

    Examples
    --------
    >>> w, b = torch.ones(3, 2, 4, 5), torch.zeros(3, 2, 1, 5)
    >>> mlp(torch.ones(3, 7, 4), [(w, b)], "relu").shape
    torch.Size([3, 2, 7, 5])
    """
    n_members, n_nets = layers[0][0].shape[:2]
    sigma = ACTIVATIONS[activation]
    h = x.unsqueeze(1).expand(-1, n_nets, -1, -1).flatten(0, 1)  # (E G, N, D)
    for i, (weight, bias) in enumerate(layers):
        h = _Affine.apply(bias.flatten(0, 1), h, weight.flatten(0, 1))
        if i < len(layers) - 1:
            h = sigma(h)
    return h.unflatten(0, (n_members, n_nets))


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
