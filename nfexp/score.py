"""How good a trained stack is: every member's metrics on its test draws, and the arrays its figures need."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from nfexp.data import Dataset, density_of
from nfexp.flows.bases import base_log_prob
from nfexp.flows.cost import CHUNK, DRAWS
from nfexp.flows.ensemble import CHOICE, Ensembles
from nfexp.flows.layers import Batch
from nfexp.flows.stack import FlowStack
from nfexp.image_arrays import image_arrays
from nfexp.spec import Data, Spec, batch_points
from nfexp.streams import stream
from nfexp.train import History, dequantised, mean_nll

CONVERGED_WITHIN = 0.05  # nats above a run's lowest validation NLL
COMPARED_POINTS, DIRECTIONS = 2000, 32  # of samples and targets; projections of a sliced distance
WALKED_POINTS = 500
WALK_NODES, WALK_REACH = 41, 2.5  # the grid that is followed through the layers: nodes per side, base units
INVERSE_POINTS = 1000
BATCH_GAP_POINTS = 4096
LEAST_LOG_P = -1e30  # in a figure: a density that is 0 there has no logarithm

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
    members: list[Metrics] = field(default_factory=list)  # of an ensemble: what each of its flows is alone
    kernel: str = "torch"  # what computed it: "torch" or "fused"


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """At which step a run ceased to be finite, in which layer (position, data → base), and in what it showed."""

    step: int
    layer: int
    what: str

    def in_words(self, flows: FlowStack) -> str:
        where = flows.layer_name(self.layer)
        return f"non-finite {self.what} at step {self.step}, first in {where}"


def score(specs: Sequence[Spec], datasets: Sequence[Dataset], kept: FlowStack, history: History) -> list[Result]:
    """The result of every run of a stack with the weights `kept`, in the order of the specs.

    Metrics of a completed run: `train_nll`, `val_nll`, `test_nll`, `true_nll` (nats per point, data units; the last is
    the target's own on the same test points), `kl` = test_nll − true_nll paired point by point, standard errors,
    `worst_nll` (largest NLL of one test point: a mean carried by a few is seen there), `inverse_error` (largest
    |x − f(f⁻¹(x))|, data units), `steps_to_converge`, and those of the functions below.
    `true_nll` and `kl` are None where the density is not known, and bits/dim but for images. A diverged one has
    `diverged_at` (step) and `diverged_layer` (position in data → base order, 0 the standardisation).

    An ensemble is scored as one density, the mean of those of its members, weighted as `flow.weights` says. A member
    that diverged is left out; the run has diverged when none is left. What is told of layers (walk,
    `coordinates_moved`, `flattening`, `batch_gap`) is told of its first member.

    With a context every NLL is of x given c, at each point's own c, and samples are drawn at the context of the test
    rows in turn. What is told of one map from base to data (walk, `flattening`, `coordinates_moved`) is None: there is
    one for each c.
    """
    n_members = specs[0].flow.members
    alive = [step is None for step in history.diverged_at]
    flows = _weighted(specs, datasets, Ensembles(kept, n_members, counted=alive))
    draws = _test_draws(specs, datasets, kept)
    test = draws[0]
    given = torch.stack([dataset.given("test") for dataset in datasets]).to(kept.theta)
    of_members = [_chunked(flows.of_members, points, given) for points in draws]
    log_q_of_draws = torch.stack([flows.mean(each) for each in of_members]).double().cpu()
    log_q = log_q_of_draws.mean(0)  # of images a lower bound on log P: the mean over places in their cells
    inverse_errors = _inverse_errors(flows, test[:, :INVERSE_POINTS], given[:, :INVERSE_POINTS])
    of_samples = _sample_metrics(specs, datasets, flows, log_q_of_draws[0])
    of_walk = _walk_metrics(specs, flows.first())
    batch_gaps = _batch_gaps(specs, datasets, flows.first())
    arrays = _arrays(specs, datasets, flows, history)
    n_parameters = kept.n_parameters()
    results = []
    for r, spec in enumerate(specs):
        rows = range(r * n_members, (r + 1) * n_members)
        curve = _curve(history, rows)
        diverged = _divergence(history, flows, r, test[r], given[r], log_q[r])
        metrics: Metrics = {
            "n_parameters": sum(n_parameters[e] for e in rows),
            "diverged_at": None,
            "diverged_layer": None,
        }
        if diverged is not None:
            metrics |= {"diverged_at": diverged.step, "diverged_layer": diverged.layer}
        else:
            best_step = max(history.best_step[e] for e in rows if alive[e])
            metrics |= _nlls_seen(curve, best_step) if n_members == 1 else _nlls_now(flows, r, datasets[r], spec.seed)
            metrics |= _nll_metrics(log_q[r], datasets[r].true_log_prob())
            metrics |= _bits_per_dim(log_q_of_draws[:, r], kept)
            metrics |= of_samples[r]
            metrics |= of_walk[r]
            metrics |= {
                "batch_gap": batch_gaps[r],
                "best_step": best_step,
                "steps_to_converge": _steps_to_converge(curve),
                "inverse_error": inverse_errors[r],
            }
        results.append(
            Result(
                spec=spec,
                status="completed" if diverged is None else "diverged",
                reason=None if diverged is None else diverged.in_words(kept),
                metrics=_finite(metrics),
                history=curve,
                arrays={key: values[r] for key, values in arrays.items()},
                state=flows.state(r),
                members=_members(history, flows, r, of_members[0][r]),
            )
        )
    return results


def _finite(metrics: Metrics) -> Metrics:
    return {key: _finite_or_none(value) for key, value in metrics.items()}


def _finite_or_none(value: float | int | None) -> float | int | None:
    """A flow with a finite density can still overflow on the way to samples: such a metric is missing."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _parts(x: Tensor, context: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Points (R, N, D) with their context (R, N, C), a few at a time."""
    return zip(x.split(CHUNK, dim=1), context.split(CHUNK, dim=1), strict=True)


def _chunked(evaluate: Callable[[Tensor, Tensor], Tensor], x: Tensor, context: Tensor) -> Tensor:
    """Log-densities (…, N) of x (R, N, D) a few points at a time, for what a stack holds while it is evaluated."""
    return torch.cat([evaluate(*part) for part in _parts(x, context)], dim=-1)


def _moved(move: Callable[[Tensor, Tensor], Tensor], x: Tensor, context: Tensor) -> Tensor:
    """Where `move` takes points (E, N, D), as :func:`_chunked`."""
    return torch.cat([move(*part) for part in _parts(x, context)], dim=1)


def _given_to_draws(datasets: Sequence[Dataset], n: int, like: Tensor) -> Tensor:
    """The context of `n` samples of each run, (R, n, C), where the weights `like` are."""
    return torch.stack([dataset.given_to_draws(n) for dataset in datasets]).to(like)


def _base_draws(specs: Sequence[Spec], kept: FlowStack, n: int, purpose: str) -> Tensor:
    """`n` base points per member, (E, n, D), each from the stream `purpose` of its own seed."""
    return kept.base_draws(n, [stream(spec.seed, purpose) for spec in specs])


def _curve(history: History, rows: range) -> dict[str, np.ndarray]:
    """What the evaluations of a run noted, up to its divergence: means over its members that had not diverged."""
    curve = {"step": np.array(history.steps)}
    for key in ("train_nll", "val_nll", "grad_norm", "lr"):
        of_members = getattr(history, key)[rows.start : rows.stop]
        curve[key] = torch.nanmean(of_members, 0).cpu().numpy()
    reached = np.isfinite(curve["val_nll"])
    return {key: values[reached] for key, values in curve.items()}


def _divergence(
    history: History, flows: Ensembles, r: int, test: Tensor, given: Tensor, log_q: Tensor
) -> Divergence | None:
    """How run `r` diverged: all members in training, or the kept weights on its test points (N, D)."""
    rows = range(r * flows.n_members, (r + 1) * flows.n_members)
    lost = []
    for e in rows:
        step, layer = history.diverged_at[e], history.diverged_in[e]
        if step is not None and layer is not None:
            lost.append(Divergence(step=step, layer=layer, what="loss, gradient or validation NLL"))
    if len(lost) == flows.n_members:
        return max(lost, key=lambda divergence: divergence.step)
    if bool(torch.isfinite(log_q).all()):
        return None
    layer = int(flows.first().member(r).first_nonfinite(test[None], given[None]))
    step = max(history.best_step[e] for e in rows)
    return Divergence(step=step, layer=layer, what="test NLL")


def _weighted(specs: Sequence[Spec], datasets: Sequence[Dataset], flows: Ensembles) -> Ensembles:
    """The ensembles with the weights that `flow.weights` asks for."""
    if specs[0].flow.weights == "equal" or flows.n_members == 1:
        return flows
    of_members = []
    for r, (spec, dataset) in enumerate(zip(specs, datasets, strict=True)):
        val = dequantised(dataset.val, dataset, spec.seed, "val").flatten(1)[None].to(flows.stack.theta)
        of_members.append(_chunked(flows.one(r).of_members, val, dataset.given("val")[None].to(val))[0])
    return flows.weighted(of_members)


def _members(history: History, flows: Ensembles, r: int, log_q: Tensor) -> list[Metrics]:
    """What each member of ensemble `r` is alone, log_q (K, N) at the test points; nothing for one flow."""
    if flows.n_members == 1:
        return []
    rows = range(r * flows.n_members, (r + 1) * flows.n_members)
    found = []
    for k, (e, own) in enumerate(zip(rows, log_q.double().cpu(), strict=True)):
        diverged_at = history.diverged_at[e]
        metrics: Metrics = {"val_nll": None, "test_nll": None, "best_step": None, "diverged_at": diverged_at}
        if diverged_at is None:
            best_step = history.best_step[e]
            position = history.steps.index(best_step)
            metrics |= {"val_nll": float(history.val_nll[e, position]), "test_nll": -own.mean().item()}
            metrics["best_step"] = best_step
        if flows.weights is not None:
            metrics["weight"] = float(flows.weights[r, k])
        found.append(_finite(metrics))
    return found


def _nlls_seen(curve: dict[str, np.ndarray], best_step: int) -> Metrics:
    """The NLLs of a flow at its best step, as training noted them."""
    at_best = curve["step"] == best_step
    return {"train_nll": float(curve["train_nll"][at_best][0]), "val_nll": float(curve["val_nll"][at_best][0])}


def _nlls_now(flows: Ensembles, r: int, dataset: Dataset, seed: int) -> Metrics:
    """The NLLs of ensemble `r` on the points that its members' were noted for."""
    own = flows.one(r)
    train = dequantised(dataset.train, dataset, seed, "train")[: len(dataset.val)]
    val = dequantised(dataset.val, dataset, seed, "val")
    like = flows.stack.theta
    given_train = dataset.given("train")[: len(dataset.val)]
    train_nll = mean_nll(own, train.flatten(1)[None].to(like), given_train[None].to(like))
    val_nll = mean_nll(own, val.flatten(1)[None].to(like), dataset.given("val")[None].to(like))
    return {"train_nll": train_nll.item(), "val_nll": val_nll.item()}


def _nll_metrics(log_q: Tensor, log_p: Tensor | None) -> Metrics:
    """The NLLs on the test points; `log_q`, `log_p` (N,) are the flow's and the exact log-density there."""
    root_n = math.sqrt(len(log_q))
    metrics: Metrics = {
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


def _inverse_errors(flows: Ensembles, x: Tensor, given: Tensor) -> list[float]:
    """The largest |x − f(f⁻¹(x))| of each run, over its members that count, data units."""

    def there_and_back(part: Tensor, context: Tensor) -> Tensor:
        z, _ = flows.stack.inverse(part, context)
        return flows.stack.forward(z, context)[0]

    x = x.repeat_interleave(flows.n_members, 0)
    given = given.repeat_interleave(flows.n_members, 0)
    of_rows = (_moved(there_and_back, x, given) - x).abs().amax((1, 2))
    of_members = of_rows.view(-1, flows.n_members)
    only = torch.where(flows.counted.to(of_members.device), of_members, 0.0)
    errors: list[float] = only.amax(1).tolist()
    return errors


def _samples(specs: Sequence[Spec], datasets: Sequence[Dataset], flows: Ensembles) -> tuple[Tensor, Tensor]:
    """Samples of each run, (R, n, D), and their own log-density, (R, n)."""
    z = _base_draws(specs, flows.stack, COMPARED_POINTS, "generated")
    given = _given_to_draws(datasets, COMPARED_POINTS, z)
    if flows.n_members > 1:
        x = flows.forward(z, _chosen(specs, flows, COMPARED_POINTS), given)
        return x, _chunked(flows.log_prob, x, given)
    parts = [flows.stack.forward(*part) for part in _parts(z, given)]
    x = torch.cat([moved for moved, _ in parts], 1)
    log_det = torch.cat([log_det for _, log_det in parts], 1)
    return x, base_log_prob(flows.stack.flow.base, z) - log_det


def _chosen(specs: Sequence[Spec], flows: Ensembles, n: int) -> Tensor:
    """The member that each of `n` draws comes from, (R, n)."""
    return flows.choose(n, [stream(spec.seed, CHOICE) for spec in specs])


def _sample_metrics(
    specs: Sequence[Spec], datasets: Sequence[Dataset], flows: Ensembles, log_q: Tensor
) -> list[Metrics]:
    """What samples say of each run; `log_q` (R, N) is its log-density at the test points.

    `sample_distance` and `clean_distance`: sliced Wasserstein-1 distances (Bonneel et al. 2015), in data units, to
    draws of the target with and without its noise; `sample_floor`: that of two independent sets of draws of the
    target; all None unless it is a planar density. `coverage_50`, `coverage_90`: the share of test points in the
    flow's highest-density region of that mass (Hyndman 1996), its level found from its own samples;
    `calibration_error`: the Kolmogorov distance between the log-densities of test points and of samples, 0 for every
    level right.
    """
    x, log_q_of_x = _samples(specs, datasets, flows)
    generated = x.double().cpu()
    log_q_of_samples = log_q_of_x.double().cpu().numpy()
    found = []
    for e, spec in enumerate(specs):
        metrics: Metrics = {"clean_distance": None, "sample_distance": None, "sample_floor": None}
        if _is_planar_density(datasets[e]):
            metrics |= _distances(spec, generated[e])
        metrics |= _coverage(np.sort(log_q_of_samples[e]), np.sort(log_q[e].numpy()))
        found.append(metrics)
    return found


def _is_planar_density(dataset: Dataset) -> bool:
    return dataset.density is not None and dataset.event_shape == (2,)


def _distances(spec: Spec, generated: Tensor) -> Metrics:
    """Sliced distances of samples (N, 2) to the target."""
    references = _references(spec.data.law, spec.seed)
    slices = _slices(generated)
    clean = None if references.clean is None else float(np.abs(references.clean - slices).mean())
    return {
        "clean_distance": clean,
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
    """What samples are compared with: slices of noise-free and of noisy draws, the distance of two noisy sets.

    A density of the user's own may have no noise-free law.
    """

    clean: np.ndarray | None
    noisy: np.ndarray
    floor: float


@lru_cache(maxsize=64)
def _references(law: Data, seed: int) -> References:
    target = density_of(law)
    draw = target.draw
    clean = None if draw is None else _slices(draw(COMPARED_POINTS, stream(seed, "clean")))
    noisy = _slices(target.sample(COMPARED_POINTS, stream(seed, "compared/1")))
    again = _slices(target.sample(COMPARED_POINTS, stream(seed, "compared/2")))
    return References(clean, noisy, float(np.abs(noisy - again).mean()))


def _walk_metrics(specs: Sequence[Spec], kept: FlowStack) -> list[Metrics]:
    """`coordinates_moved`: the most that any coupling changed of 500 points on their way from base to data.

    `flattening`: the smallest ratio, over the layers, of the least to the greatest standard deviation of the points
    along any direction.
    """
    # Of images there are too many numbers for a spread, and one coupling moves half of them by its mask. Given a
    # context every point has a map of its own.
    if kept.image is not None or kept.n_context:
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
    given = torch.stack([dataset.given("train")[:n] for dataset in datasets]).to(x)
    of_points = kept.log_prob(x, given) - kept.log_prob(x, given, batch=Batch())
    gaps: list[float | None] = of_points.double().mean(1).tolist()
    return gaps


Arrays = dict[str, list[np.ndarray]]  # key → one array per member


def _arrays(specs: Sequence[Spec], datasets: Sequence[Dataset], flows: Ensembles, history: History) -> Arrays:
    """What the figures need, one entry per run; float32, data units."""
    record = specs[0].record
    if flows.stack.image is not None:
        return image_arrays(specs, datasets, flows.first(), record.samples) if record.samples else {}
    planar = all(_is_planar_density(dataset) for dataset in datasets)
    arrays: Arrays = {}
    if record.samples:
        chosen = _chosen(specs, flows, record.samples)
        arrays |= _sample_arrays(datasets, flows, history, chosen)
    if record.grid and planar:
        arrays |= _grid_arrays(datasets, flows, record.grid)
    if record.walk and flows.stack.dim == 2 and not flows.stack.n_context:
        arrays |= _walk_arrays(_base_draws(specs, flows.stack, record.walk, "walk"), flows.first())
    return arrays


def _split(value: Tensor | Sequence[Tensor]) -> list[np.ndarray]:
    """One float32 array per run."""
    return [part.float().cpu().numpy() for part in value]


def _sample_arrays(datasets: Sequence[Dataset], flows: Ensembles, history: History, chosen: Tensor) -> Arrays:
    """Training points and samples; in the plane also samples at the recorded steps, up to a run's divergence.

    Every draw, at each step, is made by the member that is `chosen` (R, M) for it.
    """
    shown = chosen.shape[1]
    base = history.base[:: flows.n_members]
    given = _given_to_draws(datasets, shown, base)
    if flows.n_members == 1:
        best = _moved(lambda z, context: flows.stack.forward(z, context)[0], base, given)
    else:
        best = flows.forward(base, chosen, given)
    arrays = {"target": _split([dataset.train[:shown] for dataset in datasets]), "best": _split(best)}
    if datasets[0].names is not None:
        arrays["columns"] = [np.array(dataset.names) for dataset in datasets]
    if flows.stack.dim != 2:
        return arrays
    snapshots = []
    snapshot_steps = []
    for r in range(len(datasets)):
        of_members = history.snapshots[r * flows.n_members : (r + 1) * flows.n_members]  # (K, S, M, D)
        stops = history.diverged_at[r * flows.n_members : (r + 1) * flows.n_members]
        stop = math.inf if None in stops else max(step for step in stops if step is not None)
        n_recorded = sum(step < stop for step in history.snapshot_steps)
        drawn = of_members[chosen[r].to(of_members.device), :, torch.arange(shown)]  # (M, S, D)
        snapshots.append(drawn.transpose(0, 1)[:n_recorded])
        snapshot_steps.append(np.array(history.snapshot_steps[:n_recorded]))
    return arrays | {"base": _split(base), "snapshots": _split(snapshots), "snapshot_steps": snapshot_steps}


def _grid_arrays(datasets: Sequence[Dataset], flows: Ensembles, side: int) -> Arrays:
    """Both log-densities on a grid over the target's window, (side, side), row = y."""
    grids, of_targets, extents = [], [], []
    for target in [dataset.density for dataset in datasets if dataset.density is not None]:
        x_low, x_high, y_low, y_high = target.extent()
        x = torch.linspace(x_low, x_high, side).double()
        y = torch.linspace(y_low, y_high, side).double()
        grid = torch.cartesian_prod(y, x).flip(-1)  # (side², 2): x runs fastest
        grids.append(grid)
        log_p = target.log_prob(grid).clamp(min=LEAST_LOG_P)
        of_targets.append(log_p.reshape(side, side))
        extents.append(torch.tensor(target.extent()))
    x = torch.stack(grids).to(flows.stack.theta)
    log_q = _chunked(flows.log_density, x, x[..., :0])  # a density that is known exactly has no context
    return {
        "grid_log_q": _split(log_q.unflatten(1, (side, side))),
        "grid_log_p": _split(of_targets),
        "grid_extent": _split(extents),
    }


def _walk_arrays(start: Tensor, kept: FlowStack) -> Arrays:
    """Points (E, N, D) followed from base to data and, in the plane, a lattice that shows how space is deformed."""

    def follow(z: Tensor) -> Tensor:  # (E, F, N, D)
        frames = _moved(lambda part, _: torch.stack([points for _, points in kept.walk(part)], 2), z, z[..., :0])
        return frames.transpose(1, 2)

    names = [name for name, _ in kept.walk(start[:, :1])]
    arrays = {"walk": _split(follow(start)), "walk_names": [np.array(names)] * len(start)}
    if kept.dim == 2:
        line = torch.linspace(-WALK_REACH, WALK_REACH, WALK_NODES)
        lattice = torch.cartesian_prod(line, line).expand(len(start), -1, -1).to(start)
        arrays["walk_grid"] = _split(follow(lattice).unflatten(2, (WALK_NODES, WALK_NODES)))
    return arrays
