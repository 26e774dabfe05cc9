"""Maximum-likelihood training of a stack: a state, and functions that begin it, carry it on and read its outcome."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from nfexp.flow import FlowStack
from nfexp.init import initialise_actnorm
from nfexp.nn import base_sample, stream
from nfexp.spec import CHUNK


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
    """What a training saw, per member and evaluation (E, S), NaN once a member diverged; `snapshots` (E, K, M, D).

    `diverged_in` is the position of the layer where the first non-finite number arose, see
    :meth:`nfexp.flow.FlowStack.first_nonfinite`.
    """

    steps: list[int]
    train_nll: Tensor
    val_nll: Tensor
    grad_norm: Tensor
    lr: Tensor
    best_step: list[int]
    diverged_at: list[int | None]
    diverged_in: list[int | None]
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


def mean_nll(flow: FlowStack, x: Tensor, chunk: int = CHUNK) -> Tensor:
    """Mean −log q over the real (non-NaN) rows of x (E, N, D), in nats per point; shape (E,), float64."""
    with torch.no_grad():
        values = torch.cat([flow.log_prob(part).double() for part in x.split(chunk, dim=1)], dim=1)
    real = ~x.isnan().any(-1)
    total = torch.where(real, -values, 0.0).sum(1)  # an overflow in a real row stays visible
    return total / real.sum(1)


class Order:
    """Endless passes over `n` points, each in a random order of its own: which points step 1, 2, … learns from.

    Pass k is a permutation drawn from the stream "batches/k" of the run's seed, so that any step can be asked for.

    >>> order = Order(n=4, batch=2, seed=0)
    >>> sorted(torch.cat([order.at(1), order.at(2)]).tolist())
    [0, 1, 2, 3]
    """

    def __init__(self, *, n: int, batch: int, seed: int) -> None:
        self.n, self.batch, self.seed = n, batch, seed
        self.known: dict[int, Tensor] = {}

    def at(self, step: int) -> Tensor:
        """The positions of the points of `step` (1, 2, …), shape (batch,)."""
        begin, end = (step - 1) * self.batch, step * self.batch
        passes = range(begin // self.n, (end - 1) // self.n + 1)
        self.known = {
            k: self.known[k] if k in self.known else torch.randperm(self.n, generator=stream(self.seed, f"batches/{k}"))
            for k in passes
        }
        whole = torch.cat(list(self.known.values())) if len(passes) > 1 else self.known[passes[0]]
        return whole[begin - passes[0] * self.n : end - passes[0] * self.n]


BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Adam (Kingma and Ba 2015)
CURVES = ("train_nll", "val_nll", "grad_norm", "lr")


@dataclass(kw_only=True)
class State:
    """Where the training of a stack stands after `step` steps; row e of every tensor is member e, whole.

    `theta`, `fixed` and the moments `first`, `second` (E, ·); the kept weights `best_theta`, `best_fixed`, their
    `best_score` and `best_step`; `diverged_at` and `diverged_in`, -1 while alive; `grad_norm` of the last step;
    `curves` (E, S, 4) and `snapshots` (E, K, M, D), NaN where not yet reached.
    """

    step: int
    theta: Tensor
    fixed: Tensor
    first: Tensor
    second: Tensor
    best_theta: Tensor
    best_fixed: Tensor
    best_score: Tensor
    best_step: Tensor
    diverged_at: Tensor
    diverged_in: Tensor
    grad_norm: Tensor
    curves: Tensor
    snapshots: Tensor

    def members(self) -> list[dict[str, Tensor]]:
        """Each member's own tensors, on the CPU: with :meth:`join` the way into and out of a checkpoint."""
        named = {f.name: getattr(self, f.name).cpu() for f in fields(self) if f.name != "step"}
        return [{k: v[e] for k, v in named.items()} for e in range(len(self.theta))]

    @classmethod
    def join(cls, step: int, members: Sequence[dict[str, Tensor]], device: torch.device | str = "cpu") -> State:
        """The state of a stack of these members, which all stand after `step` steps."""
        return cls(step=step, **{k: torch.stack([m[k] for m in members]).to(device) for k in members[0]})


def evaluation_steps(recipe: Recipe) -> tuple[list[int], list[int]]:
    """The steps at which a training is evaluated, and those of them at which it draws a snapshot."""
    steps = log_spaced(recipe.steps, recipe.n_evals)
    last, k = len(steps) - 1, recipe.n_snapshots
    return steps, sorted({steps[last - round(i * last / max(k - 1, 1))] for i in range(k)})


def snapshot_base(flow: FlowStack, data: Batches, recipe: Recipe) -> Tensor:
    """The base draws that every snapshot shows, (E, M, D): the same for all flows of one seed."""
    shape = (recipe.snapshot_points, flow.arch.dim)
    return torch.stack([base_sample(flow.arch.base, shape, stream(s, "base")) for s in data.seeds]).to(flow.theta)


def begin(flow: FlowStack, data: Batches, recipe: Recipe) -> State:
    """The state before the first step; the matrices of `flow` are copied."""
    n, like = flow.n_members, flow.theta
    steps, snapshot_steps = evaluation_steps(recipe)
    whole = {"dtype": torch.long, "device": like.device}
    return State(
        step=0,
        theta=flow.theta.clone(), fixed=flow.fixed.clone(),
        first=torch.zeros_like(like), second=torch.zeros_like(like),
        best_theta=flow.theta.clone(), best_fixed=flow.fixed.clone(),
        best_score=torch.full((n,), math.inf, dtype=torch.float64, device=like.device),
        best_step=torch.zeros(n, **whole),
        diverged_at=torch.full((n,), -1, **whole), diverged_in=torch.full((n,), -1, **whole),
        grad_norm=like.new_full((n, 1), math.nan),
        curves=torch.full((n, len(steps), len(CURVES)), math.nan, dtype=torch.float64, device=like.device),
        snapshots=like.new_full((n, len(snapshot_steps), recipe.snapshot_points, flow.arch.dim), math.nan),
    )  # fmt: skip


def advance(state: State, flow: FlowStack, data: Batches, recipe: Recipe, *, until: int) -> None:
    """Carry a training on, in place, to step `until`, or until every member has diverged.

    Adam on each member's own mini-batches. A member whose loss, gradient or validation NLL turns non-finite is frozen
    and its step and layer noted in `diverged_at` and `diverged_in`; its mates never notice. Stopping in between
    changes no number.
    """
    device, (eval_steps, snapshot_steps) = flow.theta.device, evaluation_steps(recipe)
    theta, fixed = state.theta.detach().requires_grad_(), state.fixed
    matrices = (state.theta, state.first, state.second)
    rows = list(zip(*(m.unbind(0) for m in matrices), strict=True))
    clip = torch.tensor(recipe.grad_clip, device=device, dtype=theta.dtype)[:, None]
    member = torch.arange(flow.n_members, device=device)[:, None]
    orders = [Order(n=n, batch=recipe.batch_points, seed=seed) for n, seed in zip(data.sizes, data.seeds, strict=True)]
    base, seen = snapshot_base(flow, data, recipe), data.train[:, : data.val.shape[1]]

    def alike() -> dict[tuple[float, float], list[int]]:
        """The members still alive, by learning rate and weight decay."""
        groups: dict[tuple[float, float], list[int]] = {}
        for e, (at, *key) in enumerate(zip(state.diverged_at.tolist(), recipe.lr, recipe.weight_decay, strict=True)):
            if at < 0:
                groups.setdefault((key[0], key[1]), []).append(e)
        return groups

    def note_divergence(finite: Tensor, x: Tensor, batch: dict[str, Tensor] | None = None) -> bool:
        lost = ~finite & (state.diverged_at < 0)
        if not bool(lost.any()):
            return False
        state.diverged_at[lost] = state.step
        state.diverged_in[lost] = flow.with_rows(state.theta[lost], fixed[lost]).first_nonfinite(x[lost], batch=batch)
        return True

    groups = alike()
    while groups and state.step < until:
        state.step = step = state.step + 1
        x = data.train[member, torch.stack([order.at(step) for order in orders]).to(device)]
        if step == 1:
            initialise_actnorm(flow.with_rows(state.theta, fixed), x)
        running: dict[str, Tensor] = {}
        loss = -flow.with_rows(theta, fixed).log_prob(x, batch=running).mean(1)
        (grad,) = torch.autograd.grad(loss.sum(), theta)
        with torch.no_grad():
            norm = torch.linalg.vector_norm(grad, dim=1, keepdim=True)
            if note_divergence(torch.isfinite(loss) & torch.isfinite(norm[:, 0]), x, batch={}):
                groups = alike()
            state.grad_norm = norm
            grad.mul_((clip / norm).clamp_(max=1.0))
            factor = lr_factor(step, steps=recipe.steps, warmup=recipe.warmup, schedule=recipe.schedule)
            gradients, taken = grad.unbind(0), torch.tensor(float(step - 1), device=device)
            for (peak, decay), alive in groups.items():
                adamw(
                    *([rows[e][0] for e in alive], [gradients[e] for e in alive]),
                    *([rows[e][1] for e in alive], [rows[e][2] for e in alive]),
                    [], [taken.clone() for _ in alive],
                    fused=True, amsgrad=False, maximize=False, beta1=BETA1, beta2=BETA2, eps=EPSILON,
                    lr=peak * factor, weight_decay=decay,
                )  # fmt: skip
            if running:
                going, blocks = (state.diverged_at < 0)[:, None], flow.fixed_layout.blocks(fixed)
                for name, value in running.items():
                    blocks[name].copy_(torch.where(going, value, blocks[name]))
        if step in eval_steps:
            now = flow.with_rows(state.theta, fixed)
            scores = {"train": mean_nll(now, seen), "val": mean_nll(now, data.val)}
            if note_divergence(torch.isfinite(scores["val"]), data.val):
                groups = alike()
            alive, always = state.diverged_at < 0, torch.full_like(scores["val"], -math.inf)
            score = torch.stack([scores.get(kind, always)[e] for e, kind in enumerate(recipe.select)])
            better = alive & ((score < state.best_score) | torch.isneginf(score))
            for best, value in (("best_score", score), ("best_theta", state.theta), ("best_fixed", fixed)):
                getattr(state, best)[better] = value[better]
            state.best_step[better] = step
            rates = torch.tensor(recipe.lr, device=device, dtype=torch.float64) * factor
            row = torch.stack([scores["train"], scores["val"], norm[:, 0].double(), rates], 1)
            state.curves[:, eval_steps.index(step)] = torch.where(alive[:, None], row, math.nan)
            if step in snapshot_steps and recipe.snapshot_points:
                with torch.no_grad():
                    state.snapshots[:, snapshot_steps.index(step)] = now.forward(base)[0]


def outcome(state: State, flow: FlowStack, data: Batches, recipe: Recipe) -> tuple[FlowStack, History]:
    """The kept weights of a training, and what was seen on the way; every number in nats per point.

    Kept are, per member, the weights with the lowest validation or training NLL among the evaluations before it
    diverged (`select` "val" or "train"), or the last ones. The training NLL is that of the first points, as many as
    there are validation points.
    """
    steps, snapshot_steps = evaluation_steps(recipe)
    curves = dict(zip(CURVES, state.curves.unbind(2), strict=True))
    lost = {k: [s if s >= 0 else None for s in getattr(state, k).tolist()] for k in ("diverged_at", "diverged_in")}
    history = History(
        steps=steps, **curves,
        best_step=state.best_step.tolist(), **lost,
        base=snapshot_base(flow, data, recipe), snapshots=state.snapshots, snapshot_steps=snapshot_steps,
    )  # fmt: skip
    return flow.with_rows(state.best_theta, state.best_fixed), history


def fit(flow: FlowStack, data: Batches, recipe: Recipe) -> tuple[FlowStack, History]:
    """Train a stack from its first step to its last: :func:`begin`, :func:`advance`, :func:`outcome`.

    Parameters
    ----------
    flow
        The initial stack; its matrices are not changed.
    data
        Training and validation points, on the device and in the dtype of the flow.
    recipe
        Steps, batch size, learning rates, clipping, evaluations.
    """
    state = begin(flow, data, recipe)
    advance(state, flow, data, recipe, until=recipe.steps)
    return outcome(state, flow, data, recipe)
