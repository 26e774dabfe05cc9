"""The kernel as machine code: made once on a machine, kept in the user's cache folder, at work for a stack."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from filelock import FileLock
from numba import config
from torch import Tensor

from nfexp.flows.kernels.lanes import OPTIONS
from nfexp.flows.kernels.member import passes
from nfexp.flows.kernels.moments import move
from nfexp.flows.kernels.plan import make_plan, make_tile, make_weights
from nfexp.flows.stack import FlowStack, Law

log = logging.getLogger(__name__)

TILE = 64  # points that go through all couplings and back together: what they leave on the way fits into a L2 cache
UNUSED_DAYS = 30  # after which machine code of another source is removed
MATRIX = numba.float32[:, ::1]
NUMBERS = numba.float64[::1]
MOVED = (*[MATRIX] * 4, numba.int64[::1], *[NUMBERS] * 2, *[numba.float64] * 5, numba.int64)  # arguments of `move`

Function = Callable[..., None]
Typed = tuple[Function, tuple[Any, ...]]  # a function and the types of its arguments


def _source_hash() -> str:
    """A hash of the kernels' source: other source has other machine code."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


SOURCE = _source_hash()  # as it was imported: it may change while this process lives


def _user() -> int:
    """Who runs this process; 0, as the owner of every file, where the system does not say."""
    getuid = getattr(os, "getuid", None)
    return int(getuid()) if getuid is not None else 0


def _places() -> Iterator[Path]:
    """Where machine code may be kept, the best first."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(os.environ["NUMBA_CACHE_DIR"], "nfexp")
    if os.environ.get("XDG_CACHE_HOME"):
        yield Path(os.environ["XDG_CACHE_HOME"], "nfexp")
    home = os.path.expanduser("~")
    if os.path.isabs(home):
        yield Path(home, ".cache", "nfexp")
    yield Path(tempfile.gettempdir(), f"nfexp-{_user()}")


def cache_folder() -> Path | None:
    """A folder of the user's own that can be written, for the machine code of this source; None if there is none."""
    for place in _places():
        folder = place / f"kernels-{SOURCE}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = folder.stat().st_uid
        except OSError:
            continue
        # What lies there is executed, so nobody else may have put it there
        if owner == _user() and place.stat().st_uid == owner and os.access(folder, os.W_OK | os.X_OK):
            return folder
    return None


@contextmanager
def _numba_caches_in(folder: Path) -> Iterator[None]:
    before = config.CACHE_DIR  # type: ignore[attr-defined]
    config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        config.CACHE_DIR = before  # type: ignore[attr-defined]


def _compiled(functions: Sequence[Typed], folder: Path | None) -> list[Any]:
    """The machine code of functions: from a folder, compiled into it where it is not there."""
    if folder is None:
        return [numba.njit(of_types, **OPTIONS)(function) for function, of_types in functions]
    compiled = []
    with _numba_caches_in(folder):
        for function, of_types in functions:
            compiled.append(numba.njit(of_types, cache=True, **OPTIONS)(function))
    return compiled


@cache
def machine_code(functions: tuple[Typed, ...]) -> list[Function]:
    """The machine code of functions, each for arguments of one type.

    One process compiles; others that want the same wait, and read what it left.
    """
    folder = cache_folder()
    with FileLock(folder / ".lock") if folder is not None else nullcontext():
        begun = time.perf_counter()
        if folder is None or not any(folder.rglob("*.nbi")):  # numba's index files: none, nothing is kept
            log.info("compiling the fused kernel: some 10 to 20 s, at its first use only")
        try:
            found = _compiled(functions, folder)
        except Exception as error:  # whatever unpickling a broken file raises
            if folder is None:
                raise
            log.warning(f"{folder}: expected compiled kernels; got {type(error).__name__}: {error}; made anew")
            _empty(folder)
            found = _compiled(functions, folder)
        seconds = time.perf_counter() - begun
    if folder is None:
        log.info(f"compiled the fused kernel in {seconds:.1f} s; there is no folder to keep it in")
        return found
    with suppress(OSError):
        os.utime(folder)  # used today
    if any(function.stats.cache_misses for function in found):
        prune(folder)
        log.info(f"compiled the fused kernel in {seconds:.1f} s, once for this machine; kept in {folder}")
    return found


def prune(folder: Path) -> None:
    """Remove the machine code of other sources beside `folder` that nobody has used for a month.

    A version that is still in use and loses its own compiles it once more.
    """
    oldest = time.time() - 86_400 * UNUSED_DAYS
    for other in folder.parent.glob("kernels-*"):
        with suppress(OSError):
            status = other.lstat()
            is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == _user()
            if is_ours and other != folder and status.st_mtime < oldest:
                shutil.rmtree(other, ignore_errors=True)


def _empty(folder: Path) -> None:
    """Remove all but the lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()


class Fused:
    """The fused kernel at work for stacks of one architecture: log-density, and loss with its gradient.

    One thread at a time: the memory that it works in is its own.
    """

    def __init__(self, flow: FlowStack, *, tile: int = TILE) -> None:
        self.plan = make_plan(flow)
        self.weights = make_weights(self.plan)
        self.back = make_weights(self.plan)
        self.grads = make_weights(self.plan)
        self.kept = make_tile(self.plan, tile, kept=self.plan.n_couplings)
        self.passing = make_tile(self.plan, tile, kept=1)
        self.passes, self.moved = machine_code(((passes, self._types()), (move, MOVED)))

    def _types(self) -> tuple[Any, ...]:
        """Of the arguments of `passes`: the same for every architecture."""
        own = (self.plan, self.weights, self.back, self.grads)
        rows = (MATRIX, MATRIX)
        results = (MATRIX, numba.float32[::1], MATRIX)
        return (
            *map(numba.typeof, own),
            *rows,
            numba.typeof(self.kept),
            numba.float32[:, :, ::1],
            *results,
            numba.boolean,
        )

    def _run(self, *arguments: Any) -> None:
        self.passes(self.plan, self.weights, self.back, self.grads, *arguments)

    def log_prob(self, theta: Tensor, fixed: Tensor, x: Tensor) -> Tensor:
        """log q(x) in nats, (E, N, D) to (E, N), of the members with these rows."""
        log_q = torch.empty(x.shape[:2])
        nothing = np.empty((0, 0), dtype=np.float32)
        self._run(
            _array(theta), _array(fixed), self.passing, _array(x), log_q.numpy(), nothing.reshape(-1), nothing, False
        )
        return log_q

    def gradient(self, theta: Tensor, fixed: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Each member's mean −log q of its points x (E, N, D), nats, and the gradient: (E,) and (E, P)."""
        n_members, n_points, _ = x.shape
        log_q = np.empty((n_members, n_points), dtype=np.float32)
        loss = torch.empty(n_members)
        grad = torch.empty_like(theta)
        self._run(_array(theta), _array(fixed), self.kept, _array(x), log_q, loss.numpy(), grad.numpy(), True)
        return loss, grad

    def move(
        self,
        theta: Tensor,
        first: Tensor,
        second: Tensor,
        grad: Tensor,
        *,
        members: Sequence[int],
        lr: Sequence[float],
        decay: Sequence[float],
        law: Law,
        step: int,
    ) -> None:
        """One step of an optimiser, in place, on the rows of `members`: :func:`nfexp.flows.kernels.moments.move`."""
        rows = theta.numpy(), first.numpy(), second.numpy(), grad.numpy()
        rates = np.array(lr, dtype=np.float64), np.array(decay, dtype=np.float64)
        numbers = law.of_grad, law.of_first, law.beta1, law.beta2, law.epsilon
        self.moved(*rows, np.array(members, dtype=np.int64), *rates, *numbers, step)


def _array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()
