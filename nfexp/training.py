"""A training: what it learns from and starts as, where it stands, and what it has seen.

What stays is a :class:`Training`, what changes a :class:`State`, what remains of it a
:class:`History`; all have one row or entry per member.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from nfexp.batches import Batches, within_cells
from nfexp.data import Dataset
from nfexp.flows.image.plan import Image
from nfexp.flows.kernels import kernel_for
from nfexp.flows.stack import FlowStack, build
from nfexp.spec import Spec
from nfexp.streams import stream

CURVES = ("train_nll", "val_nll", "grad_norm", "lr")  # what an evaluation notes
ALIVE = -1  # in `diverged_at` and `diverged_in`


# --- What stays ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Contexts:
    """The context of a training's points, (E, N, C): C = 0 where nothing is given.

    That of `train` and `val` rows, padded as they are, and of the samples that snapshots show.
    """

    train: Tensor
    val: Tensor
    samples: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> Contexts:
        return Contexts(
            train=self.train.to(device, dtype),
            val=self.val.to(device, dtype),
            samples=self.samples.to(device, dtype),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """What a stack learns from, how, and what it starts as.

    `train` and `val` are (E, N, D), padded with NaN rows; `sizes` says how many training rows of
    each member are real; `watched` are the training points whose NLL is noted. The levels of images
    are in `train` as they are, to be dequantised anew at each step; `val` and `watched` are
    dequantised once and for all. Steps, batch size and schedule are those of every spec; learning
    rate, clip, weight decay and selection each member's own.

    A run of K members (`flow.members`) has K neighbouring rows: `specs` names it for each of them,
    and `positions` says where in their ensemble they stand, 0 … K − 1.
    """

    specs: Sequence[Spec]
    positions: Sequence[int]
    fresh: FlowStack
    train: Tensor
    val: Tensor
    watched: Tensor
    contexts: Contexts
    sizes: Sequence[int]

    @property
    def lead(self) -> Spec:
        """A spec to ask for what all members share."""
        return self.specs[0]

    @property
    def averaged(self) -> bool:
        """Whether what is evaluated and kept is a running mean of the weights."""
        return self.lead.train.ema > 0

    @cached_property
    def batches(self) -> Batches:
        """The points of each step.

        They know the last pass over the points, which is dear to draw, and outlive the slices in
        which a training goes on.
        """
        return Batches(
            self.specs,
            self.positions,
            self.sizes,
            self.train,
            self.contexts.train,
            self.fresh.image,
        )

    def evaluation_steps(self) -> list[int]:
        """The steps after which the stack is evaluated.

        Logarithmically spaced, the last one included.
        """
        return log_spaced(self.lead.train.steps, self.lead.train.n_evals)

    def snapshot_steps(self) -> list[int]:
        """The evaluations that also record samples.

        Evenly spread over all of them, counted from the last.
        """
        steps = self.evaluation_steps()
        last = len(steps) - 1
        n = self.lead.record.snapshots
        chosen = set()
        for i in range(n):
            chosen.add(steps[last - round(i * last / max(n - 1, 1))])
        return sorted(chosen)

    @property
    def snapshot_points(self) -> int:
        """M, the points of a snapshot.

        There are none of images: a thousand of them would weigh more than all else.
        """
        return self.contexts.samples.shape[1]

    def snapshot_base(self) -> Tensor:
        """The base draws that every snapshot shows, (E, M, D).

        The same for all flows of one seed.
        """
        generators = [stream(spec.seed, "base") for spec in self.specs]
        return self.fresh.base_draws(self.snapshot_points, generators)


def prepare(
    specs: Sequence[Spec],
    datasets: Sequence[Dataset],
    device: torch.device,
    dtype: torch.dtype,
) -> Training:
    """A fresh stack for these runs, a row for each of their members, and their points on a device."""
    rows = _rows_of(specs, datasets)
    image = image_in(datasets[0])
    train = padded([row.dataset.train for row in rows])
    points = padded([row.dequantised("train") for row in rows])
    val = padded([row.dequantised("val") for row in rows])
    n_samples = specs[0].record.samples if image is None else 0
    contexts = Contexts(
        train=padded([row.dataset.context_of("train") for row in rows]),
        val=padded([row.dataset.context_of("val") for row in rows]),
        samples=padded([row.dataset.context_of_draws(n_samples) for row in rows]),
    )
    positions = [row.position for row in rows]
    fresh = build(
        specs[0].flow,
        masks=[row.spec.flow.mask for row in rows],
        seeds=[row.spec.seed for row in rows],
        data=points,
        positions=positions,
        image=image,
        context=contexts.train,
    )
    fresh = fresh.to(device, dtype)
    return Training(
        specs=[row.spec for row in rows],
        positions=positions,
        fresh=fresh.with_kernel(kernel_for(specs[0].train.kernel, fresh)),
        train=train.to(device, dtype),
        val=val.to(device, dtype),
        watched=points[:, : val.shape[1]].to(device, dtype),
        contexts=contexts.to(device, dtype),
        sizes=[len(row.dataset.train) for row in rows],
    )


@dataclass(frozen=True)
class _Row:
    """A row of a stack: the run it belongs to, its data, and its position in the run's ensemble."""

    spec: Spec
    dataset: Dataset
    position: int

    def dequantised(self, split: str) -> Tensor:
        """The points of "train" or "val" as the flow sees them."""
        return dequantised(getattr(self.dataset, split), self.dataset, self.spec.seed, split)


def _rows_of(specs: Sequence[Spec], datasets: Sequence[Dataset]) -> list[_Row]:
    rows = []
    for spec, dataset in zip(specs, datasets, strict=True):
        for position in range(spec.flow.members):
            rows.append(_Row(spec, dataset, position))
    return rows


def padded(parts: Sequence[Tensor]) -> Tensor:
    """Stack (n_e, *event_shape) tensors to (E, max n_e, D), missing rows NaN.

    An image is one row of numbers.
    """
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

    Seed and purpose say where. What a flow makes of a place in a cell, its first layer says
    (:class:`nfexp.flows.image.layers.Dequantise`).
    """
    if dataset.levels is None:
        return points
    draws = stream(seed, f"dequantise/{purpose}")
    return points + within_cells(tuple(points.shape), dataset.levels, draws)


# --- What changes ----------------------------------------------------------------------


@dataclass(kw_only=True)
class State:
    """Where the training of a stack stands after `step` steps.

    Row e of every tensor is member e, whole.

    `theta`, `fixed` and the moments `first`, `second` (E, ·); the running mean `average` of the
    weights, (E, P), or (E, 0) where none is kept; the kept weights `best_theta`, `best_fixed`,
    their `best_score` and `best_step`; `diverged_at` and `diverged_in`, -1 while alive;
    `grad_norm` of the last step; `curves` (E, S, 4) and `snapshots` (E, K, M, D), NaN where not
    yet reached.
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

    def alive_members(self) -> list[int]:
        """The positions of the members that have not diverged."""
        return torch.nonzero(self.alive)[:, 0].tolist()

    def runs(self, n_members: int) -> list[dict[str, Tensor]]:
        """The tensors of each run, so many rows of the stack's, on the CPU.

        With :meth:`join` the way into and out of a checkpoint.
        """
        runs: list[dict[str, Tensor]] = [{} for _ in range(len(self.theta) // n_members)]
        for f in fields(self):
            if f.name != "step":
                parts = getattr(self, f.name).cpu().split(n_members)
                for run, part in zip(runs, parts, strict=True):
                    run[f.name] = part.contiguous()
        return runs

    @classmethod
    def join(
        cls, step: int, runs: Sequence[dict[str, Tensor]], device: torch.device | str = "cpu"
    ) -> State:
        """The state of a stack of these runs, which all stand after `step` steps."""
        tensors = {}
        for name in runs[0]:
            tensors[name] = torch.cat([run[name] for run in runs]).to(device)
        return cls(step=step, **tensors)


def begin(training: Training) -> State:
    """The state before the first step; the matrices of the fresh stack are copied."""
    fresh = training.fresh
    theta = fresh.theta
    n = fresh.n_members
    n_evaluations = len(training.evaluation_steps())
    n_snapshots = len(training.snapshot_steps())

    def integers(value: int) -> Tensor:
        return torch.full((n,), value, dtype=torch.long, device=theta.device)

    def float64(*shape: int, value: float) -> Tensor:
        return torch.full(shape, value, dtype=torch.float64, device=theta.device)

    return State(
        step=0,
        theta=theta.clone(),
        fixed=fresh.fixed.clone(),
        first=torch.zeros_like(theta),
        second=torch.zeros_like(theta),
        average=theta.clone() if training.averaged else theta.new_zeros(n, 0),
        best_theta=theta.clone(),
        best_fixed=fresh.fixed.clone(),
        best_score=float64(n, value=math.inf),
        best_step=integers(0),
        diverged_at=integers(ALIVE),
        diverged_in=integers(ALIVE),
        grad_norm=theta.new_full((n, 1), math.nan),
        curves=float64(n, n_evaluations, len(CURVES), value=math.nan),
        snapshots=theta.new_full((n, n_snapshots, training.snapshot_points, fresh.dim), math.nan),
    )


# --- What remains ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class History:
    """What a training saw, per member and evaluation (E, S), NaN once a member diverged.

    `snapshots` are (E, K, M, D). `diverged_in` is the position of the layer where the first
    non-finite number arose, see :meth:`nfexp.flows.stack.FlowStack.first_nonfinite`.
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


def finish(training: Training, state: State) -> tuple[FlowStack, History]:
    """The kept weights of a training, and what was seen on the way; every number in nats per point.

    Kept are, per member, the weights with the lowest validation or training NLL among the
    evaluations before it diverged (`select` "val" or "train"), or the last ones; with `ema` they
    are running means of them. The training NLL is that of the first points, as many as there are
    validation points.
    """
    curves = dict(zip(CURVES, state.curves.unbind(2), strict=True))
    history = History(
        steps=training.evaluation_steps(),
        **curves,
        best_step=state.best_step.tolist(),
        diverged_at=_none_where_alive(state.diverged_at),
        diverged_in=_none_where_alive(state.diverged_in),
        base=training.snapshot_base(),
        snapshots=state.snapshots,
        snapshot_steps=training.snapshot_steps(),
    )
    return training.fresh.with_rows(state.best_theta, state.best_fixed), history


def _none_where_alive(steps: Tensor) -> list[int | None]:
    return [None if step == ALIVE else step for step in steps.tolist()]


def log_spaced(steps: int, n: int) -> list[int]:
    """About `n` distinct whole steps from 1 to `steps`, logarithmically spaced, both ends included.

    >>> log_spaced(1000, 4)
    [1, 10, 100, 1000]
    """
    if n == 1 or steps == 1:
        return [steps]
    spaced = set()
    for i in range(n):
        spaced.add(round(math.exp(math.log(steps) * i / (n - 1))))
    return sorted(spaced)
