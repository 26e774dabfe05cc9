"""python -m tests.robustness.faults: sweeps killed, starved of disk and robbed of their folder, and what is left.

A sweep of 40 runs is killed (kill -9) at random moments and resumed until all is done. After every kill each file is
opened; at the end the table of runs is compared with that of an undisturbed sweep. Then other faults, one by one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from safetensors.numpy import load

from benchmarks.children import environment
from benchmarks.tables import markdown
from nfexp import load_runs
from nfexp.record import outcome

GRID = ("flow.n_flows=1,2", "data=moons,circles", "hydra.launcher.max_stack=4")
SMALL = (
    "data.n_samples=200", "data.n_val=100", "data.n_test=200", "train.batch_size=32", "train.warmup=2",
    "train.n_evals=13", "flow.hidden_width=8", "record=lean", "record.samples=50", "device=cpu",
)  # fmt: skip
WHICH = ["data.name", "flow.n_flows", "seed"]
OF_THE_PROGRAM = ["seconds", "stack_size", "dir", "job"]  # columns that say how and where, not what came out
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # stacks of other sizes add in another order
NFEXP = ("from nfexp.cli import main; main()", "-m")
RESUME = ("from nfexp.cli import resume; resume()",)


class Command(subprocess.Popen):
    """A command over the sweep in the folder `s`, in a session of its own, its output in a file."""

    def __init__(self, folder: Path, *arguments: str, shell: str = "") -> None:
        self.log, self.begun = folder / f"{len(list(folder.glob('*.log')))}.log", time.perf_counter()
        call = ["sh", "-c", f'{shell} exec "$@"', "sh", sys.executable, "-c", *arguments]
        space = ["unshare", "--mount", "--map-root-user"] if shell else []
        with self.log.open("w") as log:
            how = {"stdout": log, "stderr": log, "cwd": folder, "start_new_session": True}
            super().__init__([*space, *call], env=environment(), **how)

    def seconds(self) -> float:
        return time.perf_counter() - self.begun

    def end(self, timeout: float | None = None) -> bool:
        """Whether it ends within so many seconds."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(timeout)
        return self.returncode is not None

    def last_line(self) -> str:
        return (self.log.read_text().splitlines() or [""])[-1]

    def workers(self) -> list[int]:
        """Its grandchildren: forked from the process that has torch loaded."""
        return [worker for child in children(self.pid) for worker in children(child)]


def children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):  # gone by now
        for listed in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, listed.read_text().split())
    return found


# What a folder holds


def _load_npz(path: Path) -> None:
    with np.load(path, allow_pickle=False) as arrays:
        _ = [arrays[name] for name in arrays]


def _ends(mark: bytes) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        if not path.read_bytes().rstrip().endswith(mark):
            raise ValueError(f"does not end in {mark!r}")

    return check


READERS: dict[str, Callable[[Path], Any]] = {
    ".json": lambda path: json.loads(path.read_text()),
    ".csv": lambda path: pd.read_csv(path),
    ".npz": _load_npz,
    ".safetensors": lambda path: load(path.read_bytes()),
    ".yaml": lambda path: yaml.safe_load(path.read_text() or "["),
    ".html": _ends(b"</html>"),
    ".png": _ends(b"IEND\xaeB`\x82"),
    ".pdf": _ends(b"%%EOF"),
}


def half_written(folder: Path) -> list[str]:
    """The files that are there under their own name and cannot be read."""
    found = []
    for path in folder.rglob("*"):
        if path.suffix in READERS and not path.name.startswith(".") and path.is_file():
            try:
                READERS[path.suffix](path)
            except FileNotFoundError:  # replaced or removed meanwhile, which is whole
                continue
            except Exception as error:
                found.append(f"{path.relative_to(folder)}: {error!r}")
    return found


def leftovers(folder: Path) -> list[str]:
    """Temporary files and checkpoints: nothing of the kind is to outlive a sweep."""
    temporary = (p for p in folder.rglob(".*.*") if p.is_file() and p.name != ".runs.cache")
    return sorted(str(p.relative_to(folder)) for p in [*temporary, *folder.rglob("checkpoint.safetensors")])


def finished(folder: Path) -> set[str]:
    """Names of the run directories with a record, but for those of failed runs, which every resume here redoes."""
    ends = {path.parent.name: outcome(path.parent) for path in folder.glob("*/result.json")}
    return {name for name, end in ends.items() if end and end.status != "failed"}


def compare(folder: Path, whole: Path) -> tuple[int, float]:
    """How many runs of a sweep are not as in an undisturbed one, and the largest difference of a test NLL, nats."""
    here, there = (load_runs(f).set_index(WHICH).sort_index().drop(columns=OF_THE_PROGRAM, errors="ignore")
                   for f in (folder, whole))  # fmt: skip
    there = there.loc[there.index.isin(here.index)]
    if list(here.index) != list(there.index) or list(here.columns) != list(there.columns):
        return max(len(here), len(there)), float("nan")
    unlike = pd.Series(False, index=here.index)
    for name in here:
        if pd.api.types.is_float_dtype(here[name]):
            unlike |= ~np.isclose(here[name], there[name], equal_nan=True, **CLOSE)
        else:
            unlike |= (here[name] != there[name]) & ~(here[name].isna() & there[name].isna())
    return int(unlike.sum()), float((here["test_nll"] - there["test_nll"]).abs().max())


# kill -9


VICTIMS: dict[str, Callable[[Command, random.Random], Any]] = {
    "kill -9 of the command": lambda command, rng: command.kill(),
    "kill -9 of a worker": lambda command, rng: os.kill(rng.choice(command.workers()), signal.SIGKILL),
    "kill -9 of all its processes": lambda command, rng: os.killpg(command.pid, signal.SIGKILL),
}


def killed(home: Path, arguments: tuple[str, ...], *, kills: int, rng: random.Random, span: float) -> Iterator[dict]:
    """Kill a sweep and go on with it until it is done or was killed so often; then let it end. A row per kill.

    `span` is the longest time, in seconds, between a start, or a kill, and the next.
    """
    home.mkdir()
    folder, done, seen = home / "s", 0, set()
    while True:
        start = (*RESUME, "s", "redo=failed") if (folder / "sweep.json").exists() else (*NFEXP, *arguments)
        command = Command(home, *start)
        while not command.end(rng.uniform(0, span) if done < kills else None):
            victim = rng.choice(list(VICTIMS))
            if "worker" in victim and not command.workers():
                continue
            with suppress(ProcessLookupError):  # it was faster
                VICTIMS[victim](command, rng)
            at, broken, now = command.seconds(), half_written(folder), finished(folder)
            gone = sorted(seen - now)
            seen, done = now, done + 1
            yield {"fault": victim, "seconds": round(at, 2), "finished": len(now), "lost": len(gone),
                   "half_written": len(broken), "message": "; ".join(gone + broken)}  # fmt: skip
            if "worker" not in victim:
                command.wait()
                break
        else:
            if command.returncode == 0:
                return
            yield {"fault": "a command that ended by itself", "seconds": round(command.seconds(), 2),
                   "finished": len(finished(folder)), "lost": 0, "half_written": 0,
                   "message": f"exit {command.returncode}: {command.last_line()}"}  # fmt: skip
            if command.returncode < 0 or done >= kills:
                return


def campaign(home: Path, *, kills: int, seeds: int, steps: int, seed: int = 0, span: float = 8.0) -> pd.DataFrame:
    """Kill sweeps of 4 × `seeds` runs until there were so many kills; one row per kill and one per sweep."""
    arguments = (f"seed=range({seeds})", *GRID, *SMALL, f"train.steps={steps}", "hydra.sweep.dir=s")
    (home / "whole").mkdir()
    undisturbed = Command(home / "whole", *NFEXP, *arguments)
    if undisturbed.wait():
        raise RuntimeError(undisturbed.last_line())
    rng, rows, sweep = random.Random(seed), [], 0
    while sum(row["fault"] in VICTIMS for row in rows) < kills:
        left, own = kills - sum(row["fault"] in VICTIMS for row in rows), home / f"killed{sweep}"
        for row in killed(own, arguments, kills=left, rng=rng, span=span):
            print(f"{row['seconds']:6.1f} s  {row['fault']}: {row['finished']} finished {row['message']}", flush=True)
            rows.append({"sweep": sweep, **row})
        unlike, furthest = compare(own / "s", home / "whole/s")
        rows.append({"sweep": sweep, "fault": "at the end", "finished": len(finished(own / "s")), "lost": unlike,
                     "leftovers": len(leftovers(own / "s")), "half_written": len(half_written(own / "s")),
                     "message": f"test NLL within {furthest:.1g}; {' '.join(leftovers(own / 's'))}"})  # fmt: skip
        sweep += 1
    return pd.DataFrame(rows)


# Other faults, on a sweep of eight of those runs


class Scene:
    """A sweep of few runs in a folder of its own: what becomes of it, and after it is resumed."""

    def __init__(self, home: Path, steps: int, whole: Path) -> None:
        home.mkdir()
        self.home, self.folder, self.whole = home, home / "s", whole
        self.arguments = (*NFEXP, "seed=range(2)", *GRID, *SMALL, f"train.steps={steps}", "hydra.sweep.dir=s")

    def start(self, shell: str = "") -> Command:
        return Command(self.home, *self.arguments, shell=shell)

    def wait_for(self, command: Command, pattern: str) -> None:
        while command.poll() is None and not list(self.home.glob(pattern)):
            time.sleep(0.01)

    def row(self, fault: str, code: int, said: str, kept: int, folder: Path | None = None) -> dict[str, Any]:
        """Resume the sweep, unless it is gone, and say what there was and is."""
        folder = folder or self.folder
        broken = half_written(folder)
        again = Command(folder.parent, *RESUME, folder.name, "redo=failed")
        again.wait()
        unlike, furthest = compare(folder, self.whole) if again.returncode == 0 else (-1, float("nan"))
        said = said.replace(f"{self.home}/", "")
        return {"fault": fault, "exit": code, "said": said, "finished": kept, "half_written": len(broken),
                "resumed": again.returncode, "runs": len(finished(folder)), "unlike": unlike, "furthest": furthest,
                "leftovers": len(leftovers(folder))}  # fmt: skip


def interrupted(scene: Scene) -> dict[str, Any]:
    command = scene.start()
    scene.wait_for(command, "s/*/result.json")
    os.killpg(command.pid, signal.SIGINT)  # as a terminal does
    command.wait()
    return scene.row("Ctrl-C", command.returncode, command.last_line(), len(finished(scene.folder)))


def two_at_once(scene: Scene) -> dict[str, Any]:
    first = scene.start()
    scene.wait_for(first, "s/sweep.json")
    second = scene.start()
    second.wait()
    first.wait()
    return scene.row("a second command meanwhile", second.returncode, second.last_line(), len(finished(scene.folder)))


def folder_removed(scene: Scene) -> dict[str, Any]:
    command = scene.start()
    scene.wait_for(command, "s/*/result.json")
    scene.folder.rename(scene.home / "moved")  # and with it what was finished
    command.wait()
    if scene.folder.exists():
        raise RuntimeError("the folder was made again")
    kept = scene.home / "moved"
    return scene.row("its folder moved away", command.returncode, command.last_line(), len(finished(kept)), kept)


def in_a_space(scene: Scene, fault: str, size: str, meanwhile: str) -> dict[str, Any]:
    """A file system of so many bytes, of which something happens; what was written is then copied out of it."""
    scene.folder.mkdir()
    shell = f'mount -t tmpfs -o size={size} none s && {meanwhile} "$@"; code=$?; cp -r s kept; exit $code;'
    command = scene.start(shell)
    command.wait()
    kept = scene.home / "kept"
    return scene.row(fault, command.returncode, command.last_line(), len(finished(kept)), kept)


def disk_full(scene: Scene) -> dict[str, Any]:
    return in_a_space(scene, "a full disk", "200k", "")


def read_only(scene: Scene) -> dict[str, Any]:
    meanwhile = (
        "(until ls s/*/result.json; do sleep 0.1; done; mount --bind s s; mount -o remount,bind,ro s) >/dev/null 2>&1 &"
    )
    return in_a_space(scene, "a folder that turns read-only", "100m", meanwhile)


FAULTS = (interrupted, two_at_once, folder_removed, disk_full, read_only)


def others(home: Path, *, steps: int) -> pd.DataFrame:
    """One row per fault; those that need a file system of their own only where this user may mount one."""
    may_mount = subprocess.run(["unshare", "--mount", "--map-root-user", "true"], capture_output=True).returncode == 0
    rows = []
    for fault in FAULTS:
        if may_mount or fault not in (disk_full, read_only):
            rows.append(fault(Scene(home / fault.__name__, steps, home / "whole/s")))
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def shown(kills: pd.DataFrame, faults: pd.DataFrame) -> str:
    """Both tables as Markdown."""
    ends = kills[kills["fault"] == "at the end"]
    rows = [
        [fault, len(own), f"{own['seconds'].min():.1f} to {own['seconds'].max():.1f}", own["lost"].sum(),
         own["half_written"].sum()]
        for fault, own in kills.drop(ends.index).groupby("fault", sort=False)
    ]  # fmt: skip
    tables = {
        ("fault", "times", "seconds after the start", "finished runs lost", "files half-written"): rows,
        ("sweeps killed and resumed", "their runs", "runs unlike the undisturbed", "files left over"): [
            [len(ends), ends["finished"].sum(), ends["lost"].sum(), ends["leftovers"].sum()]
        ],
        ("fault", "exit", "last line", "finished", "files half-written", "resumed to", "unlike", "left over"): [
            [r.fault, r.exit, f"`{r.said}`", r.finished, r.half_written, r.runs, r.unlike, r.leftovers]
            for r in faults.itertuples()
        ],
    }

    def told(cell: object) -> str:
        return cell if isinstance(cell, str) else f"{cell:g}"

    return "\n\n".join(markdown(head, [map(told, row) for row in body]) for head, body in tables.items())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.robustness.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=10, help="a sweep has four times as many runs")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--span", type=float, default=9.0, help="the longest time to the next kill, seconds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the CSVs")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        kills = campaign(Path(home), kills=given.kills, seeds=given.seeds, steps=given.steps, span=given.span)
        faults = others(Path(home), steps=given.steps)
    given.out.mkdir(parents=True, exist_ok=True)
    kills.to_csv(given.out / "kills.csv", index=False)
    faults.to_csv(given.out / "faults.csv", index=False)
    print(shown(kills, faults))


if __name__ == "__main__":
    main()
