"""RealNVP over stacks: E flows of one architecture as one batched program.

`forward` maps base to data, `inverse` maps data to base (the direction of training). The weights of a stack are one
matrix `theta` of shape (E, P) and its fixed numbers (masks, standardisation, running statistics) one matrix `fixed`
of shape (E, S): row e is member e, whole, so that selecting, freezing, clipping and copying members are row
operations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from torch import Tensor

from nfexp.nn import base_log_prob, base_sample, mlp, stream
from nfexp.spec import Spec

Params = Mapping[str, Tensor]


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
    norm: str
    norm_every: int
    base: str

    @classmethod
    def of(cls, spec: Spec, dim: int = 2) -> Architecture:
        return cls(dim=dim, **{f.name: getattr(spec.flow, f.name) for f in fields(cls) if f.name != "dim"})


def draw_mask(schedule: str, n_flows: int, dim: int, generator: torch.Generator) -> Tensor:
    """Masks of all coupling layers in data → base order; 1 marks a coordinate that passes unchanged.

    `alternating` even and odd coordinates in turn; `fixed` the same every time; `once` switches one time half-way;
    `random` a random half per layer; `half` first and second half in turn.

    Returns shape (n_flows, dim), float64.

    >>> draw_mask("once", 4, 2, stream(0, "mask"))[:, 0].tolist()
    [1.0, 1.0, 0.0, 0.0]
    """
    first = torch.arange(dim) % 2 == 0
    layer = torch.arange(n_flows)
    if schedule == "random":
        orders = torch.stack([torch.randperm(dim, generator=generator) for _ in range(n_flows)])
        return (orders < dim // 2).double()
    if schedule == "half":
        first = torch.arange(dim) < dim // 2
    flip = {
        "fixed": torch.zeros(n_flows, dtype=torch.bool),
        "once": layer >= (n_flows + 1) // 2,
        "alternating": layer % 2 == 1,
        "half": layer % 2 == 1,
    }[schedule]
    return (first ^ flip[:, None]).double()


class Coupling:
    """A coupling layer: z = x ⊙ exp(s(b ⊙ x)) + t(b ⊙ x) where b = 0, z = x where b = 1.

    s = exp(c) tanh(·) with a learned c per coordinate; the additive layer (NICE) has s = 0.
    Source: Dinh, Sohl-Dickstein, Bengio 2017, eq. 7-9.
    """

    def __init__(self, arch: Architecture, index: int) -> None:
        self.name = f"coupling.{index}"
        self.arch = arch
        self.heads = 2 if arch.coupling == "affine" else 1
        self.nets = self.heads if arch.conditioner == "separate" else 1

    def shapes(self) -> dict[str, tuple[int, ...]]:
        a, nets = self.arch, self.nets
        widths = [a.dim, *[a.hidden_width] * a.hidden_depth, a.dim * self.heads // nets]
        shapes: dict[str, tuple[int, ...]] = {}
        for i, (n_in, n_out) in enumerate(pairwise(widths)):
            shapes[f"{self.name}.net.{i}.weight"] = (nets, n_in, n_out)
            shapes[f"{self.name}.net.{i}.bias"] = (nets, 1, n_out)
        if self.heads == 2:
            shapes[f"{self.name}.log_scale"] = (1, a.dim)
        return shapes

    def fixed_shapes(self) -> dict[str, tuple[int, ...]]:
        return {f"{self.name}.mask": (1, self.arch.dim)}

    def _scale_shift(self, p: Params, x: Tensor) -> tuple[Tensor | None, Tensor]:
        mask = p[f"{self.name}.mask"]
        layers = [
            (p[f"{self.name}.net.{i}.weight"], p[f"{self.name}.net.{i}.bias"])
            for i in range(self.arch.hidden_depth + 1)
        ]
        out = mlp(x * mask, layers, self.arch.activation)  # (E, G, N, D · heads / G)
        free = 1 - mask
        if self.heads == 1:
            return None, out[:, 0] * free
        raw_s, t = out.unbind(1) if self.nets == 2 else out[:, 0].chunk(2, -1)
        s = torch.exp(p[f"{self.name}.log_scale"]) * torch.tanh(raw_s) * free
        return s, t * free

    def inverse(self, p: Params, x: Tensor, batch: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        s, t = self._scale_shift(p, x)
        if s is None:
            return x + t, x.new_zeros(x.shape[:-1])
        return x * torch.exp(s) + t, s.sum(-1)

    def forward(self, p: Params, z: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self._scale_shift(p, z)
        if s is None:
            return z - t, z.new_zeros(z.shape[:-1])
        return (z - t) * torch.exp(-s), -s.sum(-1)


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

    def shapes(self) -> dict[str, tuple[int, ...]]:
        learned = {"standardise": [], "diagonal": ["log_gain"]}.get(self.kind, ["log_gain", "shift"])
        return {f"{self.name}.{key}": (1, self.dim) for key in learned}

    def fixed_shapes(self) -> dict[str, tuple[int, ...]]:
        kept = ["mean", "var"] if self.kind in ("standardise", "batchnorm") else []
        return {f"{self.name}.{key}": (1, self.dim) for key in kept}

    def _coefficients(self, p: Params) -> tuple[Tensor | float, Tensor, Tensor | float]:
        """mean, log-gain and shift of z = (x - mean) exp(log_gain) + shift; tensors have shape (E, 1, D)."""
        gain = p.get(f"{self.name}.log_gain", 0.0)
        if f"{self.name}.var" in p:
            epsilon = self.epsilon if self.kind == "batchnorm" else 0.0
            gain = gain - 0.5 * torch.log(p[f"{self.name}.var"] + epsilon)
        return p.get(f"{self.name}.mean", 0.0), gain, p.get(f"{self.name}.shift", 0.0)

    def inverse(self, p: Params, x: Tensor, batch: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        if batch is not None and self.kind == "batchnorm":
            own = {"mean": x.mean(1, keepdim=True), "var": x.var(1, keepdim=True, correction=0)}
            for key, value in own.items():
                name = f"{self.name}.{key}"
                batch[name] = torch.lerp(p[name], value.detach(), self.momentum)
            p = {**p, **{f"{self.name}.{key}": value for key, value in own.items()}}
        if batch is not None and self.kind == "actnorm" and "initialise" in batch:
            log_gain = -0.5 * torch.log(x.var(1, keepdim=True, correction=0) + self.epsilon)
            new = {"log_gain": log_gain, "shift": -x.mean(1, keepdim=True) * torch.exp(log_gain)}
            batch |= {f"{self.name}.{key}": value for key, value in new.items()}
            p = {**p, **{f"{self.name}.{key}": value for key, value in new.items()}}
        mean, gain, shift = self._coefficients(p)
        return (x - mean) * torch.exp(gain) + shift, gain.sum(-1).expand(x.shape[:-1])

    def forward(self, p: Params, z: Tensor) -> tuple[Tensor, Tensor]:
        mean, gain, shift = self._coefficients(p)
        return (z - shift) * torch.exp(-gain) + mean, -gain.sum(-1).expand(z.shape[:-1])


class Layout:
    """Where named tensors of shape (E, …) lie in the columns of a matrix (E, P)."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.width = sum(self.sizes)

    def views(self, matrix: Tensor) -> dict[str, Tensor]:
        parts = torch.split(matrix, self.sizes, dim=1) if self.sizes else ()
        return {k: v.unflatten(1, s) for (k, s), v in zip(self.shapes.items(), parts, strict=True)}


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
    >>> from nfexp.flow import Architecture, FlowStack, build
    >>> arch = Architecture(dim=2, n_flows=4, hidden_depth=2, hidden_width=8, activation="relu", coupling="affine",
    ...                     conditioner="separate", norm="none", norm_every=2, base="normal")
    >>> flow = build(arch, masks=["alternating", "fixed"], seeds=[0, 1], data=torch.randn(2, 100, 2))
    >>> flow.log_prob(torch.zeros(2, 5, 2)).shape
    torch.Size([2, 5])
    """

    def __init__(self, arch: Architecture, theta: Tensor, fixed: Tensor) -> None:
        self.arch, self.theta, self.fixed = arch, theta, fixed
        self.layers: list[Coupling | Scaling] = [Scaling("standardise", "standardise", arch.dim)]
        for i in range(arch.n_flows):
            self.layers.append(Coupling(arch, i))
            if arch.norm != "none" and (i + 1) % arch.norm_every == 0:
                self.layers.append(Scaling(arch.norm, f"norm.{i}", arch.dim))
        if arch.coupling == "additive":
            self.layers.append(Scaling("diagonal", "diagonal", arch.dim))
        self.learned_layout = Layout({k: v for layer in self.layers for k, v in layer.shapes().items()})
        self.fixed_layout = Layout({k: v for layer in self.layers for k, v in layer.fixed_shapes().items()})

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

    def inverse(self, x: Tensor, *, batch: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Data to base: z and log|det ∂z/∂x|.

        Shapes: (E, N, D) to (E, N, D) and (E, N). With a dict as `batch`, batch norm uses the statistics of `x` and
        leaves its updated running statistics there.
        """
        p, total = self.params(), x.new_zeros(x.shape[:-1])
        for layer in self.layers:
            x, log_det = layer.inverse(p, x, batch)
            total = total + log_det
        return x, total

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Base to data: x and log|det ∂x/∂z|, shapes as in :meth:`inverse`."""
        p, total = self.params(), z.new_zeros(z.shape[:-1])
        for layer in reversed(self.layers):
            z, log_det = layer.forward(p, z)
            total = total + log_det
        return z, total

    def walk(self, z: Tensor) -> list[tuple[str, Tensor]]:
        """The points after every layer on the way from base to data, with the layer's name.

        Returns pairs of a name ("base", "coupling 5", …, "data") and points (E, N, D).
        """
        p, frames = self.params(), [("base", z)]
        for layer in reversed(self.layers):
            z, _ = layer.forward(p, z)
            frames.append(("data" if layer is self.layers[0] else layer.name.replace(".", " "), z))
        return frames

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
                width, affine = self.arch.hidden_width, layer.heads == 2
                for e, d in enumerate(passed):
                    dead_in = layer.nets * width * (self.arch.dim - d)
                    dead_out = d * layer.heads * (width + 1) + d * affine
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


INITIAL_SCALE = 2.0  # exp(c): the largest |s| a fresh coupling can reach


def build(arch: Architecture, *, masks: Sequence[str], seeds: Sequence[int], data: Tensor) -> FlowStack:
    """A fresh stack, each member initialised from its own seed and standardised by its own training points.

    Hidden weights and biases are uniform in ±1/√fan_in; the last layer is zero, so that every coupling starts as the
    identity.

    Parameters
    ----------
    masks, seeds
        One mask schedule and one seed per member.
    data
        Training points, shape (E, N, D); NaN rows are padding. dtype and device of the stack are those of `data`.
    """
    empty = FlowStack(arch, torch.empty(1, 0), torch.empty(1, 0))
    flow = empty.with_rows(
        torch.zeros(len(seeds), empty.learned_layout.width, dtype=torch.float64),
        torch.zeros(len(seeds), empty.fixed_layout.width, dtype=torch.float64),
    )
    p, points = flow.params(), data.double().cpu()
    for e, (seed, schedule) in enumerate(zip(seeds, masks, strict=True)):
        draws, mask = stream(seed, "init"), draw_mask(schedule, arch.n_flows, arch.dim, stream(seed, "mask"))
        for name, value in p.items():
            if name.endswith((".weight", ".bias")) and f".net.{arch.hidden_depth}." not in name:
                fan_in = value.shape[2] if name.endswith(".weight") else p[name[:-4] + "weight"].shape[2]
                noise = torch.rand(value.shape[1:], generator=draws, dtype=torch.float64)
                value[e] = (2 * noise - 1) / math.sqrt(fan_in)
        for i in range(arch.n_flows):
            p[f"coupling.{i}.mask"][e] = mask[i]
        own = points[e][~points[e].isnan().any(-1)]
        p["standardise.mean"][e] = own.mean(0)
        p["standardise.var"][e] = own.var(0, correction=0)
    for name, value in p.items():
        if name.endswith(".log_scale"):
            value.fill_(math.log(INITIAL_SCALE))
        if name.startswith("norm.") and name.endswith(".var"):
            value.fill_(1.0)
    return flow.to(data)


def initialise_actnorm(flow: FlowStack, x: Tensor) -> None:
    """Set every actnorm layer in place so that the batch `x` (E, N, D) leaves it with mean 0 and variance 1."""
    if flow.arch.norm != "actnorm":
        return
    found: dict[str, Tensor] = {"initialise": torch.empty(0)}
    with torch.no_grad():
        flow.inverse(x, batch=found)
        views = flow.learned_layout.views(flow.theta)
        for name, value in found.items():
            if name in views:
                views[name].copy_(value)
