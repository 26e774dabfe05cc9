"""Whole sweeps from the command line, start-up and report included: beside Hydra's launchers, and without training."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

import pandas as pd

from benchmarks.cases import CLASSIC
from benchmarks.children import environment

PEER_SCRIPT = Path(__file__).parent / "peer_script" / "train.py"
TARGETS = ("moons", "circles", "spiral2", "spiral4")
FLOWS = (2, 4, 6, 8)
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
PAGE_MB, TICKS = resource.getpagesize() / 1e6, os.sysconf("SC_CLK_TCK")
LOOK_SECONDS = 0.25  # between two looks at a running command


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one command took, its children included: seconds, CPU seconds, peak memory in MB; and what it said."""

    wall: float
    cpu: float
    peak_mb: float
    said: str


def family(root: int) -> dict[int, tuple[float, float]]:
    """CPU seconds and resident MB of a process and of all below it; nothing without /proc."""
    stats: dict[int, list[str]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone by now
            stats[int(entry.name)] = (entry / "stat").read_text().rpartition(")")[2].split()
    found, wave = {}, {root} & stats.keys()
    while wave:
        found |= {
            p: (sum(map(int, stats[p][11:13])) / TICKS, int(stats[p][21]) * PAGE_MB) for p in wave
        }
        wave = {p for p, stat in stats.items() if int(stat[1]) in wave}
    return found


def command(*arguments: str, folder: Path, **env: str) -> Usage:
    """Run a Python command to its end in `folder`.

    Its CPU time is that of the children it waited for; where it left some alone, what was last seen of each of them.
    """
    seen: dict[int, float] = {}
    peak, done = [0.0], threading.Event()
    with tempfile.TemporaryFile("w+") as log:
        begun = perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment() | env,
            stdout=log,
            stderr=subprocess.STDOUT,
        )

        def watch() -> None:
            while not done.wait(LOOK_SECONDS):
                alive = family(process.pid)
                seen.update({pid: cpu for pid, (cpu, _) in alive.items()})
                peak.append(sum(mb for _, mb in alive.values()))

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, used = os.wait4(process.pid, 0)
        wall = perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        done.set()
        watcher.join()
        log.seek(0)
        said = log.read()
    if process.returncode:
        raise RuntimeError(
            f"{' '.join(arguments)} ended with {process.returncode}:\n{said[-2000:]}"
        )
    cpu = max(used.ru_utime + used.ru_stime, sum(seen.values()))
    largest = max(peak)
    if (
        not largest
    ):  # without /proc; a child begins with what this process has, so that it is no less than that
        largest = used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return Usage(wall=wall, cpu=cpu, peak_mb=largest, said=said)


def listed(values: Sequence[object]) -> str:
    return ",".join(map(str, values))


def sweep(
    *, targets: Sequence[str] = TARGETS, flows: Sequence[int] = FLOWS, seeds: int = 15, steps: int = 500,
    peer_seeds: int = 1, launchers: Sequence[str] = ("joblib", "basic"), changes: Sequence[str] = (),
) -> pd.DataFrame:  # fmt: skip
    """A sweep by `nfexp -m` against one run per job with normflows under Hydra's launchers, end to end.

    The peers run `peer_seeds` of the seeds, every target with every number of flows, and are scaled to all of them;
    the start of each process is counted once. Each of their processes is held to one thread, which is faster.
    """
    jobs, rows = len(targets) * len(flows) * seeds, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        used = command(
            "-m", "nfexp", "-m", *CLASSIC, f"data={listed(targets)}", f"flow.n_flows={listed(flows)}",
            f"seed=range({seeds})", f"train.steps={steps}", "record=none", "hydra.sweep.dir=nfexp", *changes,
            folder=folder,
        )  # fmt: skip
        runs = pd.read_csv(folder / "nfexp" / "runs.csv")
        rows.append({"contender": "nfexp", "measured": len(runs), "wall": used.wall, "cpu": used.cpu,
                     "peak_mb": used.peak_mb,
                     "test_nll": runs.loc[runs["seed"] < peer_seeds, "test_nll"].mean()})  # fmt: skip
        if not find_spec("normflows"):
            print("not installed, skipped: normflows (pip install 'nfexp[bench]')")
            launchers = ()
        start = command(str(PEER_SCRIPT), "--cfg", "job", folder=folder) if launchers else None
        for launcher in launchers:
            if launcher == "joblib" and not find_spec("hydra_plugins.hydra_joblib_launcher"):
                print("not installed, skipped: hydra-joblib-launcher (pip install 'nfexp[bench]')")
                continue
            workers = CORES if launcher == "joblib" else 0
            used = command(
                str(PEER_SCRIPT), "-m", f"target={listed(targets)}", f"n_flows={listed(flows)}",
                f"seed=range({peer_seeds})", f"steps={steps}", f"hydra/launcher={launcher}",
                f"hydra.sweep.dir={launcher}", *([f"hydra.launcher.n_jobs={workers}"] if workers else []),
                folder=folder, OMP_NUM_THREADS="1",
            )  # fmt: skip
            found = [
                json.loads(path.read_text()) for path in (folder / launcher).glob("*/result.json")
            ]
            # start-up: the launching process, and then the workers side by side, each import once
            wall_once, cpu_once = start.wall * (1 + bool(workers)), start.cpu * (1 + workers)
            scale = seeds / peer_seeds
            rows.append({"contender": f"normflows, Hydra's {launcher} launcher", "measured": len(found),
                         "wall": wall_once + (used.wall - wall_once) * scale,
                         "cpu": cpu_once + (used.cpu - cpu_once) * scale, "peak_mb": used.peak_mb,
                         "test_nll": sum(f["test_nll"] for f in found) / len(found)})  # fmt: skip
    frame = pd.DataFrame(rows)
    frame.insert(1, "jobs", jobs)
    return frame.assign(
        steps=steps,
        cores=CORES,
        wall_ratio=frame["wall"] / frame["wall"][0],
        cpu_ratio=frame["cpu"] / frame["cpu"][0],
    )


TRIVIAL = (
    "train.steps=1", "train.warmup=0", "train.n_evals=1", "train.batch_size=2", "data.n_samples=2", "data.n_val=2",
    "data.n_test=2", "flow.hidden_depth=1", "flow.hidden_width=1", "record=none",
)  # fmt: skip


def overhead(*, sizes: Sequence[int] = (48, 480, 4800)) -> pd.DataFrame:
    """What a job costs beside its training: a sweep over four targets and four flow counts whose training is trivial.

    `train` is the share of `run_stack` as the runs' own records say; all else is overhead, start-up included.
    """
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for jobs in sizes:
            used = command(
                "-m", "nfexp", "-m", *CLASSIC, f"data={listed(TARGETS)}", "flow.n_flows=1,2,3,4",
                f"seed=range({jobs // 16})", *TRIVIAL, f"hydra.sweep.dir={jobs}", folder=folder,
            )  # fmt: skip
            runs = pd.read_csv(folder / str(jobs) / "runs.csv")
            train = runs["seconds"].sum() / CORES
            parts = {
                k: float(v) for v, k in re.findall(r"([\d.]+) s to (compose|report)", used.said)
            }
            rows.append({"contender": "nfexp", "jobs": len(runs), "wall": used.wall, "cpu": used.cpu, "train": train,
                         "peak_mb": used.peak_mb, **parts})  # fmt: skip
        if find_spec("normflows"):
            used = command(
                str(PEER_SCRIPT), "-m", f"target={listed(TARGETS)}", "n_flows=1,2,3,4",
                f"seed=range({sizes[0] // 16})", "steps=0", "n_samples=2", "n_test=2", "hidden=[1]",
                "hydra.sweep.dir=basic", folder=folder, OMP_NUM_THREADS="1",
            )  # fmt: skip
            jobs = len(list((folder / "basic").glob("*/result.json")))
            rows.append({"contender": "Hydra's basic launcher, one JSON a job, no report", "jobs": jobs,
                         "wall": used.wall, "cpu": used.cpu, "train": 0.0, "peak_mb": used.peak_mb})  # fmt: skip
    frame = pd.DataFrame(rows)
    return frame.assign(
        ms_per_job=1e3 * (frame["wall"] - frame["train"]) / frame["jobs"],
        cpu_ms_per_job=1e3 * frame["cpu"] / frame["jobs"],
    )
