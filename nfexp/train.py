"""Maximum-likelihood training of a stack: begin, step, evaluate, finish.

What stays is a :class:`Training`, what changes a :class:`State`; both have one row or entry per member.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Protocol

import torch
from torch import Generator, Tensor

from nfexp.batches import Noise, Order, augmented, noise_share, within_cells
from nfexp.data import Dataset
from nfexp.flows.cost import CHUNK
from nfexp.flows.image.plan import Image
from nfexp.flows.kernels import kernel_for
from nfexp.flows.layers import Batch
from nfexp.flows.stack import Course, FlowStack, Kernel, Rows, build, initialise_actnorm
from nfexp.optimisers import OPTIMISERS
from nfexp.spec import Spec, batch_points
from nfexp.streams import of_member, stream

CURVES = ("train_nll", "val_nll", "grad_norm", "lr")  # what an evaluation notes
ALIVE = -1  # in `diverged_at` and `diverged_in`
AT_ONCE = 16  # steps of members that a kernel makes in one go


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """The context of a training's points, (E, N, C): C = 0 where nothing is given.

    Of `train` and `val` rows as they are padded, and of the samples that snapshots show.
    """

    train: Tensor
    val: Tensor
    samples: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """What a stack learns from, how, and what it starts as.

    `train` and `val` are (E, N, D), padded with NaN rows; `sizes` says how many training rows of each member are real;
    `watched` are the training points whose NLL is noted. The levels of images are in `train` as they are, to be
    dequantised anew at each step; `val` and `watched` are dequantised once and for all. `given` is their context.
    Steps, batch size and schedule are those of every spec; learning rate, clip, weight decay and selection each
    member's own. A run of K members (`flow.members`) has K rows in a row: `specs` names it for each of them, and
    `positions` says where in their ensemble they stand, 0 … K − 1.
    """

    specs: Sequence[Spec]
    positions: Sequence[int]
    fresh: FlowStack
    train: Tensor
    val: Tensor
    watched: Tensor
    given: Given
    sizes: Sequence[int]

    @property
    def lead(self) -> Spec:
        """A spec to ask for what all members share."""
        return self.specs[0]

    @property
    def averaged(self) -> bool:
        """Whether what is evaluated and kept is a running mean of the weights."""
        return self.lead.train.ema > 0

    # A pass over many points is dear to draw: it outlives the slices that a training is carried on in

    @cached_property
    def orders(self) -> list[Order]:
        """Which points each row learns from."""
        found = []
        for spec, position, n in zip(self.specs, self.positions, self.sizes, strict=True):
            found.append(Order(n=n, batch=batch_points(self.lead), seed=spec.seed, member=position))
        return found

    @cached_property
    def noises(self) -> dict[int, Noise]:
        """The noise on the points of each row that has any."""
        found = {}
        for e, (spec, position, n) in enumerate(zip(self.specs, self.positions, self.sizes, strict=True)):
            if spec.train.noise > 0 or spec.train.noise_end > 0:
                sd = self.train[e, :n].std(0, correction=0)
                found[e] = Noise(n=n, batch=batch_points(self.lead), seed=spec.seed, sd=sd, member=position)
        return found

    def evaluation_steps(self) -> list[int]:
        """The steps after which the stack is evaluated: logarithmically spaced, the last one included."""
        return log_spaced(self.lead.train.steps, self.lead.train.n_evals)

    def snapshot_steps(self) -> list[int]:
        """The evaluations that also record samples: evenly spread over all of them, counted from the last."""
        steps = self.evaluation_steps()
        last = len(steps) - 1
        n = self.lead.record.snapshots
        chosen = set()
        for i in range(n):
            chosen.add(steps[last - round(i * last / max(n - 1, 1))])
        return sorted(chosen)

    @property
    def snapshot_points(self) -> int:
        """M, the points of a snapshot. There are none of images: a thousand of them would weigh more than all else."""
        return self.given.samples.shape[1]

    def snapshot_base(self) -> Tensor:
        """The base draws that every snapshot shows, (E, M, D): the same for all flows of one seed."""
        generators = [stream(spec.seed, "base") for spec in self.specs]
        return self.fresh.base_draws(self.snapshot_points, generators)


def prepare(specs: Sequence[Spec], datasets: Sequence[Dataset], device: torch.device, dtype: torch.dtype) -> Training:
    """A fresh stack for these runs, a row for each of their members, and their points on a device."""
    n_members = specs[0].flow.members
    of_rows = [spec for spec in specs for _ in range(n_members)]
    of_data = [dataset for dataset in datasets for _ in range(n_members)]
    positions = list(range(n_members)) * len(specs)
    train = padded([dataset.train for dataset in of_data])
    points = padded([dequantised(d.train, d, s.seed, "train") for d, s in zip(of_data, of_rows, strict=True)])
    val = padded([dequantised(d.val, d, s.seed, "val") for d, s in zip(of_data, of_rows, strict=True)])
    image = image_in(datasets[0])
    n_samples = specs[0].record.samples if image is None else 0
    given = Given(
        train=padded([d.given("train") for d in of_data]),
        val=padded([d.given("val") for d in of_data]),
        samples=padded([d.given_to_draws(n_samples) for d in of_data]),
    )
    fresh = build(
        specs[0].flow,
        masks=[spec.flow.mask for spec in of_rows],
        seeds=[spec.seed for spec in of_rows],
        data=points,
        positions=positions,
        image=image,
        context=given.train,
    )
    fresh = fresh.to(device, dtype)
    return Training(
        specs=of_rows,
        positions=positions,
        fresh=fresh.with_kernel(kernel_for(specs[0].train.kernel, fresh)),
        train=train.to(device, dtype),
        val=val.to(device, dtype),
        watched=points[:, : val.shape[1]].to(device, dtype),
        given=Given(
            train=given.train.to(device, dtype),
            val=given.val.to(device, dtype),
            samples=given.samples.to(device, dtype),
        ),
        sizes=[len(dataset.train) for dataset in of_data],
    )


def padded(parts: Sequence[Tensor]) -> Tensor:
    """Stack (n_e, *event_shape) tensors to (E, max n_e, D), missing rows NaN; an image is one row of numbers."""
    rows = [part.flatten(1) for part in parts]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=math.nan)


def image_in(dataset: Dataset) -> Image | None:
    """What its images are; None for a dataset of vectors."""
    if dataset.levels is None:
        return None
    channels, height, width = dataset.event_shape
    return Image(channels, height, width, dataset.levels)


def dequantised(points: Tensor, dataset: Dataset, seed: int, purpose: str) -> Tensor:
    """Images as points anywhere in the cells of their levels; other points as they are.

    Where, the seed and the purpose say.

    What a flow makes of a place in a cell, its first layer says (:class:`nfexp.flows.image.layers.Dequantise`).
    """
    if dataset.levels is None:
        return points
    return points + within_cells(tuple(points.shape), dataset.levels, stream(seed, f"dequantise/{purpose}"))


@dataclass(kw_only=True)
class State:
    """Where the training of a stack stands after `step` steps; row e of every tensor is member e, whole.

    `theta`, `fixed` and the moments `first`, `second` (E, ·); the running mean `average` of the weights, (E, P), or
    (E, 0) where none is kept; the kept weights `best_theta`, `best_fixed`, their
    `best_score` and `best_step`; `diverged_at` and `diverged_in`, -1 while alive; `grad_norm` of the last step;
    `curves` (E, S, 4) and `snapshots` (E, K, M, D), NaN where not yet reached.
    """

    step: int
    theta: Tensor
    fixed: Tensor
    first: Tensor
    second: Tensor
    average: Tensor
    best_theta: Tensor
    best_fixed: Tensor
    best_score: Tensor
    best_step: Tensor
    diverged_at: Tensor
    diverged_in: Tensor
    grad_norm: Tensor
    curves: Tensor
    snapshots: Tensor

    @property
    def alive(self) -> Tensor:
        """Which members have not diverged, (E,)."""
        return self.diverged_at == ALIVE

    def runs(self, n_members: int) -> list[dict[str, Tensor]]:
        """Each run's own tensors, so many rows, on the CPU: with :meth:`join` the way into and out of a checkpoint."""
        runs: list[dict[str, Tensor]] = [{} for _ in range(len(self.theta) // n_members)]
        for f in fields(self):
            if f.name != "step":
                parts = getattr(self, f.name).cpu().split(n_members)
                for own, part in zip(runs, parts, strict=True):
                    own[f.name] = part.contiguous()
        return runs

    @classmethod
    def join(cls, step: int, runs: Sequence[dict[str, Tensor]], device: torch.device | str = "cpu") -> State:
        """The state of a stack of these runs, which all stand after `step` steps."""
        tensors = {}
        for name in runs[0]:
            tensors[name] = torch.cat([run[name] for run in runs]).to(device)
        return cls(step=step, **tensors)


@dataclass(frozen=True, kw_only=True)
class History:
    """What a training saw, per member and evaluation (E, S), NaN once a member diverged; `snapshots` (E, K, M, D).

    `diverged_in` is the position of the layer where the first non-finite number arose, see
    :meth:`nfexp.flows.stack.FlowStack.first_nonfinite`.
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


class Density(Protocol):
    """What has a log-density at points, maybe one that depends on a context: (E, N, D) and (E, N, C) to (E, N)."""

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor: ...


def mean_nll(flow: Density, x: Tensor, context: Tensor | None = None, *, chunk: int = CHUNK) -> Tensor:
    """Mean −log q over the real (non-NaN) rows of x (E, N, D), in nats per point; shape (E,), float64.

    Of a conditional density −log q(x | c), with the context (E, N, C).
    """
    if context is None:
        context = x[..., :0]
    with torch.no_grad():
        parts = []
        for points, given in zip(x.split(chunk, dim=1), context.split(chunk, dim=1), strict=True):
            parts.append(flow.log_prob(points, given).double())
    values = torch.cat(parts, dim=1)
    real = ~x.isnan().any(-1)
    total = torch.where(real, -values, 0.0).sum(1)  # an overflow in a real row stays visible
    return total / real.sum(1)


def begin(training: Training) -> State:
    """The state before the first step; the matrices of the fresh stack are copied."""
    fresh = training.fresh
    n, like, device = fresh.n_members, fresh.theta, fresh.theta.device
    n_evaluations = len(training.evaluation_steps())
    n_snapshots = len(training.snapshot_steps())
    return State(
        step=0,
        theta=fresh.theta.clone(),
        fixed=fresh.fixed.clone(),
        first=torch.zeros_like(like),
        second=torch.zeros_like(like),
        average=fresh.theta.clone() if training.averaged else like.new_zeros(n, 0),
        best_theta=fresh.theta.clone(),
        best_fixed=fresh.fixed.clone(),
        best_score=torch.full((n,), math.inf, dtype=torch.float64, device=device),
        best_step=torch.zeros(n, dtype=torch.long, device=device),
        diverged_at=torch.full((n,), ALIVE, dtype=torch.long, device=device),
        diverged_in=torch.full((n,), ALIVE, dtype=torch.long, device=device),
        grad_norm=like.new_full((n, 1), math.nan),
        curves=torch.full((n, n_evaluations, len(CURVES)), math.nan, dtype=torch.float64, device=device),
        snapshots=like.new_full((n, n_snapshots, training.snapshot_points, fresh.dim), math.nan),
    )


def advance(training: Training, state: State, *, until: int) -> None:
    """Carry a training on, in place, to step `until`, or until every member has diverged.

    A member whose loss, gradient or validation NLL turns non-finite is frozen and its step and layer noted in
    `diverged_at` and `diverged_in`; its mates never notice. Stopping in between changes no number.
    """
    stepper = _Stepper(training, state)
    kernel = training.fresh.kernel
    stops = [*training.evaluation_steps(), until]
    while stepper.optimiser.members and state.step < until:
        if kernel is None:
            stepper.step()
        else:
            next_stop = min(stop for stop in stops if stop > state.step)
            stepper.steps_by(kernel, next_stop - state.step)
        if state.step in stops[:-1]:
            stepper.evaluate()


class _Stepper:
    """The steps of a training, on each member's own mini-batches. Holds what is worth computing once."""

    def __init__(self, training: Training, state: State) -> None:
        self.training = training
        self.state = state
        lead = training.lead
        device = state.theta.device
        self.theta = state.theta.detach().requires_grad_()  # the same memory
        self.n_steps = lead.train.steps
        clips = [math.inf if s.train.grad_clip is None else s.train.grad_clip for s in training.specs]
        self.clip = torch.tensor(clips, device=device, dtype=state.theta.dtype)[:, None]
        self.member = torch.arange(len(training.specs), device=device)[:, None]
        recipes = [spec.train for spec in training.specs]
        self.image = training.fresh.image
        self.optimiser = OPTIMISERS[lead.train.optimizer](state.theta, state.first, state.second, recipes)
        self.optimiser.train(self._alive_members())

    def _flow(self, theta: Tensor) -> FlowStack:
        return self.training.fresh.with_rows(theta, self.state.fixed)

    def _alive_members(self) -> list[int]:
        return [e for e, alive in enumerate(self.state.alive.tolist()) if alive]

    def _lr_factor(self, step: int) -> float:
        recipe = self.training.lead.train
        return lr_factor(step, steps=recipe.steps, warmup=recipe.warmup, schedule=recipe.schedule)

    def _positions(self, step: int) -> Tensor:
        """Which training points each member learns from at a step, (E, N)."""
        return torch.stack([order.at(step) for order in self.training.orders])

    def _points(self, step: int, positions: Tensor) -> Tensor:
        """The points at these positions (E, N), with the noise of a step on them: (E, N, D).

        Images are changed and dequantised as the step says.
        """
        x = self.training.train[self.member, positions.to(self.state.theta.device)]
        if self.image is not None:
            x = self._in_cells(x, self.image, step)
        for e, noise in self.training.noises.items():
            x[e].add_(noise.at(step), alpha=noise_share(self.training.specs[e].train, step))
        return x

    def _given(self, positions: Tensor) -> Tensor:
        """The context of the points at these positions (E, N), as it is: the noise of a step is on points alone."""
        return self.training.given.train[self.member, positions.to(self.state.theta.device)]

    def step(self) -> None:
        """One step of every member that is alive."""
        state = self.state
        state.step += 1
        positions = self._positions(state.step)
        x = self._points(state.step, positions)
        context = self._given(positions)
        if state.step == 1:
            initialise_actnorm(self._flow(state.theta), x, context)
        batch = self._batch()
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

    def _in_cells(self, x: Tensor, image: Image, step: int) -> Tensor:
        """The images of a step (E, N, D), changed and dequantised as this step of each member says."""
        parts = []
        for e, images in enumerate(x.unflatten(2, image.shape)):
            changes = self._stream(e, f"augment/{step}")
            moved = augmented(images, self.training.specs[e].train, step=step, generator=changes)
            places = within_cells(tuple(x.shape[1:]), image.levels, self._stream(e, f"dequantise/{step}"))
            parts.append(moved.flatten(1) + places.to(x))
        return torch.stack(parts)

    def _batch(self) -> Batch:
        """That points are a training batch, with what this step's dropout is drawn from."""
        dropout = self.training.lead.train.dropout
        if not dropout:
            return Batch()
        members = range(len(self.training.specs))
        generators = [self._stream(e, f"dropout/{self.state.step}") for e in members]
        return Batch(dropout=dropout, generators=generators)

    def _stream(self, e: int, purpose: str) -> Generator:
        """The stream of row e for one purpose; those of an ensemble differ."""
        return stream(self.training.specs[e].seed, of_member(self.training.positions[e], purpose))

    def _average(self) -> None:
        """Take this step's weights into the running mean: it forgets at most as `ema` says, at first more quickly."""
        step = self.state.step
        decay = min(self.training.lead.train.ema, (1 + step) / (10 + step))
        alive = self.state.alive[:, None]
        moved = torch.lerp(self.state.average, self.state.theta, 1 - decay)
        self.state.average.copy_(torch.where(alive, moved, self.state.average))

    def steps_by(self, kernel: Kernel, most: int) -> None:
        """The next steps of every member that is alive, by a kernel: as many as it makes in one go, and at `most`."""
        state, training = self.state, self.training
        begun = state.step
        at_once = 1 if training.averaged else AT_ONCE  # a running mean takes in every step
        steps = range(begun + 1, begun + 1 + min(most, max(1, at_once // len(self.optimiser.members))))
        positions = [self._positions(step) for step in steps]
        if begun == 0:
            initialise_actnorm(self._flow(state.theta), self._points(1, positions[0]))
        course = Course(
            members=self.optimiser.members,
            clip=self.clip[:, 0].tolist(),
            lr=[spec.train.lr for spec in training.specs],
            decay=[spec.train.weight_decay for spec in training.specs],
            factors=[self._lr_factor(step) for step in steps],
            laws=[self.optimiser.law(step) for step in steps],
            begun=begun,
        )
        x = training.train
        order = torch.stack(positions)
        if training.noises:
            x = torch.cat([self._points(*each) for each in zip(steps, positions, strict=True)], dim=1)
            order = torch.arange(x.shape[1]).view(len(steps), 1, -1)
        rows = Rows(theta=state.theta, fixed=state.fixed, first=state.first, second=state.second)
        done = kernel.steps(rows, x, order, course)
        state.grad_norm = done.norm[:, None]
        for made in sorted({done.made[e] for e in course.members}):
            if made < len(steps):  # some members were lost at the step after these
                state.step = begun + made + 1
                lost = torch.tensor(done.made) == made
                x_lost = self._points(state.step, positions[made])
                self._freeze_lost(~lost, x_lost, self._given(positions[made]), Batch())
        if self.optimiser.members:
            state.step = steps[-1]
        if training.averaged:
            self._average()

    def _gradient(self, x: Tensor, context: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Each member's mean NLL of its points x (E, N, D), nats, and the gradient: (E,) and (E, P)."""
        loss = -self._flow(self.theta).log_prob(x, context, batch=batch).mean(1)
        (grad,) = torch.autograd.grad(loss.sum(), self.theta)  # member e's loss depends on row e alone
        return loss, grad

    def _keep_statistics(self, batch: Batch) -> None:
        """Store the running statistics that layers left in a batch, but not those of a diverged member."""
        if not batch.updates:
            return
        alive = self.state.alive[:, None]
        blocks = self.training.fresh.fixed_layout.blocks(self.state.fixed)
        for name, value in batch.updates.items():
            blocks[name].copy_(torch.where(alive, value, blocks[name]))

    def _freeze_lost(self, finite: Tensor, x: Tensor, context: Tensor, batch: Batch | None) -> None:
        """Note which members just diverged, and in which layer; `finite` (E,), x the points that showed it."""
        state = self.state
        if bool(finite.all()):
            return
        lost = ~finite & state.alive
        if not bool(lost.any()):
            return
        flow = self.training.fresh.with_rows(state.theta[lost], state.fixed[lost])
        state.diverged_at[lost] = state.step
        state.diverged_in[lost] = flow.first_nonfinite(x[lost], context[lost], batch=batch)
        self.optimiser.train(self._alive_members())

    def evaluate(self) -> None:
        """Note the curves, keep the weights where they are the best so far, and draw a snapshot if one is due."""
        state, training = self.state, self.training
        weights = state.average if training.averaged else state.theta
        now = self._flow(weights)
        given = training.given
        train_nll = mean_nll(now, training.watched, given.train[:, : training.watched.shape[1]])
        val_nll = mean_nll(now, training.val, given.val)
        self._freeze_lost(torch.isfinite(val_nll), training.val, given.val, None)
        alive = state.alive
        score = self._scores(train_nll, val_nll)
        better = alive & ((score < state.best_score) | torch.isneginf(score))
        state.best_score[better] = score[better]
        state.best_theta[better] = weights[better]
        state.best_fixed[better] = state.fixed[better]
        state.best_step[better] = state.step
        peaks = [spec.train.lr for spec in training.specs]
        rates = torch.tensor(peaks, device=alive.device, dtype=torch.float64) * self._lr_factor(state.step)
        row = torch.stack([train_nll, val_nll, state.grad_norm[:, 0].double(), rates], 1)
        position = training.evaluation_steps().index(state.step)
        state.curves[:, position] = torch.where(alive[:, None], row, math.nan)
        snapshot_steps = training.snapshot_steps()
        if state.step in snapshot_steps and training.snapshot_points:
            with torch.no_grad():
                samples, _ = now.forward(training.snapshot_base(), given.samples)
            state.snapshots[:, snapshot_steps.index(state.step)] = samples

    def _scores(self, train_nll: Tensor, val_nll: Tensor) -> Tensor:
        """What each member keeps its weights by, the lower the better: −∞, always better, for `select` "last"."""
        by_select = {"train": train_nll, "val": val_nll, "last": torch.full_like(val_nll, -math.inf)}
        return torch.stack([by_select[spec.train.select][e] for e, spec in enumerate(self.training.specs)])


def _or_none(steps: Tensor) -> list[int | None]:
    return [None if step == ALIVE else step for step in steps.tolist()]


def finish(training: Training, state: State) -> tuple[FlowStack, History]:
    """The kept weights of a training, and what was seen on the way; every number in nats per point.

    Kept are, per member, the weights with the lowest validation or training NLL among the evaluations before it
    diverged (`select` "val" or "train"), or the last ones; with `ema` they are running means of them.
    The training NLL is that of the first points, as many as there are validation points.
    """
    curves = dict(zip(CURVES, state.curves.unbind(2), strict=True))
    history = History(
        steps=training.evaluation_steps(),
        **curves,
        best_step=state.best_step.tolist(),
        diverged_at=_or_none(state.diverged_at),
        diverged_in=_or_none(state.diverged_in),
        base=training.snapshot_base(),
        snapshots=state.snapshots,
        snapshot_steps=training.snapshot_steps(),
    )
    return training.fresh.with_rows(state.best_theta, state.best_fixed), history


def fit(training: Training) -> tuple[FlowStack, History]:
    """Train a stack from its first step to its last: :func:`begin`, :func:`advance`, :func:`finish`."""
    state = begin(training)
    advance(training, state, until=training.lead.train.steps)
    return finish(training, state)
