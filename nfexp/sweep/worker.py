"""One stack in this process: train it, write each run's directory, survive what goes wrong.

`planning` says which runs make a stack, and the executors (`pool`, `slurm`, `joblib`) call
:func:`work` in other processes. Only a process that trains imports torch; the one that hands out
work does not.
"""

from __future__ import annotations

import errno
import gc
import logging
import logging.config
import os
import re
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nfexp.files import replacing
from nfexp.record import code_version, outcome, write_run
from nfexp.spec import Spec, run_id
from nfexp.surroundings import settle_logs, without_garbage_collection
from nfexp.sweep.standing import Teller
from nfexp.sweep.stopping import is_asked_to_stop
from nfexp.trackers import Tracking

if TYPE_CHECKING:
    from nfexp.run import Observer, Result
    from nfexp.train import State, Training

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run and its directory: what to train, where it goes, and what else is written there."""

    spec: Spec
    folder: str
    files: Mapping[str, str] = field(default_factory=dict)  # path below the folder → text
    logging: Mapping[str, Any] | None = None  # as logging.config.dictConfig takes it
    root: str | None = None  # folder of the sweep; once it is gone, nothing is trained or written
    label: str = ""  # the run in words, if not its target and seed alone
    tracker: str | None = None  # who is told of its training: see nfexp.trackers


class Trained(NamedTuple):
    """The result of a run by its position in the stack; the traceback if training it raised."""

    position: int
    result: Result
    trouble: str | None


# --- The folders of runs ---------------------------------------------------------------


def check_there(root: str | None) -> None:
    """Raise FileNotFoundError if the folder of a sweep is gone.

    A run does not make it again: the plan of the sweep would be missing from it.
    """
    if root is not None and not os.path.isdir(root):
        raise FileNotFoundError(errno.ENOENT, "a folder that was removed", root)


# The names of temporary files of nfexp.files.replacing: .NAME.SUFFIX and eight random characters
SUFFIXES = "csv|npz|safetensors|json|yaml|html|md|tex|png|pdf"
TEMPORARY = re.compile(rf"\..*(\.({SUFFIXES})|holder|cache)\.\w{{8}}")


def clear(folder: Path) -> None:
    """Remove what a killed process may have left: temporary files, a finished run's checkpoint.

    >>> bool(TEMPORARY.fullmatch(".result.json.a1_b2c3d")), bool(TEMPORARY.fullmatch(".runs.cache"))
    (True, False)
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        names = os.listdir(folder)
        is_finished = "result.json" in names
        for name in names:
            is_old_checkpoint = is_finished and name == "checkpoint.safetensors"
            if is_old_checkpoint or TEMPORARY.fullmatch(name):
                (folder / name).unlink(missing_ok=True)


def _clear_before(job: Job) -> None:
    """Clear the folder of a job, and those below it that its files go to."""
    folders = {Path(job.folder)}
    for name in job.files:
        folders.add(Path(job.folder, name).parent)
    for folder in folders:
        clear(folder)


# --- Training --------------------------------------------------------------------------


def out_of_memory(error: BaseException) -> bool:
    """Whether this error says that memory ran out, so that a smaller stack may succeed.

    >>> out_of_memory(MemoryError())
    True
    >>> out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    True
    """
    import torch

    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    # On the CPU torch raises a plain RuntimeError, which only its text tells from others.
    if not isinstance(error, RuntimeError):
        return False
    text = str(error)
    return "can't allocate memory" in text or "Allocator" in text


def train(
    specs: Sequence[Spec],
    folders: Sequence[str | os.PathLike[str]],
    *,
    root: str | None = None,
    observer: Observer | None = None,
) -> Iterator[Trained]:
    """Train a stack and yield a :class:`Trained` for each run.

    A stack that runs out of memory is halved. One that raises anything else is trained again one
    run at a time, so that only the culprit fails. A run that raises alone after it was carried on
    from a checkpoint is begun again without it. Checkpoints lie in `folders`, one per run, as long
    as `root` is there. `observer` is what :func:`nfexp.run.run_stack` calls twice a second.

    Raises
    ------
    nfexp.run.Interrupted
        If this process is told to stop.
    OSError
        If a checkpoint cannot be written.
    """
    from nfexp import run

    def stop() -> bool:
        check_there(root)
        return is_asked_to_stop()

    run.reuse_freed_memory()
    pending = deque([list(range(len(specs)))])
    while pending:
        part = pending.popleft()
        part_specs = [specs[i] for i in part]
        part_folders = [Path(folders[i]) for i in part]
        checkpoints = _checkpoints_in(part_folders)  # before training writes its own
        trouble = None
        try:
            results = run.run_stack(
                part_specs, folders=part_folders, code=code_version(), stop=stop, observer=observer
            )
        except (run.Interrupted, OSError):  # told to stop, or a checkpoint cannot be written
            raise
        except Exception as error:
            again = _what_is_tried_again(part, error, checkpoints)
            if again:
                pending.extendleft(reversed(again))  # extendleft turns the order round
                continue
            trouble = traceback.format_exc()
            results = [run.Result(spec=part_specs[0], status="failed", reason=_in_words(error))]
        for i, result in zip(part, results, strict=True):
            yield Trained(i, result, trouble)


def _checkpoints_in(folders: Sequence[Path]) -> list[Path]:
    """The checkpoints that are there."""
    from nfexp.checkpoint import CHECKPOINT

    paths = [folder / CHECKPOINT for folder in folders]
    return [path for path in paths if path.exists()]


def _what_is_tried_again(
    part: list[int], error: Exception, checkpoints: Sequence[Path]
) -> list[list[int]]:
    """The stacks to train after this one raised.

    None where a run raised alone, from its beginning.
    """
    reason = _in_words(error)
    if len(part) > 1:
        size = (len(part) + 1) // 2 if out_of_memory(error) else 1
        log.warning(f"a stack of {len(part)} raised {reason}; it goes on in stacks of {size}")
        return [part[k : k + size] for k in range(0, len(part), size)]
    if checkpoints:
        log.warning(f"a run carried on from {checkpoints[0]} raised {reason}; it is begun again")
        checkpoints[0].unlink()
        return [part]
    return []


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


@cache
def load_torch() -> None:
    """Import what trains; what is there then stays, and Python looks for no garbage in it, now or later."""
    with without_garbage_collection():
        import nfexp.run  # noqa: F401

        gc.freeze()


def check_all(specs: Sequence[Spec]) -> None:
    """Raise for the first run that could not be set up, before anything is trained or written."""
    load_torch()
    from nfexp.run import check

    distinct: dict[tuple[object, ...], Spec] = {}
    for spec in specs:  # of many runs few differ in what the check looks at
        if spec.data.kind in ("density", "own"):
            distinct[spec.data.law, spec.device] = spec
        else:
            distinct[spec.data, spec.seed, spec.device] = spec  # each seed has a split of its own
    for spec in distinct.values():
        check(spec)


# --- Records ---------------------------------------------------------------------------


@contextmanager
def _logging_as(config: Mapping[str, Any] | None) -> Iterator[None]:
    """Log as `config` says while the body runs, then as before."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    level = root.level
    if config is not None:
        logging.config.dictConfig(dict(config))
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)


def keep(folder: Path, result: Result, trouble: str | None = None, *, label: str = "") -> None:
    """Write into the log of a run how it ended, then its record."""
    settle_logs()
    spec = result.spec
    name = label or f"{spec.data.name} seed {spec.seed}"
    if result.status == "completed":
        log.info(f"{name}: {_reached(result.metrics)} ({folder})")
        _warn_of_lost_members(name, result, folder)
    else:
        level = logging.WARNING if result.status == "diverged" else logging.ERROR
        message = f"{name}: {result.status}: {result.reason} ({folder})"
        if trouble:
            message += f"\n{trouble}"
        log.log(level, message)
    write_run(folder, result)


def _reached(metrics: Mapping[str, Any]) -> str:
    """The scores of a completed run, as its log has them."""
    text = f"test NLL {metrics['test_nll']:.4f}"
    if metrics["true_nll"] is None:  # a table, whose density nobody knows
        text += f" ± {metrics['test_nll_se']:.4f} nats"
    else:
        text += f", truth {metrics['true_nll']:.4f}"
        text += f", KL {metrics['kl']:.4f} ± {metrics['kl_se']:.4f} nats"
    if metrics["test_bpd"] is not None:
        text += f", {metrics['test_bpd']:.4f} bits/dim"
    return text


def _warn_of_lost_members(name: str, result: Result, folder: Path) -> None:
    lost = []
    for k, member in enumerate(result.members):
        if member["diverged_at"] is not None:
            lost.append(str(k))
    if lost:
        what = f"of {len(result.members)} members these diverged and are left out"
        log.warning(f"{name}: {what}: {', '.join(lost)} ({folder})")


def _write(job: Job, result: Result, trouble: str | None) -> None:
    """Write the directory of a run: the files of the job, its log, its record."""
    folder = Path(job.folder)
    check_there(job.root)
    if outcome(folder) is not None:  # another process has finished it meanwhile
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in job.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with replacing(folder / name, sync=False) as path:
            path.write_text(text, encoding="utf-8")
    with _logging_as(job.logging):
        keep(folder, result, trouble, label=job.label)


def work(jobs: Sequence[Job], *, fail_fast: bool = False) -> None:
    """Train the jobs as one stack and write their directories; finished ones are left alone.

    With `fail_fast` the first run that fails ends the work.

    Raises
    ------
    OSError
        If a directory cannot be written.
    nfexp.run.Interrupted
        If this process is told to stop.
    """
    todo = [job for job in jobs if outcome(job.folder) is None]
    if not todo:
        return
    root = todo[0].root
    check_there(root)
    for job in todo:
        _clear_before(job)
    specs = [job.spec for job in todo]
    folders = [job.folder for job in todo]
    tracking = _tracking(todo)
    teller = None if root is None else Teller(root)

    def observe(training: Training, state: State) -> None:
        tracking.observe(training, state)
        if teller is not None:
            teller.observe(training, state)

    try:
        for position, result, trouble in train(specs, folders, root=root, observer=observe):
            _write(todo[position], result, trouble)
            tracking.end(result.spec, result.status, result.metrics)
            if fail_fast and result.status == "failed":
                return
    finally:
        if teller is not None:
            teller.close()


def _tracking(jobs: Sequence[Job]) -> Tracking:
    """The trackers of some runs, which write below the folder of their sweep."""
    first = jobs[0]
    store = Path(first.root or first.folder)
    names = {run_id(job.spec): os.path.relpath(job.folder, store) for job in jobs}
    return Tracking(first.tracker, store, names)


def give_up(jobs: Sequence[Job], reason: str) -> None:
    """Record the unfinished ones of the jobs as failed for this reason, without training them."""
    from nfexp.run import Result

    for job in jobs:
        if outcome(job.folder) is None:
            _write(job, Result(spec=job.spec, status="failed", reason=reason), None)
