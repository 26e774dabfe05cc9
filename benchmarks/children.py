"""Contenders in child processes, one library each, held to one thread on one core; they speak JSON over pipes.

A child builds and warms its cases once and then measures on request, so that rounds over all contenders interleave:
what disturbs the machine for a while disturbs them alike.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.cases import Case

ROOT = Path(__file__).parents[1]
ONE_THREAD = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}  # fmt: skip
WARM_SECONDS = 0.15  # of steps, doubled until they take as long
ALONE = ("sgemm", "openblas", "copy")  # rates of the machine: no library, no loss


def environment() -> dict[str, str]:
    """This process's, with the checkout on the path, for `nfexp` need not be installed."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    }


class Child:
    """The parent's end of one worker process."""

    def __init__(self, library: str) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.children"]
        self.library = library
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment() | ONE_THREAD,
        )

    def ask(self, **message: Any) -> dict[str, Any]:
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"the process of {self.library} ended with {self.process.wait()}")
        return json.loads(line)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def timed(train: Callable[[int], float], steps: int) -> tuple[float, float]:
    begun = time.process_time()
    loss = train(steps)
    return time.process_time() - begun, loss


def serve() -> None:
    """The child's end: `build` warms a case and says how its loss fell, `measure` gives CPU seconds per step."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not break the pipe
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import torch

    from benchmarks.contenders import BUILDERS
    from benchmarks.ledger import count
    from nfexp.run import reuse_freed_memory

    torch.set_num_threads(1)
    trains: list[Callable[[int], float]] = []
    for line in sys.stdin:
        match json.loads(line):
            case {"forget": True}:
                trains.clear()
                gc.collect()
                answer = {}
            case {"build": values}:
                one = Case(**values)
                if one.library == "nfexp":
                    reuse_freed_memory()  # as the command line does
                train = BUILDERS[one.library](one)
                _, first = timed(train, 1)
                short, _ = timed(train, 1)  # compiled by now
                steps, spent = 1, 0.0
                while spent < WARM_SECONDS:
                    steps *= 2
                    long, last = timed(train, 1 + steps)
                    spent = long - short
                losses = {"loss_first": first, "loss_last": last}
                answer = {"index": len(trains), "set_up": short, "step": spent / steps} | losses
                trains.append(train)
            case {"measure": index, "steps": steps}:
                short, _ = timed(trains[index], 1)
                long, _ = timed(trains[index], 1 + steps)  # what both share cancels
                answer = {"step": (long - short) / steps}
            case {"count": index, "steps": steps, "members": members}:
                answer = {"kinds": count(trains[index], steps, members)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class Bench:
    """Measures lists of cases in interleaved rounds; the children live as long as the bench."""

    def __init__(self) -> None:
        self.children: dict[str, Child] = {}
        self.stack = ExitStack()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.__exit__(*error)

    def child(self, case: Case) -> Child:
        kind = "machine" if case.library in ALONE else case.library
        if kind not in self.children:
            self.children[kind] = self.stack.enter_context(Child(kind))
        return self.children[kind]

    def rounds(
        self, cases: Sequence[Case], *, repeats: int, seconds: float, budget: float
    ) -> pd.DataFrame:
        """One row per case and round: CPU seconds per member-step, and the loss before and after the warm-up.

        A round visits every case once. A visit trains about `seconds` of CPU time, or half as long as its set-up takes,
        lest that drown the difference; rounds end after `repeats`, or when `budget` seconds have passed, but not
        before the third (or the last, if fewer are asked for).
        """
        built = [self.child(case).ask(build=asdict(case)) for case in cases]
        for case, b in zip(cases, built, strict=True):
            if case.library not in ALONE and not b["loss_last"] < b["loss_first"]:
                print(f"{case} does not learn: {b['loss_first']:.3f} to {b['loss_last']:.3f} nats")
        rows, begun = [], time.perf_counter()
        for k in range(repeats):
            if k >= 3 and time.perf_counter() - begun > budget:
                break
            for case, b in zip(cases, built, strict=True):
                steps = max(1, round(max(seconds, b["set_up"] / 2) / b["step"]))
                step = self.child(case).ask(measure=b["index"], steps=steps)["step"] / case.members
                rows.append(
                    asdict(case) | {"case": case.name, "flop": case.flop, "round": k, "seconds": step}
                    | {key: b[key] for key in ("loss_first", "loss_last")}
                )  # fmt: skip
        self.forget()
        return pd.DataFrame(rows)

    def count(self, case: Case, steps: int) -> dict[str, list[float]]:
        """Per step of the stack and kind of operation: calls, CPU seconds, FLOP, bytes (:mod:`benchmarks.ledger`)."""
        built = self.child(case).ask(build=asdict(case))
        members = case.members if case.library == "nfexp" else None  # peers keep every tensor apart
        kinds = self.child(case).ask(count=built["index"], steps=steps, members=members)["kinds"]
        self.forget()
        return kinds

    def forget(self) -> None:
        for child in self.children.values():
            child.ask(forget=True)


if __name__ == "__main__":
    serve()
