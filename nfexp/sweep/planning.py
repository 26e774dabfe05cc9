"""The machine, and which runs make a stack on it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from nfexp.flows.cost import member_bytes, scoring_cost, training_cost
from nfexp.spec import Spec, SpecError, Words, batch_points, event_shape, stack_key
from nfexp.surroundings import users_threads

SHARE = 0.8  # of the free memory, which sweeps take unless a budget is given
LARGEST = {"cpu": 32, "cuda": 512}  # flows per stack; beyond that a stack gains nothing
# On the CPU more than FEW flows that together take more bytes than CROWDED slow each other down.
FEW = 4
CROWDED = 256e6


T = TypeVar("T")


# --- The machine -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is to train on."""

    device: str  # "cpu" or "cuda"
    places: int  # cores, or GPUs
    free_bytes: float  # free memory: of the whole machine, or of one GPU


def _numbers_in(path: str) -> dict[str, float]:
    """The lines "name number …" of a file of the kernel's."""
    numbers = {}
    for line in Path(path).read_text().splitlines():
        name, number, *_ = line.split()
        numbers[name] = float(number)
    return numbers


def _free_bytes() -> float:
    """Memory this process may still take: what is available, within its control group's limit."""
    free = 8e9
    if hasattr(os, "sysconf"):
        free = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    # Only Linux has these files. A container may hide any of them, or write "max" for a number.
    with suppress(OSError, ValueError, LookupError):
        free = 1024 * _numbers_in("/proc/meminfo")["MemAvailable:"]
    with suppress(OSError, ValueError, LookupError):
        group = Path("/sys/fs/cgroup")
        limit = float((group / "memory.max").read_text())
        used = float((group / "memory.current").read_text())
        # What files are cached in counts as used, but is given back when it is needed.
        cached = _numbers_in("/sys/fs/cgroup/memory.stat")["inactive_file"]
        free = min(free, limit - used + cached)
    return free


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_each(workers: int) -> int:
    """Threads of each worker: as the user says, or so that all workers together have the cores."""
    return users_threads() or max(1, cores() // workers)


def machine(devices: Sequence[str]) -> Machine:
    """The machine as runs on these devices (`auto`, `cpu`, `cuda`) see it."""
    if set(devices) != {"cpu"}:  # only torch knows of GPUs, and it is slow to import
        import torch

        from nfexp.run import resolve_device

        if any(resolve_device(name).type == "cuda" for name in devices):
            count = torch.cuda.device_count()
            free = min(torch.cuda.mem_get_info(k)[0] for k in range(count))
            return Machine(device="cuda", places=count, free_bytes=free)
    return Machine(device="cpu", places=cores(), free_bytes=_free_bytes())


def budget(on: Machine, workers: int, memory: float | None) -> float:
    """Bytes that one worker may use: `memory` in GB, or its share of what is free."""
    if memory:
        return 1e9 * memory
    sharing = workers if on.device == "cpu" else math.ceil(workers / on.places)
    return SHARE * on.free_bytes / sharing


def check_room(specs: Sequence[Spec], room: float) -> None:
    """Raise for the first run of images that alone takes more than `room` bytes.

    No stack is small enough for it.

    Flows of vectors are small beside any memory.
    """
    for spec in specs:
        needed = member_bytes(spec)
        if spec.flow.kind == "image" and needed > room:
            shape = " × ".join(map(str, event_shape(spec.data)))
            got = f"about {needed / 1e9:,.1f} GB for batches of {batch_points(spec)} images of {shape}"
            got += f" and flow.hidden_width={spec.flow.hidden_width}"
            expected = f"a run that fits into {room / 1e9:.3g} GB of free memory"
            raise SpecError("train.batch_size", expected, Words(got))


def training_rate(spec: Spec, members: int, workers: int) -> float:
    """How many seconds of :func:`nfexp.flows.cost.training_cost` one of so many workers does in one.

    Measured by training for a second or two a stack of so many members.
    """
    import torch

    from nfexp import run

    run.reuse_freed_memory()
    torch.set_num_threads(threads_each(workers))
    return run.training_rate(spec, members=members)


# --- Stacks ----------------------------------------------------------------------------


def pick(items: Sequence[T], positions: Iterable[int]) -> list[T]:
    """The items at these positions.

    >>> pick("abc", [2, 0])
    ['c', 'a']
    """
    return [items[i] for i in positions]


def run_cost(spec: Spec) -> float:
    """Estimated work of training and scoring a run, in seconds as :mod:`nfexp.flows.cost` has it."""
    return training_cost(spec) + scoring_cost(spec)


def total_cost(specs: Sequence[Spec]) -> float:
    """Estimated work of all these runs, in the same seconds."""
    return sum(run_cost(spec) for spec in specs)


def plan_stacks(
    specs: Sequence[Spec],
    *,
    workers: int = 1,
    max_stack: int | None = None,
    room: float = math.inf,
    device: str = "cpu",
) -> list[list[int]]:
    """Positions of the runs that train together, the most expensive stack first.

    Runs of one `stack_key` are split evenly: into as many stacks as give each worker its share,
    and into stacks of at most `max_stack` runs. Without `max_stack` a stack holds at most as many
    runs as make the device quicker, and as fit into `room` bytes. The expensive ones come first so
    that workers finish together.
    """
    groups: dict[object, list[int]] = {}
    for i, spec in enumerate(specs):
        groups.setdefault(stack_key(spec), []).append(i)
    costs = [run_cost(spec) for spec in specs]
    total = sum(costs)

    stacks: list[list[int]] = []
    for group in groups.values():
        largest = max_stack or _largest_stack(pick(specs, group), room, device)
        share = sum(pick(costs, group)) / total
        n_stacks = max(math.ceil(len(group) / largest), round(share * workers))
        stacks += _split_evenly(group, min(n_stacks, len(group)))

    def cost_of(stack: list[int]) -> float:
        return sum(pick(costs, stack))

    return sorted(stacks, key=cost_of, reverse=True)


def _largest_stack(specs: Sequence[Spec], room: float, device: str) -> int:
    """How many such runs a stack may hold.

    At least one, whatever its members and its estimated memory.
    """
    each = max(member_bytes(spec) for spec in specs)
    n_members = specs[0].flow.members
    fits = room / each
    quickest = LARGEST[device] / n_members
    if device == "cpu":
        quickest = min(quickest, max(FEW / n_members, CROWDED / each))
    return max(1, int(min(quickest, fits)))


def _split_evenly(group: list[int], n_parts: int) -> list[list[int]]:
    parts = []
    for k in range(n_parts):
        start = len(group) * k // n_parts
        stop = len(group) * (k + 1) // n_parts
        parts.append(group[start:stop])
    return parts
