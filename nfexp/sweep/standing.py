"""Where stacks in work stand: a small file of each process that trains, in the folder of the sweep.

Whoever trains writes it, at most once a second, wherever that is: in a worker of this machine, on a
node of SLURM, on a cluster of Dask's or Ray's. Whoever leads the sweep reads it. Nothing depends on
it: what cannot be written is left out, and a process that is killed leaves a file that is ignored.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfexp.files import parse_json, read_plain, replacing
from nfexp.spec import Spec, counted, run_id
from nfexp.sweep.stopping import is_running, this_process

if TYPE_CHECKING:
    from nfexp.train import State, Training

FOLDER = ".progress"  # below the folder of a sweep; removed when its training ends
WRITE_SECONDS = 1.0  # at least, between two writes
SILENT_SECONDS = 120.0  # after which a process of another host counts as gone
LARGEST = 1_000_000  # bytes of such a file


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A stack in work: which runs, how far, how well, how quick.

    `runs` are identities (:func:`nfexp.spec.run_id`). The process that wrote this began at step
    `begun_at`; a checkpoint may have carried it there. `best_nll` is the lowest validation NLL of
    any member so far, nats; None before the first evaluation. `rate` is in member-steps per second.
    """

    by: str  # the process, as `stopping.this_process` names it
    runs: Sequence[str]
    architecture: str
    begun_at: int
    step: int
    steps: int
    alive: int
    best_nll: float | None
    rate: float

    @property
    def is_scoring(self) -> bool:
        """Whether training is over, so that the members are being scored."""
        return self.step >= self.steps or self.alive == 0

    @property
    def seconds_left(self) -> float:
        """Of training, at the rate so far; infinite where that is not known yet."""
        if self.is_scoring:
            return 0.0
        return len(self.runs) * (self.steps - self.step) / self.rate if self.rate > 0 else math.inf


def architecture(spec: Spec) -> str:
    """What the members of a stack share, in a few words.

    >>> architecture(example)  # doctest: +SKIP
    '6 flows 2x64 relu'
    """
    flow = spec.flow
    words = [
        f"{counted(flow.n_flows, 'flow')} {flow.hidden_depth}x{flow.hidden_width} {flow.activation}"
    ]
    if flow.coupling != "affine":
        words.append(flow.coupling)
    if flow.norm != "none":
        words.append(flow.norm)
    if flow.base != "normal":
        words.append(flow.base)
    return " ".join(words)


# --- In the process that trains --------------------------------------------------------


class Clock:
    """Makes a :class:`Standing` of a training, with the pace since it was first seen."""

    def __init__(self) -> None:
        self._runs: list[str] = []
        self._begun_at = 0
        self._begun = 0.0

    def standing(self, training: Training, state: State) -> Standing:
        runs = [run_id(spec) for spec in training.specs]
        now = time.perf_counter()
        if runs != self._runs:
            self._runs = runs
            self._begun_at = state.step
            self._begun = now
        elapsed = now - self._begun
        steps = state.step - self._begun_at
        seen = state.curves[:, :, 1]  # the validation NLL at each evaluation, NaN if not reached
        seen = seen[seen == seen]
        return Standing(
            by=this_process(),
            runs=runs,
            architecture=architecture(training.lead),
            begun_at=self._begun_at,
            step=state.step,
            steps=training.lead.train.steps,
            alive=int(state.alive.sum()),
            best_nll=float(seen.min()) if len(seen) else None,
            rate=len(runs) * steps / elapsed if elapsed > 0 else 0.0,
        )


class Teller:
    """Writes where the stack of this process stands, once it has worked for a second."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        name = f"{socket.gethostname()}-{os.getpid()}.json"
        self.path = Path(root) / FOLDER / name
        self._clock = Clock()
        self._written = time.perf_counter()

    def observe(self, training: Training, state: State) -> None:
        """What :func:`nfexp.run.run_stack` calls about twice a second."""
        now = time.perf_counter()
        is_last = state.step >= training.lead.train.steps and self.path.exists()
        if now - self._written < WRITE_SECONDS and not is_last:
            if state.step == 0:
                self._clock.standing(training, state)  # the pace counts from here
            return
        self._written = now
        standing = self._clock.standing(training, state)
        with suppress(OSError):
            with suppress(FileExistsError):
                self.path.parent.mkdir()  # but not the folder of the sweep, if that is gone
            with replacing(self.path, sync=False) as path:
                path.write_text(json.dumps(asdict(standing)), encoding="utf-8")

    def close(self) -> None:
        """The stack is done: nothing is left to tell of it."""
        with suppress(OSError):
            self.path.unlink()


# --- In the process that leads ---------------------------------------------------------


def _read(path: Path) -> Standing | None:
    """What a file says; None where it is gone, damaged, or of another version."""
    try:
        raw, _ = read_plain(path, LARGEST)
        values = parse_json(raw)
        if not isinstance(values, dict) or set(values) != {f.name for f in fields(Standing)}:
            return None
        return _checked(values)
    except (OSError, ValueError, TypeError):
        return None


def _checked(values: Mapping[str, Any]) -> Standing:
    """A standing whose numbers are numbers; raises ValueError or TypeError otherwise."""
    best = values["best_nll"]
    return Standing(
        by=str(values["by"]),
        runs=[str(run) for run in values["runs"]],
        architecture=str(values["architecture"])[:200],
        begun_at=int(values["begun_at"]),
        step=int(values["step"]),
        steps=int(values["steps"]),
        alive=int(values["alive"]),
        best_nll=None if best is None else float(best),
        rate=float(values["rate"]),
    )


class Watch:
    """Reads where the stacks of a sweep stand; a process that is gone is not believed."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.folder = Path(root) / FOLDER
        self._seen: dict[str, tuple[Standing, float]] = {}  # by file: what it said, since when

    def look(self) -> list[Standing]:
        """The stacks in work, in the order of their files."""
        now = time.monotonic()
        try:
            names = sorted(os.listdir(self.folder))
        except OSError:
            names = []
        standings = []
        for name in names:
            standing = None if name.startswith(".") else _read(self.folder / name)
            if standing is None:
                continue
            before, since = self._seen.get(name, (None, now))
            if standing != before:
                since = now
            self._seen[name] = (standing, since)
            if _lives(standing, now - since):
                standings.append(standing)
        return standings

    def close(self) -> None:
        """Remove the files that are left, for nobody trains any more."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _lives(standing: Standing, silent: float) -> bool:
    """Whether the process of a standing that has not changed for so many seconds still works."""
    _, _, rest = standing.by.partition(" ")
    number, _, host = rest.partition(" on ")
    if host == socket.gethostname() and number.isdecimal():
        return is_running(int(number))
    return silent < SILENT_SECONDS
