"""RealNVP over stacks: E flows of one architecture as one batched program.

`forward` maps base to data, `inverse` maps data to base (the direction of training). The weights of a stack are one
matrix `theta` of shape (E, P) and its fixed numbers (masks, standardisation, running statistics) one matrix `fixed`
of shape (E, S): row e is member e, whole, so that selecting, freezing, clipping and copying members are row
operations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nfexp.nn import base_log_prob, base_sample, mlp, mlp_shapes
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


def _squash(scale: str, raw: Tensor) -> Tensor:
    """What bounds the output of the network: tanh, r / (1 + |r| / 6.9) ("soft"), or nothing ("exp")."""
    match scale:
        case "exp":
            return raw
        case "soft":
            return raw / (1 + raw.abs() / SOFT_BOUND)
        case _:
            return torch.tanh(raw)


def _squash_backward(scale: str, grad: Tensor, inner: Tensor) -> Tensor:
    """The gradient by r from that by inner = squash(r)."""
    match scale:
        case "exp":
            return grad
        case "soft":
            return grad * (1 - inner.abs() / SOFT_BOUND).square()
        case _:
            return torch.ops.aten.tanh_backward(grad, inner)


def _log_gain(scale: str, raw: Tensor, log_scale: Tensor | None, free: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """s = bound ⊙ inner, inner and bound."""
    inner = _squash(scale, raw)
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
        grad_raw_s = _squash_backward(ctx.scale, grad_s, inner)
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


class Layout:
    """Where blocks of named tensors (E, …) lie in the columns of a matrix (E, P)."""

    def __init__(self, blocks: Shapes) -> None:
        self.shapes = {name: shape for block in blocks.values() for name, shape in block.items()}
        self.sizes = {key: sum(map(math.prod, block.values())) for key, block in blocks.items()}
        self.width = sum(self.sizes.values())

    def blocks(self, matrix: Tensor) -> dict[str, Tensor]:
        """Each block as (E, size): what the layers compute with."""
        return dict(zip(self.sizes, torch.split(matrix, list(self.sizes.values()), dim=1), strict=True))

    def views(self, matrix: Tensor) -> dict[str, Tensor]:
        """Each named tensor as (E, …): what is initialised and stored."""
        parts = torch.split(matrix, [math.prod(shape) for shape in self.shapes.values()], dim=1)
        return {k: part.view(-1, *shape) for (k, shape), part in zip(self.shapes.items(), parts, strict=True)}


@lru_cache(maxsize=64)
def _plan(arch: Architecture) -> tuple[list[Coupling | Scaling], Layout, Layout]:
    """The layers in data → base order, and where their learned and their fixed tensors lie."""
    layers: list[Coupling | Scaling] = [Scaling("standardise", "standardise", arch.dim)]
    for i in range(arch.n_flows):
        layers.append(Coupling(arch, i))
        if arch.norm != "none" and (i + 1) % arch.norm_every == 0:
            layers.append(Scaling(arch.norm, f"norm.{i}", arch.dim))
    if arch.coupling == "additive":
        layers.append(Scaling("diagonal", "diagonal", arch.dim))
    learned = Layout({k: v for layer in layers for k, v in layer.shapes().items()})
    fixed = Layout({k: v for layer in layers for k, v in layer.fixed_shapes().items()})
    return layers, learned, fixed


class FlowStack:
    """E RealNVP flows of one architecture.

    Parameters
    ----------
    arch
        The shared architecture.
    theta
        Learned numbers, shape (E, P).
    fixed
        Masks, standardisation and running statistics, shape (E, S).

    Examples
    --------
    >>> from nfexp.flow import Architecture
    >>> from nfexp.init import build
    >>> arch = Architecture(dim=2, n_flows=4, hidden_depth=2, hidden_width=8, activation="relu", coupling="affine",
    ...                     conditioner="separate", scale="learned", init="identity", standardise="moments",
    ...                     norm="none", norm_every=2, base="normal")
    >>> flow = build(arch, masks=["alternating", "fixed"], seeds=[0, 1], data=torch.randn(2, 100, 2))
    >>> flow.log_prob(torch.zeros(2, 5, 2)).shape
    torch.Size([2, 5])
    """

    def __init__(self, arch: Architecture, theta: Tensor, fixed: Tensor) -> None:
        self.arch, self.theta, self.fixed = arch, theta, fixed
        self.layers, self.learned_layout, self.fixed_layout = _plan(arch)

    @property
    def n_members(self) -> int:
        return self.theta.shape[0]

    def with_rows(self, theta: Tensor, fixed: Tensor) -> FlowStack:
        """The same architecture with other numbers."""
        return FlowStack(self.arch, theta, fixed)

    def member(self, e: int) -> FlowStack:
        """Member `e` as a stack of one."""
        return self.with_rows(self.theta[e : e + 1], self.fixed[e : e + 1])

    def to(self, *args: object, **kwargs: object) -> FlowStack:
        """Move or cast both matrices, as ``Tensor.to`` does."""
        return self.with_rows(self.theta.to(*args, **kwargs), self.fixed.to(*args, **kwargs))

    def params(self) -> dict[str, Tensor]:
        """Every named tensor, shape (E, …)."""
        return self.learned_layout.views(self.theta) | self.fixed_layout.views(self.fixed)

    def _blocks(self) -> Params:
        return self.learned_layout.blocks(self.theta) | self.fixed_layout.blocks(self.fixed)

    def _down(self, x: Tensor, batch: dict[str, Tensor] | None) -> Iterator[tuple[Tensor, Tensor]]:
        """From data (E, N, D) to base: the points (E, D, N) after each layer, and its log-det."""
        p, x = self._blocks(), x.mT.contiguous()  # points along the last axis from here on
        for layer in self.layers:
            x, log_det = layer.inverse(p, x, batch)
            yield x, log_det

    def _up(self, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """From base to data, as :meth:`_down`."""
        p, z = self._blocks(), z.mT.contiguous()
        for layer in reversed(self.layers):
            z, log_det = layer.forward(p, z)
            yield z, log_det

    def inverse(self, x: Tensor, *, batch: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Data to base: z and log|det ∂z/∂x|.

        Shapes: (E, N, D) to (E, N, D) and (E, N). With a dict as `batch`, batch norm uses the statistics of `x` and
        leaves its updated running statistics there.
        """
        total = x.new_zeros(x.shape[:-1])
        for layer in self._down(x, batch):
            z, log_det = layer
            total = total + log_det
        return z.mT, total

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Base to data: x and log|det ∂x/∂z|, shapes as in :meth:`inverse`."""
        total = z.new_zeros(z.shape[:-1])
        for layer in self._up(z):
            x, log_det = layer
            total = total + log_det
        return x.mT, total

    def walk(self, z: Tensor) -> list[tuple[str, Tensor]]:
        """The points after every layer on the way from base to data, with the layer's name.

        Returns pairs of a name ("base", "coupling 5", …, "data") and points (E, N, D).
        """
        names = [layer.name.replace(".", " ") for layer in reversed(self.layers[1:])] + ["data"]
        return [("base", z), *((name, x.mT) for name, (x, _) in zip(names, self._up(z), strict=True))]

    def first_nonfinite(self, x: Tensor, *, batch: dict[str, Tensor] | None = None) -> Tensor:
        """Which layer, on the way from data to base, first puts out a number that is not finite; its log-det counts.

        Returns the position in `layers`, shape (E,), or their number where every layer's output is finite.
        """
        total = x.new_zeros(x.shape[:-1])
        first = torch.full((len(x),), len(self.layers), device=x.device)
        for i, (z, log_det) in enumerate(self._down(x, batch)):
            total = total + log_det
            lost = ~(z.sum(1) + total).isfinite().all(1)
            first = torch.where(lost & (first == len(self.layers)), i, first)
        return first

    def layer_name(self, position: int) -> str:
        """What stands at a position of `layers`, such as "coupling.0", or behind them all."""
        return self.layers[position].name if position < len(self.layers) else "the base density or the gradient"

    def log_prob(self, x: Tensor, *, batch: dict[str, Tensor] | None = None) -> Tensor:
        """log q(x) = log p(z) + log|det ∂z/∂x|, in nats; shapes (E, N, D) to (E, N)."""
        z, log_det = self.inverse(x, batch=batch)
        return base_log_prob(self.arch.base, z) + log_det

    def sample(self, n: int, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw `n` points per member, each with its own CPU generator; shape (E, n, D)."""
        z = torch.stack([base_sample(self.arch.base, (n, self.arch.dim), g) for g in generators])
        return self.forward(z.to(self.theta))[0]

    def n_parameters(self) -> list[int]:
        """Learned numbers per member that its mask lets act (a masked input or output has none)."""
        p, total = self.fixed_layout.views(self.fixed), [self.learned_layout.width] * self.n_members
        for layer in self.layers:
            if isinstance(layer, Coupling):
                passed = p[f"{layer.name}.mask"].sum((1, 2)).long().tolist()
                width = self.arch.hidden_width
                for e, d in enumerate(passed):
                    dead_in = layer.nets * width * (self.arch.dim - d)
                    dead_out = d * layer.heads * (width + 1) + d * layer.learned_scale
                    total[e] -= dead_in + dead_out
        return total

    def state(self, e: int) -> dict[str, Tensor]:
        """The named tensors of member `e`, without the stack axis, ready to be stored."""
        return {k: v[e].detach().cpu().contiguous() for k, v in self.params().items()}


def from_state(arch: Architecture, state: Mapping[str, Tensor]) -> FlowStack:
    """A stack of one from the tensors of :meth:`FlowStack.state`.

    Raises
    ------
    ValueError
        If a tensor is missing, unknown or of another shape.
    """
    empty = FlowStack(arch, torch.empty(1, 0), torch.empty(1, 0))
    rows = []
    expected = {**empty.learned_layout.shapes, **empty.fixed_layout.shapes}
    if unknown := sorted(set(state) - set(expected)):
        raise ValueError(f"weights: expected the tensors of this architecture; got an unknown one, {unknown[0]}")
    for layout in (empty.learned_layout, empty.fixed_layout):
        parts = []
        for name, shape in layout.shapes.items():
            if name not in state or tuple(state[name].shape) != shape:
                got = tuple(state[name].shape) if name in state else "nothing"
                raise ValueError(f"weights: expected {name} of shape {shape}; got {got}")
            parts.append(state[name].reshape(-1))
        rows.append(torch.cat(parts)[None] if parts else torch.empty(1, 0))
    return empty.with_rows(*rows)
