"""One run, one directory: written whole or not at all, read back without executing anything."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import math
import operator
import os
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfexp.files import parse_json, read_plain, replacing
from nfexp.spec import SCHEMA_VERSION, SpecError, Words, event_shape, flatten, run_id, unflatten

if TYPE_CHECKING:  # torch is loaded only where a flow is: outcomes are read without it
    import numpy as np
    from torch import Tensor

    from nfexp.flows.distribution import FlowDistribution
    from nfexp.flows.stack import FlowStack
    from nfexp.run import Result
    from nfexp.spec import Spec

LARGEST_RECORD = 2**20  # bytes of a result.json that is read
LARGEST_MODEL = 2**31  # bytes
MOST_POINTS = 2**16  # that a loaded flow is evaluated at in one go


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
        own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # set by a git hook
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10, env=own)
        return answer.stdout.strip()
    return None


def code_version() -> str:
    """The code that runs are made by: the version of nfexp and, in a checkout, its commit."""
    return _code(versions()["nfexp"], git_commit())


def _code(release: object, commit: object) -> str:
    return f"nfexp {release or '(not installed)'}" + (f" at commit {commit}" if commit else "")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended, read from its directory."""

    run_id: str
    status: str
    reason: str | None
    val_nll: float  # nats; infinite unless completed
    code: str


def outcome(folder: str | os.PathLike[str]) -> Outcome | None:
    """The outcome of the run in a directory; None if it holds no finished one.

    Raises
    ------
    SpecError
        If its record cannot be read.

    >>> outcome("/nowhere")
    """
    path = Path(folder) / "result.json"
    try:
        record = parse_json(read_plain(path, LARGEST_RECORD)[0])
        completed = record["status"] == "completed"
        return Outcome(
            run_id=str(record["run_id"]),
            status=str(record["status"]),
            reason=None if record["reason"] is None else str(record["reason"]),
            val_nll=float(record["metrics"]["val_nll"]) if completed else math.inf,
            code=_code(record["versions"]["nfexp"], record["git_commit"]),
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SpecError(str(path), "the record of a run", Words(" ".join(str(error).split()) or "none")) from None


def holds_a_run(folder: Path) -> SpecError:
    return SpecError(str(folder), "a new or empty folder", Words("one that holds result.json"))


class RunFailed(RuntimeError):
    """A run raised; its record says why."""


def objective(end: Outcome | None) -> float:
    """The validation NLL of a run, nats (infinite if it diverged); raises if it failed or has not finished."""
    if end is None or end.status == "failed":
        raise RunFailed(end.reason if end else "not finished")
    return end.val_nll


def write_run(folder: Path, result: Result) -> None:
    """Write `history.csv`, `samples.npz`, `model.safetensors` and, last, `result.json`.

    What an interrupted attempt left there is replaced or removed, its checkpoint at the end.

    Raises
    ------
    SpecError
        If the folder holds a finished run: a record is never replaced.
    """
    import numpy as np
    from safetensors.numpy import save

    from nfexp.checkpoint import CHECKPOINT

    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "result.json").exists():
        raise holds_a_run(folder)
    parts = {"history.csv": result.history, "samples.npz": result.arrays, "model.safetensors": result.state}
    for name in (name for name, content in parts.items() if not content):
        (folder / name).unlink(missing_ok=True)
    if result.history:
        with replacing(folder / "history.csv") as path, path.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(result.history)
            writer.writerows(zip(*(v.tolist() for v in result.history.values()), strict=True))
    if result.arrays:
        with replacing(folder / "samples.npz") as path, path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **result.arrays)
    if result.state:
        with replacing(folder / "model.safetensors") as path:
            path.write_bytes(save({name: value.numpy() for name, value in result.state.items()}))
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
    try:
        with replacing(folder / "result.json", once=True) as path:
            path.write_text(json.dumps(record, indent=1, allow_nan=False))
    except FileExistsError:
        raise holds_a_run(folder) from None
    (folder / CHECKPOINT).unlink(missing_ok=True)


def _numbers(x: object, name: str) -> np.ndarray:
    """An array of one's own, whatever may be done to the array, list or table that it comes from."""
    import numpy as np

    try:
        array = np.asarray(x)
        if array.dtype.kind == "c":
            raise ValueError("complex numbers")
        return np.array(array, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: expected an array of real numbers; got {' '.join(str(error).split())}") from None


def _integer(value: object, name: str) -> int:
    try:
        if not isinstance(value, bool):
            return operator.index(value)  # type: ignore[arg-type]  # it raises TypeError for what is no integer
    except TypeError:
        pass
    raise ValueError(f"{name}: expected an integer; got {value!r}")


class TrainedFlow:
    """A trained flow, and the run that it was trained by, read back from a run directory by :func:`load_flow`."""

    def __init__(
        self, spec: Spec, stack: FlowStack, *, folder: Path | None = None, metrics: dict[str, Any] | None = None
    ) -> None:
        self.spec = spec
        self.stack = stack
        self.dim = stack.dim
        self.folder = folder
        self.metrics = metrics or {}

    def __repr__(self) -> str:
        flow = self.spec.flow
        test_nll = self.metrics.get("test_nll")
        reached = "" if test_nll is None else f", test NLL {test_nll:.4f} nats"
        return f"TrainedFlow({self.spec.data.name}, D = {self.dim}, {flow.n_flows} {flow.coupling} couplings{reached})"

    def distribution(self) -> FlowDistribution:
        """The flow as a distribution of PyTorch: `log_prob`, `sample`, `rsample` with gradients, weights of its own."""
        from nfexp.flows.distribution import FlowDistribution

        copied = self.stack.with_rows(self.stack.theta.clone(), self.stack.fixed.clone())
        return FlowDistribution(copied)

    def _points(self, x: object, name: str) -> Tensor:
        import torch

        points = x if isinstance(x, torch.Tensor) else torch.from_numpy(_numbers(x, name))
        points = points.to(self.stack.theta)
        if points.ndim != 2 or points.shape[1] != self.dim:
            raise ValueError(f"{name}: expected shape (N, {self.dim}); got {tuple(points.shape)}")
        return points[None]

    def log_prob(self, x: object) -> Tensor:
        """log q(x) in nats, data units: array or tensor (N, D) to tensor (N,); many points a part at a time.

        It is −inf where the density is too small for the precision of the weights, also where a scale overflows on
        the way (``flow.scale=exp``). It is NaN only where `x` is NaN.
        """
        import torch

        parts = self._points(x, "x").split(MOST_POINTS, dim=1)
        return torch.cat([self.stack.log_density(part)[0] for part in parts])

    def forward(self, z: object) -> Tensor:
        """Base to data, (N, D) to (N, D)."""
        return self.stack.forward(self._points(z, "z"))[0][0]

    def inverse(self, x: object) -> Tensor:
        """Data to base, (N, D) to (N, D)."""
        return self.stack.inverse(self._points(x, "x"))[0][0]

    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        """`n` draws, (n, D), the same for the same seed."""
        from nfexp.streams import stream

        n = _integer(n, "n")
        seed = _integer(seed, "seed")
        if n < 0:
            raise ValueError(f"n: expected an integer >= 0; got {n}")
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
    from safetensors import SafetensorError
    from safetensors.torch import load

    from nfexp.flows.stack import from_state

    folder = Path(run_dir)
    for name in ("result.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder}: expected a finished run; got a folder without {name}")
    try:
        record = parse_json(read_plain(folder / "result.json", LARGEST_RECORD)[0])
        state = load(read_plain(folder / "model.safetensors", LARGEST_MODEL)[0])
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder}: expected a record and weights that can be read; got {error}") from None
    got = record.get("schema_version") if isinstance(record, dict) else record
    if got != SCHEMA_VERSION or not isinstance(record.get("config"), dict):
        raise ValueError(f"{folder}: expected a record of schema_version {SCHEMA_VERSION}; got {got!r:.60}")
    if odd := [f"{name} of {t.dtype}" for name, t in state.items() if not t.is_floating_point()]:
        raise ValueError(f"{folder}: expected floating-point weights; got {odd[0]:.60}")
    spec = unflatten(record["config"])
    stack = from_state(spec.flow, math.prod(event_shape(spec)), state)
    metrics = record.get("metrics")
    return TrainedFlow(spec, stack, folder=folder, metrics=metrics if isinstance(metrics, dict) else {})
