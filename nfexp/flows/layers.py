"""Couplings, with their derivative written out; what every layer is: :class:`Layer`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.autograd.function import once_differentiable

from nfexp.flows.layer import CONTEXT, Batch, Layer, Points, Shapes, Tensors
from nfexp.flows.nn import mlp, mlp_shapes
from nfexp.spec import Flow, passed_counts, swaps

SOFT_BOUND = math.log(1000.0)  # of |s| where the scale is "soft": zuko's slope of 1e-3
INITIAL_SCALE = 2.0  # exp(c): the largest |s| a fresh coupling with a learned scale can reach
FULL_STARTS = ("random", "kaiming")  # of `init`: those whose last layers do not start at zero
KAIMING_GAIN = math.sqrt(6)  # of weights that are uniform in ±1/√fan_in, for ReLU
# Of `init` "spread": how far from the centre units of the first layer bend, standard deviations,
# and the largest slope of such a unit. Where σ bends smoothly, the bend is as wide as the slope is
# gentle, and a gentle one blurs a sharp target.
FIRST_REACH = 2.5
FIRST_SLOPE = {"relu": 1.0, "leaky_relu": 1.0}
SMOOTH_SLOPE = 3.0


def _identity(r: Tensor) -> Tensor:
    return r


def _identity_backward(grad: Tensor, y: Tensor) -> Tensor:
    return grad


def _soft(r: Tensor) -> Tensor:
    return r / (1 + r.abs() / SOFT_BOUND)


def _soft_backward(grad: Tensor, y: Tensor) -> Tensor:
    # y = r / (1 + |r|/B) gives 1 + |r|/B = 1 / (1 - |y|/B), and dy/dr = (1 + |r|/B)^-2
    return grad * (1 - y.abs() / SOFT_BOUND).square()


Squash = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]
_TANH: Squash = (torch.tanh, torch.ops.aten.tanh_backward)
# by `scale`: y = squash(r) of a network's output r; ∂L/∂r from (∂L/∂y, y)
SQUASH: dict[str, Squash] = {
    "learned": _TANH,
    "tanh": _TANH,
    "soft": (_soft, _soft_backward),
    "exp": (_identity, _identity_backward),
}


@dataclass(frozen=True)
class LogScale:
    """s = y ⊙ bound with y = squash(r).

    All (E, O, N) but the bound, (E, O, 1). s = 0 where a coordinate passes.
    """

    s: Tensor
    squashed: Tensor
    bound: Tensor


def _log_scale(scale: str, raw: Tensor, log_bound: Tensor | None, moves: Tensor) -> LogScale:
    """The log-scale s from a network's output `raw`.

    Its bound is exp(c) where a coordinate moves, without c 1.
    """
    squash, _ = SQUASH[scale]
    squashed = squash(raw)
    bound = moves
    if log_bound is not None:
        bound = torch.exp(log_bound).unsqueeze(-1) * moves
    return LogScale(squashed * bound, squashed, bound)


class _Affine(torch.autograd.Function):
    """z = x ⊙ exp(s) + t with s as of :func:`_log_scale` and t = moves ⊙ raw t; also Σ_d s_d.

    Differentiable once. Shapes: x (E, D, N), raw (E, 2 O, N), c (E, O) or None, moves (E, O, 1); to
    (E, D, N) and (E, N). With `scatter` (E, D, O), s and t are those of O coordinates, which it
    puts where they belong; without, O = D.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        raw: Tensor,
        log_bound: Tensor | None,
        moves: Tensor,
        scatter: Tensor | None,
        scale: str,
    ) -> tuple[Tensor, Tensor]:
        raw_s, raw_t = raw.chunk(2, 1)
        log_scale = _log_scale(scale, raw_s, log_bound, moves)
        s = log_scale.s
        t = raw_t * moves
        if scatter is not None:
            s = scatter @ s
            t = scatter @ t
        gain = torch.exp(s)
        ctx.scale = scale
        ctx.save_for_backward(
            x, log_scale.s, log_scale.squashed, gain, log_scale.bound, moves, scatter
        )
        z = torch.addcmul(t, x, gain)
        return z, log_scale.s.sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_z: Tensor, grad_log_det: Tensor) -> tuple[Tensor | None, ...]:
        x, s, squashed, gain, bound, moves, scatter = ctx.saved_tensors
        _, squash_backward = SQUASH[ctx.scale]
        grad_x = grad_z * gain  # ∂z/∂x = exp(s)
        # ∂z/∂s = x exp(s), and the log-det is Σ s
        grad_s = torch.addcmul(grad_log_det.unsqueeze(1), grad_x, x)
        grad_t = grad_z
        if scatter is not None:
            grad_s = scatter.mT @ grad_s
            grad_t = scatter.mT @ grad_z
        grad_log_bound = None
        if ctx.needs_input_grad[2]:
            grad_log_bound = (grad_s * s).sum(2)  # s = exp(c) · …, so ∂s/∂c = s
        grad_s.mul_(bound)
        grad_raw = torch.cat([squash_backward(grad_s, squashed), grad_t * moves], 1)
        return grad_x, grad_raw, grad_log_bound, None, None, None


@dataclass(frozen=True)
class Conditioned:
    """What a coupling's networks say of the coordinates that pass.

    `raw` (E, heads O, N), s before t; `moves` (E, O, 1), 1 where the coordinate of an output moves;
    `scatter` (E, D, O) puts outputs where they belong, None where there is one for each coordinate,
    O = D.
    """

    raw: Tensor
    moves: Tensor
    scatter: Tensor | None

    def scattered(self, part: Tensor) -> Tensor:
        """(E, O, N) to (E, D, N)."""
        return part if self.scatter is None else self.scatter @ part


def selection(mask: Tensor) -> Tensor:
    """Masks (…, D) as matrices (…, D, D).

    The first rows pick the coordinates that pass, the others those that move.

    >>> selection(torch.tensor([0.0, 1.0, 0.0])).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    passing = mask.cumsum(-1)  # 1, 2, … along the coordinates that pass
    moving = passing[..., -1:] + (1 - mask).cumsum(-1)  # and on along the others
    row_of = torch.where(mask > 0, passing, moving)
    rows = torch.arange(1, mask.shape[-1] + 1, device=mask.device)
    return (row_of.unsqueeze(-2) == rows[:, None]).to(mask)


class Coupling(Layer):
    """A coupling layer: z = x ⊙ exp(s(b ⊙ x)) + t(b ⊙ x) where b = 0, z = x where b = 1.

    s = exp(c) tanh(r) with a learned c per coordinate, or c = 0 ("tanh"), or r / (1 + |r| / 6.9),
    as in zuko ("soft"), or r itself, unbounded ("exp"), for a network's output r; the additive
    layer (NICE) has s = 0. Source: Dinh, Sohl-Dickstein, Bengio 2017, eq. 7-9.

    With a `tail_bound` B the networks see b ⊙ x clamped to ±B. Beyond B, where no training point
    told them anything, s and t are those of the edge: the layer is affine there, as the tails of a
    spline flow are (Durkan et al. 2019).

    With a context c of C numbers the networks see [b ⊙ x, c], both clamped: at each c the layer is
    a coupling of x (Winkler et al. 2019).
    """

    def __init__(self, flow: Flow, index: int, dim: int, n_context: int = 0) -> None:
        super().__init__(f"coupling.{index}", dim)
        self.flow = flow
        self.n_context = n_context
        self.heads = flow.heads
        self.nets = flow.nets
        self.learned_scale = self.heads == 2 and flow.scale == "learned"
        # no weight is one of a masked input or output
        self.compact = flow.conditioner_input == "passed"
        self.n_inputs = dim
        self.n_outputs = dim
        if self.compact:
            self.n_inputs = passed_counts(flow, dim)[index]
            self.n_outputs = dim - self.n_inputs
        hidden = [flow.hidden_width] * flow.hidden_depth
        self.widths = (self.n_inputs + n_context, *hidden, self.n_outputs * self.heads // self.nets)

    def learned_shapes(self) -> Shapes:
        names = []
        for i in range(len(self.widths) - 1):
            names += [f"{self.name}.net.{i}.weight", f"{self.name}.net.{i}.bias"]
        shapes_of_networks = mlp_shapes(self.widths, self.nets)
        of_networks: dict[str, tuple[int, ...]] = {}
        for name, shape in zip(names, shapes_of_networks, strict=True):
            of_networks[name] = shape
        shapes: Shapes = {f"{self.name}.net": of_networks}
        if self.learned_scale:
            name = f"{self.name}.log_scale"
            shapes[name] = {name: (1, self.n_outputs)}
        return shapes

    def fixed_shapes(self) -> Shapes:
        return self._per_coordinate("mask")

    def initialise(self, tensors: Tensors, points: Points, draws: Generator) -> None:
        """Weights and biases uniform in ±1/√fan_in.

        The last layer zero unless `init` is "random" or "kaiming".

        A zero last layer makes every coupling start as the identity. With "kaiming" the weights
        between hidden layers are uniform in ±√(6/fan_in): half of the units of a ReLU are off, and
        what is left keeps its size from layer to layer (He et al. 2015). The mask is set before.
        """
        depth = self.flow.hidden_depth
        layers = depth + 1 if self.flow.init in FULL_STARTS else depth
        for i in range(layers):
            weight = tensors[f"{self.name}.net.{i}.weight"]
            bias = tensors[f"{self.name}.net.{i}.bias"]
            # in one dimension a coupling may pass nothing
            largest = math.sqrt(max(weight.shape[1], 1))
            weight.copy_(_uniform(weight.shape, draws) / largest)
            bias.copy_(_uniform(bias.shape, draws) / largest)
            if self.flow.init == "kaiming" and 0 < i < depth:
                weight.mul_(KAIMING_GAIN)
        if self.learned_scale:
            tensors[f"{self.name}.log_scale"].fill_(math.log(INITIAL_SCALE))

    def spread_bends(self, tensors: Tensors, points: Points, draws: Generator) -> None:
        """Draw the first layer anew so that each of its units, σ(wᵀ(x − k)), bends at a point k of its own.

        k is uniform over ±2.5 standard deviations of the data; the usual biases bunch the bends
        near the centre. w is uniform in ±slope/√(coordinates that pass, and the context), the slope
        1 or, where σ bends smoothly, 3.
        """
        weight = tensors[f"{self.name}.net.0.weight"]
        bias = tensors[f"{self.name}.net.0.bias"]
        passed = tensors[f"{self.name}.mask"].T  # (D, 1)
        mean = points.mean[:, None]
        sd = points.var.sqrt()[:, None]
        if self.compact:
            inputs = passed[:, 0] > 0
            passed = passed[inputs]
            mean = mean[inputs]
            sd = sd[inputs]
        if self.flow.standardise != "none":
            mean = torch.zeros_like(mean)
            sd = torch.ones_like(sd)
        # it is standardised, and none of it is masked
        of_context = mean.new_ones(self.n_context, 1)
        passed = torch.cat([passed, of_context])
        centre = torch.cat([mean, 0 * of_context])
        unit = torch.cat([sd, of_context])
        n_seen = max(float(passed.sum()), 1.0)
        slope = FIRST_SLOPE.get(self.flow.activation, SMOOTH_SLOPE) / math.sqrt(n_seen)
        weight.copy_(slope / unit * _uniform(weight.shape, draws))
        bends = centre + unit * FIRST_REACH * _uniform(weight.shape, draws)
        bias.copy_(-(passed * weight * bends).sum(1, keepdim=True))

    def _conditioned(self, p: Tensors, x: Tensor) -> Conditioned:
        """What the networks say at x, of which they see the coordinates that pass."""
        mask = p[f"{self.name}.mask"].unsqueeze(-1)
        if not self.compact:
            raw = self._networks(p, x * mask)
            return Conditioned(raw, 1 - mask, None)
        rows = p[f"{self.name}.selection"]
        passing = rows[:, : self.n_inputs]
        moving = rows[:, self.n_inputs :]
        raw = self._networks(p, passing @ x)
        all_move = torch.ones_like(mask[:, : self.n_outputs])
        return Conditioned(raw, all_move, moving.mT)

    def _networks(self, p: Tensors, x: Tensor) -> Tensor:
        if self.n_context:
            x = torch.cat([x, p[CONTEXT]], 1)
        if self.flow.tail_bound is not None:
            x = x.clamp(-self.flow.tail_bound, self.flow.tail_bound)
        return mlp(
            x, p[f"{self.name}.net"], self.widths, nets=self.nets, activation=self.flow.activation
        )

    def inverse(self, p: Tensors, x: Tensor, batch: Batch | None = None) -> tuple[Tensor, Tensor]:
        said = self._conditioned(p, x)
        if self.heads == 1:
            z = torch.addcmul(x, said.scattered(said.raw), said.scattered(said.moves))
            return z, x.new_zeros(())
        log_bound = p.get(f"{self.name}.log_scale")
        z, log_det = _Affine.apply(
            x, said.raw, log_bound, said.moves, said.scatter, self.flow.scale
        )
        return z, log_det

    def forward(self, p: Tensors, z: Tensor) -> tuple[Tensor, Tensor]:
        said = self._conditioned(p, z)  # z and x agree where the networks look
        if self.heads == 1:
            x = torch.addcmul(z, said.scattered(said.raw), said.scattered(said.moves), value=-1)
            return x, z.new_zeros(())
        raw_s, raw_t = said.raw.chunk(2, 1)
        log_bound = p.get(f"{self.name}.log_scale")
        s = _log_scale(self.flow.scale, raw_s, log_bound, said.moves).s
        t = said.scattered(raw_t * said.moves)
        return (z - t) * torch.exp(-said.scattered(s)), -s.sum(1)

    def dead_parameters(self, passed: int) -> int:
        """Learned numbers that a mask passing so many coordinates keeps from acting.

        Inputs and outputs of zero.
        """
        if self.compact:
            return 0
        dead_inputs = self.nets * self.flow.hidden_width * (self.dim - passed)
        dead_outputs = passed * self.heads * (self.flow.hidden_width + 1)
        dead_scales = passed if self.learned_scale else 0
        return dead_inputs + dead_outputs + dead_scales


def _uniform(shape: tuple[int, ...], draws: Generator) -> Tensor:
    """Uniform in ±1, float64."""
    return 2 * torch.rand(tuple(shape), generator=draws, dtype=torch.float64) - 1


def draw_mask(schedule: str, n_flows: int, dim: int, generator: Generator) -> Tensor:
    """Masks of all coupling layers in data → base order.

    1 marks a coordinate that passes unchanged.

    `alternating` even and odd coordinates in turn; `fixed` the same every time; `once` switches one
    time half-way; `random` a random half per layer; `half` first and second half in turn.

    Returns shape (n_flows, dim), float64.

    >>> draw_mask("once", 4, 2, torch.Generator())[:, 0].tolist()
    [1.0, 1.0, 0.0, 0.0]
    """
    coordinate = torch.arange(dim)
    if schedule == "random":
        orders = [torch.randperm(dim, generator=generator) for _ in range(n_flows)]
        return (torch.stack(orders) < dim // 2).double()
    first = coordinate % 2 == 0
    if schedule == "half":
        first = coordinate < dim // 2
    swapped = torch.tensor(swaps(schedule, n_flows))
    return (first ^ swapped[:, None]).double()
