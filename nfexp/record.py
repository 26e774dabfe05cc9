"""One run, one directory: written whole or not at all, read back without executing anything."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import os
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from nfexp.files import replacing
from nfexp.flow import Architecture, FlowStack, from_state
from nfexp.nn import stream
from nfexp.run import Result
from nfexp.spec import SCHEMA_VERSION, flatten, run_id, unflatten


@functools.cache
def versions() -> dict[str, str | None]:
    """Versions of nfexp and of what its numbers rest on."""
    found: dict[str, str | None] = {}
    for package in ("nfexp", "torch", "numpy", "hydra-core", "omegaconf"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


@functools.cache
def git_commit() -> str | None:
    """The commit of the checkout nfexp runs from ("-dirty" if it differs), or None outside one."""
    home = Path(__file__).parents[1]
    if not (home / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(home), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return None


def write_run(folder: Path, result: Result) -> None:
    """Write `history.csv`, `samples.npz`, `model.safetensors` and, last, `result.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    if result.history:
        with replacing(folder / "history.csv") as path, path.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(result.history)
            writer.writerows(zip(*(v.tolist() for v in result.history.values()), strict=True))
    if result.arrays:
        with replacing(folder / "samples.npz") as path, path.open("wb") as file:
            np.savez_compressed(file, **result.arrays)
    if result.state:
        with replacing(folder / "model.safetensors") as path:
            path.write_bytes(save(result.state))
    record = {
        "schema_version": SCHEMA_VERSION,
        "status": result.status,
        "reason": result.reason,
        "run_id": run_id(result.spec),
        "config": flatten(result.spec),
        "metrics": result.metrics,
        "versions": versions(),
        "git_commit": git_commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with replacing(folder / "result.json") as path:
        path.write_text(json.dumps(record, indent=1, allow_nan=False))


class TrainedFlow:
    """A trained flow read back from its run directory; made by :func:`load_flow`."""

    def __init__(self, stack: FlowStack) -> None:
        self.stack = stack
        self.dim = stack.arch.dim

    def _points(self, x: object, name: str) -> Tensor:
        points = torch.as_tensor(x, dtype=self.stack.theta.dtype)
        if points.ndim != 2 or points.shape[1] != self.dim:
            raise ValueError(f"{name}: expected shape (N, {self.dim}); got {tuple(points.shape)}")
        return points[None]

    @torch.no_grad()
    def log_prob(self, x: object) -> Tensor:
        """log q(x) in nats, data units: array or tensor (N, D) to tensor (N,)."""
        return self.stack.log_prob(self._points(x, "x"))[0]

    @torch.no_grad()
    def forward(self, z: object) -> Tensor:
        """Base to data, (N, D) to (N, D)."""
        return self.stack.forward(self._points(z, "z"))[0][0]

    @torch.no_grad()
    def inverse(self, x: object) -> Tensor:
        """Data to base, (N, D) to (N, D)."""
        return self.stack.inverse(self._points(x, "x"))[0][0]

    @torch.no_grad()
    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        """`n` draws, (n, D), the same for the same seed."""
        return self.stack.sample(n, [stream(seed, "sample")])[0]


def load_flow(run_dir: str | os.PathLike[str]) -> TrainedFlow:
    """The kept flow of a run directory.

    >>> flow = load_flow("outputs/runs/2026-01-01_12-00-00")  # doctest: +SKIP
    >>> flow.log_prob(flow.sample(1000)).mean()  # doctest: +SKIP

    Raises
    ------
    FileNotFoundError
        If the folder holds no finished run.
    ValueError
        If its record is of a newer schema, or its weights do not fit its configuration.
    """
    folder = Path(run_dir)
    for name in ("result.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder}: expected a finished run; got a folder without {name}")
    record = json.loads((folder / "result.json").read_text())
    if record.get("schema_version") != SCHEMA_VERSION:
        got = record.get("schema_version")
        raise ValueError(f"{folder}: expected schema_version {SCHEMA_VERSION}; got {got}")
    spec = unflatten(record["config"])
    return TrainedFlow(from_state(Architecture.of(spec), load_file(folder / "model.safetensors")))
