"""From specs to results: load the data, train one stack, score every member on its test points."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from nfexp import data
from nfexp.checkpoint import Checkpoint, read_checkpoint, write_checkpoints
from nfexp.data import Dataset
from nfexp.flows.cost import training_cost
from nfexp.flows.stack import FlowStack
from nfexp.score import Result, score
from nfexp.spec import Spec, SpecError, batch_points, run_id, stack_key
from nfexp.train import History, State, Training, advance, begin, finish, prepare

CHECKPOINT_SECONDS = 120.0  # between two checkpoints of a stack
SLICE_SECONDS = 0.5  # between two looks at the clock


class Interrupted(RuntimeError):
    """A training was told to stop; where it stood is in its checkpoints."""


def check(spec: Spec) -> None:
    """Raise for what only shows when the run is set up: an undrawable text, a noise too small, an absent device."""
    if spec.data.kind == "density":
        data.density_of(spec.data)
    else:
        data.load(spec)
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise SpecError("device", "a CUDA device on this machine, or 'cpu' or 'auto'", spec.device)


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where it is there, otherwise the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@lru_cache(maxsize=1)
def reuse_freed_memory() -> None:
    """Let glibc keep freed blocks: temporaries handed back to the system cost page faults at every step."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD, at its highest: above it the call fails
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Let products of float32 matrices be rounded as ``torch.set_float32_matmul_precision`` names it, for a while."""
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

    Member e's numbers equal those of ``run_stack([specs[e]])``, and those of a training that was interrupted and
    carried on.

    Parameters
    ----------
    specs
        Runs that share one :func:`nfexp.spec.stack_key`.
    dtype
        Of weights and points.
    folders
        Where each run leaves a checkpoint every two minutes and when it is told to stop, and finds it again.
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
    tags = [f"{run_id(spec)} {dtype} {code} {spec.record}" for spec in specs]
    places: Sequence[Path | None] = folders if folders is not None else [None] * len(specs)
    found = [read_checkpoint(place, tag) for place, tag in zip(places, tags, strict=True)]
    # Killed between two checkpoints, members stand at different steps: those who stand alike go on together.
    by_step: dict[int, list[int]] = {}
    for e, checkpoint in enumerate(found):
        by_step.setdefault(checkpoint.step, []).append(e)
    results: dict[int, Result] = {}
    for step in sorted(by_step):
        members = by_step[step]
        part = _Run(
            specs=[specs[e] for e in members],
            folders=[folders[e] for e in members] if folders is not None else None,
            tags=[tags[e] for e in members],
            dtype=dtype,
            stop=stop,
        )
        part_results = part.carry_on([found[e] for e in members])
        results |= zip(members, part_results, strict=True)
    return [results[e] for e in range(len(specs))]


class _Run:
    """A stack on its way from its checkpoints to its results."""

    def __init__(
        self,
        *,
        specs: Sequence[Spec],
        folders: Sequence[Path] | None,
        tags: Sequence[str],
        dtype: torch.dtype,
        stop: Callable[[], bool],
    ) -> None:
        self.begun = time.perf_counter()
        self.specs = specs
        self.folders = folders
        self.tags = tags
        self.stop = stop
        self.datasets = [data.load(spec) for spec in specs]
        self.training = prepare(specs, self.datasets, resolve_device(specs[0].device), dtype)
        self.spent = 0.0  # seconds, before this process

    def carry_on(self, found: Sequence[Checkpoint]) -> list[Result]:
        """Train from the step at which all members stand (0: from the beginning), then score."""
        training = self.training
        step = found[0].step
        self.spent = sum(checkpoint.seconds for checkpoint in found)
        if step == 0:
            state = begin(training)
        else:
            state = State.join(step, [c.tensors for c in found], training.fresh.theta.device)
        self._train(state)
        kept, history = finish(training, state)
        with torch.no_grad():
            results = score(self.specs, self.datasets, kept, history)
        for result in results:
            result.metrics |= {"seconds": self._seconds(), "stack_size": len(self.specs)}
        return results

    def _seconds(self) -> float:
        """What each member took so far."""
        return (self.spent + time.perf_counter() - self.begun) / len(self.specs)

    def _train(self, state: State) -> None:
        """Train in slices of about half a second; between two, look whether to stop and leave checkpoints.

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
        if self.folders is None:
            return
        checkpoints = []
        for tensors in state.members():
            checkpoints.append(Checkpoint(step=state.step, seconds=self._seconds(), tensors=tensors))
        write_checkpoints(self.folders, self.tags, checkpoints)


def training_rate(spec: Spec, *, members: int = 8) -> float:
    """How much of :func:`nfexp.flows.cost.training_cost` this machine does in a second.

    Measured on two short real trainings of this architecture, its sizes capped so that it takes a second or two.
    """
    flow = replace(
        spec.flow,
        n_flows=min(spec.flow.n_flows, 8),
        hidden_depth=min(spec.flow.hidden_depth, 4),
        hidden_width=min(spec.flow.hidden_width, 256),
    )
    few = replace(spec.data, n_samples=min(spec.data.points[0], 256), n_val=2, n_test=2)

    def short(steps: int) -> tuple[float, float]:
        train = replace(spec.train, steps=steps, warmup=0, n_evals=1, batch_size=min(batch_points(spec), 256))
        record = replace(spec.record, samples=0, grid=0, walk=0)
        one = replace(spec, flow=flow, data=few, train=train, record=record)
        begun = time.perf_counter()
        run_stack([replace(one, seed=seed) for seed in range(members)])
        return members * training_cost(one), time.perf_counter() - begun

    short(2)  # draws the data
    cost_5, seconds_5 = short(5)
    cost_25, seconds_25 = short(25)
    return (cost_25 - cost_5) / max(seconds_25 - seconds_5, 1e-3)  # what both share cancels
