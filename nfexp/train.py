"""Maximum-likelihood training of a stack: one function that returns its history."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nfexp.flow import FlowStack, initialise_actnorm
from nfexp.nn import base_sample, stream


@dataclass(frozen=True, kw_only=True)
class Batches:
    """What the members of a stack learn from; every list has one entry per member.

    `train` and `val` are padded with NaN rows to (E, N, D); `sizes` says how many training rows are real.
    """

    train: Tensor
    val: Tensor
    sizes: list[int]
    seeds: list[int]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a stack is trained; per member are `lr`, `grad_clip` (inf for none), `weight_decay` and `select`."""

    steps: int
    batch_points: int
    schedule: str
    warmup: int
    lr: list[float]
    grad_clip: list[float]
    weight_decay: list[float]
    select: list[str]
    n_evals: int
    n_snapshots: int
    snapshot_points: int


@dataclass(frozen=True, kw_only=True)
class History:
    """What :func:`fit` saw: per evaluation and member (S, E); `snapshots` (K, E, M, D) at `snapshot_steps`."""

    steps: list[int]
    train_nll: Tensor
    val_nll: Tensor
    grad_norm: Tensor
    lr: Tensor
    best_step: list[int]
    diverged_at: list[int | None]
    base: Tensor
    snapshots: Tensor
    snapshot_steps: list[int]


def log_spaced(steps: int, n: int) -> list[int]:
    """About `n` distinct whole steps from 1 to `steps`, logarithmically spaced, both ends included.

    >>> log_spaced(1000, 4)
    [1, 10, 100, 1000]
    """
    if n == 1 or steps == 1:
        return [steps]
    return sorted({round(math.exp(math.log(steps) * i / (n - 1))) for i in range(n)})


def lr_factor(step: int, *, steps: int, warmup: int, schedule: str) -> float:
    """The learning rate of `step` (1 … steps) over its peak: linear warm-up, then constant or a half cosine to 0."""
    if step <= warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup + 1)))


def mean_nll(flow: FlowStack, x: Tensor, chunk: int = 2000) -> Tensor:
    """Mean −log q over the real (non-NaN) rows of x (E, N, D), in nats per point; shape (E,), float64."""
    with torch.no_grad():
        values = torch.cat([flow.log_prob(part).double() for part in x.split(chunk, dim=1)], dim=1)
    real = ~x.isnan().any(-1)
    total = torch.where(real, -values, 0.0).sum(1)  # an overflow in a real row stays visible
    return total / real.sum(1)


class _Shuffler:
    """Endless passes over n points, each in a fresh random order, cut into batches."""

    def __init__(self, n: int, batch: int, generator: torch.Generator) -> None:
        self.n, self.batch, self.generator = n, batch, generator
        self.left = torch.empty(0, dtype=torch.long)

    def take(self) -> Tensor:
        while len(self.left) < self.batch:
            self.left = torch.cat([self.left, torch.randperm(self.n, generator=self.generator)])
        head, self.left = self.left[: self.batch], self.left[self.batch :]
        return head


BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Adam (Kingma and Ba 2015)


def fit(flow: FlowStack, data: Batches, recipe: Recipe) -> tuple[FlowStack, History]:
    """Train every member of a stack by Adam on its own mini-batches; return the kept weights and the history.

    A member whose loss, gradient or validation NLL turns non-finite is frozen and its step noted in `diverged_at`;
    its mates never notice. Kept are, per member, the weights with the lowest validation or training NLL among the
    evaluations before that (`select` "val" or "train"), or the last ones. The training NLL is that of the first
    points, as many as there are validation points.

    Parameters
    ----------
    flow
        The initial stack; its matrices are not changed.
    data
        Training and validation points, on the device and in the dtype of the flow.
    recipe
        Steps, batch size, learning rates, clipping, evaluations.

    Returns
    -------
    (FlowStack, History)
        The kept weights, and what was seen on the way. Every number in nats per point.
    """
    n_members, device = flow.n_members, flow.theta.device
    theta = flow.theta.clone().requires_grad_()
    fixed = flow.fixed.clone()
    peak = torch.tensor(recipe.lr, device=device, dtype=theta.dtype)[:, None]
    clip = torch.tensor(recipe.grad_clip, device=device, dtype=theta.dtype)[:, None]
    decay = torch.tensor(recipe.weight_decay, device=device, dtype=theta.dtype)[:, None]
    shufflers = [
        _Shuffler(n, recipe.batch_points, stream(seed, "batches"))
        for n, seed in zip(data.sizes, data.seeds, strict=True)
    ]
    member = torch.arange(n_members, device=device)[:, None]
    first, second = torch.zeros_like(flow.theta), torch.zeros_like(flow.theta)
    alive = torch.ones(n_members, dtype=torch.bool, device=device)
    diverged_at: list[int | None] = [None] * n_members
    frozen: list[int] = []
    decays = any(recipe.weight_decay)
    grad_norm = torch.full((n_members, 1), math.nan, device=device, dtype=theta.dtype)

    base = torch.stack(
        [base_sample(flow.arch.base, (recipe.snapshot_points, flow.arch.dim), stream(s, "base")) for s in data.seeds]
    ).to(flow.theta)
    eval_steps = log_spaced(recipe.steps, recipe.n_evals)
    last, k = len(eval_steps) - 1, recipe.n_snapshots
    snapshot_steps = sorted({eval_steps[last - round(i * last / max(k - 1, 1))] for i in range(k)})
    seen = data.train[:, : data.val.shape[1]]
    selector = {kind: torch.tensor([s == kind for s in recipe.select], device=device) for kind in ("val", "train")}
    best_theta, best_fixed = flow.theta.clone(), flow.fixed.clone()
    best_score = torch.full((n_members,), math.inf, dtype=torch.float64, device=device)
    best_step = torch.zeros(n_members, dtype=torch.long, device=device)
    rows: list[tuple[Tensor, ...]] = []
    snapshots: list[Tensor] = []

    def freeze(bad: Tensor, step: int) -> None:
        for e in torch.nonzero(bad & alive).flatten().tolist():
            diverged_at[e] = step
        alive.logical_and_(~bad)
        frozen.extend(e for e in range(n_members) if diverged_at[e] == step)

    for step in range(1, recipe.steps + 1):
        index = torch.stack([s.take() for s in shufflers]).to(device)
        x = data.train[member, index]
        if step == 1:
            start = flow.with_rows(theta.detach(), fixed)
            initialise_actnorm(start, x)
        running: dict[str, Tensor] = {}
        loss = -flow.with_rows(theta, fixed).log_prob(x, batch=running).mean(1)
        (grad,) = torch.autograd.grad(loss.sum(), theta)
        with torch.no_grad():
            grad_norm = torch.linalg.vector_norm(grad, dim=1, keepdim=True)
            finite = torch.isfinite(loss) & torch.isfinite(grad_norm[:, 0])
            if not bool((finite | ~alive).all()):
                freeze(~finite, step)
            grad.mul_((clip / grad_norm).clamp_(max=1.0))
            if len(frozen):
                grad[frozen] = 0.0
            first.lerp_(grad, 1 - BETA1)
            second.mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)
            factor = lr_factor(step, steps=recipe.steps, warmup=recipe.warmup, schedule=recipe.schedule)
            rate = torch.where(alive[:, None], peak * factor, 0.0)
            if decays:
                theta.mul_(1 - rate * decay)
            scale = (second / (1 - BETA2**step)).sqrt_().add_(EPSILON)
            theta.addcdiv_(first * (rate / (BETA1**step - 1)), scale)
            if running:
                views = flow.fixed_layout.views(fixed)
                for name, value in running.items():
                    views[name].copy_(torch.where(alive.view(-1, 1, 1), value, views[name]))
        if step in eval_steps:
            now = flow.with_rows(theta.detach(), fixed)
            train_nll, val_nll = mean_nll(now, seen), mean_nll(now, data.val)
            freeze(~torch.isfinite(val_nll), step)
            score = torch.where(selector["train"], train_nll, val_nll)
            always = ~(selector["val"] | selector["train"])
            better = alive & ((score < best_score) | always)
            best_score = torch.where(better, score, best_score)
            best_step = torch.where(better, step, best_step)
            best_theta = torch.where(better[:, None], theta.detach(), best_theta)
            best_fixed = torch.where(better[:, None], fixed, best_fixed)
            nan = torch.tensor(math.nan, device=device, dtype=torch.float64)
            row = (train_nll, val_nll, grad_norm[:, 0].double(), (peak[:, 0] * factor).double())
            rows.append(tuple(torch.where(alive, v, nan) for v in row))
            if step in snapshot_steps and recipe.snapshot_points:
                with torch.no_grad():
                    snapshots.append(now.forward(base)[0])
        if not bool(alive.any()):
            break

    columns = [torch.stack(c) for c in zip(*rows, strict=True)] if rows else [torch.empty(0, n_members)] * 4
    history = History(
        steps=eval_steps[: len(rows)],
        train_nll=columns[0], val_nll=columns[1], grad_norm=columns[2], lr=columns[3],
        best_step=best_step.tolist(), diverged_at=diverged_at, base=base,
        snapshots=torch.stack(snapshots) if snapshots else base.new_zeros(0, *base.shape),
        snapshot_steps=snapshot_steps[: len(snapshots)],
    )  # fmt: skip
    return flow.with_rows(best_theta, best_fixed), history
