"""A trained flow as a plain module of PyTorch, or in the modules of zuko.

The same density, in weights of its own.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfexp.flows.bases import base_log_prob, base_sample
from nfexp.flows.elementwise import Elementwise, Tail
from nfexp.flows.layers import CONTEXT, SOFT_BOUND, Coupling, Layer
from nfexp.flows.stack import FlowStack

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "elu": nn.ELU,
}


class Conditioner(nn.Module):
    """The networks of a coupling.

    From the coordinates that pass (…, P) to s and t of the others, (…, M) each.

    A context is the last of what they read, (…, P + C), and standardised here.

    They are nothing but ``nn.Linear`` and an activation. The additive coupling has s = 0.
    """

    context_mean: Tensor
    context_sd: Tensor

    def __init__(self, layer: Coupling, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        flow = layer.flow
        mask = tensors[f"{layer.name}.mask"][0] > 0
        self.scale = flow.scale
        self.tail_bound = flow.tail_bound
        self.heads = layer.heads
        moving = torch.nonzero(~mask)[:, 0]
        n_outputs = layer.n_outputs
        # of the outputs of each head
        chosen = torch.arange(len(moving)) if layer.compact else moving
        read = torch.cat([mask, mask.new_ones(layer.n_context)])
        self.n_context = layer.n_context
        if self.n_context:
            self.register_buffer("context_mean", tensors[f"{CONTEXT}.mean"][0].clone())
            self.register_buffer("context_sd", tensors[f"{CONTEXT}.var"][0].sqrt())
        self.nets = nn.ModuleList()
        heads_of_net = layer.heads // layer.nets
        for net in range(layer.nets):
            parts: list[nn.Module] = []
            depth = len(layer.widths) - 1
            for i in range(depth):
                weight = tensors[f"{layer.name}.net.{i}.weight"][net]  # (in, out)
                bias = tensors[f"{layer.name}.net.{i}.bias"][net, 0]
                if i == 0 and not layer.compact:
                    weight = weight[read]  # a masked input is 0
                if i == depth - 1:  # a coordinate that passes needs no output
                    outputs = torch.cat([chosen + head * n_outputs for head in range(heads_of_net)])
                    weight = weight[:, outputs]
                    bias = bias[outputs]
                parts.append(_linear(weight, bias))
                if i < depth - 1:
                    parts.append(ACTIVATIONS[flow.activation]())
            self.nets.append(nn.Sequential(*parts))
        self.log_scale: nn.Parameter | None = None
        if layer.learned_scale:
            self.log_scale = nn.Parameter(tensors[f"{layer.name}.log_scale"][0, chosen].clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.n_context:
            context = (x[..., -self.n_context :] - self.context_mean) / self.context_sd
            x = torch.cat([x[..., : -self.n_context], context], -1)
        if self.tail_bound is not None:
            x = x.clamp(-self.tail_bound, self.tail_bound)
        raw = torch.cat([net(x) for net in self.nets], -1)
        if self.heads == 1:
            return torch.zeros_like(raw), raw
        raw_s, t = raw.chunk(2, -1)
        if self.scale == "exp":
            return raw_s, t
        if self.scale == "soft":
            return raw_s / (1 + raw_s.abs() / SOFT_BOUND), t
        s = torch.tanh(raw_s)
        return (s if self.log_scale is None else torch.exp(self.log_scale) * s), t


class PlainCoupling(nn.Module):
    """z = x exp(s) + t for the coordinates that move, z = x for those that pass."""

    passing: Tensor
    moving: Tensor

    def __init__(self, layer: Coupling, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        mask = tensors[f"{layer.name}.mask"][0] > 0
        self.register_buffer("passing", torch.nonzero(mask)[:, 0])
        self.register_buffer("moving", torch.nonzero(~mask)[:, 0])
        self.conditioner = Conditioner(layer, tensors)

    def inverse(self, x: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self.conditioner(torch.cat([x[..., self.passing], given], -1))
        z = x.clone()
        z[..., self.moving] = x[..., self.moving] * torch.exp(s) + t
        return z, s.sum(-1)

    def forward(self, z: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self.conditioner(torch.cat([z[..., self.passing], given], -1))
        x = z.clone()
        x[..., self.moving] = (z[..., self.moving] - t) * torch.exp(-s)
        return x, -s.sum(-1)


class PlainElementwise(nn.Module):
    """z = (x − mean) exp(log_gain) + shift; batch norm by its running statistics.

    Only couplings see what is given.
    """

    mean: Tensor
    log_gain: Tensor
    shift: Tensor

    def __init__(self, layer: Elementwise, p: dict[str, Tensor]) -> None:
        super().__init__()
        mean, log_gain, shift = layer._coefficients(p)
        like = log_gain[0, :, 0]
        for name, value in {"mean": mean, "log_gain": log_gain, "shift": shift}.items():
            if isinstance(value, Tensor):
                coefficient = value[0, :, 0]
            else:
                coefficient = torch.full_like(like, value)
            self.register_buffer(name, coefficient.detach().clone())

    def inverse(self, x: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        z = (x - self.mean) * torch.exp(self.log_gain) + self.shift
        return z, self.log_gain.sum().expand(x.shape[:-1])

    def forward(self, z: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        x = (z - self.shift) * torch.exp(-self.log_gain) + self.mean
        return x, -self.log_gain.sum().expand(z.shape[:-1])


class PlainTail(nn.Module):
    """z = sinh(d asinh(x)), see :class:`nfexp.flows.elementwise.Tail`."""

    def __init__(self, layer: Tail, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.log_power = nn.Parameter(tensors[f"{layer.name}.log_power"][0].clone())

    def _log_slope(self, a: Tensor, b: Tensor) -> Tensor:
        """log |dz/dx| with x = sinh a, z = sinh b."""
        log_cosh_a = a.abs() + F.softplus(-2 * a.abs())
        log_cosh_b = b.abs() + F.softplus(-2 * b.abs())
        return (self.log_power + log_cosh_b - log_cosh_a).sum(-1)

    def inverse(self, x: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.asinh(x)
        b = torch.exp(self.log_power) * a
        return torch.sinh(b), self._log_slope(a, b)

    def forward(self, z: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        b = torch.asinh(z)
        a = torch.exp(-self.log_power) * b
        return torch.sinh(a), -self._log_slope(a, b)


class PlainFlow(nn.Module):
    """One flow as a module of PyTorch with named parameters: `layers` in data → base order.

    ``log_prob(x)`` takes (…, D) to (…), nats, in data units; ``inverse`` maps data to base and
    ``forward`` base to data, each with its log-det; ``sample(n)`` draws by PyTorch's global
    generator. Networks and scales are parameters; what standardises and normalises is a buffer. A
    flow with a context takes it after the points, (…, C) or one (C,) for all, in data units.
    """

    def __init__(self, stack: FlowStack) -> None:
        super().__init__()
        if stack.n_members != 1:
            raise ValueError(f"stack: expected one flow; got {stack.n_members}")
        self.base = stack.flow.base
        self.dim = stack.dim
        self.n_context = stack.n_context
        tensors = {name: value[0].detach() for name, value in stack.tensors().items()}
        blocks = {name: value.detach() for name, value in stack._blocks().items()}
        self.layers = nn.ModuleList()
        for layer in stack.layers:
            self.layers.append(_plain(layer, tensors, blocks))

    def _given(self, x: Tensor, context: Tensor | None) -> Tensor:
        """The context at each of the points x: (…, C), C = 0 where nothing is given."""
        width = 0 if context is None else context.shape[-1]
        if width != self.n_context:
            raise ValueError(
                f"context: expected {self.n_context} numbers for each point; got {width}"
            )
        if context is None:
            return x[..., :0]
        return context.expand(*x.shape[:-1], -1)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to base, and log |det ∂z/∂x|."""
        given = self._given(x, context)
        total = x.new_zeros(x.shape[:-1])
        for layer in self.layers:
            x, log_det = layer.inverse(x, given)  # type: ignore[operator]
            total = total + log_det
        return x, total

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Base to data, and log |det ∂x/∂z|."""
        given = self._given(z, context)
        total = z.new_zeros(z.shape[:-1])
        for layer in reversed(list(self.layers)):
            z, log_det = layer(z, given)
            total = total + log_det
        return z, total

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        z, log_det = self.inverse(x, context)
        return base_log_prob(self.base, z) + log_det

    def sample(self, n: int, context: Tensor | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        like = next(self.parameters())
        return self.forward(base_sample(self.base, (n, self.dim), generator).to(like), context)[0]


def _plain(layer: Layer, tensors: dict[str, Tensor], blocks: dict[str, Tensor]) -> nn.Module:
    if isinstance(layer, Coupling):
        return PlainCoupling(layer, tensors)
    if isinstance(layer, Tail):
        return PlainTail(layer, tensors)
    assert isinstance(layer, Elementwise)
    return PlainElementwise(layer, blocks)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """An nn.Linear with a weight that is (in, out) here, and (out, in) there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # in one dimension a network may have no input
        made = nn.utils.skip_init(
            nn.Linear, *weight.shape, dtype=weight.dtype, device=weight.device
        )
    made.weight.data.copy_(weight.T)
    made.bias.data.copy_(bias)
    return made


def to_torch(stack: FlowStack) -> PlainFlow:
    """One flow as a plain module of PyTorch, with weights of its own.

    Log-densities agree to rounding.
    """
    return PlainFlow(stack)


# --- zuko ------------------------------------------------------------------------------


class _Stacked(nn.Module):
    """A conditioner as zuko's coupling reads it.

    (…, P + C) to (…, 2 M), s and t of each coordinate side by side.
    """

    def __init__(self, conditioner: Conditioner) -> None:
        super().__init__()
        self.conditioner = conditioner

    def forward(self, x: Tensor) -> Tensor:
        s, t = self.conditioner(x)
        return torch.stack([s, t], -1).flatten(-2)


def to_zuko(stack: FlowStack) -> Any:
    """One flow as a ``zuko.lazy.Flow``.

    Couplings as ``GeneralCouplingTransform``, networks as in `to_torch`.

    Raises
    ------
    ImportError
        Without zuko.
    ValueError
        For what zuko has no part for: a learned tail, a base that is neither normal nor laplace,
        and a coupling that passes or moves nothing.
    """
    import zuko
    from torch.distributions import AffineTransform, Independent, Laplace, Normal

    plain = PlainFlow(stack)
    laws: dict[str, Any] = {"normal": Normal, "laplace": Laplace}
    if plain.base not in laws:
        raise ValueError(
            f"flow.base: expected one of {', '.join(laws)} for zuko; got {plain.base!r}"
        )

    def elementwise(shift: Tensor, log_gain: Tensor) -> Any:
        return zuko.transforms.DependentTransform(AffineTransform(shift, torch.exp(log_gain)), 1)

    def base(mean: Tensor, scale: Tensor) -> Independent:
        return Independent(laws[plain.base](mean, scale), 1)

    transforms = []
    for layer in plain.layers:
        if isinstance(layer, PlainCoupling):
            transforms.append(_zuko_coupling(layer, plain.dim, plain.n_context))
        elif isinstance(layer, PlainElementwise):
            zero = torch.zeros_like(layer.mean)
            for shift, log_gain in ((-layer.mean, zero), (layer.shift, layer.log_gain)):
                transforms.append(
                    zuko.lazy.UnconditionalTransform(elementwise, shift, log_gain, buffer=True)
                )
        else:
            raise ValueError("flow.tail: expected 'none' for zuko; got 'learned'")
    zero = torch.zeros(plain.dim).to(stack.theta)
    return zuko.lazy.Flow(
        transforms, zuko.lazy.UnconditionalDistribution(base, zero, zero + 1, buffer=True)
    )


def _zuko_coupling(layer: PlainCoupling, dim: int, n_context: int) -> Any:
    """A coupling as zuko has it, with the networks of `layer`."""
    import zuko
    from torch.distributions import AffineTransform

    def affine(s: Tensor, t: Tensor) -> AffineTransform:
        return AffineTransform(t, torch.exp(s))

    mask = torch.zeros(dim, dtype=torch.bool)
    mask[layer.passing.cpu()] = True
    if mask.all() or not mask.any():
        expected = "couplings that pass and move something, for zuko"
        raise ValueError(f"flow.mask: expected {expected}; got another")
    # Networks of zuko's own, which are replaced, would draw weights
    with torch.random.fork_rng(devices=[]):
        coupling = zuko.flows.GeneralCouplingTransform(dim, n_context, mask, univariate=affine)
    coupling.hyper = _Stacked(layer.conditioner)
    return coupling.to(layer.passing.device)


EXPORTS = {"torch": to_torch, "zuko": to_zuko}
