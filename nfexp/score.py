"""How good a trained stack is: every member's metrics on its test draws, and the arrays its figures need."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from nfexp.data import Target, make_target
from nfexp.flow import FlowStack
from nfexp.nn import base_log_prob, base_sample, stream
from nfexp.spec import CHUNK, Spec, batch_points
from nfexp.train import History

CONVERGED_WITHIN = 0.05  # nats above a run's lowest validation NLL
COMPARED_POINTS, DIRECTIONS = 2000, 32  # of samples and targets; projections of a sliced distance
WALKED_POINTS = 500
WALK_NODES, WALK_REACH = 41, 2.5  # the grid that is followed through the layers: nodes per side, base units
INVERSE_POINTS = 1000
BATCH_GAP_POINTS = 4096


@dataclass(kw_only=True)
class Result:
    """One finished run: what its directory will hold. Every NLL in nats per point, data units."""

    spec: Spec
    status: str
    reason: str | None = None
    metrics: dict[str, float | int | None] = field(default_factory=dict)
    history: dict[str, np.ndarray] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)


def target_of(spec: Spec) -> Target:
    """The target of a run; its errors name the key (`data.noise`, `data.text`)."""
    return make_target(spec.data.name, noise=spec.data.noise, text=spec.data.text)


@lru_cache(maxsize=1024)
def _draws(name: str, noise: float, text: str | None, seed: int, split: str, n: int) -> tuple[Tensor, Tensor | None]:
    """Fresh draws of one split (n, 2) and, for the test split, their exact log-density (n,); float64."""
    target = make_target(name, noise=noise, text=text)
    x = target.sample(n, stream(seed, split))
    return x, target.log_prob(x) if split == "test" else None


def draws(spec: Spec, split: str) -> tuple[Tensor, Tensor | None]:
    """The `train`, `val` or `test` draws of a run; the same for every run with this target, noise, size and seed."""
    sizes = {"train": spec.data.n_samples, "val": spec.data.n_val, "test": spec.data.n_test}
    d = spec.data
    return _draws(d.name, d.noise, d.text, spec.seed, split, sizes[split])


def _chunked(evaluate: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`evaluate` over x (E, N, …) a few points at a time, for what a stack holds while it is evaluated."""
    return torch.cat([evaluate(part) for part in x.split(CHUNK, dim=1)], dim=1)


def _base_draws(specs: Sequence[Spec], kept: FlowStack, n: int, purpose: str) -> Tensor:
    """`n` base points per member, (E, n, D), each from the stream `purpose` of its own seed."""
    draw = [base_sample(kept.arch.base, (n, kept.arch.dim), stream(s.seed, purpose)) for s in specs]
    return torch.stack(draw).to(kept.theta)


def score(specs: Sequence[Spec], kept: FlowStack, history: History) -> list[Result]:
    """The result of every member of a stack with the weights `kept`, in the order of the specs.

    Metrics of a completed run: `train_nll`, `val_nll`, `test_nll`, `true_nll` (nats per point, data units; the last is
    the target's own on the same test points), `kl` = test_nll − true_nll paired point by point, standard errors,
    `inverse_error` (largest |x − f(f⁻¹(x))|, data units), `steps_to_converge`, and those of the functions below. A
    diverged one has `diverged_at` (step) and `diverged_layer` (position in data → base order, 0 the standardisation).
    """
    test = torch.stack([draws(s, "test")[0] for s in specs]).to(kept.theta)
    log_q = _chunked(kept.log_prob, test).double().cpu()
    some = test[:, :INVERSE_POINTS]
    there_and_back = _chunked(lambda x: kept.forward(kept.inverse(x)[0])[0], some)
    inverse_error = (there_and_back - some).abs().amax((1, 2)).tolist()
    of_samples, of_walk = _sample_metrics(specs, kept, log_q), _walk_metrics(specs, kept)
    gap = _batch_gap(specs, kept)
    arrays = _arrays(specs, kept, history)
    n_parameters, results = kept.n_parameters(), []
    for e, spec in enumerate(specs):
        curve = {
            "step": np.array(history.steps),
            **{k: getattr(history, k)[e].cpu().numpy() for k in ("train_nll", "val_nll", "grad_norm", "lr")},
        }
        curve = {k: v[np.isfinite(curve["val_nll"])] for k, v in curve.items()}
        metrics: dict[str, float | int | None] = {"n_parameters": n_parameters[e]}
        at, layer = history.diverged_at[e], history.diverged_in[e]
        log_p = draws(spec, "test")[1]
        kl = log_p - log_q[e]
        status, reason, what = "completed", None, "loss, gradient or validation NLL"
        if at is None and not bool(torch.isfinite(kl).all()):
            what, at = "test NLL", history.best_step[e]
            layer = int(kept.member(e).first_nonfinite(test[e : e + 1]))
        metrics |= {"diverged_at": at, "diverged_layer": layer}
        if at is not None:
            status, reason = "diverged", f"non-finite {what} at step {at}, first in {kept.layer_name(layer)}"
        else:
            at_best = curve["step"] == history.best_step[e]
            low = curve["val_nll"].min()
            metrics |= {
                "train_nll": float(curve["train_nll"][at_best][0]),
                "val_nll": float(curve["val_nll"][at_best][0]),
                "test_nll": -log_q[e].mean().item(),
                "test_nll_se": log_q[e].std().item() / math.sqrt(len(kl)),
                "true_nll": -log_p.mean().item(),
                "kl": kl.mean().item(),
                "kl_se": kl.std().item() / math.sqrt(len(kl)),
                **of_samples[e],
                **of_walk[e],
                "batch_gap": gap[e],
                "best_step": history.best_step[e],
                "steps_to_converge": int(curve["step"][curve["val_nll"] <= low + CONVERGED_WITHIN][0]),
                "inverse_error": inverse_error[e],
            }
            # a flow with a finite density can still overflow on the way to samples
            metrics = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
        own = {k: v[e] for k, v in arrays.items()}
        results.append(
            Result(
                spec=spec,
                status=status,
                reason=reason,
                metrics=metrics,
                history=curve,
                arrays=own,
                state=kept.state(e),
            )
        )
    return results


def _sample_metrics(specs: Sequence[Spec], kept: FlowStack, log_q: Tensor) -> list[dict[str, float]]:
    """What samples say of each flow; `log_q` (E, N) is its log-density at the test points.

    `sample_distance` and `clean_distance`: sliced Wasserstein-1 distances (Bonneel et al. 2015), in data units, to
    draws of the target with and without its noise; `sample_floor`: that of two independent sets of draws of the
    target. `coverage_50`, `coverage_90`: the share of test points in the flow's highest-density region of that mass
    (Hyndman 1996), its level found from its own samples; `calibration_error`: the Kolmogorov distance between the
    log-densities of test points and of samples, 0 for every level right.
    """
    z = _base_draws(specs, kept, COMPARED_POINTS, "generated")
    parts = [kept.forward(part) for part in z.split(CHUNK, dim=1)]
    generated = torch.cat([x for x, _ in parts], 1).double().cpu()
    log_det = torch.cat([d for _, d in parts], 1)
    own = (base_log_prob(kept.arch.base, z) - log_det).double().cpu().numpy()  # log q at the flow's samples
    found = []
    for e, spec in enumerate(specs):
        sorted_own, sorted_test = np.sort(own[e]), np.sort(log_q[e].numpy())
        both = np.concatenate([sorted_own, sorted_test])
        shares = [np.searchsorted(v, both, "right") / len(v) for v in (sorted_own, sorted_test)]
        clean, noisy, floor = _references(spec.data.name, spec.data.noise, spec.data.text, spec.seed)
        slices = _slices(generated[e])
        found.append(
            {
                "clean_distance": float(np.abs(clean - slices).mean()),
                "sample_distance": float(np.abs(noisy - slices).mean()),
                "sample_floor": floor,
                "coverage_50": float((sorted_test >= np.quantile(sorted_own, 0.5)).mean()),
                "coverage_90": float((sorted_test >= np.quantile(sorted_own, 0.1)).mean()),
                "calibration_error": float(np.abs(shares[0] - shares[1]).max()),
            }
        )
    return found


def _slices(x: Tensor) -> np.ndarray:
    """The sorted projections of points (N, 2) on the directions of a sliced distance, shape (K, N)."""
    angle = math.pi * torch.arange(DIRECTIONS, dtype=torch.float64) / DIRECTIONS
    return np.sort((torch.stack([angle.cos(), angle.sin()], 1) @ x.T).numpy())  # quicker than torch


@lru_cache(maxsize=64)
def _references(name: str, noise: float, text: str | None, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """What samples are compared with: slices of noise-free and of noisy draws, the distance of two noisy sets."""
    target = make_target(name, noise=noise, text=text)
    clean = _slices(target.draw(COMPARED_POINTS, stream(seed, "clean")))
    one, other = (_slices(target.sample(COMPARED_POINTS, stream(seed, f"compared/{i}"))) for i in (1, 2))
    return clean, one, float(np.abs(one - other).mean())


def _walk_metrics(specs: Sequence[Spec], kept: FlowStack) -> list[dict[str, float | int]]:
    """`coordinates_moved`: the most that any coupling changed of 500 points on their way from base to data.

    `flattening`: the smallest ratio, over the layers, of the least to the greatest standard deviation of the points
    along any direction.
    """
    walk = kept.walk(_base_draws(specs, kept, WALKED_POINTS, "walk"))
    points = torch.stack([p for _, p in walk], 1).double()  # (E, F, N, D)
    apart = (points[:, 1:] - points[:, :-1]).abs() > 1e-6 * (1 + points[:, 1:].abs())
    couplings = [i for i, (name, _) in enumerate(walk[1:]) if name.startswith("coupling")]
    moved = apart.any(2).sum(2)[:, couplings].amax(1).tolist()
    inner = points[:, 1:-1]
    centred = (inner - inner.mean(2, keepdim=True)).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    spread = torch.linalg.svdvals(centred)  # (E, F, D), falling
    ratio = (spread[..., -1] / spread[..., 0]).amin(1)
    ratio = torch.where(inner.isfinite().all((1, 2, 3)), ratio, math.nan)
    return [{"coordinates_moved": m, "flattening": r} for m, r in zip(moved, ratio.tolist(), strict=True)]


def _batch_gap(specs: Sequence[Spec], kept: FlowStack) -> list[float | None]:
    """Batch norm: mean NLL of a training batch by its own statistics minus that by the running ones, nats per point."""
    if kept.arch.norm != "batchnorm":
        return [None] * len(specs)
    n = min(BATCH_GAP_POINTS, batch_points(specs[0]), *(s.data.n_samples for s in specs))
    x = torch.stack([draws(s, "train")[0][:n] for s in specs]).to(kept.theta)
    return (kept.log_prob(x) - kept.log_prob(x, batch={})).double().mean(1).tolist()


def _arrays(specs: Sequence[Spec], kept: FlowStack, history: History) -> dict[str, list[np.ndarray]]:
    """What the figures need, one entry per member; float32, data units."""
    record, members = specs[0].record, range(len(specs))
    out: dict[str, list[np.ndarray]] = {}

    def put(key: str, value: Tensor | Sequence[Tensor]) -> None:
        out[key] = [value[e].float().cpu().numpy() for e in members]

    if record.samples:
        put("base", history.base)
        put("target", [draws(s, "train")[0][: record.samples] for s in specs])
        whole = [sum(s < (stop or math.inf) for s in history.snapshot_steps) for stop in history.diverged_at]
        put("snapshots", [history.snapshots[e, : whole[e]] for e in members])
        put("best", _chunked(lambda z: kept.forward(z)[0], history.base))
        out["snapshot_steps"] = [np.array(history.snapshot_steps[: whole[e]]) for e in members]
    if record.grid:
        targets = [target_of(s) for s in specs]
        ticks = [[torch.linspace(*t.extent()[i : i + 2], record.grid).double() for i in (0, 2)] for t in targets]
        grid = torch.stack([torch.cartesian_prod(y, x).flip(-1) for x, y in ticks])  # (E, g g, 2), row = y
        shape = (record.grid, record.grid)
        put("grid_log_q", _chunked(kept.log_density, grid.to(kept.theta)).unflatten(1, shape))
        put("grid_log_p", [t.log_prob(g).reshape(shape) for t, g in zip(targets, grid, strict=True)])
        put("grid_extent", [torch.tensor(t.extent()) for t in targets])
    if record.walk:
        start = _base_draws(specs, kept, record.walk, "walk")
        line = torch.linspace(-WALK_REACH, WALK_REACH, WALK_NODES)
        lattice = torch.cartesian_prod(line, line).expand(len(specs), -1, -1).to(start)
        names = [name for name, _ in kept.walk(start[:, :1])]

        def followed(z: Tensor) -> Tensor:  # (E, F, N, 2)
            return _chunked(lambda z: torch.stack([points for _, points in kept.walk(z)], 2), z).transpose(1, 2)

        put("walk", followed(start))
        put("walk_grid", followed(lattice).unflatten(2, (WALK_NODES, WALK_NODES)))
        out["walk_names"] = [np.array(names)] * len(specs)
    return out
