"""RealNVP over stacks: E flows of one architecture as one batched program.

`forward` maps base to data, `inverse` maps data to base (the direction of training). The weights of
a stack are one matrix `theta` of shape (E, P) and its fixed numbers (masks, standardisation,
running statistics) one matrix `fixed` of shape (E, S): row e is member e, whole, so that selecting,
freezing, clipping and copying members are row operations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nfexp.flows.architecture import architecture
from nfexp.flows.bases import base_log_prob, base_sample
from nfexp.flows.elementwise import ContextMoments
from nfexp.flows.image.plan import Image
from nfexp.flows.kernel_protocol import Kernel
from nfexp.flows.layers import CONTEXT, Batch, Coupling, Tensors, selection
from nfexp.spec import Flow


class FlowStack:
    """E RealNVP flows of one architecture.

    Parameters
    ----------
    flow
        The shared architecture. Masks are among the fixed numbers: its `mask` says at most how many
        coordinates each coupling passes (where `conditioner_input` is "passed").
    dim
        D, the numbers in a point; an image is one row of them.
    theta
        Learned numbers, shape (E, P).
    fixed
        Masks, standardisation and running statistics, shape (E, S).
    kernel
        What computes instead of the layers, where there is no `batch`; its results have no
        derivatives.
    image
        Shape and levels of a point that is an image; None for vectors.
    n_context
        C, the numbers that are given at each point. Where C > 0 the density is q(x | c), and every
        map takes c beside its points: (E, N, C), data units.

    Examples
    --------
    >>> from nfexp.flows.stack import build
    >>> architecture = Flow(n_flows=4, hidden_depth=2, hidden_width=8, activation="relu", mask="alternating",
    ...                     coupling="affine", conditioner="separate", scale="learned", init="identity",
    ...                     standardise="moments", norm="none", norm_every=2, base="normal",
    ...                     conditioner_input="masked", tail_bound=None, tail="none", members=1,
    ...                     weights="equal")
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
        self.layers, self.learned_layout, self.fixed_layout = architecture(
            flow, dim, image, n_context
        )

    @property
    def n_members(self) -> int:
        return self.theta.shape[0]

    def with_rows(self, theta: Tensor, fixed: Tensor) -> FlowStack:
        """The same architecture with other numbers."""
        return FlowStack(self.flow, self.dim, theta, fixed, self.kernel, self.image, self.n_context)

    def with_kernel(self, kernel: Kernel | None) -> FlowStack:
        """The same numbers, computed with by this kernel."""
        return FlowStack(
            self.flow, self.dim, self.theta, self.fixed, kernel, self.image, self.n_context
        )

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
        return FlowStack(
            self.flow, self.dim, theta, fixed, image=self.image, n_context=self.n_context
        )

    def tensors(self) -> dict[str, Tensor]:
        """Every named tensor, shape (E, …): views of the two matrices."""
        return self.learned_layout.views(self.theta) | self.fixed_layout.views(self.fixed)

    def _blocks(self, context: Tensor | None = None) -> Tensors:
        """What the layers compute with; the context (E, N, C) as couplings read it."""
        p = self.learned_layout.blocks(self.theta) | self.fixed_layout.blocks(self.fixed)
        if self.flow.conditioner_input == "passed":
            names = [coupling.name for coupling in self.couplings()]
            masks = torch.stack([p[f"{name}.mask"] for name in names])
            # Of all couplings at once: each is little work
            for name, rows in zip(names, selection(masks), strict=True):
                p[f"{name}.selection"] = rows
        if self.n_context and context is not None:
            p[CONTEXT], _ = ContextMoments(self.n_context).inverse(p, context.mT)
        return p

    def couplings(self) -> list[Coupling]:
        """The couplings of vectors; those of images know their masks."""
        return [layer for layer in self.layers if isinstance(layer, Coupling)]

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

        Layers of vectors have (E, D, N), so that points run along the last axis; those of images
        have (E, N, D).
        """
        return x if self.image is not None else x.mT

    def _inverse_steps(
        self, x: Tensor, context: Tensor | None, batch: Batch | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """From data (E, N, D) to base.

        The points after each layer, as layers have them, and its log-det.
        """
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

    def inverse(
        self, x: Tensor, context: Tensor | None = None, *, batch: Batch | None = None
    ) -> tuple[Tensor, Tensor]:
        """Data to base: z and log|det ∂z/∂x|.

        Shapes: (E, N, D) to (E, N, D) and (E, N). With a `batch` the points are one to train on,
        see :class:`nfexp.flows.layers.Batch`.
        """
        if self.kernel is not None and batch is None:
            self._check_context(x, context)
            return self.kernel.inverse(self.theta, self.fixed, x, context)
        z = self._turned(x)
        total = x.new_zeros(x.shape[:-1])
        for z, log_det in self._inverse_steps(x, context, batch):  # noqa: B007 (the last z is what is asked for)
            total = total + log_det
        return self._turned(z), total

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Base to data: x and log|det ∂x/∂z|, shapes as in :meth:`inverse`."""
        if self.kernel is not None:
            self._check_context(z, context)
            return self.kernel.forward(self.theta, self.fixed, z, context)
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
        for layer, (x, _) in zip(
            reversed(self.layers), self._forward_steps(z, context), strict=True
        ):
            first = layer is self.layers[0]  # the last one on this way
            frames.append(("data" if first else layer.name.replace(".", " "), self._turned(x)))
        return frames

    def first_nonfinite(
        self, x: Tensor, context: Tensor | None = None, *, batch: Batch | None = None
    ) -> Tensor:
        """Which layer, on the way from data to base, first puts out a number that is not finite.

        Its log-det counts.

        Returns the position in `layers`, shape (E,), or their number where every layer's output is
        finite.
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
        return (
            self.layers[position].name
            if position < len(self.layers)
            else "the base density or the gradient"
        )

    def log_prob(
        self, x: Tensor, context: Tensor | None = None, *, batch: Batch | None = None
    ) -> Tensor:
        """log q(x) = log p(z) + log|det ∂z/∂x|, in nats; shapes (E, N, D) to (E, N).

        With a context, log q(x | c).
        """
        if self.kernel is not None and batch is None:
            self._check_context(x, context)
            return self.kernel.log_prob(self.theta, self.fixed, x, context)
        z, log_det = self.inverse(x, context, batch=batch)
        return base_log_prob(self.flow.base, z) + log_det

    def log_density(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """:meth:`log_prob`, with −inf where that is not a number although `x` is one.

        All others are the same bits.

        A gain that overflows sends a point to infinity, where the next network says ∞ − ∞. Such
        points are computed again in float64. What overflows there too has a density of zero in
        every precision.
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

    def sample(
        self, n: int, generators: Sequence[torch.Generator], context: Tensor | None = None
    ) -> Tensor:
        """Draw `n` points per member, each with its own CPU generator; shape (E, n, D).

        Images are whole levels.
        """
        return self.as_levels(self.forward(self.base_draws(n, generators), context)[0])

    def as_levels(self, x: Tensor) -> Tensor:
        """The levels whose cells the points x lie in, the nearest ones where they lie in none.

        Vectors stay.

        Shape (E, N, D).
        """
        if self.image is None:
            return x
        return x.floor().clamp(0, self.image.levels - 1)

    def n_parameters(self) -> list[int]:
        """Learned numbers per member that its mask lets act (a masked input or output has none)."""
        total = [self.learned_layout.width] * self.n_members
        tensors = self.fixed_layout.views(self.fixed)
        for coupling in self.couplings():
            n_passed = tensors[f"{coupling.name}.mask"].sum((1, 2)).long().tolist()
            for e in range(self.n_members):
                total[e] -= coupling.dead_parameters(n_passed[e])
        return total

    def state(self, e: int) -> dict[str, Tensor]:
        """The named tensors of member `e`, without the stack axis, ready to be stored."""
        return {
            name: value[e].detach().cpu().contiguous() for name, value in self.tensors().items()
        }
