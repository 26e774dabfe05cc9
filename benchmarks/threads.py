"""Wall time of a training step by the fused kernel with one thread and with two.

All in one process and in rounds, which visit both numbers of threads in turn. Other processes on the machine slow two
threads down more than one: beside the medians over rounds the table has the best of each.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import pandas as pd
import torch

from benchmarks.cases import Case
from benchmarks.kernel import Setting, Way
from nfexp.run import reuse_freed_memory

ROUNDS = 25
THREADS = (1, 2)
SETTINGS = (
    *(Setting(case=Case(batch=batch)) for batch in (256, 1024, 4096)),
    *(Setting(case=Case(width=24, batch=batch)) for batch in (64, 1000)),
    Setting(case=Case(width=24, batch=64, members=8)),
)


def wall_ms(way: Way, threads: int) -> float:
    """Milliseconds of a member-step, with so many threads."""
    torch.set_num_threads(threads)
    begun = time.perf_counter()
    way.go_on()
    return 1e3 * (time.perf_counter() - begun) / way.steps / way.members


def measured(setting: Setting, rounds: int) -> dict[str, object]:
    """One row: medians over rounds of wall ms and of their ratio inside a round, and the ratio of the best."""
    way = Way(setting, "fused")
    for threads in THREADS:
        wall_ms(way, threads)  # memory is made and threads are started, which is not to be measured
    ms: dict[int, list[float]] = {threads: [] for threads in THREADS}
    for _ in range(rounds):
        for threads in THREADS:
            ms[threads].append(wall_ms(way, threads))
    one, two = (ms[threads] for threads in THREADS)
    return {
        "network": setting.network,
        "batch": setting.case.batch,
        "members": setting.case.members,
        "one": statistics.median(one),
        "two": statistics.median(two),
        "gain": statistics.median(a / b for a, b in zip(one, two, strict=True)),
        "best_one": min(one),
        "best_two": min(two),
        "best_gain": min(one) / min(two),
    }


def threads(*, settings: Sequence[Setting] = SETTINGS, rounds: int = ROUNDS) -> pd.DataFrame:
    """Wall time of a member-step with one thread and with two, by network, batch and stack."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    reuse_freed_memory()
    try:
        return pd.DataFrame([measured(setting, rounds) for setting in settings])
    finally:
        torch.set_num_threads(before)
