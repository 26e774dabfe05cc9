"""RealNVP over stacks: E flows of one architecture as one batched program.

`forward` maps base to data, `inverse` maps data to base (the direction of training). The weights of a stack are one
matrix `theta` of shape (E, P) and its fixed numbers (masks, standardisation, running statistics) one matrix `fixed`
of shape (E, S): row e is member e, whole, so that selecting, freezing, clipping and copying members are row
operations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from nfexp.flows.bases import base_log_prob, base_sample
from nfexp.flows.elementwise import NORMS, ContextMoments, Diagonal, Standardise, Tail
from nfexp.flows.image.layers import Logit, image_layers, level_counts
from nfexp.flows.image.plan import Image, stages
from nfexp.flows.layers import CONTEXT, Batch, Coupling, Layer, Points, Shapes, Tensors, draw_mask, selection
from nfexp.spec import Flow
from nfexp.streams import of_member, stream


class Layout:
    """Where blocks of named tensors (E, …) lie in the columns of a matrix (E, P)."""

    def __init__(self, blocks: Shapes) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}  # of every tensor
        self.sizes: dict[str, int] = {}  # of every block
        for block, shapes in blocks.items():
            self.shapes |= shapes
            self.sizes[block] = sum(math.prod(shape) for shape in shapes.values())
        self.width = sum(self.sizes.values())

    def blocks(self, matrix: Tensor) -> dict[str, Tensor]:
        """Each block as (E, size): what the layers compute with."""
        parts = torch.split(matrix, list(self.sizes.values()), dim=1)
        return dict(zip(self.sizes, parts, strict=True))

    def views(self, matrix: Tensor) -> dict[str, Tensor]:
        """Each named tensor as (E, …): what is initialised and stored."""
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        views = {}
        for name, part in zip(self.shapes, torch.split(matrix, sizes, dim=1), strict=True):
            views[name] = part.view(len(matrix), *self.shapes[name])
        return views


@lru_cache(maxsize=64)
def _architecture(flow: Flow, dim: int, image: Image | None, n_context: int) -> tuple[list[Layer], Layout, Layout]:
    """The layers in data → base order, and where their learned and their fixed tensors lie."""
    if image is None:
        layers = _vector_layers(flow, dim, n_context)
    else:
        layers = image_layers(flow, image, stages(flow, image.shape))
    learned: Shapes = {}
    fixed: Shapes = {}
    for layer in layers:
        learned |= layer.learned_shapes()
        fixed |= layer.fixed_shapes()
    if n_context:
        fixed |= ContextMoments(n_context).fixed_shapes()
    return layers, Layout(learned), Layout(fixed)


def _vector_layers(flow: Flow, dim: int, n_context: int) -> list[Layer]:
    layers: list[Layer] = [Standardise(flow, dim)]
    for i in range(flow.n_flows):
        layers.append(Coupling(flow, i, dim, n_context))
        if flow.norm != "none" and (i + 1) % flow.norm_every == 0:
            layers.append(NORMS[flow.norm](f"norm.{i}", dim))
    if flow.coupling == "additive":
        layers.append(Diagonal("diagonal", dim))
    if flow.tail == "learned":
        layers.append(Tail("tail", dim))
    return layers


@dataclass(frozen=True, kw_only=True)
class Law:
    """What an optimiser with two moments does at one step: θ moves along of_grad · g + of_first · m, over √v̂ + ε."""

    of_grad: float
    of_first: float
    beta1: float
    beta2: float
    epsilon: float


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a step of training reads and changes: weights, fixed numbers and both moments of a stack, (E, ·)."""

    theta: Tensor
    fixed: Tensor
    first: Tensor
    second: Tensor


@dataclass(frozen=True, kw_only=True)
class Course:
    """The next steps of a training, after `begun` of them.

    By row: the bound `clip` on the norm of its gradient, its learning rate `lr` and its weight decay `decay`; by step
    the factor of the learning rate and the optimiser's law. Rows that are not among `members` stay as they are.
    """

    members: Sequence[int]
    clip: Sequence[float]
    lr: Sequence[float]
    decay: Sequence[float]
    factors: Sequence[float]
    laws: Sequence[Law]
    begun: int


@dataclass(frozen=True, kw_only=True)
class Made:
    """How many steps each row made before its loss or gradient was not finite, and the last gradient's norm (E,)."""

    made: list[int]
    norm: Tensor


class Kernel(Protocol):
    """A quicker way to the numbers of a stack than its layers in torch: the same up to rounding, not differentiable."""

    def log_prob(self, theta: Tensor, fixed: Tensor, x: Tensor) -> Tensor:
        """As :meth:`FlowStack.log_prob`."""

    def inverse(self, theta: Tensor, fixed: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`FlowStack.inverse`."""

    def forward(self, theta: Tensor, fixed: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`FlowStack.forward`."""

    def steps(self, rows: Rows, x: Tensor, order: Tensor, course: Course) -> Made:
        """Make S steps in place: step i of row e learns from the points order[i, e] of x[e], (S, E, N) and (E, M, D).

        A row whose loss or gradient is not finite is not moved then, nor later.
        """


class FlowStack:
    """E RealNVP flows of one architecture.

    Parameters
    ----------
    flow
        The shared architecture. Masks are among the fixed numbers: its `mask` says at most how many coordinates each
        coupling passes (where `conditioner_input` is "passed").
    dim
        D, the numbers in a point; an image is one row of them.
    theta
        Learned numbers, shape (E, P).
    fixed
        Masks, standardisation and running statistics, shape (E, S).
    kernel
        What computes instead of the layers, where there is no `batch`; its results have no derivatives.
        What computes log-densities instead of the layers, where they are not to be differentiated.
    image
        Shape and levels of a point that is an image; None for vectors.
    n_context
        C, the numbers that are given at each point. Where C > 0 the density is q(x | c), and every map takes c beside
        its points: (E, N, C), data units.

    Examples
    --------
    >>> architecture = Flow(n_flows=4, hidden_depth=2, hidden_width=8, activation="relu", mask="alternating",
    ...                     coupling="affine", conditioner="separate", scale="learned", init="identity",
    ...                     standardise="moments", norm="none", norm_every=2, base="normal",
    ...                     conditioner_input="masked", tail_bound=None, tail="none", members=1)
    >>> stack = build(architecture, masks=["alternating", "fixed"], seeds=[0, 1], data=torch.randn(2, 100, 3))
    >>> stack.log_prob(torch.zeros(2, 5, 3)).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        flow: Flow,
        dim: int,
        theta: Tensor,
        fixed: Tensor,
        kernel: Kernel | None = None,
        image: Image | None = None,
        n_context: int = 0,
    ) -> None:
        self.flow = flow
        self.dim = dim
        self.theta = theta
        self.fixed = fixed
        self.kernel = kernel
        self.image = image
        self.n_context = n_context
        self.layers, self.learned_layout, self.fixed_layout = _architecture(flow, dim, image, n_context)

    @property
    def n_members(self) -> int:
        return self.theta.shape[0]

    def with_rows(self, theta: Tensor, fixed: Tensor) -> FlowStack:
        """The same architecture with other numbers."""
        return FlowStack(self.flow, self.dim, theta, fixed, self.kernel, self.image, self.n_context)

    def with_kernel(self, kernel: Kernel | None) -> FlowStack:
        """The same numbers, computed with by this kernel."""
        return FlowStack(self.flow, self.dim, self.theta, self.fixed, kernel, self.image, self.n_context)

    def member(self, e: int) -> FlowStack:
        """Member `e` as a stack of one."""
        return self.with_rows(self.theta[e : e + 1], self.fixed[e : e + 1])

    def pick(self, members: Sequence[int]) -> FlowStack:
        """The stack of these members, in this order."""
        rows = list(members)
        return self.with_rows(self.theta[rows], self.fixed[rows])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> FlowStack:
        """The same flows with both matrices on this device and of this dtype, without a kernel."""
        theta = self.theta.to(device, dtype)
        fixed = self.fixed.to(device, dtype)
        return FlowStack(self.flow, self.dim, theta, fixed, image=self.image, n_context=self.n_context)

    def tensors(self) -> dict[str, Tensor]:
        """Every named tensor, shape (E, …): views of the two matrices."""
        return self.learned_layout.views(self.theta) | self.fixed_layout.views(self.fixed)

    def _blocks(self, context: Tensor | None = None) -> Tensors:
        """What the layers compute with; the context (E, N, C) as couplings read it."""
        p = self.learned_layout.blocks(self.theta) | self.fixed_layout.blocks(self.fixed)
        if self.flow.conditioner_input == "passed":
            names = [layer.name for layer in self.layers if isinstance(layer, Coupling)]
            masks = torch.stack([p[f"{name}.mask"] for name in names])
            for name, chosen in zip(names, selection(masks), strict=True):  # of all at once: each is little work
                p[f"{name}.selection"] = chosen
        if self.n_context and context is not None:
            p[CONTEXT], _ = ContextMoments(self.n_context).inverse(p, context.mT)
        return p

    def _check_context(self, x: Tensor, context: Tensor | None) -> None:
        """Raise unless there is a context for each of the points x (E, N, D), or none where none is asked for."""
        shape = (*x.shape[:-1], self.n_context)
        if self.n_context == 0 and context is None:
            return
        if context is None or tuple(context.shape) != shape:
            got = "none" if context is None else tuple(context.shape)
            raise ValueError(f"context: expected shape {shape}; got {got}")

    def _turned(self, x: Tensor) -> Tensor:
        """From points as a caller has them, (E, N, D), to points as layers have them, and back.

        Layers of vectors have (E, D, N), so that points run along the last axis; those of images have (E, N, D).
        """
        return x if self.image is not None else x.mT

    def _inverse_steps(self, x: Tensor, context: Tensor | None, batch: Batch | None) -> Iterator[tuple[Tensor, Tensor]]:
        """From data (E, N, D) to base: the points after each layer, as layers have them, and its log-det."""
        self._check_context(x, context)
        p = self._blocks(context)
        x = self._turned(x).contiguous()
        for layer in self.layers:
            x, log_det = layer.inverse(p, x, batch)
            yield x, log_det

    def _forward_steps(self, z: Tensor, context: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """From base (E, N, D) to data, as :meth:`_inverse_steps`."""
        self._check_context(z, context)
        p = self._blocks(context)
        z = self._turned(z).contiguous()
        for layer in reversed(self.layers):
            z, log_det = layer.forward(p, z)
            yield z, log_det

    def inverse(self, x: Tensor, context: Tensor | None = None, *, batch: Batch | None = None) -> tuple[Tensor, Tensor]:
        """Data to base: z and log|det ∂z/∂x|.

        Shapes: (E, N, D) to (E, N, D) and (E, N). With a `batch` the points are one to train on, see
        :class:`nfexp.flows.layers.Batch`.
        """
        if self.kernel is not None and batch is None:
            return self.kernel.inverse(self.theta, self.fixed, x)
        z = self._turned(x)
        total = x.new_zeros(x.shape[:-1])
        for z, log_det in self._inverse_steps(x, context, batch):  # noqa: B007 (the last z is what is asked for)
            total = total + log_det
        return self._turned(z), total

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Base to data: x and log|det ∂x/∂z|, shapes as in :meth:`inverse`."""
        if self.kernel is not None:
            return self.kernel.forward(self.theta, self.fixed, z)
        x = self._turned(z)
        total = z.new_zeros(z.shape[:-1])
        for x, log_det in self._forward_steps(z, context):  # noqa: B007
            total = total + log_det
        return self._turned(x), total

    def walk(self, z: Tensor, context: Tensor | None = None) -> list[tuple[str, Tensor]]:
        """The points after every layer on the way from base to data, with the layer's name.

        Returns pairs of a name ("base", "coupling 5", …, "data") and points (E, N, D).
        """
        frames = [("base", z)]
        for layer, (x, _) in zip(reversed(self.layers), self._forward_steps(z, context), strict=True):
            first = layer is self.layers[0]  # the last one on this way
            frames.append(("data" if first else layer.name.replace(".", " "), self._turned(x)))
        return frames

    def first_nonfinite(self, x: Tensor, context: Tensor | None = None, *, batch: Batch | None = None) -> Tensor:
        """Which layer, on the way from data to base, first puts out a number that is not finite; its log-det counts.

        Returns the position in `layers`, shape (E,), or their number where every layer's output is finite.
        """
        total = x.new_zeros(x.shape[:-1])
        first = torch.full((len(x),), len(self.layers), device=x.device)
        for i, (z, log_det) in enumerate(self._inverse_steps(x, context, batch)):
            total = total + log_det
            lost = ~(self._turned(z).sum(-1) + total).isfinite().all(1)
            first = torch.where(lost & (first == len(self.layers)), i, first)
        return first

    def layer_name(self, position: int) -> str:
        """What stands at a position of `layers`, such as "coupling.0", or behind them all."""
        return self.layers[position].name if position < len(self.layers) else "the base density or the gradient"

    def log_prob(self, x: Tensor, context: Tensor | None = None, *, batch: Batch | None = None) -> Tensor:
        """log q(x) = log p(z) + log|det ∂z/∂x|, in nats; shapes (E, N, D) to (E, N). With a context, log q(x | c)."""
        if self.kernel is not None and batch is None:
            return self.kernel.log_prob(self.theta, self.fixed, x)
        z, log_det = self.inverse(x, context, batch=batch)
        return base_log_prob(self.flow.base, z) + log_det

    def log_density(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """:meth:`log_prob`, with −inf where that is not a number although `x` is one; all others are the same bits.

        A gain that overflows sends a point to infinity, where the next network says ∞ − ∞. Such points are computed
        again in float64. What overflows there too has a density of zero in every precision.
        """
        log_q = self.log_prob(x, context)
        lost = log_q.isnan() & ~x.isnan().any(-1)
        if context is not None:
            lost &= ~context.isnan().any(-1)
        if not lost.any():
            return log_q
        columns = lost.any(0)
        precise = self.to(self.theta.device, torch.float64)
        given = None if context is None else context[:, columns].double()
        again = precise.log_prob(x[:, columns].double(), given)
        again = again.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        repaired = log_q.clone()
        repaired[:, columns] = torch.where(lost[:, columns], again.to(log_q), log_q[:, columns])
        return repaired

    def base_draws(self, n: int, generators: Sequence[torch.Generator]) -> Tensor:
        """`n` points of the base per member, (E, n, D), each member's from its own CPU generator."""
        draws = [base_sample(self.flow.base, (n, self.dim), generator) for generator in generators]
        return torch.stack(draws).to(self.theta)

    def sample(self, n: int, generators: Sequence[torch.Generator], context: Tensor | None = None) -> Tensor:
        """Draw `n` points per member, each with its own CPU generator; shape (E, n, D). Images are whole levels."""
        return self.as_levels(self.forward(self.base_draws(n, generators), context)[0])

    def as_levels(self, x: Tensor) -> Tensor:
        """The levels whose cells the points x lie in, the nearest ones where they lie in none; vectors stay.

        Shape (E, N, D).
        """
        if self.image is None:
            return x
        return x.floor().clamp(0, self.image.levels - 1)

    def n_parameters(self) -> list[int]:
        """Learned numbers per member that its mask lets act (a masked input or output has none)."""
        total = [self.learned_layout.width] * self.n_members
        tensors = self.fixed_layout.views(self.fixed)
        for layer in self.layers:
            if isinstance(layer, Coupling):
                passed = tensors[f"{layer.name}.mask"].sum((1, 2)).long().tolist()
                for e in range(self.n_members):
                    total[e] -= layer.dead_parameters(passed[e])
        return total

    def state(self, e: int) -> dict[str, Tensor]:
        """The named tensors of member `e`, without the stack axis, ready to be stored."""
        return {name: value[e].detach().cpu().contiguous() for name, value in self.tensors().items()}


def without_numbers(flow: Flow, dim: int, image: Image | None = None, n_context: int = 0) -> FlowStack:
    """A stack of one without numbers: it knows the layers and where their tensors lie."""
    return FlowStack(flow, dim, torch.empty(1, 0), torch.empty(1, 0), image=image, n_context=n_context)


def from_state(
    flow: Flow, dim: int, state: Mapping[str, Tensor], image: Image | None = None, n_context: int = 0
) -> FlowStack:
    """A stack of one from the tensors of :meth:`FlowStack.state`.

    Raises
    ------
    ValueError
        If a tensor is missing, unknown or of another shape.
    """
    empty = without_numbers(flow, dim, image, n_context)
    expected = empty.learned_layout.shapes | empty.fixed_layout.shapes
    unknown = sorted(set(state) - set(expected))
    if unknown:
        raise ValueError(f"weights: expected the tensors of this architecture; got an unknown one, {unknown[0]}")
    for name, shape in expected.items():
        got = tuple(state[name].shape) if name in state else "nothing"
        if got != shape:
            raise ValueError(f"weights: expected {name} of shape {shape}; got {got}")
    rows = []
    for layout in (empty.learned_layout, empty.fixed_layout):
        parts = [state[name].reshape(-1) for name in layout.shapes]
        rows.append(torch.cat(parts)[None])
    theta, fixed = rows
    return empty.with_rows(theta, fixed)


def build(
    flow: Flow,
    *,
    masks: Sequence[str],
    seeds: Sequence[int],
    data: Tensor,
    positions: Sequence[int] | None = None,
    image: Image | None = None,
    context: Tensor | None = None,
) -> FlowStack:
    """A fresh stack, each member initialised from its own seed and standardised by its own training points.

    What a layer starts as, its own `initialise` says.

    Parameters
    ----------
    flow
        The shared architecture.
    masks, seeds
        One mask schedule and one seed per member.
    data
        Training points, shape (E, N, D); NaN rows are padding. dtype and device of the stack are those of `data`.
    positions
        Where each member stands in its ensemble: those of one seed start differently. All 0 if not given.
    image
        Shape and levels where points are images: dequantised ones, anywhere in the cells of their levels.
    context
        What is given at each training point, shape (E, N, C): of a density q(x | c).
    """
    dim = data.shape[-1]
    given = (data[..., :0] if context is None else context).double().cpu()
    empty = without_numbers(flow, dim, image, given.shape[-1])
    n_members = len(seeds)
    positions = positions or [0] * n_members
    stack = empty.with_rows(
        torch.zeros(n_members, empty.learned_layout.width, dtype=torch.float64),
        torch.zeros(n_members, empty.fixed_layout.width, dtype=torch.float64),
    )
    tensors = stack.tensors()
    raw = data.double().cpu()
    points = raw
    if image is not None:  # what is standardised is on the line
        points, _ = Logit(flow, image).inverse({}, raw)
    for e in range(n_members):
        own = {name: value[e] for name, value in tensors.items()}
        is_real = ~points[e].isnan().any(-1)
        moments = _moments(points[e][is_real])
        if image is not None:
            moments = replace(moments, counts=level_counts(raw[e][is_real], image.levels))
        if empty.n_context:
            ContextMoments(empty.n_context).initialise(own, _moments(given[e][is_real]), torch.Generator())
        _initialise_member(stack.layers, own, moments, mask=masks[e], seed=seeds[e], position=positions[e])
    return stack.to(data.device, data.dtype)


def _moments(points: Tensor) -> Points:
    return Points(mean=points.mean(0), var=points.var(0, correction=0))


def _initialise_member(
    layers: Sequence[Layer], own: Tensors, points: Points, *, mask: str, seed: int, position: int
) -> None:
    couplings = [layer for layer in layers if isinstance(layer, Coupling)]
    if couplings:  # those of images know their masks
        rows = draw_mask(mask, len(couplings), len(points.mean), stream(seed, of_member(position, "mask")))
        for coupling, row in zip(couplings, rows, strict=True):
            own[f"{coupling.name}.mask"].copy_(row)
    draws = stream(seed, of_member(position, "init"))
    for layer in layers:
        layer.initialise(own, points, draws)
    # A second round, not part of the first: the order of the draws is part of a run's identity.
    for coupling in couplings:
        if coupling.flow.init == "spread":
            coupling.spread_bends(own, points, draws)


def initialise_actnorm(stack: FlowStack, x: Tensor, context: Tensor | None = None) -> None:
    """Set every actnorm layer in place so that the batch `x` (E, N, D) leaves it with mean 0 and variance 1."""
    if stack.flow.norm != "actnorm" and stack.flow.net_norm != "act":
        return
    first = Batch(initialise=True)
    with torch.no_grad():
        stack.inverse(x, context, batch=first)
        blocks = stack.learned_layout.blocks(stack.theta)
        for name, value in first.updates.items():
            if name in blocks:  # batch norm leaves what is fixed
                blocks[name].copy_(value)
