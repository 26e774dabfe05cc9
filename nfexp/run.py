"""From specs to results: draw the data, train one stack, score every member on its test draws."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from nfexp.data import Target, make_target
from nfexp.flow import Architecture, FlowStack, build
from nfexp.nn import base_sample, stream
from nfexp.spec import Spec, SpecError, batch_points, stack_key, training_cost
from nfexp.train import Batches, History, Recipe, fit

CONVERGED_WITHIN = 0.05  # nats above a run's lowest validation NLL
CLEAN_POINTS, CLEAN_DIRECTIONS = 2000, 32
TEST_CHUNK = 2000
INVERSE_POINTS = 1000


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


def check(spec: Spec) -> None:
    """Raise for what only shows when the run is set up: an undrawable text, a noise too small, an absent device."""
    target_of(spec)
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise SpecError("device", "a CUDA device on this machine, or 'cpu' or 'auto'", spec.device)


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


def _padded(parts: Sequence[Tensor]) -> Tensor:
    """Stack (n_e, D) tensors to (E, max n_e, D), missing rows NaN."""
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=math.nan)


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where it is there, otherwise the CPU."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


@lru_cache(maxsize=1)
def reuse_freed_memory() -> None:
    """Let glibc keep freed blocks: temporaries handed back to the system cost page faults at every step."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def run_stack(specs: Sequence[Spec], *, dtype: torch.dtype = torch.float32) -> list[Result]:
    """Train the runs of one stack together and score each; results come in the order of the specs.

    Member e's numbers equal those of ``run_stack([specs[e]])``.

    Raises
    ------
    ValueError
        If the specs do not share one :func:`nfexp.spec.stack_key`.
    """
    if len({stack_key(s) for s in specs}) != 1:
        raise ValueError("specs: expected runs with one stack_key; got several")
    begun = time.perf_counter()
    lead, device = specs[0], resolve_device(specs[0].device)
    train = _padded([draws(s, "train")[0] for s in specs])
    seeds = [s.seed for s in specs]
    flow = build(Architecture.of(lead), masks=[s.flow.mask for s in specs], seeds=seeds, data=train)
    batches = Batches(
        train=train.to(device, dtype),
        val=torch.stack([draws(s, "val")[0] for s in specs]).to(device, dtype),
        sizes=[s.data.n_samples for s in specs],
        seeds=seeds,
    )
    recipe = Recipe(
        steps=lead.train.steps,
        batch_points=batch_points(lead),
        schedule=lead.train.schedule,
        warmup=lead.train.warmup,
        lr=[s.train.lr for s in specs],
        grad_clip=[math.inf if s.train.grad_clip is None else s.train.grad_clip for s in specs],
        weight_decay=[s.train.weight_decay for s in specs],
        select=[s.train.select for s in specs],
        n_evals=lead.train.n_evals,
        n_snapshots=lead.record.snapshots,
        snapshot_points=lead.record.samples,
    )
    kept, history = fit(flow.to(device, dtype), batches, recipe)
    with torch.no_grad():
        results = _score(specs, kept, history)
    seconds = (time.perf_counter() - begun) / len(specs)
    for result in results:
        result.metrics |= {"seconds": seconds, "stack_size": len(specs)}
    return results


def training_rate(spec: Spec, *, members: int = 8) -> float:
    """How much of :func:`nfexp.spec.training_cost` this machine does in a second.

    Measured on two short real trainings of this architecture, its sizes capped so that it takes a second or two.
    """
    flow = replace(
        spec.flow,
        n_flows=min(spec.flow.n_flows, 8),
        hidden_depth=min(spec.flow.hidden_depth, 4),
        hidden_width=min(spec.flow.hidden_width, 256),
    )
    data = replace(spec.data, n_samples=256, n_val=2, n_test=2)

    def short(steps: int) -> tuple[float, float]:
        train = replace(spec.train, steps=steps, warmup=0, n_evals=1, batch_size=min(batch_points(spec), 256))
        record = replace(spec.record, samples=0, grid=0, walk=0)
        one = replace(spec, flow=flow, data=data, train=train, record=record)
        begun = time.perf_counter()
        run_stack([replace(one, seed=seed) for seed in range(members)])
        return members * training_cost(one), time.perf_counter() - begun

    short(2)  # draws the data
    (cost_a, time_a), (cost_b, time_b) = short(5), short(25)  # what they share cancels
    return (cost_b - cost_a) / max(time_b - time_a, 1e-3)


def _score(specs: Sequence[Spec], kept: FlowStack, history: History) -> list[Result]:
    test = torch.stack([draws(s, "test")[0] for s in specs]).to(kept.theta)
    log_q = torch.cat([kept.log_prob(part).double().cpu() for part in test.split(TEST_CHUNK, dim=1)], 1)
    some = test[:, :INVERSE_POINTS]
    inverse_error = (kept.forward(kept.inverse(some)[0])[0] - some).abs().amax((1, 2)).tolist()
    generated = kept.sample(CLEAN_POINTS, [stream(s.seed, "generated") for s in specs]).double().cpu()
    arrays = _arrays(specs, kept, history)
    n_parameters, results = kept.n_parameters(), []
    for e, spec in enumerate(specs):
        curve = {
            "step": np.array(history.steps),
            **{k: getattr(history, k)[:, e].cpu().numpy() for k in ("train_nll", "val_nll", "grad_norm", "lr")},
        }
        curve = {k: v[np.isfinite(curve["val_nll"])] for k, v in curve.items()}
        metrics: dict[str, float | int | None] = {
            "n_parameters": n_parameters[e],
            "diverged_at": history.diverged_at[e],
        }
        log_p = draws(spec, "test")[1]
        kl = log_p - log_q[e]
        status, reason = "completed", None
        if history.diverged_at[e] is not None:
            status, reason = (
                "diverged",
                f"non-finite loss, gradient or validation NLL at step {history.diverged_at[e]}",
            )
        elif not bool(torch.isfinite(kl).all()):
            status, reason = "diverged", "non-finite test NLL"
            metrics["diverged_at"] = history.best_step[e]
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
                "clean_distance": _clean_distance(spec, generated[e]),
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


def _clean_distance(spec: Spec, generated: Tensor) -> float:
    """Sliced Wasserstein-1 distance, in data units, between flow samples and draws of the target without its noise."""
    clean = target_of(spec).draw(len(generated), stream(spec.seed, "clean"))
    angle = math.pi * torch.arange(CLEAN_DIRECTIONS, dtype=torch.float64) / CLEAN_DIRECTIONS
    directions = torch.stack([angle.cos(), angle.sin()])  # (2, K)
    return ((clean @ directions).sort(0).values - (generated @ directions).sort(0).values).abs().mean().item()


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
        put("snapshots", [history.snapshots[: whole[e], e] for e in members])
        put("best", kept.forward(history.base)[0])
        out["snapshot_steps"] = [np.array(history.snapshot_steps[: whole[e]]) for e in members]
    if record.grid:
        targets = [target_of(s) for s in specs]
        ticks = [[torch.linspace(*t.extent()[i : i + 2], record.grid).double() for i in (0, 2)] for t in targets]
        grid = torch.stack([torch.cartesian_prod(y, x).flip(-1) for x, y in ticks])  # (E, g g, 2), row = y
        shape = (record.grid, record.grid)
        log_q = [kept.log_prob(part) for part in grid.to(kept.theta).split(TEST_CHUNK, dim=1)]
        put("grid_log_q", torch.cat(log_q, 1).unflatten(1, shape))
        put("grid_log_p", [t.log_prob(g).reshape(shape) for t, g in zip(targets, grid, strict=True)])
        put("grid_extent", [torch.tensor(t.extent()) for t in targets])
    if record.walk:
        shape = (record.walk, kept.arch.dim)
        start = torch.stack([base_sample(kept.arch.base, shape, stream(s.seed, "walk")) for s in specs])
        frames = kept.walk(start.to(kept.theta))
        put("walk", torch.stack([points for _, points in frames], 1))
        out["walk_names"] = [np.array([name for name, _ in frames])] * len(specs)
    return out
