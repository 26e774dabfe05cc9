"""What a sweep would train and about how long that takes, in words: ``dry_run=true``."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nfexp.flows.cost import member_bytes, training_flop
from nfexp.flows.fusible import is_fused
from nfexp.spec import Spec, batch_points, counted, stack_key
from nfexp.sweep.planning import pick, run_cost, total_cost

MEASURED = 2  # stacks that are trained for a moment to know how quick the machine is
ENOUGH = 8  # members of these: more take longer, and hardly less each


@dataclass(frozen=True, kw_only=True)
class Stacks:
    """Positions of the runs that train together, how many stacks at a time, and bytes for each."""

    positions: Sequence[Sequence[int]]
    at_once: int
    room: float | None


# --- How long it takes -----------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """How many seconds of estimated work one worker does in one: of some runs, as was measured."""

    measured: Sequence[tuple[Spec, float]]

    def of(self, spec: Spec) -> float:
        """The rate of the measured run that is most like this one: its path, then its cost."""

        def unlike(other: Spec) -> tuple[bool, float]:
            return is_fused(other) != is_fused(spec), abs(_size(other) - _size(spec))

        _, rate = min(self.measured, key=lambda pair: unlike(pair[0]))
        return rate


def _size(spec: Spec) -> float:
    """The logarithm of what a step costs."""
    return math.log(run_cost(spec) / spec.train.steps)


def to_measure(specs: Sequence[Spec], stacks: Stacks) -> list[list[int]]:
    """The stacks whose architectures cost most of a sweep: the pace is measured on these.

    Of each path, fused and torch, there is one if the sweep has any.
    """
    costs: dict[object, float] = {}
    first: dict[object, list[int]] = {}
    for positions in stacks.positions:
        key = stack_key(specs[positions[0]])
        costs[key] = costs.get(key, 0.0) + total_cost(pick(specs, positions))
        first.setdefault(key, list(positions))
    dearest = sorted(first, key=lambda key: costs[key], reverse=True)
    chosen = [first[key] for key in dearest[:MEASURED]]
    for fused in (True, False):
        of_path = [first[key] for key in dearest if is_fused(specs[first[key][0]]) == fused]
        if of_path and of_path[0] not in chosen:
            chosen.append(of_path[0])
    return chosen


def measured_pace(
    specs: Sequence[Spec], stacks: Stacks, measure: Callable[[Spec, int], float]
) -> Pace:
    """The pace of this machine; `measure` trains a stack like a run's, of so many members."""
    rates = []
    for positions in to_measure(specs, stacks):
        lead = specs[positions[0]]
        rates.append((lead, measure(lead, min(len(positions), ENOUGH))))
    return Pace(rates)


def seconds_to_train(specs: Sequence[Spec], stacks: Stacks, pace: Pace) -> float:
    """How long the last worker takes, each with one stack at a time, in their order."""
    busy_until = [0.0] * max(1, stacks.at_once)
    for positions in stacks.positions:
        of_stack = pick(specs, positions)
        begins = heapq.heappop(busy_until)
        heapq.heappush(busy_until, begins + total_cost(of_stack) / pace.of(of_stack[0]))
    return max(busy_until)


# --- In words --------------------------------------------------------------------------


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
    seconds: float,
    n_finished: int,
    dropped: str,
    more: str = "",
) -> str:
    """A line for each stack of `specs`, then the sums, then what is to be said besides.

    `seconds` is what :func:`seconds_to_train` expects.
    """
    lines = [_row("runs", "MB", "flows", "depth", "width", "batch", "steps", "architecture")]
    for positions in stacks.positions:
        lines.append(_stack_row(pick(specs, positions)))

    targets = Counter(spec.data.name for spec in specs)
    of_each = ", ".join(f"{n} {name}" for name, n in targets.items())
    finished = f"; {n_finished} more finished" if n_finished else ""
    runs = counted(len(specs), "run")
    n_stacks = counted(len(stacks.positions), "stack")
    lines.append(f"{runs} ({of_each}) in {n_stacks}; {dropped}{finished}")

    steps = sum(spec.train.steps for spec in specs)
    teraflop = sum(training_flop(spec) for spec in specs) / 1e12
    took = spell_time(seconds)
    total = f"{steps:,} member-steps, {teraflop:,.3g} TFLOP"
    total += f"; about {took} of training on this machine"
    if stacks.room is not None:
        gigabytes = stacks.room / 1e9
        total += (
            f"; {counted(stacks.at_once, 'stack')} at a time, each in at most {gigabytes:.3g} GB"
        )
    lines.append(total)
    if more:
        lines.append(more)
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
