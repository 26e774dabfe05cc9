"""RealNVP over stacks: E flows of one architecture as one batched program.

`forward` maps base to data, `inverse` maps data to base (the direction of training). The weights of a stack are one
matrix `theta` of shape (E, P) and its fixed numbers (masks, standardisation, running statistics) one matrix `fixed`
of shape (E, S): row e is member e, whole, so that selecting, freezing, clipping and copying members are row
operations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from nfexp.layers import Architecture, Coupling, Params, Scaling, Shapes
from nfexp.nn import base_log_prob, base_sample


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
    >>> from nfexp.layers import Architecture
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

    def log_density(self, x: Tensor) -> Tensor:
        """:meth:`log_prob`, with −inf where that is not a number although `x` is one; all others are the same bits.

        A gain that overflows sends a point to infinity, where the next network says ∞ − ∞. Such points are computed
        again in float64. What overflows there too has a density of zero in every precision.
        """
        log_q = self.log_prob(x)
        lost = log_q.isnan() & ~x.isnan().any(-1)
        if not lost.any():
            return log_q
        columns = lost.any(0)
        again = self.to(torch.float64).log_prob(x[:, columns].double())
        again = again.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        repaired = log_q.clone()
        repaired[:, columns] = torch.where(lost[:, columns], again.to(log_q), log_q[:, columns])
        return repaired

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
