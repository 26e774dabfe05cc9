"""The `nfexp-doctor` command: what nfexp finds on this machine, and what it lacks."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nfexp import usages
from nfexp.record import code_version
from nfexp.surroundings import command, users_threads
from nfexp.sweep.executors import BACKENDS, EXECUTORS, MODULES
from nfexp.sweep.planning import cores, machine
from nfexp.trackers import MODULES as TRACKERS
from nfexp.usage import run_without_folders

PACKAGES = (
    "torch",
    "numba",
    "numpy",
    "scipy",
    "pandas",
    "matplotlib",
    "scikit-learn",
    "hydra-core",
    "omegaconf",
    "safetensors",
    "rich",
)
FREE_GIGABYTES = 2.0  # of the disk; below it the doctor warns


Row = tuple[str, str]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "! not installed"


def _versions() -> list[Row]:
    rows = [
        ("nfexp", code_version()),
        ("python", f"{platform.python_version()} ({sys.executable})"),
    ]
    rows.append(("system", f"{platform.system()} {platform.release()} {platform.machine()}"))
    rows += [(package, _version(package)) for package in PACKAGES]
    return rows


def _device() -> list[Row]:
    """Where torch trains, and with how many threads."""
    import torch

    threads = users_threads()
    said = (
        f"{threads} (as OMP_NUM_THREADS says)"
        if threads
        else "1 in each worker (OMP_NUM_THREADS is not set)"
    )
    rows = [
        ("cores", str(cores())),
        ("threads", said),
        ("instructions", torch.backends.cpu.get_cpu_capability()),
        ("BLAS", ", ".join(_libraries()) or "none that threadpoolctl knows"),
    ]
    if not torch.cuda.is_available():
        return [*rows, ("device", "cpu (no CUDA device)")]
    for k in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(k)
        name = torch.cuda.get_device_name(k)
        rows.append(("device", f"cuda:{k} {name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"))
    return rows


def _libraries() -> list[str]:
    """The BLAS and OpenMP libraries that are loaded."""
    from threadpoolctl import threadpool_info

    lines = []
    for library in threadpool_info():
        words = f"{library['internal_api']} {library.get('version') or ''}".strip()
        if words not in lines:
            lines.append(words)
    return lines


def _kernel() -> list[Row]:
    """Whether the fused kernel can be used here, and whether it is compiled already."""
    from nfexp.flows import kernels

    missing = kernels.missing()
    if missing is not None:
        return [("fused kernel", f"! no: {missing}; training goes the torch way")]
    from nfexp.flows.kernels.compiled import cache_folder

    folder = cache_folder()
    rows = [("fused kernel", "yes")]
    if folder is None:
        return [
            *rows,
            ("kernel cache", "! no folder that can be written: compiled anew by every process"),
        ]
    files = [path for path in folder.rglob("*") if path.is_file()]
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    is_there = any(path.suffix == ".nbi" for path in files)
    what = f"{megabytes:.1f} MB" if is_there else "empty: the first run compiles, some 20 s"
    return [*rows, ("kernel cache", f"{folder} ({what})")]


def _launchers() -> list[Row]:
    """Which executors and trackers can be used."""
    rows = []
    for name in (*EXECUTORS, *BACKENDS):
        module = MODULES.get(name)
        if module is not None and not find_spec(module):
            said = f"no (pip install 'nfexp[{name}]')"
        elif name == "slurm" and not shutil.which("sbatch"):
            said = "no (there is no sbatch)"
        else:
            said = "yes"
        rows.append((f"{'executor' if name in EXECUTORS else 'backend'} {name}", said))
    for name, module in TRACKERS.items():
        said = "yes" if find_spec(module) else f"no (pip install 'nfexp[{name}]')"
        rows.append((f"tracker {name}", said))
    return rows


def _space() -> list[Row]:
    memory = machine(["cpu"]).free_bytes / 1e9
    rows = [("memory", f"{memory:.1f} GB free")]
    here = Path.cwd()
    free = shutil.disk_usage(here).free / 1e9
    warning = "" if free >= FREE_GIGABYTES else "! "
    rows.append(("disk", f"{warning}{free:.1f} GB free in {here}"))
    if not os.access(here, os.W_OK):
        rows.append(
            ("folder", f"! {here} cannot be written: give hydra.run.dir or hydra.sweep.dir")
        )
    return rows


def findings() -> list[Row]:
    """What the doctor says, a line each."""
    return [*_versions(), *_device(), *_kernel(), *_launchers(), *_space()]


def _main(_: dict[str, Any]) -> int:
    rows = findings()
    width = max(len(name) for name, _ in rows)
    for name, said in rows:
        mark = "!" if said.startswith("! ") else " "
        print(f"{mark} {name:<{width}}  {said.removeprefix('! ')}")
    return 0


@command
def main(argv: Sequence[str] | None = None) -> int:
    """``nfexp-doctor``: print what there is on this machine."""
    return run_without_folders(usages.DOCTOR, argv, _main)
