"""The machine, and which runs make a stack on it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nfexp.flows.cost import member_bytes, training_cost
from nfexp.spec import Spec, stack_key
from nfexp.surroundings import users_threads

SHARE = 0.8  # of the memory that is free, unless a budget is given
LARGEST = {"cpu": 32, "cuda": 512}  # runs per stack; beyond that a stack gains nothing
FEW, CROWDED = 4, 256e6  # on the CPU, more than a few large runs that take these bytes together slow each other down


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is to train on: `places` (cores or GPUs), and the memory that is free: of all cores, or of one GPU."""

    device: str
    places: int
    free: float  # bytes


def _free_bytes() -> float:
    """Memory this process may still take: what the system has available, within the limit of its control group."""
    free = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) if hasattr(os, "sysconf") else 8e9

    def numbers(path: str) -> dict[str, float]:
        return {line.split()[0]: float(line.split()[1]) for line in Path(path).read_text().splitlines()}

    with suppress(OSError, ValueError, LookupError):
        free = 1024 * numbers("/proc/meminfo")["MemAvailable:"]
    with suppress(OSError, ValueError, LookupError):
        group = Path("/sys/fs/cgroup")
        limit, used = (float((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used + numbers("/sys/fs/cgroup/memory.stat")["inactive_file"])
    return free


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_each(workers: int) -> int:
    """Threads of each worker: as the user says, or so that together they have the cores."""
    return users_threads() or max(1, cores() // workers)


def machine(devices: Sequence[str]) -> Machine:
    """The machine as runs on these devices (`auto`, `cpu`, `cuda`) see it."""
    if set(devices) != {"cpu"}:
        import torch

        from nfexp.run import resolve_device

        if any(resolve_device(d).type == "cuda" for d in devices):
            count = torch.cuda.device_count()
            return Machine(device="cuda", places=count, free=min(torch.cuda.mem_get_info(k)[0] for k in range(count)))
    return Machine(device="cpu", places=cores(), free=_free_bytes())


def budget(on: Machine, workers: int, memory: float | None) -> float:
    """Bytes that one worker may use: `memory` in GB, or its share of what is free."""
    return 1e9 * memory if memory else SHARE * on.free / (workers if on.device == "cpu" else -(-workers // on.places))


def plan(
    specs: Sequence[Spec], *, workers: int = 1, max_stack: int | None = None, room: float = float("inf"),
    device: str = "cpu",
) -> list[list[int]]:  # fmt: skip
    """Group positions by `stack_key` and split groups evenly: a share per worker, at most `max_stack` runs each.

    Without `max_stack` a stack holds what its device is still quicker with, at most what fits into `room` bytes. The
    most expensive stack comes first, so that workers finish together.
    """

    def fitting(group: Sequence[int]) -> int:
        each = max(member_bytes(specs[i]) for i in group)
        most = max(FEW, CROWDED / each) if device == "cpu" else LARGEST[device]
        return max(1, int(min(LARGEST[device], most, room / each)))

    groups: dict[object, list[int]] = {}
    for i, spec in enumerate(specs):
        groups.setdefault(stack_key(spec), []).append(i)
    total = sum(map(training_cost, specs))
    stacks = []
    for group in groups.values():
        fits = max_stack or fitting(group)
        share = sum(training_cost(specs[i]) for i in group) / total
        parts = min(len(group), max(-(-len(group) // fits), round(share * workers)))
        stacks += [group[len(group) * k // parts : len(group) * (k + 1) // parts] for k in range(parts)]
    return sorted(stacks, key=lambda stack: -sum(training_cost(specs[i]) for i in stack))


def training_rate(spec: Spec, workers: int) -> float:
    """What so many workers together do of :func:`nfexp.flows.cost.training_cost` in a second, by a real training."""
    import torch

    from nfexp import run

    run.reuse_freed_memory()
    torch.set_num_threads(threads_each(workers))
    return workers * run.training_rate(spec)
