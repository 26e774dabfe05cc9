"""The unit of work is a stack: train it, write each run's directory, survive what goes wrong. Knows nothing of Hydra.

Here is one stack in this process; `planning` says which runs make a stack, `pool` has many worked off in processes.
The side that hands out work needs no torch: only the processes that train import it.
"""

from __future__ import annotations

import errno
import logging
import logging.config
import os
import re
import socket
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfexp.files import replacing
from nfexp.record import code_version, outcome, write_run
from nfexp.spec import Spec
from nfexp.surroundings import settle_logs

if TYPE_CHECKING:
    from nfexp.run import Result

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run and its directory: what to train, where it goes, and what else lies there."""

    spec: Spec
    folder: str
    files: Mapping[str, str] = field(default_factory=dict)  # path below the folder → text
    logging: Mapping[str, Any] | None = None  # as logging.config.dictConfig takes it
    root: str | None = None  # the folder of its sweep: once that is gone, nothing is written or trained


_stop = threading.Event()


def stop() -> None:
    """Tell this process to stop: what trains leaves checkpoints and raises :class:`nfexp.run.Interrupted`."""
    _stop.set()


def stopping() -> bool:
    """Whether this process has been told to stop: by a signal, or by the death of its parent."""
    return _stop.is_set()


HOLDER = ".lock-holder"  # in the folder of a sweep: which process leads it
LOOK_SECONDS = 1.0  # between two looks at it


def leader(root: str | os.PathLike[str]) -> str:
    """The process that leads the sweep in a folder, "process 4711 on host"; "" if none does.

    One that was killed still stands there: it counts as gone where it can be looked for, on its own host.

    >>> leader("/nowhere")
    ''
    """
    with suppress(OSError, ValueError):
        name = (Path(root) / HOLDER).read_text(encoding="utf-8").strip()
        _, pid, _, host = name.split(" ")
        if host == socket.gethostname():
            with suppress(PermissionError):  # somebody else's, but there
                os.kill(int(pid), 0)
        return name
    return ""


@contextmanager
def following(root: str | None, led_by: str) -> Iterator[None]:
    """Tell this process to stop, for a while, once the sweep is no longer led by this process."""
    done = threading.Event()

    def look(folder: str) -> None:
        while not done.wait(LOOK_SECONDS):
            if leader(folder) != led_by:
                stop()
                return

    looking = threading.Thread(target=look, args=(root,), daemon=True)
    if root is not None and led_by:
        looking.start()
    try:
        yield
    finally:
        done.set()
        if looking.ident:
            looking.join()
        _stop.clear()  # a cluster's process lives on


def check_there(root: str | None) -> None:
    """Raise FileNotFoundError if the folder of a sweep is gone: it is not made anew, for its plan would be missing."""
    if root is not None and not os.path.isdir(root):
        raise FileNotFoundError(errno.ENOENT, "a folder that was removed", root)


TEMPORARY = re.compile(r"\..*(\.(csv|npz|safetensors|json|yaml|html|md|tex|png|pdf)|holder|cache)\.\w{8}")


def clear(folder: Path) -> None:
    """Remove what a killed process may have left: temporary files, and the checkpoint of a run that is finished.

    >>> [bool(TEMPORARY.fullmatch(name)) for name in (".result.json.a1_b2c3d", ".runs.cache", ".my.settings")]
    [True, False, False]
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        there = os.listdir(folder)
        for name in there:
            if TEMPORARY.fullmatch(name) or ("result.json" in there and name == "checkpoint.safetensors"):
                (folder / name).unlink(missing_ok=True)


def out_of_memory(error: BaseException) -> bool:
    """Whether a smaller stack may do what raised this.

    >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    (True, True)
    """
    import torch

    told = isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "Allocator" in str(error))
    return told or isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)


def train(
    specs: Sequence[Spec], folders: Sequence[str | os.PathLike[str]], *, root: str | None = None
) -> Iterator[tuple[int, Result, str | None]]:
    """Train a stack; yield position, result and, of a run that raised, its traceback.

    A stack that runs out of memory is halved; one that raises anything else is trained again one run at a time, so
    that only the culprit fails. Checkpoints lie in `folders`, one per run, as long as `root` is there; a run that
    raises alone, carried on from one, is begun again.

    Raises
    ------
    nfexp.run.Interrupted
        If this process is told to stop.
    OSError
        If a checkpoint cannot be written.
    """
    from nfexp import run
    from nfexp.checkpoint import CHECKPOINT

    def stop() -> bool:
        check_there(root)
        return stopping()

    run.reuse_freed_memory()
    pending = deque([list(range(len(specs)))])
    while pending:
        part = pending.popleft()
        places = [Path(folders[i]) for i in part]
        checkpoints = [place / CHECKPOINT for place in places]
        carried_on = [path for path in checkpoints if path.exists()]
        trouble = None
        try:
            results = run.run_stack([specs[i] for i in part], folders=places, code=code_version(), stop=stop)
        except (run.Interrupted, OSError):  # told to stop; a checkpoint that cannot be written
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            trouble = traceback.format_exc()
            if len(part) > 1:
                size = (len(part) + 1) // 2 if out_of_memory(error) else 1
                log.warning(f"a stack of {len(part)} raised {reason}; it goes on in stacks of {size}")
                pending.extendleft(reversed([part[k : k + size] for k in range(0, len(part), size)]))
                continue
            if carried_on:
                log.warning(f"a run carried on from {carried_on[0]} raised {reason}; it is begun again")
                carried_on[0].unlink()
                pending.appendleft(part)
                continue
            results = [run.Result(spec=specs[part[0]], status="failed", reason=reason)]
        yield from ((i, result, trouble) for i, result in zip(part, results, strict=True))


@contextmanager
def _logged(config: Mapping[str, Any] | None) -> Iterator[None]:
    """Log as `config` says, then again as before."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    if config is not None:
        logging.config.dictConfig(dict(config))
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(before):
            handler.close()
        root.handlers[:] = before
        root.setLevel(level)


def keep(folder: Path, result: Result, trouble: str | None = None) -> None:
    """Write the record of a run, and into its log how it ended."""
    settle_logs()
    m = result.metrics
    if result.status == "completed":
        what = f"{result.spec.data.name} seed {result.spec.seed}: test NLL {m['test_nll']:.4f}"
        if m["true_nll"] is None:  # a table, whose density nobody knows
            log.info(f"{what} ± {m['test_nll_se']:.4f} nats ({folder})")
        else:
            log.info(f"{what}, truth {m['true_nll']:.4f}, KL {m['kl']:.4f} ± {m['kl_se']:.4f} nats ({folder})")
    else:
        log.log(
            logging.WARNING if result.status == "diverged" else logging.ERROR,
            f"{result.status}: {result.reason} ({folder})" + (f"\n{trouble}" if trouble else ""),
        )
    write_run(folder, result)


def work(jobs: Sequence[Job], *, lost: str | None = None, fail_fast: bool = False) -> None:
    """Train the jobs as one stack and write their directories; those that are finished already are left alone.

    With `lost` nothing is trained: the jobs are recorded as failed for that reason. With `fail_fast` the first run
    that fails ends the work.

    Raises
    ------
    OSError
        If a directory cannot be written.
    nfexp.run.Interrupted
        If this process is told to stop.
    """
    jobs = [job for job in jobs if outcome(job.folder) is None]
    if not jobs:
        return
    if lost is None:
        check_there(jobs[0].root)
        for folder in {Path(job.folder, name).parent for job in jobs for name in ("result.json", *job.files)}:
            clear(folder)
        results = train([job.spec for job in jobs], [job.folder for job in jobs], root=jobs[0].root)
    else:
        from nfexp.run import Result

        results = ((i, Result(spec=job.spec, status="failed", reason=lost), None) for i, job in enumerate(jobs))
    for i, result, trouble in results:
        folder = Path(jobs[i].folder)
        check_there(jobs[i].root)
        if outcome(folder) is not None:  # another process finished it meanwhile
            continue
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in jobs[i].files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with replacing(folder / name, sync=False) as path:
                path.write_text(text, encoding="utf-8")
        with _logged(jobs[i].logging):
            keep(folder, result, trouble)
        if fail_fast and result.status == "failed":
            return


def check_all(specs: Sequence[Spec]) -> None:
    """Raise for the first run that could not be set up, before anything is trained or written."""
    from nfexp.run import check

    distinct: dict[tuple[object, ...], Spec] = {}
    for spec in specs:
        data = spec.data
        if data.kind == "density":
            what: tuple[object, ...] = (data.name, data.noise, data.text)
        else:
            what = (data, spec.seed)  # each seed has a split of its own
        distinct[*what, spec.device] = spec
    for spec in distinct.values():
        check(spec)
