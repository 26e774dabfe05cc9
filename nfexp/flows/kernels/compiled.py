"""The kernel as machine code: made once on a machine, kept in the user's cache folder, used for a stack."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from filelock import FileLock, Timeout
from numba import config
from torch import Tensor

from nfexp.flows.kernel_protocol import Course, Made, Rows
from nfexp.flows.kernels.crew import Crew, Job, Room
from nfexp.flows.kernels.lanes import OPTIONS
from nfexp.flows.kernels.member import (
    DENSITY,
    GRADIENT,
    STEPS,
    TO_BASE,
    TO_DATA,
    Results,
    Steps,
    work,
)
from nfexp.flows.kernels.plan import make_plan
from nfexp.flows.kernels.threads import TILE
from nfexp.flows.stack import FlowStack
from nfexp.surroundings import without_garbage_collection

log = logging.getLogger(__name__)

UNUSED_DAYS = 30  # after which machine code of another source is removed
PATIENCE = 1.0  # seconds of waiting for another process before it is told

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
    """A folder of the user's own that can be written, for the machine code of this source.

    None if there is none.
    """
    for place in _places():
        folder = place / f"kernels-{SOURCE}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = folder.stat().st_uid
        except OSError:
            continue
        # What lies there is executed, so nobody else may have put it there
        if (
            owner == _user()
            and place.stat().st_uid == owner
            and os.access(folder, os.W_OK | os.X_OK)
        ):
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


@contextmanager
def _only_one_in(folder: Path | None) -> Iterator[None]:
    """One process at a time in the body; a wait for another one is told."""
    if folder is None:
        yield
        return
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        log.info("another process is compiling the fused kernel; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _are_kept(functions: Sequence[Typed], folder: Path) -> bool:
    """Whether each function has an index of numba's in a folder: without one it is compiled."""
    return all(any(folder.rglob(f"*{function.__name__}-*.nbi")) for function, _ in functions)


@cache
def machine_code(functions: tuple[Typed, ...]) -> list[Function]:
    """The machine code of functions, each for arguments of one type.

    One process compiles; others that want the same wait, and read what it left.
    """
    folder = cache_folder()
    with _only_one_in(folder), without_garbage_collection():
        begun = time.perf_counter()
        if folder is None or not _are_kept(functions, folder):
            log.info("compiling the fused kernel: some 10 to 30 s, at its first use only")
        try:
            found = _compiled(functions, folder)
        except Exception as error:  # whatever unpickling a broken file raises
            if folder is None:
                raise
            log.warning(
                f"{folder}: expected compiled kernels; got {type(error).__name__}: {error}; made anew"
            )
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
        log.info(
            f"compiled the fused kernel in {seconds:.1f} s, once for this machine; kept in {folder}"
        )
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
    """The fused kernel for stacks of one architecture, by as many threads as torch has.

    One caller at a time: the memory that it works in is its own.
    """

    def __init__(self, flow: FlowStack, *, tile: int = TILE) -> None:
        room = Room(make_plan(flow), tile)
        rows = _numbers(0, 0)
        points = _numbers(0, 0, 0)
        inputs = rows, rows, points, points
        examples = *room.arguments(room.learning), *inputs, _steps(), _results(0, 0, 0), DENSITY
        # these types are the same for every architecture: it is compiled once for all
        types = tuple(numba.typeof(example) for example in examples)
        (code,) = machine_code(((work, types),))
        self.crew = Crew(code, room)
        self.share = room.share

    def _run(
        self,
        theta: Tensor,
        fixed: Tensor,
        x: Tensor,
        context: Tensor | None,
        steps: Steps,
        results: Results,
        task: int,
    ) -> None:
        given = _numbers(*x.shape[:2], 0) if context is None else _array(context)
        inputs = _array(theta), _array(fixed), _array(x), given
        self.crew.do(Job(inputs, results, task), steps)

    def _evaluate(
        self, theta: Tensor, fixed: Tensor, x: Tensor, context: Tensor | None, task: int
    ) -> tuple[Tensor, Tensor]:
        """Each member's points at the other end (E, N, D), empty for densities, and log-det or log q (E, N)."""
        n_members, n_points, dim = x.shape
        results = _results(n_members, n_points, 0 if task == DENSITY else dim)
        steps = _steps(members=range(n_members), order=_all(n_points))
        self._run(theta, fixed, x, context, steps, results, task)
        return torch.from_numpy(results.points), torch.from_numpy(results.log_det)

    def log_prob(
        self, theta: Tensor, fixed: Tensor, x: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """log q(x) in nats, (E, N, D) to (E, N), of the members with these rows.

        With a context (E, N, C), log q(x | c).
        """
        return self._evaluate(theta, fixed, x, context, DENSITY)[1]

    def inverse(
        self, theta: Tensor, fixed: Tensor, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Data to base: z and log|det ∂z/∂x|, (E, N, D) to (E, N, D) and (E, N)."""
        return self._evaluate(theta, fixed, x, context, TO_BASE)

    def forward(
        self, theta: Tensor, fixed: Tensor, z: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Base to data: x and log|det ∂x/∂z|, (E, N, D) to (E, N, D) and (E, N)."""
        return self._evaluate(theta, fixed, z, context, TO_DATA)

    def gradient(
        self, theta: Tensor, fixed: Tensor, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Each member's mean −log q of its points x (E, N, D), nats, (E,), and its gradient, (E, P)."""
        n_members, n_points, _ = x.shape
        results = _results(n_members, n_points, 0)
        share = self.share(n_points)
        grad = torch.empty_like(theta)
        for e in range(n_members):
            rows = _numbers(math.ceil(n_points / share), theta.shape[1])
            steps = _steps(members=[e], order=_all(n_points), share=share, grad=rows)
            self._run(theta, fixed, x, context, steps, results, GRADIENT)
            grad[e] = torch.from_numpy(rows[0])
        return torch.from_numpy(results.loss), grad

    def steps(self, rows: Rows, x: Tensor, context: Tensor, order: Tensor, course: Course) -> Made:
        """Steps of training, in place on `rows`: see :class:`nfexp.flows.stack.Kernel`."""
        n_members, n_parameters = rows.theta.shape
        n_points = order.shape[2]
        share = self.share(n_points)
        steps = _steps(
            members=course.members,
            order=order.contiguous().numpy(),
            share=share,
            grad=_numbers(math.ceil(n_points / share), n_parameters),
            moments=(rows.first.numpy(), rows.second.numpy()),
            course=course,
        )
        results = _results(n_members, n_points, 0)
        self._run(rows.theta, rows.fixed, x, context, steps, results, STEPS)
        return Made(norm=torch.from_numpy(results.norm), made=results.made.tolist())


def _array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()


def _numbers(*shape: int) -> np.ndarray:
    return np.empty(shape, dtype=np.float32)


def _all(n_points: int) -> np.ndarray:
    """One step on all points in their order, (1, 1, N)."""
    return np.arange(n_points)[None, None]


def _results(n_members: int, n_points: int, dim: int) -> Results:
    """Room for what is found of a stack's points; `dim` is 0 where points are not asked for."""
    return Results(
        points=_numbers(n_members, n_points, dim),
        log_det=_numbers(n_members, n_points),
        loss=_numbers(n_members),
        norm=np.full(n_members, np.nan, dtype=np.float32),
        made=np.zeros(n_members, dtype=np.int64),
    )


NO_COURSE = Course(members=(), clip=(), lr=(), decay=(), factors=(), laws=(), begun=0)
NOTHING = _numbers(0, 0)


def _steps(
    *,
    members: Sequence[int] = (),
    order: np.ndarray | None = None,
    share: int | None = None,
    grad: np.ndarray = NOTHING,
    moments: tuple[np.ndarray, np.ndarray] = (NOTHING, NOTHING),
    course: Course = NO_COURSE,
) -> Steps:
    """What the kernel is told of steps; without a course it makes none."""
    laws = course.laws
    order = _all(0) if order is None else order
    n_steps, _, n_points = order.shape
    return Steps(
        order=order,
        first=moments[0],
        second=moments[1],
        grad=grad,
        members=np.array(members, dtype=np.int64),
        clip=np.array(course.clip, dtype=np.float64),
        lr=np.array(course.lr, dtype=np.float64),
        decay=np.array(course.decay, dtype=np.float64),
        factor=np.array(course.factors, dtype=np.float64),
        of_grad=np.array([law.of_grad for law in laws], dtype=np.float64),
        of_first=np.array([law.of_first for law in laws], dtype=np.float64),
        beta1=laws[0].beta1 if laws else 0.0,
        beta2=laws[0].beta2 if laws else 0.0,
        epsilon=laws[0].epsilon if laws else 0.0,
        begun=course.begun,
        share=max(1, n_points) if share is None else share,
        from_step=0,
        to_step=n_steps,
        from_point=0,
        to_point=n_points,
        ends=True,
    )
