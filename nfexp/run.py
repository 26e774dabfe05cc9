"""From specs to results: load the data, train one stack, score every member on its test points."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from nfexp import data
from nfexp.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from nfexp.data import Dataset
from nfexp.flows.cost import training_cost
from nfexp.flows.kernels import check_fused
from nfexp.flows.stack import FlowStack
from nfexp.score import Result, score
from nfexp.spec import Spec, SpecError, batch_points, run_id, stack_key
from nfexp.train import History, State, Training, advance, begin, finish, prepare

CHECKPOINT_SECONDS = 120.0  # between two checkpoints of a stack
SLICE_SECONDS = 0.5  # between two looks at the clock


class Interrupted(RuntimeError):
    """A training was told to stop; where it stood is in its checkpoints."""


def check(spec: Spec) -> None:
    """Raise for what only shows when the run is set up.

    That is a text that cannot be drawn, a noise that is too small, a device that is not there.
    """
    if spec.data.kind == "density":
        data.density_of(spec.data)
    else:
        data.load(spec)
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise SpecError("device", "a CUDA device on this machine, or 'cpu' or 'auto'", spec.device)
    if spec.train.kernel == "fused":
        check_fused(spec.flow, resolve_device(spec.device), torch.float32)


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where it is there, otherwise the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@lru_cache(maxsize=1)
def reuse_freed_memory() -> None:
    """Let glibc keep freed blocks.

    Temporaries that are handed back to the system cost page faults at every step.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD, at its highest: above it the call fails
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """In the body, round products of float32 matrices as this setting of torch's says."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def train_stack(
    specs: Sequence[Spec],
    datasets: Sequence[Dataset],
    *,
    dtype: torch.dtype = torch.float32,
    told: Callable[[Training, State], None] | None = None,
) -> tuple[FlowStack, History]:
    """Train a stack on these points, without checkpoints and without scoring it: the kept weights and what was seen.

    `told` is called after each evaluation.
    """
    reuse_freed_memory()
    training = prepare(specs, datasets, resolve_device(specs[0].device), dtype)
    state = begin(training)
    with matmul_precision(specs[0].train.matmul_precision):
        for step in training.evaluation_steps():
            advance(training, state, until=step)
            if told is not None and state.step == step:
                told(training, state)
    return finish(training, state)


def prepare_runs(specs: Sequence[Spec], dtype: torch.dtype = torch.float32) -> Training:
    """What :mod:`nfexp.train` needs to train the runs of one stack."""
    datasets = [data.load(spec) for spec in specs]
    return prepare(specs, datasets, resolve_device(specs[0].device), dtype)


def run_stack(
    specs: Sequence[Spec],
    *,
    dtype: torch.dtype = torch.float32,
    folders: Sequence[Path] | None = None,
    code: str = "",
    stop: Callable[[], bool] = lambda: False,
) -> list[Result]:
    """Train the runs of one stack together and score each; results come in the order of the specs.

    The numbers of member e equal those of ``run_stack([specs[e]])``, and those of a training that
    was interrupted and carried on.

    Parameters
    ----------
    specs
        Runs that share one :func:`nfexp.spec.stack_key`.
    dtype
        Of weights and points.
    folders
        Where each run leaves a checkpoint, every two minutes and when it is told to stop, and finds
        it again.
    code
        The version of the code: a checkpoint of another one is not carried on.
    stop
        Asked about twice a second.

    Raises
    ------
    ValueError
        If the specs do not share one :func:`nfexp.spec.stack_key`.
    Interrupted
        If `stop` says so.
    """
    if len({stack_key(spec) for spec in specs}) != 1:
        raise ValueError("specs: expected runs with one stack_key; got several")
    members = []
    for e, spec in enumerate(specs):
        folder = None if folders is None else folders[e]
        tag = f"{run_id(spec)} {dtype} {code} {spec.record} {spec.train.kernel}"
        members.append(_Member(spec, folder, tag, read_checkpoint(folder, tag)))

    # Killed between two checkpoints, members stand at different steps: those that stand at the same
    # one go on together.
    by_step: dict[int, list[int]] = {}
    for e, member in enumerate(members):
        by_step.setdefault(member.checkpoint.step, []).append(e)
    results: dict[int, Result] = {}
    for step in sorted(by_step):
        positions = by_step[step]
        part = _Run([members[e] for e in positions], step, dtype, stop)
        results |= zip(positions, part.results(), strict=True)
    return [results[e] for e in range(len(specs))]


@dataclass(frozen=True)
class _Member:
    """A run of a stack, the folder and the tag of its checkpoints, and the last of them."""

    spec: Spec
    folder: Path | None
    tag: str
    checkpoint: Checkpoint


class _Run:
    """A stack whose members all stand at one step, on its way to its results."""

    def __init__(
        self,
        members: Sequence[_Member],
        step: int,
        dtype: torch.dtype,
        stop: Callable[[], bool],
    ) -> None:
        self.begun = time.perf_counter()
        self.members = members
        self.step = step
        self.stop = stop
        self.specs = [member.spec for member in members]
        self.datasets = [data.load(spec) for spec in self.specs]
        device = resolve_device(self.specs[0].device)
        self.training = prepare(self.specs, self.datasets, device, dtype)
        self.spent = sum(member.checkpoint.seconds for member in members)  # before this process

    def results(self) -> list[Result]:
        """Train to the end, then score."""
        state = self._first_state()
        self._train(state)
        kept, history = finish(self.training, state)
        with torch.no_grad():
            results = score(self.specs, self.datasets, kept, history)
        for result in results:
            result.kernel = "torch" if self.training.fresh.kernel is None else "fused"
            result.metrics |= {"seconds": self._seconds(), "stack_size": len(self.specs)}
        return results

    def _first_state(self) -> State:
        """Where training goes on: at the beginning, or where the checkpoints were left."""
        if self.step == 0:
            return begin(self.training)
        rows = [member.checkpoint.tensors for member in self.members]
        return State.join(self.step, rows, self.training.fresh.theta.device)

    def _seconds(self) -> float:
        """What each member took so far."""
        return (self.spent + time.perf_counter() - self.begun) / len(self.specs)

    def _train(self, state: State) -> None:
        """Train in slices of half a second; between two, stop or leave checkpoints if it is time.

        Raises
        ------
        Interrupted
            If `stop` says so.
        """
        n_steps = self.training.lead.train.steps
        precision = self.training.lead.train.matmul_precision
        saved = time.perf_counter()
        slice_steps = 1
        while state.step < n_steps and bool(state.alive.any()):
            before = time.perf_counter()
            with matmul_precision(precision):
                advance(self.training, state, until=min(state.step + slice_steps, n_steps))
            now = time.perf_counter()
            slice_steps = max(1, round(slice_steps * min(SLICE_SECONDS / (now - before), 4.0)))
            told_to_stop = self.stop()
            if told_to_stop or now - saved > CHECKPOINT_SECONDS:
                self._save(state)
                saved = now
            if told_to_stop:
                raise Interrupted(f"told to stop at step {state.step} of {n_steps}")

    def _save(self, state: State) -> None:
        """Leave a checkpoint in the folder of each member."""
        for member, tensors in zip(self.members, state.members(), strict=True):
            if member.folder is not None:
                checkpoint = Checkpoint(step=state.step, seconds=self._seconds(), tensors=tensors)
                write_checkpoint(member.folder, member.tag, checkpoint)


def training_rate(spec: Spec, *, members: int = 8) -> float:
    """How much of :func:`nfexp.flows.cost.training_cost` this machine does in a second.

    Measured on two short real trainings of this architecture, its sizes capped so that it takes a
    second or two.
    """
    is_image = spec.flow.kind == "image"  # a step of it costs a hundred times as much
    flow = replace(
        spec.flow,
        n_flows=min(spec.flow.n_flows, 2 if is_image else 8),
        hidden_depth=min(spec.flow.hidden_depth, 1 if is_image else 4),
        hidden_width=min(spec.flow.hidden_width, 32 if is_image else 256),
    )
    largest_batch = 8 if is_image else 256
    members = min(members, 2) if is_image else members
    few = replace(spec.data, n_samples=min(spec.data.points[0], 256), n_val=2, n_test=2)

    def short(steps: int) -> tuple[float, float]:
        """The cost of a training of so many steps, and the seconds it takes."""
        batch = min(batch_points(spec), largest_batch)
        train = replace(spec.train, steps=steps, warmup=0, n_evals=1, batch_size=batch)
        record = replace(spec.record, samples=0, grid=0, walk=0)
        one = replace(spec, flow=flow, data=few, train=train, record=record)
        begun = time.perf_counter()
        run_stack([replace(one, seed=seed) for seed in range(members)])
        return members * training_cost(one), time.perf_counter() - begun

    short(2)  # draws the data
    few_steps, more_steps = (2, 7) if is_image else (5, 25)
    cost_few, seconds_few = short(few_steps)
    cost_more, seconds_more = short(more_steps)
    return (cost_more - cost_few) / max(seconds_more - seconds_few, 1e-3)  # what both share cancels
