"""python -m benchmarks PART …: a part of the measurements, `all` of them, or `docs`, the page of what was measured."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import kernel, pieces, prices, sweeps, tables, threads, training
from benchmarks.cases import PEERS

RESULTS = Path(__file__).parent / "results"
PARTS: dict[str, Callable[..., pd.DataFrame | None]] = {
    "step": training.step, "kernel": kernel.kernel, "pieces": pieces.pieces, "threads": threads.threads,
    "sweep": sweeps.sweep, "overhead": sweeps.overhead, "growth": training.growth, "gpu": training.gpu,
    "deviation": training.deviation, "roofline": training.roofline, "prices": prices.prices,
}  # fmt: skip
QUICK: dict[str, dict[str, Any]] = {  # a look at each part in a minute or two, not a measurement
    "step": {"hidden": ("64x2",), "stacks": (1, 16), "repeats": 2, "seconds": 0.1},
    "kernel": {"settings": kernel.SETTINGS[:4], "rounds": 3},
    "pieces": {"widths": (24, 64), "rounds": 3},
    "threads": {"settings": threads.SETTINGS[:2], "rounds": 3},
    "sweep": {"seeds": 2, "flows": (2, 4)},
    "overhead": {"sizes": (48,)},
    "growth": {"repeats": 1, "seconds": 0.1},
    "gpu": {"hidden": ("64x2",), "stacks": (1, 256), "steps": 20},
    "deviation": {"seeds": 2, "steps": 50},
    "roofline": {"repeats": 1, "seconds": 0.1},
    "prices": {"rounds": 1},
}
FULL: dict[str, dict[str, Any]] = {"step": {"full": True}, "sweep": {"peer_seeds": 15}}


def machine() -> pd.DataFrame:
    """What the figures were measured on."""
    names = [
        line.partition(":")[2].strip()
        for line in _lines("/proc/cpuinfo")
        if line.startswith("model name")
    ]
    found = {"processor": names[0] if names else platform.processor(), "cores": str(os.cpu_count()),
             "python": platform.python_version(), "date": time.strftime("%Y-%m-%d")}  # fmt: skip
    for package in ("torch", "numpy", "jax", *PEERS, "hydra-core", "hydra-joblib-launcher"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return pd.DataFrame({"what": found.keys(), "value": found.values()})


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="+", choices=[*PARTS, "all", "docs"])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="small sizes: does everything run?")
    size.add_argument(
        "--full", action="store_true", help="every job of the peers, the largest stacks"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSVs")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="docs: take the CSVs of --out over into docs/performance",
    )
    arguments = parser.parse_args()
    wanted = [*PARTS] if "all" in arguments.parts else [p for p in arguments.parts if p != "docs"]
    options = QUICK if arguments.quick else FULL if arguments.full else {}
    arguments.out.mkdir(parents=True, exist_ok=True)
    if wanted:
        machine().to_csv(arguments.out / "machine.csv", index=False)
    failed: list[str] = []
    for part in wanted:
        begun = time.perf_counter()
        print(f"\n## {part}\n", flush=True)
        try:
            frame = PARTS[part](**options.get(part, {}))
        except RuntimeError as error:  # the other parts are still worth having
            print(error)
            failed.append(part)
            continue
        if frame is not None:
            frame.to_csv(arguments.out / f"{part}.csv", index=False)
            print(tables.shown(part, frame))
        print(f"\n({time.perf_counter() - begun:.0f} s)", flush=True)
    if wanted:
        done = {
            p: pd.read_csv(arguments.out / f"{p}.csv")
            for p in wanted
            if (arguments.out / f"{p}.csv").exists()
        }
        print(f"\n## targets\n\n{tables.targets(done)}")
    if "docs" in arguments.parts:
        if arguments.keep:
            tables.DOCS.mkdir(parents=True, exist_ok=True)
            for path in arguments.out.glob("*.csv"):
                shutil.copy(path, tables.DOCS / path.name)
        tables.PAGE.write_text(tables.refreshed(tables.PAGE.read_text()))
        tables.draw()
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
