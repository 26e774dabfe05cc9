"""CPU time of a training step by the fused kernel and by torch, beside sgemm.

All in one process and in rounds: each round measures sgemm, then a step of every way in turn. Ratios are taken inside a
round; the table shows medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from benchmarks.cases import Case, stack_of
from nfexp.run import prepare_runs, reuse_freed_memory
from nfexp.train import State, Training, advance, begin

ROUNDS = 5
SECONDS = 0.1  # of one way in one round, about
WARM_UP = 20  # steps


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a row of the table measures."""

    case: Case
    activation: str = "relu"
    norm: str = "none"

    @property
    def network(self) -> str:
        """How the table names it."""
        name = f"{self.case.width}x{self.case.depth} {self.case.conditioner}"
        if self.case.n_flows != Case.n_flows:
            name += f", {self.case.n_flows} couplings"
        return name if self.norm == "none" else f"{name}, {self.norm}"


ACTIVATIONS = ("relu", "tanh", "silu", "elu")
SETTINGS = (
    *(Setting(case=Case(members=e), activation=a) for a in ACTIVATIONS for e in (1, 16)),
    *(Setting(case=Case(members=e, batch=32)) for e in (1, 16)),
    *(
        Setting(case=Case(members=e, batch=64, width=w))
        for w in (16, 24, 32, 48, 64)
        for e in (1, 16)
    ),
    *(Setting(case=Case(members=e, conditioner="shared")) for e in (1, 16)),
    *(Setting(case=Case(members=e, width=128)) for e in (1, 16)),
    *(Setting(case=Case(members=e, width=256)) for e in (1, 16)),
    *(
        Setting(case=Case(members=e, width=128, n_flows=8), norm=n)
        for n in ("none", "batchnorm")
        for e in (1, 16)
    ),
)


def cpu_seconds(work: Callable[[], None]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


class Way:
    """A training by one kernel, which goes on from where it stopped."""

    def __init__(self, setting: Setting, kernel: str) -> None:
        changes = {
            "train__steps": 10**8,
            "train__kernel": kernel,
            "flow__activation": setting.activation,
            "flow__norm": setting.norm,
        }
        self.training: Training = prepare_runs(stack_of(setting.case, **changes))
        self.state: State = begin(self.training)
        self.members = setting.case.members
        self.steps = WARM_UP
        begun = time.process_time()
        self.go_on()
        per_step = (time.process_time() - begun) / WARM_UP
        self.steps = max(2, round(SECONDS / per_step))

    def go_on(self) -> None:
        advance(self.training, self.state, until=self.state.step + self.steps)

    def per_member_step(self) -> float:
        return cpu_seconds(self.go_on) / self.steps / self.members


def measured(setting: Setting, rounds: int) -> dict[str, object]:
    """One row: medians over rounds, of CPU ms per member-step and of ratios inside a round."""
    case = setting.case
    a, b = torch.randn(2, 1024, 1024)
    out = torch.empty_like(a)
    ways = {kernel: Way(setting, kernel) for kernel in ("fused", "torch")}
    rates = []
    fused = []
    by_torch = []
    for _ in range(rounds):
        rates.append(2.0 * 1024**3 / cpu_seconds(lambda: torch.mm(a, b, out=out)))
        fused.append(ways["fused"].per_member_step())
        by_torch.append(ways["torch"].per_member_step())
    ratios = [slow / quick for slow, quick in zip(by_torch, fused, strict=True)]
    shares = [100 * case.flop / seconds / rate for seconds, rate in zip(fused, rates, strict=True)]
    return {
        "network": setting.network,
        "batch": case.batch,
        "members": case.members,
        "activation": setting.activation,
        "sgemm": statistics.median(rates) / 1e9,
        "fused": 1e3 * statistics.median(fused),
        "torch": 1e3 * statistics.median(by_torch),
        "ratio": statistics.median(ratios),
        "percent_of_sgemm": statistics.median(shares),
    }


def kernel(*, settings: Sequence[Setting] = SETTINGS, rounds: int = ROUNDS) -> pd.DataFrame:
    """CPU time of a member-step by the fused kernel and by torch, by network, batch, stack and activation."""
    torch.set_num_threads(1)
    reuse_freed_memory()
    return pd.DataFrame([measured(setting, rounds) for setting in settings])
