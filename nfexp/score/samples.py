"""What samples of a flow say of it: distances to the target, and how its levels are calibrated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from nfexp.data import Dataset, density_of
from nfexp.flows.bases import base_log_prob
from nfexp.flows.ensemble import Ensembles
from nfexp.score.evaluation import (
    base_draws,
    context_of_draws,
    in_parts,
    log_densities,
    members_of_draws,
)
from nfexp.score.results import Metrics
from nfexp.spec import Data, Spec
from nfexp.streams import stream

COMPARED_POINTS = 2000  # of samples and of targets
DIRECTIONS = 32  # projections of a sliced distance


def sample_metrics(
    specs: Sequence[Spec], datasets: Sequence[Dataset], flows: Ensembles, log_q: Tensor
) -> list[Metrics]:
    """What samples say of each run; `log_q` (R, N) is its log-density at the test points.

    `sample_distance` and `clean_distance`: sliced Wasserstein-1 distances (Bonneel et al. 2015), in
    data units, to draws of the target with and without its noise; `sample_floor`: that of two
    independent sets of draws of the target; all None unless it is a planar density. `coverage_50`,
    `coverage_90`: the share of test points in the flow's highest-density region of that mass
    (Hyndman 1996), its level found from its own samples; `calibration_error`: the Kolmogorov
    distance between the log-densities of test points and of samples, 0 for every level right.
    """
    x, log_q_of_x = _samples(specs, datasets, flows)
    samples = x.double().cpu()
    log_q_of_samples = log_q_of_x.double().cpu().numpy()
    of_runs = []
    for r, spec in enumerate(specs):
        metrics: Metrics = {"clean_distance": None, "sample_distance": None, "sample_floor": None}
        if is_planar_density(datasets[r]):
            metrics |= _distances(spec, samples[r])
        metrics |= _coverage(np.sort(log_q_of_samples[r]), np.sort(log_q[r].numpy()))
        of_runs.append(metrics)
    return of_runs


def _samples(
    specs: Sequence[Spec], datasets: Sequence[Dataset], flows: Ensembles
) -> tuple[Tensor, Tensor]:
    """Samples of each run, (R, n, D), and their own log-density, (R, n)."""
    z = base_draws(specs, flows.stack, COMPARED_POINTS, "generated")
    context = context_of_draws(datasets, COMPARED_POINTS, z)
    if flows.n_members > 1:
        x = flows.forward(z, members_of_draws(specs, flows, COMPARED_POINTS), context)
        return x, log_densities(flows.log_prob, x, context)
    x_parts = []
    log_det_parts = []
    for points, given in in_parts(z, context):
        x_part, log_det = flows.stack.forward(points, given)
        x_parts.append(x_part)
        log_det_parts.append(log_det)
    # log q(x) = log p(z) − log|det ∂x/∂z|
    log_q = base_log_prob(flows.stack.flow.base, z) - torch.cat(log_det_parts, 1)
    return torch.cat(x_parts, 1), log_q


def is_planar_density(dataset: Dataset) -> bool:
    return dataset.density is not None and dataset.event_shape == (2,)


def _distances(spec: Spec, samples: Tensor) -> Metrics:
    """Sliced distances of samples (N, 2) to the target."""
    references = _references(spec.data.law, spec.seed)
    slices = slices_of(samples)
    clean = None
    if references.clean is not None:
        clean = _distance(references.clean, slices)
    return {
        "clean_distance": clean,
        "sample_distance": _distance(references.noisy, slices),
        "sample_floor": references.floor,
    }


def _coverage(of_samples: np.ndarray, of_test: np.ndarray) -> Metrics:
    """How the sorted log-densities of test points lie among those of the flow's own samples."""
    both = np.concatenate([of_samples, of_test])
    share_of_samples = np.searchsorted(of_samples, both, "right") / len(of_samples)
    share_of_test = np.searchsorted(of_test, both, "right") / len(of_test)
    return {
        "coverage_50": _share_above(of_samples, of_test, 0.5),
        "coverage_90": _share_above(of_samples, of_test, 0.1),
        "calibration_error": float(np.abs(share_of_samples - share_of_test).max()),
    }


def _share_above(of_samples: np.ndarray, of_test: np.ndarray, quantile: float) -> float:
    """The share of test points whose log-density is at least that quantile of the sorted samples'.

    NaN where a sample's is.
    """
    if np.isnan(of_samples[-1]):  # NaN comes last
        return math.nan
    with np.errstate(invalid="ignore"):
        level = np.quantile(of_samples, quantile)
    if np.isnan(level):  # numpy's value between −∞ and −∞
        level = -np.inf
    return float((of_test >= level).mean())


def slices_of(x: Tensor) -> np.ndarray:
    """The sorted projections of points (N, 2) on the directions of a sliced distance, shape (K, N)."""
    angle = math.pi * torch.arange(DIRECTIONS, dtype=torch.float64) / DIRECTIONS
    directions = torch.stack([angle.cos(), angle.sin()], 1)
    return np.sort((directions @ x.T).numpy())  # quicker than torch


def _distance(slices: np.ndarray, others: np.ndarray) -> float:
    """The sliced Wasserstein-1 distance: on a line, the mean gap between points in their order."""
    return float(np.abs(slices - others).mean())


@dataclass(frozen=True)
class References:
    """What samples are compared with.

    Slices of noise-free and of noisy draws, the distance of two noisy sets.

    A density of the user's own may have no noise-free law.
    """

    clean: np.ndarray | None
    noisy: np.ndarray
    floor: float


@lru_cache(maxsize=64)
def _references(law: Data, seed: int) -> References:
    target = density_of(law)
    clean = None
    if target.draw is not None:
        clean = slices_of(target.draw(COMPARED_POINTS, stream(seed, "clean")))
    noisy = slices_of(target.sample(COMPARED_POINTS, stream(seed, "compared/1")))
    again = slices_of(target.sample(COMPARED_POINTS, stream(seed, "compared/2")))
    return References(clean, noisy, _distance(noisy, again))
