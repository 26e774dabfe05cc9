"""Sizes that follow from a spec: of a point, of a batch, and of what each coupling passes."""

from __future__ import annotations

from nfexp.spec.schema import Data, Flow, Spec


def event_shape(data: Data) -> tuple[int, ...]:
    """The shape of one point of the data: (D,) for a vector, (C, H, W) for an image."""
    if data.channels is None or data.height is None or data.width is None:
        return (data.dim,)
    return data.channels, data.height, data.width


def swaps(mask: str, n_flows: int) -> list[bool]:
    """Which couplings, in data → base order, pass what the first one moves, by a mask schedule that is not random."""
    if mask == "fixed":
        return [False] * n_flows
    if mask == "once":
        return [i >= (n_flows + 1) // 2 for i in range(n_flows)]
    return [i % 2 == 1 for i in range(n_flows)]


def passed_counts(flow: Flow, dim: int) -> tuple[int, ...]:
    """How many of `dim` coordinates each coupling passes unchanged, in data → base order.

    Which ones, :func:`nfexp.flows.layers.draw_mask` says.
    """
    if flow.mask == "random":
        return (dim // 2,) * flow.n_flows
    first = dim // 2 if flow.mask == "half" else (dim + 1) // 2
    counts = []
    for swapped in swaps(flow.mask, flow.n_flows):
        counts.append(dim - first if swapped else first)
    return tuple(counts)


def batch_points(spec: Spec) -> int:
    """Points per training step."""
    return spec.data.points[0] if spec.train.batch_size == "full" else int(spec.train.batch_size)
