"""The unit of work is a stack: train it, write each run's directory, survive what goes wrong. Knows nothing of Hydra.

The side that hands out work needs no torch: only the processes that train import it.
"""

from __future__ import annotations

import errno
import logging
import logging.config
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import traceback
import types
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfexp.files import replacing
from nfexp.record import code_version, outcome, write_run
from nfexp.spec import Spec, member_bytes, stack_key, training_cost

if TYPE_CHECKING:
    from nfexp.run import Result

log = logging.getLogger(__name__)

SHARE = 0.8  # of the memory that is free, unless a budget is given
LARGEST = {"cpu": 32, "cuda": 512}  # runs per stack; beyond that a stack gains nothing
FEW, CROWDED = 4, 256e6  # on the CPU, more than a few large runs that take these bytes together slow each other down
TRIES = 2  # deaths of a process before a run that was alone with it is given up


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run and its directory: what to train, where it goes, and what else lies there."""

    spec: Spec
    folder: str
    files: Mapping[str, str] = field(default_factory=dict)  # path below the folder → text
    logging: Mapping[str, Any] | None = None  # as logging.config.dictConfig takes it
    root: str | None = None  # the folder of its sweep: once that is gone, nothing is written or trained


# One stack, in this process


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

    def look() -> None:
        while not done.wait(LOOK_SECONDS):
            if leader(root) != led_by:
                stop()
                return

    if root is not None and led_by:
        threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        done.set()
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

    def stop() -> bool:
        check_there(root)
        return stopping()

    run.reuse_freed_memory()
    pending = deque([list(range(len(specs)))])
    while pending:
        part = pending.popleft()
        carried_on = [path for i in part if (path := Path(folders[i]) / run.CHECKPOINT).exists()]
        try:
            how = {"folders": [Path(folders[i]) for i in part], "code": code_version(), "stop": stop}
            results, trouble = run.run_stack([specs[i] for i in part], **how), None
        except (run.Interrupted, OSError):  # told to stop; a checkpoint that cannot be written
            raise
        except Exception as error:
            reason, trouble = f"{type(error).__name__}: {error}", traceback.format_exc()
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
    m = result.metrics
    if result.status == "completed":
        log.info(
            f"{result.spec.data.name} seed {result.spec.seed}: test NLL {m['test_nll']:.4f}, truth "
            f"{m['true_nll']:.4f}, KL {m['kl']:.4f} ± {m['kl_se']:.4f} nats ({folder})"
        )
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

    for spec in {(s.data.name, s.data.noise, s.data.text, s.device): s for s in specs}.values():
        check(spec)


def training_rate(spec: Spec, workers: int) -> float:
    """What this many workers together do of :func:`nfexp.spec.training_cost` in a second, by a short real training."""
    import torch

    from nfexp import run

    run.reuse_freed_memory()
    torch.set_num_threads(threads_each(workers))
    return workers * run.training_rate(spec)


# The machine, and which runs make a stack


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is to train on: `places` (cores or GPUs), and the memory that is free: of all cores, or of one GPU."""

    device: str
    places: int
    free: float  # bytes


def _free_bytes() -> float:
    """Memory this process may still take: what the system has available, within the limit of its control group."""
    free = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) if hasattr(os, "sysconf") else 8e9

    def numbers(path: str) -> dict[str, float]:
        return {line.split()[0]: float(line.split()[1]) for line in Path(path).read_text().splitlines()}

    with suppress(OSError, ValueError, LookupError):
        free = 1024 * numbers("/proc/meminfo")["MemAvailable:"]
    with suppress(OSError, ValueError, LookupError):
        group = Path("/sys/fs/cgroup")
        limit, used = (float((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used + numbers("/sys/fs/cgroup/memory.stat")["inactive_file"])
    return free


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_each(workers: int) -> int:
    """Threads of each worker, so that together they have the cores."""
    return max(1, cores() // workers)


def machine(devices: Sequence[str]) -> Machine:
    """The machine as runs on these devices (`auto`, `cpu`, `cuda`) see it."""
    if set(devices) != {"cpu"}:
        import torch

        from nfexp.run import resolve_device

        if any(resolve_device(d).type == "cuda" for d in devices):
            count = torch.cuda.device_count()
            return Machine(device="cuda", places=count, free=min(torch.cuda.mem_get_info(k)[0] for k in range(count)))
    return Machine(device="cpu", places=cores(), free=_free_bytes())


def budget(on: Machine, workers: int, memory: float | None) -> float:
    """Bytes that one worker may use: `memory` in GB, or its share of what is free."""
    return 1e9 * memory if memory else SHARE * on.free / (workers if on.device == "cpu" else -(-workers // on.places))


def plan(
    specs: Sequence[Spec], *, workers: int = 1, max_stack: int | None = None, room: float = float("inf"),
    device: str = "cpu",
) -> list[list[int]]:  # fmt: skip
    """Group positions by `stack_key` and split groups evenly: a share per worker, at most `max_stack` runs each.

    Without `max_stack` a stack holds what its device is still quicker with, at most what fits into `room` bytes. The
    most expensive stack comes first, so that workers finish together.
    """

    def fitting(group: Sequence[int]) -> int:
        each = max(member_bytes(specs[i]) for i in group)
        most = max(FEW, CROWDED / each) if device == "cpu" else LARGEST[device]
        return max(1, int(min(LARGEST[device], most, room / each)))

    groups: dict[object, list[int]] = {}
    for i, spec in enumerate(specs):
        groups.setdefault(stack_key(spec), []).append(i)
    total = sum(map(training_cost, specs))
    stacks = []
    for group in groups.values():
        fits = max_stack or fitting(group)
        share = sum(training_cost(specs[i]) for i in group) / total
        parts = min(len(group), max(-(-len(group) // fits), round(share * workers)))
        stacks += [group[len(group) * k // parts : len(group) * (k + 1) // parts] for k in range(parts)]
    return sorted(stacks, key=lambda stack: -sum(training_cost(specs[i]) for i in stack))


# Many stacks, in worker processes


def _follow(parent: Any) -> None:
    connection.wait([parent])
    os.kill(os.getpid(), signal.SIGTERM)


def told(error: Exception) -> Exception:
    """An exception that survives the pipe, with the traceback as a note."""
    if not isinstance(error, OSError):
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        error = (ValueError if isinstance(error, ValueError) else RuntimeError)(text)
    error.add_note(traceback.format_exc())
    return error


def _serve(pipe: connection.Connection) -> None:
    """Life of a worker: call what comes, until the pipe ends, a SIGTERM comes or the parent dies.

    What is in hand then is finished, but for training, which asks :func:`stopping`.
    """
    busy = False

    def stop(*_: object) -> None:
        _stop.set()
        if not busy:
            raise SystemExit

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=_follow, args=(multiprocessing.parent_process().sentinel,), daemon=True).start()
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    with suppress(EOFError, BrokenPipeError):
        while not stopping():
            function, args, keywords = pipe.recv()
            busy = True
            try:
                answer = True, function(*args, **keywords)
            except Exception as error:
                if stopping():
                    return
                answer = False, told(error)
            busy = False
            pipe.send(answer)


def work_at(place: int, threads: int, jobs: Sequence[Job], **how: Any) -> None:
    """:func:`work` with this many threads, on the GPU with this number where there are any."""
    import torch

    torch.set_num_threads(threads)
    if any(job.spec.device != "cpu" for job in jobs) and torch.cuda.is_available():
        torch.cuda.set_device(place % torch.cuda.device_count())
    work(jobs, **how)


@contextmanager
def _without_main() -> Iterator[None]:
    """What starts here does not run the main module of this program again: workers need nothing of it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _on_interrupt(handler: Any) -> Iterator[None]:
    """Handle Ctrl-C so, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _load_ahead(context: Any) -> None:
    """Start the server that workers are forked from: deaf to Ctrl-C, and loading torch while we go on."""
    from multiprocessing import forkserver

    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *([path] if path else [])])
    context.set_forkserver_preload(["nfexp.run"])
    try:
        with _on_interrupt(signal.SIG_IGN), _without_main():
            forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if path is not None:
            os.environ["PYTHONPATH"] = path


def after_death(
    task: Sequence[int], left: list[int], deaths: Counter[int], how: str
) -> list[tuple[list[int], str | None]]:
    """What to do with the jobs that a dead process left: halves to try again, or a run given up, with the reason.

    `deaths` counts how often each job was in a process that died.
    """
    deaths.update(left)
    if len(task) == len(left) == 1 and deaths[left[0]] >= TRIES:
        return [(left, how)]
    half = (len(left) + 1) // 2
    return [(part, None) for part in (left[:half], left[half:]) if part]


@dataclass
class _Worker:
    place: int
    process: Any
    pipe: connection.Connection
    task: list[int] = field(default_factory=list)  # positions of the jobs in its hands
    lost: str | None = None

    def send(self, function: Callable[..., Any], *args: Any, **keywords: Any) -> None:
        with suppress(OSError):  # a dead worker shows when it is read
            self.pipe.send((function, args, keywords))

    def answer(self) -> tuple[bool, Any] | None:
        """Whether the call went well, with what it returned or raised; None from a worker that has died."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return None


def _kill(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
    workers.clear()


class Pool:
    """Worker processes that live as long as this object, each with one stack at a time.

    They are forked from a server that has torch loaded, or spawned where there is none; loading begins here and now,
    and nothing waits for it before the first call.
    """

    def __init__(self) -> None:
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        self.context = multiprocessing.get_context("forkserver" if forks else "spawn")
        self.workers: list[_Worker] = []
        if forks:
            _load_ahead(self.context)
        weakref.finalize(self, _kill, self.workers)

    def _start(self, place: int) -> _Worker:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_serve, args=(theirs,), daemon=True, name=f"nfexp-{place}")
        with _without_main():
            process.start()
        theirs.close()
        return _Worker(place, process, ours)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a worker returns, or raises, for a call."""
        if not self.workers:
            self.workers.append(self._start(0))
        worker = self.workers[0]
        worker.send(function, *args)
        good, value = worker.answer() or (False, RuntimeError(f"a worker process ended in {function.__name__}"))
        if not good:
            raise value
        return value

    def run(
        self, stacks: Sequence[list[int]], job: Callable[[int], Job], *, workers: int, **how: Any
    ) -> Iterator[list[int]]:
        """Have the stacks (lists of positions) worked off; yield the positions of finished jobs as they come.

        A worker that dies is replaced, and its unfinished jobs are tried again in halves, at last alone; a run that
        kills its process alone is recorded as failed. Leaving the iteration early, or a first Ctrl-C (which then
        raises KeyboardInterrupt), lets the workers finish what they are writing; a second stops at once.

        Raises
        ------
        OSError
            If a directory cannot be written.
        """
        queue: deque[tuple[list[int], str | None]] = deque((stack, None) for stack in stacks)
        deaths: Counter[int] = Counter()
        heard, ctrl_c = multiprocessing.Pipe(duplex=False)

        def note(*_: object) -> None:
            if heard.poll():
                raise KeyboardInterrupt
            ctrl_c.send(None)

        finished = False
        try:
            while len(self.workers) < workers:
                self.workers.append(self._start(len(self.workers)))
            with _on_interrupt(note):
                while queue or any(worker.task for worker in self.workers):
                    for worker in self.workers[:workers]:
                        if queue and not worker.task:
                            worker.task, worker.lost = queue.popleft()
                            jobs = [job(i) for i in worker.task]
                            worker.send(work_at, worker.place, threads_each(workers), jobs, lost=worker.lost, **how)
                    busy = {worker.pipe: worker for worker in self.workers if worker.task}
                    ready = connection.wait([heard, *busy])
                    if heard in ready:
                        raise KeyboardInterrupt
                    for worker in (busy[pipe] for pipe in ready):
                        answer = worker.answer()
                        if answer is None:
                            if done := self._replace(worker, job, queue, deaths):
                                yield done
                        elif answer[0]:
                            done, worker.task = worker.task, []
                            yield done
                        else:
                            raise answer[1]
            finished = True
        finally:
            if not finished:
                self.stop()

    def _replace(
        self, worker: _Worker, job: Callable[[int], Job], queue: deque[tuple[list[int], str | None]],
        deaths: Counter[int],
    ) -> list[int]:  # fmt: skip
        """Put what a dead worker left at the head of the queue and start another; positions of what it finished."""
        worker.process.join()
        code = worker.process.exitcode
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if worker.lost:
            raise RuntimeError(f"worker processes are {how} whatever they do")
        left = [i for i in worker.task if outcome(job(i).folder) is None]
        log.warning(f"a worker was {how}; {len(left)} unfinished runs of its stack are tried again")
        queue.extendleft(reversed(after_death(worker.task, left, deaths, f"its process was {how}")))
        worker.pipe.close()
        self.workers[self.workers.index(worker)] = self._start(worker.place)
        return [i for i in worker.task if i not in left]

    def stop(self) -> None:
        """End the workers, each after what it is writing."""
        try:
            for worker in self.workers:
                worker.process.terminate()
            for worker in self.workers:
                worker.process.join()
        finally:
            _kill(self.workers)
