"""What a sweep would train and about how long that takes, in words: ``dry_run=true``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from nfexp.flows.cost import member_bytes, training_cost, training_flop
from nfexp.spec import Spec, batch_points

HEAD = ("runs", "MB", "flows", "depth", "width", "batch", "steps")


@dataclass(frozen=True, kw_only=True)
class Stacks:
    """Positions of the runs that train together, how many stacks at a time, and the bytes that each may use."""

    positions: Sequence[Sequence[int]]
    at_once: int
    room: float | None


def spell_time(seconds: float) -> str:
    """Minutes, or hours from three of them on.

    >>> spell_time(90), spell_time(40_000)
    ('1.5 minutes', '11.1 hours')
    """
    return f"{seconds / 60:.1f} minutes" if seconds < 10_800 else f"{seconds / 3600:.1f} hours"


def describe(specs: Sequence[Spec], stacks: Stacks, *, rate: float, n_finished: int, dropped: str) -> str:
    """A line for each stack of `specs`, then the sums; `rate` is in :func:`nfexp.flows.cost.training_cost` a second."""
    lines = [" ".join(f"{name:>6}" for name in HEAD) + "  architecture"]
    for stack in stacks.positions:
        lines.append(_line([specs[i] for i in stack]))
    targets = ", ".join(f"{n} {name}" for name, n in Counter(spec.data.name for spec in specs).items())
    steps = sum(spec.train.steps for spec in specs)
    flop = sum(training_flop(spec) for spec in specs)
    cost = sum(training_cost(spec) for spec in specs)
    finished = f"; {n_finished} more are finished" if n_finished else ""
    limits = ""
    if stacks.room is not None:
        limits = f"; {stacks.at_once} stacks at a time, each in at most {stacks.room / 1e9:.3g} GB"
    took = spell_time(cost / rate)
    lines.append(f"{len(specs)} runs ({targets}) in {len(stacks.positions)} stacks; {dropped}{finished}")
    lines.append(f"{steps:,} member-steps, {flop / 1e12:,.3g} TFLOP; about {took} of training on this machine{limits}")
    return "\n".join(lines)


def _line(stack: Sequence[Spec]) -> str:
    """The sizes and the architecture of one stack."""
    lead = stack[0]
    flow = lead.flow
    megabytes = len(stack) * max(member_bytes(spec) for spec in stack) / 1e6
    sizes = [
        len(stack), f"{megabytes:.0f}", flow.n_flows, flow.hidden_depth, flow.hidden_width, batch_points(lead),
        lead.train.steps,
    ]  # fmt: skip
    architecture = f"{flow.activation} {flow.coupling} {flow.conditioner} norm={flow.norm} base={flow.base}"
    return " ".join(f"{size:>6}" for size in sizes) + f"  {architecture}"
