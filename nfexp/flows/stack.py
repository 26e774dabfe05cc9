"""How a stack comes about: fresh, from what was stored, or without numbers.

See :class:`FlowStack`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nfexp.flows.elementwise import ContextMoments
from nfexp.flows.flow_stack import FlowStack
from nfexp.flows.image.cells import Logit
from nfexp.flows.image.marginals import level_counts
from nfexp.flows.image.plan import Image
from nfexp.flows.layers import Batch, Points, Tensors, draw_mask
from nfexp.spec import Flow
from nfexp.streams import of_member, stream

__all__ = ["FlowStack", "build", "from_state", "initialise_actnorm", "without_numbers"]


def without_numbers(
    flow: Flow, dim: int, image: Image | None = None, n_context: int = 0
) -> FlowStack:
    """A stack of one without numbers: it knows the layers and where their tensors lie."""
    return FlowStack(
        flow, dim, torch.empty(1, 0), torch.empty(1, 0), image=image, n_context=n_context
    )


def from_state(
    flow: Flow,
    dim: int,
    state: Mapping[str, Tensor],
    image: Image | None = None,
    n_context: int = 0,
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
        raise ValueError(
            f"weights: expected the tensors of this architecture; got an unknown one, {unknown[0]}"
        )
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
        Training points, shape (E, N, D); NaN rows are padding. dtype and device of the stack are
        those of `data`.
    positions
        Where each member stands in its ensemble: those of one seed start differently. All 0 if not
        given.
    image
        Shape and levels where points are images: dequantised ones, anywhere in the cells of their
        levels.
    context
        What is given at each training point, shape (E, N, C): of a density q(x | c).
    """
    n_members = len(seeds)
    positions = positions or [0] * n_members
    context = data[..., :0] if context is None else context
    empty = without_numbers(flow, data.shape[-1], image, context.shape[-1])
    stack = _zeros_like(empty, n_members)
    tensors = stack.tensors()
    given = context.double().cpu()
    raw = data.double().cpu()
    points = raw
    if image is not None:  # what is standardised is on the line
        points, _ = Logit(flow, image).inverse({}, raw)
    for e in range(n_members):
        tensors_of_member = {name: value[e] for name, value in tensors.items()}
        is_real = ~points[e].isnan().any(-1)
        moments = _moments(points[e][is_real])
        if image is not None:
            moments = replace(moments, counts=level_counts(raw[e][is_real], image.levels))
        if stack.n_context:
            of_context = _moments(given[e][is_real])
            ContextMoments(stack.n_context).initialise(
                tensors_of_member, of_context, torch.Generator()
            )
        _initialise_member(
            stack,
            tensors_of_member,
            moments,
            mask=masks[e],
            seed=seeds[e],
            position=positions[e],
        )
    return stack.to(data.device, data.dtype)


def _zeros_like(empty: FlowStack, n_members: int) -> FlowStack:
    """A stack of so many members whose numbers are all 0, in float64."""
    theta = torch.zeros(n_members, empty.learned_layout.width, dtype=torch.float64)
    fixed = torch.zeros(n_members, empty.fixed_layout.width, dtype=torch.float64)
    return empty.with_rows(theta, fixed)


def _moments(points: Tensor) -> Points:
    return Points(mean=points.mean(0), var=points.var(0, correction=0))


def _initialise_member(
    stack: FlowStack, tensors: Tensors, points: Points, *, mask: str, seed: int, position: int
) -> None:
    """Set the first values of one member, whose tensors these are, in place."""
    couplings = stack.couplings()
    if couplings:
        draws = stream(seed, of_member(position, "mask"))
        rows = draw_mask(mask, len(couplings), len(points.mean), draws)
        for coupling, row in zip(couplings, rows, strict=True):
            tensors[f"{coupling.name}.mask"].copy_(row)
    draws = stream(seed, of_member(position, "init"))
    for layer in stack.layers:
        layer.initialise(tensors, points, draws)
    # A second round, not part of the first: the order of the draws is part of a run's identity.
    for coupling in couplings:
        if coupling.flow.init == "spread":
            coupling.spread_bends(tensors, points, draws)


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
