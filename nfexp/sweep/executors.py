"""Other ways than the local pool to have stacks worked off: SLURM through submitit; loky, Dask and Ray through joblib.

Each calls :func:`nfexp.sweep.worker.work` somewhere and looks into the directories of the runs for what came of it.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from nfexp.record import outcome
from nfexp.spec import SpecError
from nfexp.surroundings import settle_streams
from nfexp.sweep.worker import Job, work

EXECUTORS = ("local", "slurm", "joblib")
BACKENDS = ("loky", "dask", "ray")
NEEDS = {"slurm": "submitit", "joblib": "joblib", "dask": "distributed", "ray": "ray"}  # extra → the module it brings


def check(executor: str, backend: str, wait: bool) -> None:
    """Raise for an engine that does not exist or cannot work here."""
    key = "hydra.launcher"
    for name, value, known in (("executor", executor, EXECUTORS), ("backend", backend, BACKENDS)):
        if value not in known:
            raise SpecError(f"{key}.{name}", f"one of {', '.join(known)}", value)
    if not isinstance(wait, bool) or (executor != "slurm" and not wait):
        raise SpecError(f"{key}.wait", "true, or false with executor=slurm", wait)
    for extra in (executor, backend if executor == "joblib" else "loky"):
        if extra in NEEDS and not find_spec(NEEDS[extra]):
            name = "executor" if extra == executor else "backend"
            raise SpecError(f"{key}.{name}", f"one that is installed (pip install 'nfexp[{extra}]')", extra)
    if executor == "slurm" and not shutil.which("sbatch"):
        raise SpecError(f"{key}.executor", "a machine that has sbatch, or another executor", executor)


def unfinished(jobs: Sequence[Job]) -> list[int]:
    """Positions of the jobs whose directories hold no record."""
    return [k for k, job in enumerate(jobs) if outcome(job.folder) is None]


def lose(jobs: Sequence[Job], reason: str) -> None:
    """Record jobs as failed."""
    work(jobs, lost=reason)


def log_here() -> None:
    settle_streams()
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
