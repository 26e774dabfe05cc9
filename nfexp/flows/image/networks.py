"""Residual networks of 3 x 3 convolutions.

What the couplings of images, and a learned dequantisation, ask.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from nfexp.flows.image.maps import as_groups, conv1x1, conv3x3, kept, padded, spread, total
from nfexp.flows.layers import Batch, Shapes, Tensors
from nfexp.spec import Flow

SIGMA: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "tanh": torch.tanh,
    "silu": F.silu,
    "elu": F.elu,
}
EPSILON = 1e-5  # added to a variance before it divides
MOMENTUM = 0.1  # share of a batch in the running averages


class MapNorm:
    """h ← (h − m) exp(g) + b for every map of a network, and the numbers it needs.

    "batch": m and the variance are those of the batch while training and running averages
    otherwise; a gain and a shift are learned besides. "act": m is 0, and g and b are learned, from
    what the first batch sets.
    """

    def __init__(self, name: str, kind: str, maps: int) -> None:
        self.name = name
        self.kind = kind
        self.maps = maps

    def learned_shapes(self) -> Shapes:
        return _blocks(self.name, {"log_gain": (1, self.maps), "shift": (1, self.maps)})

    def fixed_shapes(self) -> Shapes:
        if self.kind != "batch":
            return {}
        return _blocks(self.name, {"mean": (1, self.maps), "var": (1, self.maps)})

    def initialise(self, own: Tensors) -> None:
        if self.kind == "batch":
            own[f"{self.name}.var"].fill_(1.0)

    def __call__(self, p: Tensors, h: Tensor, batch: Batch | None) -> Tensor:
        log_gain = p[f"{self.name}.log_gain"]
        shift = p[f"{self.name}.shift"]
        # (E, N, maps, H, W)
        own = h.unflatten(1, (len(log_gain), -1)).transpose(0, 1)[:, :, : self.maps]
        if self.kind == "batch":
            mean, var = batch_moments(p, self.name, own, batch)
            log_gain = log_gain - 0.5 * torch.log(var + EPSILON)
            own = own - spread(mean, own)
        elif batch is not None and batch.initialise:
            log_gain, shift = first_gains(self.name, own, batch)
        out = own * spread(torch.exp(log_gain), own) + spread(shift, own)
        return as_groups(out, padded(self.maps))


def _blocks(name: str, tensors: dict[str, tuple[int, ...]]) -> Shapes:
    """One block of its own for each of these tensors, under this name."""
    shapes: Shapes = {}
    for key, shape in tensors.items():
        full = f"{name}.{key}"
        shapes[full] = {full: shape}
    return shapes


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel over points and pixels.

    (E, N, C, H, W) to (E, C), twice.
    """
    n = x.shape[1] * x.shape[3] * x.shape[4]
    mean = total(x) / n
    var = total((x - spread(mean, x)).square()) / n
    return mean, var


def batch_moments(p: Tensors, name: str, x: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
    """What batch norm normalises x (E, N, C, H, W) by.

    Running averages are left in the batch, if there is one.
    """
    if batch is None:
        return p[f"{name}.mean"], p[f"{name}.var"]
    mean, var = moments(x)
    for key, value in (("mean", mean), ("var", var)):
        full = f"{name}.{key}"
        batch.updates[full] = torch.lerp(p[full], value.detach(), MOMENTUM)
    return mean, var


def first_gains(name: str, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """log-gain and shift by which x leaves actnorm with mean 0 and variance 1.

    They are left in the batch, too.
    """
    mean, var = moments(x)
    log_gain = -0.5 * torch.log(var + EPSILON)
    shift = -mean * torch.exp(log_gain)
    batch.updates[f"{name}.log_gain"] = log_gain
    batch.updates[f"{name}.shift"] = shift
    return log_gain, shift


class Conv:
    """A 3 x 3 convolution with weights of its own, as they are or as gain · v / ‖v‖ (Salimans, Kingma 2016)."""

    def __init__(self, name: str, n_in: int, n_out: int, *, weight_norm: bool) -> None:
        self.name = name
        self.n_in = n_in
        self.n_out = n_out
        self.weight_norm = weight_norm

    def learned_shapes(self) -> Shapes:
        tensors: dict[str, tuple[int, ...]] = {
            "weight": (self.n_out, self.n_in, 3, 3),
            "bias": (1, self.n_out),
        }
        if self.weight_norm:
            tensors["gain"] = (1, self.n_out)
        return _blocks(self.name, tensors)

    def initialise(self, own: Tensors, draws: Generator) -> None:
        weight = own[f"{self.name}.weight"]
        root_of_inputs = math.sqrt(9 * self.n_in)
        weight.copy_(uniform(weight.shape, draws) / root_of_inputs)
        bias = own[f"{self.name}.bias"]
        bias.copy_(uniform(bias.shape, draws) / root_of_inputs)
        if self.weight_norm:
            own[f"{self.name}.gain"].copy_(weight.flatten(1).square().sum(-1).sqrt())

    def __call__(self, p: Tensors, h: Tensor) -> Tensor:
        weight = p[f"{self.name}.weight"].unflatten(1, (self.n_out, self.n_in, 3, 3))
        if self.weight_norm:
            length = weight.flatten(2).square().sum(-1).sqrt()
            weight = weight * (p[f"{self.name}.gain"] / length)[..., None, None, None]
        return conv3x3(h, weight, p[f"{self.name}.bias"])


class ResidualNet:
    """h = conv(x); h ← h + conv(σ(conv(σ(h)))) for every block; the output is conv1x1(σ(h)).

    A norm, if any, stands before every σ, and dropout before the second convolution of a block. The
    network sees a channel of ones besides: where its convolutions reach over the edge, they find
    zeros there.
    """

    def __init__(
        self, name: str, flow: Flow, n_in: int, n_out: int, *, maps: int = 0, blocks: int = -1
    ) -> None:
        self.name = name
        self.flow = flow
        self.n_in = n_in
        self.n_out = n_out
        self.maps = maps or flow.hidden_width
        self.n_blocks = flow.hidden_depth if blocks < 0 else blocks
        self.sigma = SIGMA[flow.activation]
        weight_norm = flow.net_norm == "weight"
        self.first = Conv(f"{name}.in", n_in + 1, self.maps, weight_norm=weight_norm)
        self.convs: list[Conv] = []
        for i in range(2 * self.n_blocks):
            self.convs.append(Conv(f"{name}.{i}", self.maps, self.maps, weight_norm=weight_norm))
        self.norms: list[MapNorm] = []  # none without a norm, else one before each σ
        if flow.net_norm in ("batch", "act"):
            for i in range(2 * self.n_blocks + 1):
                self.norms.append(MapNorm(f"{name}.norm.{i}", flow.net_norm, self.maps))

    def learned_shapes(self) -> Shapes:
        shapes = self.first.learned_shapes()
        for conv in self.convs:
            shapes |= conv.learned_shapes()
        for norm in self.norms:
            shapes |= norm.learned_shapes()
        out: dict[str, tuple[int, ...]] = {
            "weight": (self.n_out, self.maps),
            "bias": (1, self.n_out),
        }
        return shapes | _blocks(f"{self.name}.out", out)

    def fixed_shapes(self) -> Shapes:
        shapes: Shapes = {}
        for norm in self.norms:
            shapes |= norm.fixed_shapes()
        return shapes

    def initialise(self, own: Tensors, draws: Generator) -> None:
        """Weights and biases uniform in ±1/√fan_in.

        The last layer zero unless `init` is "random".
        """
        for conv in (self.first, *self.convs):
            conv.initialise(own, draws)
        for norm in self.norms:
            norm.initialise(own)
        if self.flow.init == "random":
            weight = own[f"{self.name}.out.weight"]
            weight.copy_(uniform(weight.shape, draws) / math.sqrt(self.maps))

    def _norm(self, i: int, p: Tensors, h: Tensor, batch: Batch | None) -> Tensor:
        return self.norms[i](p, h, batch) if self.norms else h

    def __call__(self, p: Tensors, x: Tensor, batch: Batch | None) -> Tensor:
        """(E, N, in, H, W) to (E, N, out, H, W)."""
        ones = x.new_ones(()).expand_as(x[:, :, :1])
        h = self.first(p, as_groups(torch.cat([x, ones], 2), padded(self.n_in + 1)))
        for i in range(self.n_blocks):
            inner = self.sigma(self._norm(2 * i, p, h, batch))
            inner = self.convs[2 * i](p, inner)
            inner = self.sigma(self._norm(2 * i + 1, p, inner, batch))
            if batch is not None and batch.dropout > 0:
                shape = (h.shape[0], padded(self.maps), *h.shape[2:])
                inner = inner * kept(batch.dropout, shape, batch.generators).to(inner)
            h = h + self.convs[2 * i + 1](p, inner)
        h = self.sigma(self._norm(2 * self.n_blocks, p, h, batch))
        weight = p[f"{self.name}.out.weight"].unflatten(1, (self.n_out, self.maps))
        return conv1x1(h, weight, p[f"{self.name}.out.bias"])


def uniform(shape: tuple[int, ...], draws: Generator) -> Tensor:
    """Uniform in ±1, float64."""
    return 2 * torch.rand(tuple(shape), generator=draws, dtype=torch.float64) - 1
