"""How good a trained stack is: every member's metrics on its test draws, and the arrays its figures need."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from nfexp.data import Dataset, Target, make_target
from nfexp.flows.bases import base_log_prob
from nfexp.flows.cost import CHUNK
from nfexp.flows.layers import Batch
from nfexp.flows.stack import FlowStack
from nfexp.spec import Spec, batch_points
from nfexp.streams import stream
from nfexp.train import History, dequantised

CONVERGED_WITHIN = 0.05  # nats above a run's lowest validation NLL
COMPARED_POINTS, DIRECTIONS = 2000, 32  # of samples and targets; projections of a sliced distance
WALKED_POINTS = 500
WALK_NODES, WALK_REACH = 41, 2.5  # the grid that is followed through the layers: nodes per side, base units
INVERSE_POINTS = 1000
BATCH_GAP_POINTS = 4096
DRAWS = 16  # places in their cells at which each test image is evaluated

Metrics = dict[str, float | int | None]


@dataclass(kw_only=True)
class Result:
    """One finished run: what its directory will hold. Every NLL in nats per point, data units."""

    spec: Spec
    status: str
    reason: str | None = None
    metrics: Metrics = field(default_factory=dict)
    history: dict[str, np.ndarray] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)
    kernel: str = "torch"  # what computed it: "torch" or "fused"


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """At which step a run ceased to be finite, in which layer (position, data → base), and in what it showed."""

    step: int
    layer: int
    what: str


def score(specs: Sequence[Spec], datasets: Sequence[Dataset], kept: FlowStack, history: History) -> list[Result]:
    """The result of every member of a stack with the weights `kept`, in the order of the specs.

    Metrics of a completed run: `train_nll`, `val_nll`, `test_nll`, `true_nll` (nats per point, data units; the last is
    the target's own on the same test points), `kl` = test_nll − true_nll paired point by point, standard errors,
    `worst_nll` (largest NLL of one test point: a mean carried by a few is seen there), `inverse_error` (largest
    |x − f(f⁻¹(x))|, data units), `steps_to_converge`, and those of the functions below.
    `true_nll` and `kl` are None where the density is not known, and bits/dim but for images.
    A diverged one has `diverged_at` (step) and `diverged_layer` (position in data → base order, 0 the standardisation).
    """
    draws = _test_draws(specs, datasets, kept)
    test = draws[0]
    log_q_of_draws = torch.stack([_chunked(kept.log_prob, points).double().cpu() for points in draws])
    log_q = log_q_of_draws.mean(0)  # of images a lower bound on log P: the mean over places in their cells
    inverse_errors = _inverse_errors(kept, test[:, :INVERSE_POINTS])
    of_samples = _sample_metrics(specs, datasets, kept, log_q_of_draws[0])
    of_walk = _walk_metrics(specs, kept)
    batch_gaps = _batch_gaps(specs, datasets, kept)
    arrays = _arrays(specs, datasets, kept, history)
    n_parameters = kept.n_parameters()
    results = []
    for e, spec in enumerate(specs):
        curve = _curve(history, e)
        diverged = _divergence(history, kept, e, test[e], log_q[e])
        metrics: Metrics = {"n_parameters": n_parameters[e], "diverged_at": None, "diverged_layer": None}
        status, reason = "completed", None
        if diverged is not None:
            metrics |= {"diverged_at": diverged.step, "diverged_layer": diverged.layer}
            where = kept.layer_name(diverged.layer)
            status = "diverged"
            reason = f"non-finite {diverged.what} at step {diverged.step}, first in {where}"
        else:
            metrics |= _nll_metrics(curve, history.best_step[e], log_q[e], datasets[e].true_log_prob())
            metrics |= _bits_per_dim(log_q_of_draws[:, e], kept)
            metrics |= of_samples[e]
            metrics |= of_walk[e]
            metrics |= {
                "batch_gap": batch_gaps[e],
                "best_step": history.best_step[e],
                "steps_to_converge": _steps_to_converge(curve),
                "inverse_error": inverse_errors[e],
            }
        results.append(
            Result(
                spec=spec,
                status=status,
                reason=reason,
                metrics={key: _finite_or_none(value) for key, value in metrics.items()},
                history=curve,
                arrays={key: values[e] for key, values in arrays.items()},
                state=kept.state(e),
            )
        )
    return results


def _finite_or_none(value: float | int | None) -> float | int | None:
    """A flow with a finite density can still overflow on the way to samples: such a metric is missing."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _chunked(evaluate: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`evaluate` over x (E, N, …) a few points at a time, for what a stack holds while it is evaluated."""
    return torch.cat([evaluate(part) for part in x.split(CHUNK, dim=1)], dim=1)


def _base_draws(specs: Sequence[Spec], kept: FlowStack, n: int, purpose: str) -> Tensor:
    """`n` base points per member, (E, n, D), each from the stream `purpose` of its own seed."""
    return kept.base_draws(n, [stream(spec.seed, purpose) for spec in specs])


def _curve(history: History, e: int) -> dict[str, np.ndarray]:
    """What the evaluations of member `e` noted, up to its divergence."""
    curve = {"step": np.array(history.steps)}
    for key in ("train_nll", "val_nll", "grad_norm", "lr"):
        curve[key] = getattr(history, key)[e].cpu().numpy()
    reached = np.isfinite(curve["val_nll"])
    return {key: values[reached] for key, values in curve.items()}


def _divergence(history: History, kept: FlowStack, e: int, test: Tensor, log_q: Tensor) -> Divergence | None:
    """How member `e` diverged: in training, or, with the kept weights, on its test points (N, D)."""
    step, layer = history.diverged_at[e], history.diverged_in[e]
    if step is not None and layer is not None:
        return Divergence(step=step, layer=layer, what="loss, gradient or validation NLL")
    if bool(torch.isfinite(log_q).all()):
        return None
    layer = int(kept.member(e).first_nonfinite(test[None]))
    return Divergence(step=history.best_step[e], layer=layer, what="test NLL")


def _nll_metrics(curve: dict[str, np.ndarray], best_step: int, log_q: Tensor, log_p: Tensor | None) -> Metrics:
    """The NLLs at the best step; `log_q`, `log_p` (N,) are the flow's and the exact log-density at the test points."""
    at_best = curve["step"] == best_step
    root_n = math.sqrt(len(log_q))
    metrics: Metrics = {
        "train_nll": float(curve["train_nll"][at_best][0]),
        "val_nll": float(curve["val_nll"][at_best][0]),
        "test_nll": -log_q.mean().item(),
        "test_nll_se": log_q.std().item() / root_n,
        "worst_nll": -log_q.min().item(),
        "true_nll": None,
        "kl": None,
        "kl_se": None,
    }
    if log_p is not None:
        kl = log_p - log_q
        metrics |= {"true_nll": -log_p.mean().item(), "kl": kl.mean().item(), "kl_se": kl.std().item() / root_n}
    return metrics


def _test_draws(specs: Sequence[Spec], datasets: Sequence[Dataset], kept: FlowStack) -> list[Tensor]:
    """The test points (E, N, D) to evaluate; of images several draws of where in their cells they lie."""
    draws = []
    for k in range(DRAWS if kept.image is not None else 1):
        parts = []
        for spec, dataset in zip(specs, datasets, strict=True):
            parts.append(dequantised(dataset.test, dataset, spec.seed, f"test/{k}").flatten(1))
        draws.append(torch.stack(parts).to(kept.theta))
    return draws


def _bits_per_dim(log_q: Tensor, kept: FlowStack) -> Metrics:
    """Two bounds on −log P of the test images in bits per dimension; `log_q` (K, N) is that of K draws of each.

    `test_bpd` is the mean of single draws, −E[log q] (Theis et al. 2016), `test_bpd_iw` that of
    −log (1/K) Σ_k q_k, which is nearer to the truth (Burda et al. 2016). A point is counted in
    levels, so that nothing but the dimension and log 2 divides. None but for images.
    """
    names = ("test_bpd", "test_bpd_se", "test_bpd_iw", "test_bpd_iw_se")
    if kept.image is None:
        return dict.fromkeys(names)
    n_draws, n = log_q.shape
    unit = kept.dim * math.log(2)
    single = -log_q.mean(0) / unit
    weighted = -(log_q.logsumexp(0) - math.log(n_draws)) / unit
    values = []
    for bits in (single, weighted):
        values += [bits.mean().item(), bits.std().item() / math.sqrt(n)]
    return dict(zip(names, values, strict=True))


def _steps_to_converge(curve: dict[str, np.ndarray]) -> int:
    """The first evaluated step whose validation NLL is within 0.05 nats of the lowest."""
    near = curve["val_nll"] <= curve["val_nll"].min() + CONVERGED_WITHIN
    return int(curve["step"][near][0])


def _inverse_errors(kept: FlowStack, x: Tensor) -> list[float]:
    """The largest |x − f(f⁻¹(x))| of each member, data units."""

    def there_and_back(part: Tensor) -> Tensor:
        z, _ = kept.inverse(part)
        return kept.forward(z)[0]

    errors: list[float] = (_chunked(there_and_back, x) - x).abs().amax((1, 2)).tolist()
    return errors


def _sample_metrics(
    specs: Sequence[Spec], datasets: Sequence[Dataset], kept: FlowStack, log_q: Tensor
) -> list[Metrics]:
    """What samples say of each flow; `log_q` (E, N) is its log-density at the test points.

    `sample_distance` and `clean_distance`: sliced Wasserstein-1 distances (Bonneel et al. 2015), in data units, to
    draws of the target with and without its noise; `sample_floor`: that of two independent sets of draws of the
    target; all None unless it is a planar density. `coverage_50`, `coverage_90`: the share of test points in the
    flow's highest-density region of that mass (Hyndman 1996), its level found from its own samples;
    `calibration_error`: the Kolmogorov distance between the log-densities of test points and of samples, 0 for every
    level right.
    """
    z = _base_draws(specs, kept, COMPARED_POINTS, "generated")
    parts = [kept.forward(part) for part in z.split(CHUNK, dim=1)]
    generated = torch.cat([x for x, _ in parts], 1).double().cpu()
    log_det = torch.cat([log_det for _, log_det in parts], 1)
    log_q_of_samples = (base_log_prob(kept.flow.base, z) - log_det).double().cpu().numpy()
    found = []
    for e, spec in enumerate(specs):
        metrics: Metrics = {"clean_distance": None, "sample_distance": None, "sample_floor": None}
        target = datasets[e].density
        if target is not None and datasets[e].event_shape == (2,):
            metrics |= _distances(spec, target, generated[e])
        metrics |= _coverage(np.sort(log_q_of_samples[e]), np.sort(log_q[e].numpy()))
        found.append(metrics)
    return found


def _is_planar_density(dataset: Dataset) -> bool:
    return dataset.density is not None and dataset.event_shape == (2,)


def _distances(spec: Spec, target: Target, generated: Tensor) -> Metrics:
    """Sliced distances of samples (N, 2) to the target."""
    references = _references(target.name, target.noise, spec.data.text, spec.seed)
    slices = _slices(generated)
    return {
        "clean_distance": float(np.abs(references.clean - slices).mean()),
        "sample_distance": float(np.abs(references.noisy - slices).mean()),
        "sample_floor": references.floor,
    }


def _coverage(of_samples: np.ndarray, of_test: np.ndarray) -> Metrics:
    """How the sorted log-densities of test points lie among those of the flow's own samples."""
    both = np.concatenate([of_samples, of_test])
    share_of_samples = np.searchsorted(of_samples, both, "right") / len(of_samples)
    share_of_test = np.searchsorted(of_test, both, "right") / len(of_test)
    return {
        "coverage_50": float((of_test >= np.quantile(of_samples, 0.5)).mean()),
        "coverage_90": float((of_test >= np.quantile(of_samples, 0.1)).mean()),
        "calibration_error": float(np.abs(share_of_samples - share_of_test).max()),
    }


def _slices(x: Tensor) -> np.ndarray:
    """The sorted projections of points (N, 2) on the directions of a sliced distance, shape (K, N)."""
    angle = math.pi * torch.arange(DIRECTIONS, dtype=torch.float64) / DIRECTIONS
    directions = torch.stack([angle.cos(), angle.sin()], 1)
    return np.sort((directions @ x.T).numpy())  # quicker than torch


@dataclass(frozen=True)
class References:
    """What samples are compared with: slices of noise-free and of noisy draws, the distance of two noisy sets."""

    clean: np.ndarray
    noisy: np.ndarray
    floor: float


@lru_cache(maxsize=64)
def _references(name: str, noise: float, text: str | None, seed: int) -> References:
    target = make_target(name, noise=noise, text=text)
    clean = _slices(target.draw(COMPARED_POINTS, stream(seed, "clean")))
    noisy = _slices(target.sample(COMPARED_POINTS, stream(seed, "compared/1")))
    again = _slices(target.sample(COMPARED_POINTS, stream(seed, "compared/2")))
    return References(clean, noisy, float(np.abs(noisy - again).mean()))


def _walk_metrics(specs: Sequence[Spec], kept: FlowStack) -> list[Metrics]:
    """`coordinates_moved`: the most that any coupling changed of 500 points on their way from base to data.

    `flattening`: the smallest ratio, over the layers, of the least to the greatest standard deviation of the points
    along any direction.
    """
    if kept.image is not None:  # too many numbers for a spread, and one coupling moves half of them by its mask
        return [{"coordinates_moved": None, "flattening": None} for _ in specs]
    walk = kept.walk(_base_draws(specs, kept, WALKED_POINTS, "walk"))
    points = torch.stack([frame for _, frame in walk], 1).double()  # (E, F, N, D)
    before, after = points[:, :-1], points[:, 1:]
    apart = (after - before).abs() > 1e-6 * (1 + after.abs())
    couplings = [i for i, (name, _) in enumerate(walk[1:]) if name.startswith("coupling")]
    moved = apart.any(2).sum(2)[:, couplings].amax(1).tolist()
    inner = points[:, 1:-1]
    centred = (inner - inner.mean(2, keepdim=True)).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    spread = torch.linalg.svdvals(centred)  # (E, F, D), falling
    ratio = (spread[..., -1] / spread[..., 0]).amin(1)
    ratio = torch.where(inner.isfinite().all((1, 2, 3)), ratio, math.nan)
    flattening = ratio.tolist()
    return [{"coordinates_moved": moved[e], "flattening": flattening[e]} for e in range(len(specs))]


def _batch_gaps(specs: Sequence[Spec], datasets: Sequence[Dataset], kept: FlowStack) -> list[float | None]:
    """Batch norm: mean NLL of a training batch by its own statistics minus that by the running ones, nats per point."""
    if kept.flow.norm != "batchnorm":
        return [None] * len(specs)
    smallest = min(len(dataset.train) for dataset in datasets)
    n = min(BATCH_GAP_POINTS, batch_points(specs[0]), smallest)
    parts = []
    for spec, dataset in zip(specs, datasets, strict=True):
        parts.append(dequantised(dataset.train, dataset, spec.seed, "train")[:n].flatten(1))
    x = torch.stack(parts).to(kept.theta)
    gaps: list[float | None] = (kept.log_prob(x) - kept.log_prob(x, batch=Batch())).double().mean(1).tolist()
    return gaps


Arrays = dict[str, list[np.ndarray]]  # key → one array per member


def _arrays(specs: Sequence[Spec], datasets: Sequence[Dataset], kept: FlowStack, history: History) -> Arrays:
    """What the figures need, one entry per member; float32, data units."""
    record = specs[0].record
    if kept.image is not None:
        return {}
    planar = all(_is_planar_density(dataset) for dataset in datasets)
    arrays: Arrays = {}
    if record.samples:
        arrays |= _sample_arrays(datasets, kept, history, record.samples)
    if record.grid and planar:
        arrays |= _grid_arrays(datasets, kept, record.grid)
    if record.walk and kept.dim == 2:
        arrays |= _walk_arrays(_base_draws(specs, kept, record.walk, "walk"), kept)
    return arrays


def _split(value: Tensor | Sequence[Tensor]) -> list[np.ndarray]:
    """One float32 array per member."""
    return [part.float().cpu().numpy() for part in value]


def _sample_arrays(datasets: Sequence[Dataset], kept: FlowStack, history: History, shown: int) -> Arrays:
    """Training points and samples; in the plane also samples at the recorded steps, up to a member's divergence."""
    arrays = {
        "target": _split([dataset.train[:shown] for dataset in datasets]),
        "best": _split(_chunked(lambda z: kept.forward(z)[0], history.base)),
    }
    if datasets[0].names is not None:
        arrays["columns"] = [np.array(dataset.names) for dataset in datasets]
    if kept.dim != 2:
        return arrays
    n_recorded = []
    for stop in history.diverged_at:
        n_recorded.append(sum(step < (stop or math.inf) for step in history.snapshot_steps))
    members = range(len(datasets))
    return arrays | {
        "base": _split(history.base),
        "snapshots": _split([history.snapshots[e, : n_recorded[e]] for e in members]),
        "snapshot_steps": [np.array(history.snapshot_steps[: n_recorded[e]]) for e in members],
    }


def _grid_arrays(datasets: Sequence[Dataset], kept: FlowStack, side: int) -> Arrays:
    """Both log-densities on a grid over the target's window, (side, side), row = y."""
    grids, of_targets, extents = [], [], []
    for target in [dataset.density for dataset in datasets if dataset.density is not None]:
        x_low, x_high, y_low, y_high = target.extent()
        x = torch.linspace(x_low, x_high, side).double()
        y = torch.linspace(y_low, y_high, side).double()
        grid = torch.cartesian_prod(y, x).flip(-1)  # (side², 2): x runs fastest
        grids.append(grid)
        of_targets.append(target.log_prob(grid).reshape(side, side))
        extents.append(torch.tensor(target.extent()))
    log_q = _chunked(kept.log_density, torch.stack(grids).to(kept.theta))
    return {
        "grid_log_q": _split(log_q.unflatten(1, (side, side))),
        "grid_log_p": _split(of_targets),
        "grid_extent": _split(extents),
    }


def _walk_arrays(start: Tensor, kept: FlowStack) -> Arrays:
    """Points (E, N, D) followed from base to data and, in the plane, a lattice that shows how space is deformed."""

    def follow(z: Tensor) -> Tensor:  # (E, F, N, D)
        frames = _chunked(lambda part: torch.stack([points for _, points in kept.walk(part)], 2), z)
        return frames.transpose(1, 2)

    names = [name for name, _ in kept.walk(start[:, :1])]
    arrays = {"walk": _split(follow(start)), "walk_names": [np.array(names)] * len(start)}
    if kept.dim == 2:
        line = torch.linspace(-WALK_REACH, WALK_REACH, WALK_NODES)
        lattice = torch.cartesian_prod(line, line).expand(len(start), -1, -1).to(start)
        arrays["walk_grid"] = _split(follow(lattice).unflatten(2, (WALK_NODES, WALK_NODES)))
    return arrays
