"""What a sweep would train and about how long that takes, in words: ``dry_run=true``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from nfexp.flows.cost import member_bytes, training_flop
from nfexp.spec import Spec, batch_points
from nfexp.sweep.planning import pick, total_cost


@dataclass(frozen=True, kw_only=True)
class Stacks:
    """Positions of the runs that train together, how many stacks at a time, and bytes for each."""

    positions: Sequence[Sequence[int]]
    at_once: int
    room: float | None


def spell_time(seconds: float) -> str:
    """Minutes, or hours from three of them on.

    >>> spell_time(90), spell_time(40_000)
    ('1.5 minutes', '11.1 hours')
    """
    hours = seconds / 3600
    if hours < 3:
        return f"{seconds / 60:.1f} minutes"
    return f"{hours:.1f} hours"


def describe(
    specs: Sequence[Spec],
    stacks: Stacks,
    *,
    rate: float,
    n_finished: int,
    dropped: str,
) -> str:
    """A line for each stack of `specs`, then the sums.

    `rate` is how much of :func:`nfexp.flows.cost.training_cost` this machine does in a second.
    """
    lines = [_row("runs", "MB", "flows", "depth", "width", "batch", "steps", "architecture")]
    for positions in stacks.positions:
        lines.append(_stack_row(pick(specs, positions)))

    targets = Counter(spec.data.name for spec in specs)
    of_each = ", ".join(f"{n} {name}" for name, n in targets.items())
    finished = f"; {n_finished} more are finished" if n_finished else ""
    n_stacks = len(stacks.positions)
    lines.append(f"{len(specs)} runs ({of_each}) in {n_stacks} stacks; {dropped}{finished}")

    steps = sum(spec.train.steps for spec in specs)
    teraflop = sum(training_flop(spec) for spec in specs) / 1e12
    took = spell_time(total_cost(specs) / rate)
    total = f"{steps:,} member-steps, {teraflop:,.3g} TFLOP"
    total += f"; about {took} of training on this machine"
    if stacks.room is not None:
        gigabytes = stacks.room / 1e9
        total += f"; {stacks.at_once} stacks at a time, each in at most {gigabytes:.3g} GB"
    lines.append(total)
    return "\n".join(lines)


def _stack_row(stack: Sequence[Spec]) -> str:
    """The sizes and the architecture of one stack."""
    lead = stack[0]
    flow = lead.flow
    megabytes = len(stack) * max(member_bytes(spec) for spec in stack) / 1e6
    return _row(
        len(stack),
        f"{megabytes:.0f}",
        flow.n_flows,
        flow.hidden_depth,
        flow.hidden_width,
        batch_points(lead),
        lead.train.steps,
        f"{flow.activation} {flow.coupling} {flow.conditioner} norm={flow.norm} base={flow.base}",
    )


def _row(*cells: object) -> str:
    """Cells in columns of six characters, and the last one as it is."""
    *sizes, architecture = cells
    line = ""
    for size in sizes:
        line += f"{size:>6} "
    return f"{line} {architecture}"
