"""From specs to results: draw the data, train one stack, score every member on its test draws."""

from __future__ import annotations

import ctypes
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nfexp.files import replacing
from nfexp.flow import FlowStack
from nfexp.init import build
from nfexp.layers import Architecture
from nfexp.score import Result, draws, score, target_of
from nfexp.spec import Spec, SpecError, batch_points, run_id, stack_key, training_cost
from nfexp.train import Batches, Recipe, State, advance, begin, outcome

log = logging.getLogger(__name__)


def check(spec: Spec) -> None:
    """Raise for what only shows when the run is set up: an undrawable text, a noise too small, an absent device."""
    target_of(spec)
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise SpecError("device", "a CUDA device on this machine, or 'cpu' or 'auto'", spec.device)


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


class Interrupted(RuntimeError):
    """A training was told to stop; where it stood is in its checkpoints."""


CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_SECONDS = 120.0  # between two checkpoints of a stack
SLICE_SECONDS = 0.5  # between two looks at the clock


def _read_checkpoint(folder: Path | None, tag: str) -> tuple[int, float, dict[str, Tensor]]:
    """The step a run stands at, the seconds it took and its tensors; 0 without a checkpoint of this run and code."""
    nothing = 0, 0.0, {}
    if folder is None or not (folder / CHECKPOINT).is_file():
        return nothing
    try:
        with safe_open(folder / CHECKPOINT, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("tag") == tag:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                return int(about["step"]), float(about["seconds"]), tensors
        log.warning(f"{folder / CHECKPOINT}: expected one of this run and code version; begun again")
    except (OSError, ValueError, SafetensorError) as error:
        log.warning(f"{folder / CHECKPOINT}: expected a checkpoint; got {error}; begun again")
    return nothing


def prepare(specs: Sequence[Spec], dtype: torch.dtype = torch.float32) -> tuple[FlowStack, Batches, Recipe]:
    """What :mod:`nfexp.train` needs to train the runs of one stack: the fresh flow, the points, the recipe."""
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
    return flow.to(device, dtype), batches, recipe


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
    if len({stack_key(s) for s in specs}) != 1:
        raise ValueError("specs: expected runs with one stack_key; got several")
    begun = time.perf_counter()
    places = list(folders) if folders else [None] * len(specs)
    tags = [f"{run_id(s)} {dtype} {code} {s.record}" for s in specs]
    found = [_read_checkpoint(place, tag) for place, tag in zip(places, tags, strict=True)]
    stands = sorted({step for step, *_ in found})
    if len(stands) > 1:  # killed between two checkpoints: those who stand alike go on together
        parts = [[e for e in range(len(specs)) if found[e][0] == step] for step in stands]
        of: dict[int, Result] = {}
        for part in parts:
            own = {
                "dtype": dtype,
                "code": code,
                "stop": stop,
                "folders": [places[e] for e in part] if folders else None,
            }
            of |= dict(zip(part, run_stack([specs[e] for e in part], **own), strict=True))
        return [of[e] for e in range(len(specs))]
    lead, (flow, batches, recipe) = specs[0], prepare(specs, dtype)
    step, spent = stands[0], sum(seconds for _, seconds, _ in found)
    state = (
        State.join(step, [tensors for *_, tensors in found], flow.theta.device)
        if step
        else begin(flow, batches, recipe)
    )

    def seconds() -> float:
        return (spent + time.perf_counter() - begun) / len(specs)

    def save_checkpoints() -> None:
        for place, tag, tensors in zip(places, tags, state.members(), strict=True):
            if place is not None:
                place.mkdir(parents=True, exist_ok=True)
                with replacing(place / CHECKPOINT) as path:
                    about = {"tag": tag, "step": str(state.step), "seconds": str(seconds())}
                    path.write_bytes(save(tensors, metadata=about))

    saved, count = time.perf_counter(), 1
    while state.step < recipe.steps and bool((state.diverged_at < 0).any()):
        before = time.perf_counter()
        with matmul_precision(lead.train.matmul_precision):
            advance(state, flow, batches, recipe, until=min(state.step + count, recipe.steps))
        now = time.perf_counter()
        count = max(1, round(count * min(SLICE_SECONDS / (now - before), 4.0)))
        if stop() or (folders and now - saved > CHECKPOINT_SECONDS):
            save_checkpoints()
            saved = now
            if stop():
                raise Interrupted(f"told to stop at step {state.step} of {recipe.steps}")
    kept, history = outcome(state, flow, batches, recipe)
    with torch.no_grad():
        results = score(specs, kept, history)
    for result in results:
        result.metrics |= {"seconds": seconds(), "stack_size": len(specs)}
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
