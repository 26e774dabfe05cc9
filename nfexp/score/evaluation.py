"""Evaluating a stack on many points.

A few at a time, at the context of each, from streams of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from nfexp.data import Dataset
from nfexp.flows.cost import CHUNK
from nfexp.flows.ensemble import CHOICE, Ensembles
from nfexp.flows.stack import FlowStack
from nfexp.spec import Spec
from nfexp.streams import stream


def in_parts(x: Tensor, context: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Points (R, N, D) with their context (R, N, C), a few at a time.

    So many as a stack has the memory for while it is evaluated.
    """
    return zip(x.split(CHUNK, dim=1), context.split(CHUNK, dim=1), strict=True)


def log_densities(
    density: Callable[[Tensor, Tensor], Tensor], x: Tensor, context: Tensor
) -> Tensor:
    """What `density` gives at points x (R, N, D), in parts: (…, N)."""
    parts = [density(points, given) for points, given in in_parts(x, context)]
    return torch.cat(parts, dim=-1)


def moved(move: Callable[[Tensor, Tensor], Tensor], x: Tensor, context: Tensor) -> Tensor:
    """Where `move` takes points x (E, N, D), in parts: (E, N, …)."""
    parts = [move(points, given) for points, given in in_parts(x, context)]
    return torch.cat(parts, dim=1)


def context_of_draws(datasets: Sequence[Dataset], n: int, like: Tensor) -> Tensor:
    """The context of `n` samples of each run, (R, n, C), of the device and dtype of `like`."""
    parts = [dataset.context_of_draws(n) for dataset in datasets]
    return torch.stack(parts).to(like)


def base_draws(specs: Sequence[Spec], kept: FlowStack, n: int, purpose: str) -> Tensor:
    """`n` base points per run, (R, n, D), each from the stream `purpose` of its own seed."""
    return kept.base_draws(n, [stream(spec.seed, purpose) for spec in specs])


def members_of_draws(specs: Sequence[Spec], flows: Ensembles, n: int) -> Tensor:
    """The member that each of `n` draws comes from, (R, n)."""
    return flows.choose(n, [stream(spec.seed, CHOICE) for spec in specs])
