"""What the figures of a run need.

Training points, samples, log-densities on a grid, the walk through the layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from nfexp.data import Dataset, density_of
from nfexp.flows.ensemble import Ensembles
from nfexp.flows.stack import FlowStack
from nfexp.score.evaluation import (
    base_draws,
    context_of_draws,
    log_densities,
    members_of_draws,
    moved,
)
from nfexp.score.images import image_arrays
from nfexp.score.results import Arrays
from nfexp.score.samples import is_planar_density
from nfexp.spec import Data, Spec
from nfexp.train import History

WALK_NODES = 41  # per side of the grid that is followed through the layers
WALK_REACH = 2.5  # of that grid, base units
LEAST_LOG_P = -1e30  # in a figure: a density that is 0 there has no logarithm


def arrays_for_figures(
    specs: Sequence[Spec], datasets: Sequence[Dataset], flows: Ensembles, history: History
) -> Arrays:
    """What the figures need, one entry per run; float32, data units."""
    record = specs[0].record
    if flows.stack.image is not None:
        if not record.samples:
            return {}
        return image_arrays(specs, datasets, flows.first(), record.samples)
    arrays: Arrays = {}
    if record.samples:
        chosen = members_of_draws(specs, flows, record.samples)
        arrays |= _sample_arrays(datasets, flows, history, chosen)
    if record.grid and all(is_planar_density(dataset) for dataset in datasets):
        arrays |= _grid_arrays(specs, flows, record.grid)
    if record.walk and flows.stack.dim == 2 and not flows.stack.n_context:
        start = base_draws(specs, flows.stack, record.walk, "walk")
        arrays |= _walk_arrays(start, flows.first())
    return arrays


def _per_run(values: Tensor | Sequence[Tensor]) -> list[np.ndarray]:
    """One float32 array per run."""
    return [value.float().cpu().numpy() for value in values]


def _sample_arrays(
    datasets: Sequence[Dataset], flows: Ensembles, history: History, chosen: Tensor
) -> Arrays:
    """Training points and samples.

    In the plane also samples at the recorded steps, up to a run's divergence.

    Every draw, at each step, is made by the member that is `chosen` (R, M) for it.
    """
    n = chosen.shape[1]
    base = history.base[:: flows.n_members]
    context = context_of_draws(datasets, n, base)
    if flows.n_members == 1:
        best = moved(lambda z, given: flows.stack.forward(z, given)[0], base, context)
    else:
        best = flows.forward(base, chosen, context)
    arrays = {"target": _per_run([dataset.train[:n] for dataset in datasets])}
    arrays["best"] = _per_run(best)
    if datasets[0].names is not None:
        arrays["columns"] = [np.array(dataset.names) for dataset in datasets]
    if flows.stack.dim != 2:
        return arrays

    snapshots = []
    steps = []
    for r in range(len(datasets)):
        rows = flows.rows(r)
        of_members = history.snapshots[rows.start : rows.stop]  # (K, S, M, D)
        n_recorded = _snapshots_before_divergence(history, rows)
        of_draws = of_members[chosen[r].to(of_members.device), :, torch.arange(n)]  # (M, S, D)
        snapshots.append(of_draws.transpose(0, 1)[:n_recorded])
        steps.append(np.array(history.snapshot_steps[:n_recorded]))
    arrays["base"] = _per_run(base)
    arrays["snapshots"] = _per_run(snapshots)
    arrays["snapshot_steps"] = steps
    return arrays


def _snapshots_before_divergence(history: History, rows: range) -> int:
    """How many snapshots a run has: until the last of its members has diverged."""
    last_step = 0.0
    for e in rows:
        diverged_at = history.diverged_at[e]
        last_step = max(last_step, math.inf if diverged_at is None else diverged_at)
    return sum(step < last_step for step in history.snapshot_steps)


@dataclass(frozen=True)
class Grid:
    """Points over a target's window, (side², 2) with x running fastest, and its log-density there, (side, side)."""

    points: Tensor
    log_p: Tensor
    extent: tuple[float, float, float, float]


@lru_cache(maxsize=64)  # the runs of a sweep share a few targets
def _grid_over(law: Data, side: int) -> Grid:
    target = density_of(law)
    extent = target.extent()
    x_low, x_high, y_low, y_high = extent
    x = torch.linspace(x_low, x_high, side).double()
    y = torch.linspace(y_low, y_high, side).double()
    points = torch.cartesian_prod(y, x).flip(-1)
    log_p = target.log_prob(points).clamp(min=LEAST_LOG_P)
    return Grid(points, log_p.reshape(side, side), extent)


def _grid_arrays(specs: Sequence[Spec], flows: Ensembles, side: int) -> Arrays:
    """Both log-densities on a grid over the target's window, (side, side), row = y."""
    grids = [_grid_over(spec.data.law, side) for spec in specs]
    points = torch.stack([grid.points for grid in grids]).to(flows.stack.theta)
    no_context = points[..., :0]  # there is none where a density is known exactly
    log_q = log_densities(flows.log_density, points, no_context)
    return {
        "grid_log_q": _per_run(log_q.unflatten(1, (side, side))),
        "grid_log_p": _per_run([grid.log_p for grid in grids]),
        "grid_extent": _per_run([torch.tensor(grid.extent) for grid in grids]),
    }


def _walk_arrays(start: Tensor, kept: FlowStack) -> Arrays:
    """Points (R, N, 2) followed from base to data, and a lattice that shows how space is deformed."""

    def frames(z: Tensor, _: Tensor) -> Tensor:
        """Where points (R, N, 2) are before and after each layer, (R, N, F, 2)."""
        return torch.stack([points for _, points in kept.walk(z)], 2)

    def follow(z: Tensor) -> Tensor:
        return moved(frames, z, z[..., :0]).transpose(1, 2)  # (R, F, N, 2)

    names = [name for name, _ in kept.walk(start[:, :1])]
    line = torch.linspace(-WALK_REACH, WALK_REACH, WALK_NODES)
    lattice = torch.cartesian_prod(line, line).expand(len(start), -1, -1).to(start)
    lattice_frames = follow(lattice).unflatten(2, (WALK_NODES, WALK_NODES))
    return {
        "walk": _per_run(follow(start)),
        "walk_names": [np.array(names)] * len(start),
        "walk_grid": _per_run(lattice_frames),
    }
