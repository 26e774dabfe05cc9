"""What the layers of a flow do to points.

What each coupling moves, what flattens, what a batch norm hides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from nfexp.data import Dataset
from nfexp.flows.layers import Batch
from nfexp.flows.stack import FlowStack
from nfexp.score.evaluation import base_draws
from nfexp.score.results import Metrics
from nfexp.spec import Spec, batch_points
from nfexp.train import dequantised

WALKED_POINTS = 500
BATCH_GAP_POINTS = 4096


def walk_metrics(specs: Sequence[Spec], kept: FlowStack) -> list[Metrics]:
    """`coordinates_moved`.

    The most that any coupling changed of 500 points on their way from base to data.

    `flattening`: the smallest ratio, over the layers, of the least to the greatest standard
    deviation of the points along any direction.
    """
    # Of images there are too many numbers for a spread, and one coupling moves half of them by its
    # mask. Given a context every point has a map of its own.
    if kept.image is not None or kept.n_context:
        return [{"coordinates_moved": None, "flattening": None} for _ in specs]
    walk = kept.walk(base_draws(specs, kept, WALKED_POINTS, "walk"))
    frames = []
    couplings = []  # positions among the layers
    for i, (name, frame) in enumerate(walk):
        frames.append(frame)
        if name.startswith("coupling"):
            couplings.append(i - 1)  # the first frame is the base, before any layer
    points = torch.stack(frames, 1).double()  # (E, F, N, D)

    before = points[:, :-1]
    after = points[:, 1:]
    apart = (after - before).abs() > 1e-6 * (1 + after.abs())
    n_moved = apart.any(2).sum(2)  # coordinates that a layer moved of any point, (E, F - 1)
    most_moved = n_moved[:, couplings].amax(1).tolist()

    inner = points[:, 1:-1]
    centred = inner - inner.mean(2, keepdim=True)
    centred = centred.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    spread = torch.linalg.svdvals(centred)  # (E, F - 2, D), falling
    flattening = (spread[..., -1] / spread[..., 0]).amin(1)
    flattening = torch.where(inner.isfinite().all((1, 2, 3)), flattening, math.nan)

    of_runs: list[Metrics] = []
    for moved, ratio in zip(most_moved, flattening.tolist(), strict=True):
        of_runs.append({"coordinates_moved": moved, "flattening": ratio})
    return of_runs


def batch_gaps(
    specs: Sequence[Spec], datasets: Sequence[Dataset], kept: FlowStack
) -> list[float | None]:
    """Batch norm: mean NLL of a training batch by its own statistics minus that by the running ones, nats per point."""
    if kept.flow.norm != "batchnorm":
        return [None] * len(specs)
    smallest = min(len(dataset.train) for dataset in datasets)
    n = min(BATCH_GAP_POINTS, batch_points(specs[0]), smallest)
    points = []
    contexts = []
    for spec, dataset in zip(specs, datasets, strict=True):
        points.append(dequantised(dataset.train, dataset, spec.seed, "train")[:n].flatten(1))
        contexts.append(dataset.context_of("train")[:n])
    x = torch.stack(points).to(kept.theta)
    context = torch.stack(contexts).to(x)
    by_running = kept.log_prob(x, context)
    by_batch = kept.log_prob(x, context, batch=Batch())
    gaps: list[float | None] = (by_running - by_batch).double().mean(1).tolist()
    return gaps
