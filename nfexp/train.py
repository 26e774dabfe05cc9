"""Maximum-likelihood training of a stack: step, evaluate, until the end.

What is trained, where it stands and what remains of it: :mod:`nfexp.training`.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from nfexp.flows.cost import CHUNK
from nfexp.flows.kernel_protocol import Course, Kernel, Made, Rows
from nfexp.flows.layers import Batch
from nfexp.flows.stack import FlowStack, initialise_actnorm
from nfexp.optimisers import OPTIMISERS
from nfexp.training import (
    ALIVE,
    CURVES,
    Contexts,
    History,
    State,
    Training,
    begin,
    dequantised,
    finish,
    image_in,
    log_spaced,
    padded,
    prepare,
)

__all__ = [
    "ALIVE",
    "CURVES",
    "Contexts",
    "Density",
    "History",
    "State",
    "Training",
    "advance",
    "begin",
    "dequantised",
    "finish",
    "fit",
    "image_in",
    "log_spaced",
    "lr_factor",
    "mean_nll",
    "padded",
    "prepare",
]

AT_ONCE = 64  # the most steps that a kernel makes in one call
# the most points that a kernel learns from in one call: a call cannot be interrupted, and points
# with noise on them are copies
POINTS_AT_ONCE = 2**16


def lr_factor(step: int, *, steps: int, warmup: int, schedule: str) -> float:
    """The learning rate of `step` (1 … steps) over its peak.

    Linear warm-up, then constant or a half cosine to 0.
    """
    if step <= warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup + 1)))


class Density(Protocol):
    """What has a log-density at points, maybe one that depends on a context.

    (E, N, D) and (E, N, C) to (E, N).
    """

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor: ...


def mean_nll(
    flow: Density, x: Tensor, context: Tensor | None = None, *, chunk: int = CHUNK
) -> Tensor:
    """Mean −log q over the real (non-NaN) rows of x (E, N, D), in nats per point.

    Shape (E,), float64.

    Of a conditional density −log q(x | c), with the context (E, N, C).
    """
    if context is None:
        context = x[..., :0]
    with torch.no_grad():
        parts = []
        for points, given in zip(x.split(chunk, dim=1), context.split(chunk, dim=1), strict=True):
            parts.append(flow.log_prob(points, given).double())
    log_q = torch.cat(parts, dim=1)
    real = ~x.isnan().any(-1)
    total = torch.where(real, -log_q, 0.0).sum(1)  # an overflow in a real row stays visible
    return total / real.sum(1)


def fit(training: Training) -> tuple[FlowStack, History]:
    """Train a stack from its first step to its last.

    :func:`begin`, :func:`advance`, :func:`finish`.
    """
    state = begin(training)
    advance(training, state, until=training.lead.train.steps)
    return finish(training, state)


def advance(training: Training, state: State, *, until: int) -> None:
    """Carry a training on, in place, to step `until`, or until every member has diverged.

    A member whose loss, gradient or validation NLL turns non-finite is frozen and its step and
    layer noted in `diverged_at` and `diverged_in`; its mates never notice. Stopping in between
    changes no number.
    """
    stepper = _Stepper(training, state)
    kernel = training.fresh.kernel
    evaluations = training.evaluation_steps()
    stops = [*evaluations, until]
    while stepper.optimiser.members and state.step < until:
        if kernel is None:
            stepper.step()
        else:
            next_stop = min(stop for stop in stops if stop > state.step)
            stepper.steps_by(kernel, next_stop - state.step)
        if state.step in evaluations:
            stepper.evaluate()


class _Stepper:
    """The steps of a training, on each member's own mini-batches.

    Holds what is worth computing once.
    """

    def __init__(self, training: Training, state: State) -> None:
        self.training = training
        self.state = state
        self.batches = training.batches
        self.theta = state.theta.detach().requires_grad_()  # the same memory
        recipes = [spec.train for spec in training.specs]
        self.peaks = [recipe.lr for recipe in recipes]
        clips = [math.inf if recipe.grad_clip is None else recipe.grad_clip for recipe in recipes]
        self.clip = state.theta.new_tensor(clips)[:, None]
        optimiser = OPTIMISERS[training.lead.train.optimizer]
        self.optimiser = optimiser(state.theta, state.first, state.second, recipes)
        self.optimiser.train(state.alive_members())

    def _flow(self, theta: Tensor) -> FlowStack:
        return self.training.fresh.with_rows(theta, self.state.fixed)

    def _lr_factor(self, step: int) -> float:
        recipe = self.training.lead.train
        return lr_factor(step, steps=recipe.steps, warmup=recipe.warmup, schedule=recipe.schedule)

    # --- A step by autodiff ---

    def step(self) -> None:
        """One step of every member that is alive."""
        state = self.state
        state.step += 1
        positions = self.batches.positions(state.step)
        x = self.batches.points(state.step, positions)
        context = self.batches.context(positions)
        if state.step == 1:
            initialise_actnorm(self._flow(state.theta), x, context)
        batch = self.batches.mode(state.step)
        loss, grad = self._gradient(x, context, batch)
        with torch.no_grad():
            norm = torch.linalg.vector_norm(grad, dim=1, keepdim=True)
            finite = torch.isfinite(loss) & torch.isfinite(norm[:, 0])
            self._freeze_lost(finite, x, context, Batch())
            state.grad_norm = norm
            grad.mul_((self.clip / norm).clamp_(max=1.0))
            self.optimiser.step(grad, step=state.step, factor=self._lr_factor(state.step))
            self._keep_statistics(batch)
            if self.training.averaged:
                self._average()

    def _gradient(self, x: Tensor, context: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Each member's mean NLL of its points x (E, N, D), nats, and the gradient.

        (E,) and (E, P).
        """
        loss = -self._flow(self.theta).log_prob(x, context, batch=batch).mean(1)
        # Member e's loss depends on row e alone, so the gradient of the sum holds that of each.
        (grad,) = torch.autograd.grad(loss.sum(), self.theta)
        return loss, grad

    def _keep_statistics(self, batch: Batch) -> None:
        """Store the running statistics that layers left in a batch, but not those of a diverged member."""
        if not batch.updates:
            return
        alive = self.state.alive[:, None]
        blocks = self.training.fresh.fixed_layout.blocks(self.state.fixed)
        for name, value in batch.updates.items():
            blocks[name].copy_(torch.where(alive, value, blocks[name]))

    # --- Steps by a kernel ---

    def steps_by(self, kernel: Kernel, most: int) -> None:
        """The next steps of every member that is alive, by one call of a kernel; at most `most`."""
        state = self.state
        begun = state.step
        steps = self._steps_of_a_call(most)
        positions = self.batches.positions_of(steps)
        if begun == 0:
            first = self.batches.points(1, positions[0])
            initialise_actnorm(self._flow(state.theta), first, self.batches.context(positions[0]))
        course = self._course(steps)
        x = self.training.train
        context = self.training.contexts.train
        order = positions
        if self.batches.noises:
            # the points of all steps as they are at theirs, one step after the other
            x = self.batches.points_of(steps, positions)
            context = self.batches.context_of(positions)
            order = torch.arange(x.shape[1]).view(len(steps), 1, -1)
        rows = Rows(theta=state.theta, fixed=state.fixed, first=state.first, second=state.second)
        done = kernel.steps(rows, x, context, order, course)
        state.grad_norm = done.norm[:, None]
        self._freeze_lost_by(done, course, positions)
        if self.optimiser.members:
            state.step = steps[-1]
        if self.training.averaged:
            self._average()

    def _steps_of_a_call(self, most: int) -> range:
        """The next steps, at least one: the fewer, the more points there are in each."""
        first = self.state.step + 1
        if self.training.averaged:  # the running mean takes in the weights of every step
            return range(first, first + 1)
        n_points = len(self.optimiser.members) * self.batches.size
        n_steps = max(1, min(most, AT_ONCE, POINTS_AT_ONCE // n_points))
        return range(first, first + n_steps)

    def _course(self, steps: range) -> Course:
        """What a kernel is told of these steps."""
        return Course(
            members=self.optimiser.members,
            clip=self.clip[:, 0].tolist(),
            lr=self.peaks,
            decay=[spec.train.weight_decay for spec in self.training.specs],
            factors=[self._lr_factor(step) for step in steps],
            laws=[self.optimiser.law(step) for step in steps],
            begun=steps[0] - 1,
        )

    def _freeze_lost_by(self, done: Made, course: Course, positions: Tensor) -> None:
        """Freeze the members that a kernel lost on the way, at the step after the last one they made.

        `positions` (S, E, N) are those of the training points of each step.
        """
        n_made = torch.tensor(done.made)
        for made in sorted({done.made[e] for e in course.members}):
            if made == len(positions):
                continue
            self.state.step = course.begun + made + 1
            x = self.batches.points(self.state.step, positions[made])
            context = self.batches.context(positions[made])
            self._freeze_lost(n_made != made, x, context, Batch())

    # --- After a step ---

    def _average(self) -> None:
        """Take this step's weights into the running mean.

        It forgets at most as `ema` says, at first more quickly.
        """
        step = self.state.step
        decay = min(self.training.lead.train.ema, (1 + step) / (10 + step))
        alive = self.state.alive[:, None]
        moved = torch.lerp(self.state.average, self.state.theta, 1 - decay)
        self.state.average.copy_(torch.where(alive, moved, self.state.average))

    def _freeze_lost(self, finite: Tensor, x: Tensor, context: Tensor, batch: Batch | None) -> None:
        """Note which members just diverged, and in which layer.

        `finite` (E,), x the points that showed it.
        """
        state = self.state
        if bool(finite.all()):
            return
        lost = ~finite & state.alive
        if not bool(lost.any()):
            return
        flow = self.training.fresh.with_rows(state.theta[lost], state.fixed[lost])
        state.diverged_at[lost] = state.step
        state.diverged_in[lost] = flow.first_nonfinite(x[lost], context[lost], batch=batch)
        self.optimiser.train(state.alive_members())

    def evaluate(self) -> None:
        """Note the curves, keep the weights where they are the best so far, and draw a snapshot if one is due."""
        state = self.state
        training = self.training
        weights = state.average if training.averaged else state.theta
        flow = self._flow(weights)
        contexts = training.contexts
        n_watched = training.watched.shape[1]
        train_nll = mean_nll(flow, training.watched, contexts.train[:, :n_watched])
        val_nll = mean_nll(flow, training.val, contexts.val)
        self._freeze_lost(torch.isfinite(val_nll), training.val, contexts.val, None)
        self._keep_best(weights, train_nll, val_nll)
        self._note(train_nll, val_nll)
        self._draw_snapshot(flow)

    def _keep_best(self, weights: Tensor, train_nll: Tensor, val_nll: Tensor) -> None:
        """Keep the weights of each member that is alive and has its lowest score so far."""
        state = self.state
        score = self._scores(train_nll, val_nll)
        better = state.alive & ((score < state.best_score) | torch.isneginf(score))
        state.best_score[better] = score[better]
        state.best_theta[better] = weights[better]
        state.best_fixed[better] = state.fixed[better]
        state.best_step[better] = state.step

    def _scores(self, train_nll: Tensor, val_nll: Tensor) -> Tensor:
        """What each member keeps its weights by, the lower the better.

        −∞, always better, for `select` "last".
        """
        always = torch.full_like(val_nll, -math.inf)
        by_select = {"train": train_nll, "val": val_nll, "last": always}
        scores = [by_select[spec.train.select][e] for e, spec in enumerate(self.training.specs)]
        return torch.stack(scores)

    def _note(self, train_nll: Tensor, val_nll: Tensor) -> None:
        """Add an evaluation to the curves, in the order of `CURVES`."""
        state = self.state
        lr = torch.tensor(self.peaks, device=val_nll.device, dtype=torch.float64)
        lr = lr * self._lr_factor(state.step)
        values = torch.stack([train_nll, val_nll, state.grad_norm[:, 0].double(), lr], 1)
        position = self.training.evaluation_steps().index(state.step)
        state.curves[:, position] = torch.where(state.alive[:, None], values, math.nan)

    def _draw_snapshot(self, flow: FlowStack) -> None:
        """Record samples, at some evaluations."""
        training = self.training
        steps = training.snapshot_steps()
        if self.state.step not in steps or not training.snapshot_points:
            return
        with torch.no_grad():
            samples, _ = flow.forward(training.snapshot_base(), training.contexts.samples)
        self.state.snapshots[:, steps.index(self.state.step)] = samples
