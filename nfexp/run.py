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
from nfexp.spec import Spec, SpecError, run_id, stack_key
from nfexp.train import History, State, Training, advance, begin, finish, prepare

CHECKPOINT_SECONDS = 120.0  # between two checkpoints of a stack
SLICE_SECONDS = 0.5  # between two looks at the clock

Observer = Callable[[Training, State], None]  # is shown a training, and where it stands


class Interrupted(RuntimeError):
    """A training was told to stop; where it stood is in its checkpoints."""


def check(spec: Spec) -> None:
    """Raise for what only shows when the run is set up.

    That is a text that cannot be drawn, a noise that is too small, a density of the user's own that
    is none, a device that is not there.
    """
    if spec.data.kind in ("density", "own"):
        data.check_density(spec.data)
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
    observer: Observer | None = None,
) -> tuple[FlowStack, History]:
    """Train a stack on these points, without checkpoints and without scoring it.

    The kept weights and what was seen.

    Each run has as many rows as it has members. `observer` is called after each evaluation.
    """
    reuse_freed_memory()
    training = prepare(specs, datasets, resolve_device(specs[0].device), dtype)
    state = begin(training)
    with matmul_precision(specs[0].train.matmul_precision):
        for step in training.evaluation_steps():
            advance(training, state, until=step)
            if observer is not None and state.step == step:
                observer(training, state)
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
    observer: Observer | None = None,
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
    observer
        Called as often with the training and where it stands, of runs that stand at one step.

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

    results: dict[int, Result] = {}
    for step, positions in _by_step(members).items():
        part = _Run([members[e] for e in positions], step, dtype, stop, observer)
        results |= zip(positions, part.results(), strict=True)
    return [results[e] for e in range(len(specs))]


@dataclass(frozen=True)
class _Member:
    """A run of a stack, the folder and the tag of its checkpoints, and the last of them."""

    spec: Spec
    folder: Path | None
    tag: str
    checkpoint: Checkpoint


def _by_step(members: Sequence[_Member]) -> dict[int, list[int]]:
    """The positions of the members that go on together: those that stand at one step.

    Killed between two checkpoints, members stand at different steps.
    """
    positions: dict[int, list[int]] = {}
    for e, member in enumerate(members):
        positions.setdefault(member.checkpoint.step, []).append(e)
    return dict(sorted(positions.items()))


class _Run:
    """A stack whose members all stand at one step, on its way to its results."""

    def __init__(
        self,
        members: Sequence[_Member],
        step: int,
        dtype: torch.dtype,
        stop: Callable[[], bool],
        observer: Observer | None,
    ) -> None:
        self.begun = time.perf_counter()
        self.members = members
        self.step = step
        self.stop = stop
        self.observer = observer
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
        """What each run took so far."""
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
        self._show(state)
        while state.step < n_steps and bool(state.alive.any()):
            before = time.perf_counter()
            with matmul_precision(precision):
                advance(self.training, state, until=min(state.step + slice_steps, n_steps))
            now = time.perf_counter()
            slice_steps = max(1, round(slice_steps * min(SLICE_SECONDS / (now - before), 4.0)))
            self._show(state)
            told_to_stop = self.stop()
            if told_to_stop or now - saved > CHECKPOINT_SECONDS:
                self._save(state)
                saved = now
            if told_to_stop:
                raise Interrupted(f"told to stop at step {state.step} of {n_steps}")

    def _show(self, state: State) -> None:
        if self.observer is not None:
            self.observer(self.training, state)

    def _save(self, state: State) -> None:
        """Leave a checkpoint in the folder of each run."""
        parts = state.runs(self.training.lead.flow.members)
        for member, tensors in zip(self.members, parts, strict=True):
            if member.folder is not None:
                checkpoint = Checkpoint(step=state.step, seconds=self._seconds(), tensors=tensors)
                write_checkpoint(member.folder, member.tag, checkpoint)


MEASURED_SECONDS = 0.4  # of training, to know how quick a machine is


def training_rate(spec: Spec, *, members: int) -> float:
    """How many seconds of :func:`nfexp.flows.cost.training_cost` this machine does in one.

    Measured by training a stack of so many members of this architecture, batch and training set for
    a second, or for one step where that takes longer. Compiling the fused kernel is not counted.
    """
    train = replace(spec.train, steps=1_000_000, warmup=0, n_evals=1)
    one = replace(spec, train=train)
    if spec.data.kind in ("density", "own"):
        one = replace(one, data=replace(spec.data, n_val=2, n_test=2))
    training = prepare_runs([replace(one, seed=spec.seed + e) for e in range(members)])
    state = begin(training)
    with matmul_precision(train.matmul_precision):
        advance(training, state, until=1)  # the first step also fills caches
        begun = time.perf_counter()
        seconds = 0.0
        while seconds < MEASURED_SECONDS and bool(state.alive.any()):
            advance(training, state, until=2 * state.step)
            seconds = time.perf_counter() - begun
    done = members * (state.step - 1) / train.steps
    return max(done, 1 / train.steps) * training_cost(one) / max(seconds, 1e-3)
