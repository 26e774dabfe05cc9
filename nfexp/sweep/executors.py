"""What executors share: their names, the call that trains a stack, retries when a process dies.

An executor has :func:`nfexp.sweep.worker.work` called somewhere: in processes of this machine
(`pool`), by SLURM (`slurm`), or by loky, Dask or Ray (`joblib`). What came of a stack is read from
the directories of its runs, never from what a process returns.
"""

from __future__ import annotations

import logging
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from nfexp.record import outcome
from nfexp.spec import SpecError
from nfexp.surroundings import settle_streams
from nfexp.sweep.worker import Job, work

EXECUTORS = ("local", "slurm", "joblib")
BACKENDS = ("loky", "dask", "ray")  # of joblib
MODULES = {"slurm": "submitit", "joblib": "joblib", "dask": "distributed", "ray": "ray"}  # by extra
TRIES = 2  # deaths of a process before a run that was alone in it is given up


# --- Names -----------------------------------------------------------------------------


def check(executor: str, backend: str, wait: bool) -> None:
    """Raise for an executor or a backend that does not exist or cannot work here."""
    if executor not in EXECUTORS:
        raise SpecError("hydra.launcher.executor", f"one of {', '.join(EXECUTORS)}", executor)
    if backend not in BACKENDS:
        raise SpecError("hydra.launcher.backend", f"one of {', '.join(BACKENDS)}", backend)
    if not isinstance(wait, bool) or (executor != "slurm" and not wait):
        raise SpecError("hydra.launcher.wait", "true, or false with executor=slurm", wait)
    _check_installed("hydra.launcher.executor", executor)
    if executor == "joblib":
        _check_installed("hydra.launcher.backend", backend)
    if executor == "slurm" and not shutil.which("sbatch"):
        expected = "a machine that has sbatch, or another executor"
        raise SpecError("hydra.launcher.executor", expected, executor)


def _check_installed(key: str, extra: str) -> None:
    module = MODULES.get(extra)  # none for "local", and none for "loky", which joblib brings
    if module is not None and not find_spec(module):
        raise SpecError(key, f"one that is installed (pip install 'nfexp[{extra}]')", extra)


# --- In the process that trains --------------------------------------------------------


def log_to_output() -> None:
    """Have this process log to its standard output."""
    settle_streams()
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)


def work_at(place: int, threads: int, jobs: Sequence[Job], *, fail_fast: bool) -> None:
    """Call `work` with this many threads, on the GPU of this number where there are any."""
    import torch

    torch.set_num_threads(threads)
    wants_gpu = any(job.spec.device != "cpu" for job in jobs)
    if wants_gpu and torch.cuda.is_available():
        torch.cuda.set_device(place % torch.cuda.device_count())
    work(jobs, fail_fast=fail_fast)


def portable(error: Exception) -> Exception:
    """An exception that survives pickling, with the traceback as a note.

    One of any other class may not: its own ``__init__`` may take more than the message.
    """
    if isinstance(error, OSError):
        safe: Exception = error
    elif isinstance(error, ValueError):
        safe = ValueError(str(error))
    else:
        safe = RuntimeError(f"{type(error).__name__}: {error}")
    safe.add_note(traceback.format_exc())
    return safe


# --- In the process that hands out stacks ----------------------------------------------


def unfinished(jobs: Sequence[Job]) -> list[int]:
    """Positions of the jobs whose directories hold no record."""
    return [k for k, job in enumerate(jobs) if outcome(job.folder) is None]


@dataclass(frozen=True)
class Task:
    """Positions of the jobs that one process is given.

    With a reason they are not trained: they are recorded as failed for it.
    """

    positions: list[int]
    lost: str | None = None


class Retries:
    """When a process dies, its unfinished jobs are tried again in halves, at last alone."""

    def __init__(self) -> None:
        self.deaths: Counter[int] = Counter()  # how often each job was in a process that died

    def after_death(self, task: Sequence[int], left: list[int], reason: str) -> list[Task]:
        """The tasks that replace one whose process died with the jobs `left` unfinished.

        A job that was alone is tried once more, for it may have been somebody else who killed the
        process. Then it is given up, for the reason given.
        """
        self.deaths.update(left)
        was_alone = len(task) == len(left) == 1
        if was_alone and self.deaths[left[0]] >= TRIES:
            return [Task(left, lost=reason)]
        half = (len(left) + 1) // 2
        halves = [left[:half], left[half:]]
        return [Task(positions) for positions in halves if positions]
