"""What a report costs as sweeps grow: ``python -m tests.robustness.scale [runs…]``, the table of docs/scaling.md.

Run directories are synthetic (tests/helpers/fake_sweep.py) but whole: `.hydra/`, log, record, history of 20
evaluations, and an archive of samples as `record=lean` keeps it, one file per target under many names. Two shapes: the
ablation study with more and more seeds, where nearly all runs are in some learning curve, and a full grid, where nearly
none is.

CPU seconds are those of the process itself and of the processes that draw beside it: with a core for each, the larger
of the two is the time it takes, whatever else the machine does meanwhile.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from nfexp.analysis.table import CACHE
from tests.helpers.fake_sweep import ablation_runs, centre, grid_runs, write_run, write_sweep

HOME = Path(__file__).parents[2]

TIMES = "import os, sys; t = os.times(); print(t.user + t.system, t.children_user + t.children_system, file=sys.stderr)"
REPORT = f"import sys; from nfexp.report import main; code = main(sys.argv[1:]); {TIMES}; sys.exit(code)"
TABLE = f"""import sys; from nfexp.analysis.table import collect, write_csv
runs = collect(sys.argv[1], cache=sys.argv[1]).runs; write_csv(runs.drop(columns="dir"), sys.argv[1] + "/runs.csv")
{TIMES}"""


def make(folder: Path, runs: list[Any]) -> int:
    """Write the sweep; gives the number of its files and directories."""
    write_sweep(folder, runs, arrays=False)
    stored = {"record__samples": 400, "record__grid": 0, "record__walk": 0}
    for i, (overrides, _, status) in enumerate(runs):
        target = overrides.get("data.name", "moons")
        model = folder.parent / f"model_{target}"
        if not model.exists():
            write_run(model, centre(target, **stored), {}, "completed")
        if status == "completed":
            os.link(model / "samples.npz", folder / f"{i:03d}" / "samples.npz")
    return sum(len(names) + len(files) for _, names, files in os.walk(folder))


def resident(pid: int) -> int:
    """Bytes that a process and its children hold, as Linux counts them."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(resident(int(child)) for child in children)


def measure(code: str, folder: Path) -> tuple[float, float, float, float]:
    """Wall seconds, CPU seconds (own, children) and the largest resident memory (MB) of a fresh interpreter."""
    most, start = 0, time.perf_counter()
    program = [sys.executable, "-c", code, str(folder)]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=errors, cwd=HOME)
        while process.poll() is None:
            most = max(most, resident(process.pid))
            time.sleep(0.02)
        wall = time.perf_counter() - start
        errors.seek(0)
        lines = errors.read().splitlines()
    if process.returncode:
        raise SystemExit("\n".join(lines))
    own, beside = map(float, lines[-1].split())
    return wall, own, beside, most / 2**20


def main(sizes: list[int]) -> None:
    """Print one row per sweep."""
    head = ["runs", "shape", "files", "figures", "table: CPU s", "again", "report: CPU s", "beside", "MB", "wall s"]
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for size in sizes:
        shapes = {"ablation": ablation_runs(max(1, round(size / 150)))[:size], "grid": grid_runs(max(1, size // 2000))}
        for shape, runs in shapes.items():
            if shape == "grid" and len(runs) > 1.1 * size:
                continue
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / "sweep"
                files = make(folder, runs)
                time.sleep(2.1)  # younger records are not kept in the cache
                table, again = measure(TABLE, folder), measure(TABLE, folder)
                (folder / CACHE).unlink()
                wall, own, beside, memory = measure(REPORT, folder)
                pictures = len(list((folder / "figures").glob("*.png")))
            cells = [f"{len(runs):,}", shape, f"{files:,}", str(pictures), f"{table[1]:.1f}", f"{again[1]:.1f}"]
            cells += [f"{own:.1f}", f"{beside:.1f}", f"{memory:.0f}", f"{wall:.1f}"]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [150, 450, 2000, 10_000])
