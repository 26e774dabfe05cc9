"""The layers of a flow over E members: couplings, their derivative written out, and elementwise scalings.

`forward` maps base to data, `inverse` data to base; points are (E, D, N).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nfexp.nn import mlp, mlp_shapes
from nfexp.spec import Spec

Params = Mapping[str, Tensor]  # blocks: (E, size)
Shapes = dict[str, dict[str, tuple[int, ...]]]  # block → the tensors in it


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What the members of a stack share: the shape of the flow."""

    dim: int
    n_flows: int
    hidden_depth: int
    hidden_width: int
    activation: str
    coupling: str
    conditioner: str
    scale: str
    init: str
    standardise: str
    norm: str
    norm_every: int
    base: str

    @classmethod
    def of(cls, spec: Spec, dim: int = 2) -> Architecture:
        return cls(dim=dim, **{f.name: getattr(spec.flow, f.name) for f in fields(cls) if f.name != "dim"})


SOFT_BOUND = math.log(1000.0)  # of |s| where the scale is "soft": zuko's slope of 1e-3


_TANH = torch.tanh, torch.ops.aten.tanh_backward
SQUASH = {  # by `scale`: what bounds a network's output r, y = squash(r), and the gradient by r from that by y
    "learned": _TANH,
    "tanh": _TANH,
    "soft": (lambda r: r / (1 + r.abs() / SOFT_BOUND), lambda g, y: g * (1 - y.abs() / SOFT_BOUND).square()),
    "exp": (lambda r: r, lambda g, y: g),
}


def _log_gain(scale: str, raw: Tensor, log_scale: Tensor | None, free: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """s = bound ⊙ inner, inner and bound."""
    inner = SQUASH[scale][0](raw)
    bound = free if log_scale is None else torch.exp(log_scale).unsqueeze(-1) * free
    return inner * bound, inner, bound


class _Affine(torch.autograd.Function):
    """z = x ⊙ exp(s) + t with s as of :func:`_log_gain`, t = f ⊙ raw t; also Σ_d s_d. Differentiable once.

    The bound of s is f ⊙ exp(c), or f without c. Shapes: x (E, D, N), raw (E, 2 D, N), c (E, D) or None, f (E, D, 1);
    to (E, D, N) and (E, N).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, raw: Tensor, log_scale: Tensor | None, free: Tensor, scale: str
    ) -> tuple[Tensor, Tensor]:
        raw_s, raw_t = raw.chunk(2, 1)
        s, inner, bound = _log_gain(scale, raw_s, log_scale, free)
        gain = torch.exp(s)
        ctx.scale = scale
        ctx.save_for_backward(x, s, inner, gain, bound, free)
        return torch.addcmul(raw_t * free, x, gain), s.sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_z: Tensor, grad_log_det: Tensor) -> tuple[Tensor | None, ...]:
        x, s, inner, gain, bound, free = ctx.saved_tensors
        grad_x = grad_z * gain
        grad_s = torch.addcmul(grad_log_det.unsqueeze(1), grad_x, x)
        grad_log_scale = (grad_s * s).sum(2) if ctx.needs_input_grad[2] else None
        grad_s.mul_(bound)
        grad_raw_s = SQUASH[ctx.scale][1](grad_s, inner)
        return grad_x, torch.cat([grad_raw_s, grad_z * free], 1), grad_log_scale, None, None


def alone(name: str, dim: int) -> Shapes:
    """A block of one tensor, a number per coordinate."""
    return {name: {name: (1, dim)}}


class Coupling:
    """A coupling layer: z = x ⊙ exp(s(b ⊙ x)) + t(b ⊙ x) where b = 0, z = x where b = 1.

    s = exp(c) tanh(r) with a learned c per coordinate, or c = 0 ("tanh"), or r / (1 + |r| / 6.9), as in zuko ("soft"),
    or r itself, unbounded ("exp"), for a network's output r; the additive layer (NICE) has s = 0. Source: Dinh,
    Sohl-Dickstein, Bengio 2017, eq. 7-9.
    """

    def __init__(self, arch: Architecture, index: int) -> None:
        self.name = f"coupling.{index}"
        self.arch = arch
        self.heads = 2 if arch.coupling == "affine" else 1
        self.nets = self.heads if arch.conditioner == "separate" else 1
        self.learned_scale = self.heads == 2 and arch.scale == "learned"
        self.widths = (arch.dim, *[arch.hidden_width] * arch.hidden_depth, arch.dim * self.heads // self.nets)

    def shapes(self) -> Shapes:
        names = [f"{self.name}.net.{i}.{kind}" for i in range(len(self.widths) - 1) for kind in ("weight", "bias")]
        shapes: Shapes = {f"{self.name}.net": dict(zip(names, mlp_shapes(self.widths, self.nets), strict=True))}
        if self.learned_scale:
            shapes |= alone(f"{self.name}.log_scale", self.arch.dim)
        return shapes

    def fixed_shapes(self) -> Shapes:
        return alone(f"{self.name}.mask", self.arch.dim)

    def _conditioned(self, p: Params, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the networks say of the masked x: (E, heads D, N), and 1 - b: (E, D, 1)."""
        mask = p[f"{self.name}.mask"].unsqueeze(-1)
        weights, activation = p[f"{self.name}.net"], self.arch.activation
        return mlp(x * mask, weights, self.widths, nets=self.nets, activation=activation), 1 - mask

    def inverse(self, p: Params, x: Tensor, batch: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        raw, free = self._conditioned(p, x)
        if self.heads == 1:
            return torch.addcmul(x, raw, free), x.new_zeros(())
        return _Affine.apply(x, raw, p.get(f"{self.name}.log_scale"), free, self.arch.scale)

    def forward(self, p: Params, z: Tensor) -> tuple[Tensor, Tensor]:
        raw, free = self._conditioned(p, z)
        if self.heads == 1:
            return torch.addcmul(z, raw, free, value=-1), z.new_zeros(())
        raw_s, raw_t = raw.chunk(2, 1)
        s, *_ = _log_gain(self.arch.scale, raw_s, p.get(f"{self.name}.log_scale"), free)
        return (z - raw_t * free) * torch.exp(-s), -s.sum(1)


class Scaling:
    """An elementwise affine layer z = (x - m) exp(-l) g + h; what m, l, g, h are depends on its kind.

    `standardise`: m and exp(l) are mean and standard deviation of the training draws. `actnorm` (Kingma and Dhariwal
    2018): learned g = exp(γ) and h, initialised so that the first batch comes out standardised. `batchnorm` (Dinh et
    al. 2017, sec. 3.7): m and exp(l) from the batch while training, from running statistics otherwise; learned γ, h.
    `diagonal`: learned g alone, NICE's last layer (Dinh et al. 2015).
    """

    momentum = 0.1
    epsilon = 1e-5

    def __init__(self, kind: str, name: str, dim: int) -> None:
        self.kind, self.name, self.dim = kind, name, dim
        self.learned = {"standardise": [], "diagonal": ["log_gain"]}.get(kind, ["log_gain", "shift"])
        self.kept = ["mean", "var"] if kind in ("standardise", "batchnorm") else []

    def shapes(self) -> Shapes:
        return {k: v for key in self.learned for k, v in alone(f"{self.name}.{key}", self.dim).items()}

    def fixed_shapes(self) -> Shapes:
        return {k: v for key in self.kept for k, v in alone(f"{self.name}.{key}", self.dim).items()}

    def _coefficients(self, p: Params) -> tuple[Tensor | float, Tensor, Tensor | float]:
        """mean, log-gain and shift of z = (x - mean) exp(log_gain) + shift; tensors have shape (E, D, 1)."""
        own = {key: p[f"{self.name}.{key}"].unsqueeze(-1) for key in self.learned + self.kept}
        gain = own.get("log_gain", 0.0)
        if "var" in own:
            gain = gain - 0.5 * torch.log(own["var"] + (self.epsilon if self.kind == "batchnorm" else 0.0))
        return own.get("mean", 0.0), gain, own.get("shift", 0.0)

    def inverse(self, p: Params, x: Tensor, batch: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        if batch is not None and self.kind == "batchnorm":
            own = {"mean": x.mean(2), "var": x.var(2, correction=0)}
            for key, value in own.items():
                name = f"{self.name}.{key}"
                batch[name] = torch.lerp(p[name], value.detach(), self.momentum)
            p = {**p, **{f"{self.name}.{key}": value for key, value in own.items()}}
        if batch is not None and self.kind == "actnorm" and "initialise" in batch:
            log_gain = -0.5 * torch.log(x.var(2, correction=0) + self.epsilon)
            new = {"log_gain": log_gain, "shift": -x.mean(2) * torch.exp(log_gain)}
            batch |= {f"{self.name}.{key}": value for key, value in new.items()}
            p = {**p, **{f"{self.name}.{key}": value for key, value in new.items()}}
        mean, gain, shift = self._coefficients(p)
        return (x - mean) * torch.exp(gain) + shift, gain.sum(1)

    def forward(self, p: Params, z: Tensor) -> tuple[Tensor, Tensor]:
        mean, gain, shift = self._coefficients(p)
        return (z - shift) * torch.exp(-gain) + mean, -gain.sum(1)
