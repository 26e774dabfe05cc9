"""The `nfexp` command: Hydra's command line in front of stacks, with one message for bad input."""

from __future__ import annotations

import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from nfexp.spec import Spec, SpecError, Words, from_mapping

if TYPE_CHECKING:
    from nfexp.run import Result

log = logging.getLogger(__name__)


def conf_dir() -> str:
    """Absolute path of the configuration: packaged in a wheel, beside the package in a checkout."""
    packaged = Path(__file__).parent / "conf"
    return str(packaged if packaged.is_dir() else Path(__file__).parents[1] / "conf")


def job_folder(job: int) -> str:
    """The folder of a job below its sweep: its number, zero-padded."""
    return f"{job:04d}"


OmegaConf.register_new_resolver("nfexp.job_folder", job_folder, replace=True)


class RunFailed(RuntimeError):
    """A run raised; its record says why."""


def spec_of(config: DictConfig | dict[str, Any]) -> Spec:
    """The checked spec of a composed configuration without its `hydra` node."""
    plain = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
    if not isinstance(plain.get("dry_run"), bool):
        raise SpecError("dry_run", "true or false", plain.get("dry_run"))
    return from_mapping({k: v for k, v in plain.items() if k != "dry_run"})


def single_spec(config: DictConfig) -> Spec:
    """The checked spec of a run that is not planned by the grids sweeper; raises before anything is trained."""
    spec = spec_of(config)
    if config.dry_run:
        raise SpecError("dry_run", "nfexp -m with the grids sweeper, which alone can plan", Words("a single run"))
    check_all([spec])
    return spec


def check_all(specs: Sequence[Spec]) -> None:
    """Raise for the first run that could not be set up, before anything is trained or written."""
    from nfexp.run import check

    for spec in specs:
        check(spec)


def check_fresh(folder: Path) -> None:
    """Raise if a folder already holds a run or a sweep: nothing that is finished is ever overwritten."""
    for name in ("result.json", "sweep.json"):
        if (folder / name).exists():
            raise SpecError(str(folder), "a new or empty folder", Words(f"one that holds {name}"))


def train_stack(specs: Sequence[Spec]) -> list[Result]:
    """Train a stack; if it raises, its members one by one, so that only the culprit is recorded as failed."""
    from nfexp.run import Result, reuse_freed_memory, run_stack

    reuse_freed_memory()
    try:
        return run_stack(specs)
    except Exception as error:
        log.exception("a stack of %d raised", len(specs))
        if len(specs) == 1:
            return [Result(spec=specs[0], status="failed", reason=f"{type(error).__name__}: {error}")]
    return [result for spec in specs for result in train_stack([spec])]


def worker_count(specs: Sequence[Spec], asked: int | None) -> int:
    """Stacks to train at a time: as asked, otherwise one per core on the CPU and one on a GPU."""
    from nfexp.run import resolve_device

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_gpu = any(resolve_device(s.device).type != "cpu" for s in specs)
    return asked or (1 if on_gpu else min(cores, len(specs)))


def train_stacks(
    specs: Sequence[Spec], stacks: Sequence[list[int]], workers: int
) -> Iterator[tuple[list[int], list[Result]]]:
    """Train stacks (lists of positions in `specs`) in threads that share the cores; yield each as it is done."""
    import torch

    threads = max(1, torch.get_num_threads() // workers)
    pool = ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(threads))
    try:
        pending = {pool.submit(train_stack, [specs[i] for i in stack]): stack for stack in stacks}
        for future in as_completed(pending):
            yield pending.pop(future), future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def finish(config: DictConfig, *, result: Result) -> float:
    """Write the run into the job's folder and return the objective: validation NLL, nats (infinite if diverged)."""
    from nfexp.record import write_run

    folder = Path(HydraConfig.get().runtime.output_dir)
    check_fresh(folder)
    write_run(folder, result)
    m = result.metrics
    if result.status == "failed":
        log.error(f"failed: {result.reason}")
        raise RunFailed(f"{folder}: {result.reason}")
    if result.status == "diverged":
        log.warning(f"diverged: {result.reason}")
        return math.inf
    log.info(
        f"{result.spec.data.name} seed {result.spec.seed}: test NLL {m['test_nll']:.4f}, truth {m['true_nll']:.4f}, "
        f"KL {m['kl']:.4f} ± {m['kl_se']:.4f} nats ({folder})"
    )
    return float(m["val_nll"])


def job(config: DictConfig) -> float:
    """One run, from its configuration to its directory: what every launcher but `stack` calls."""
    spec = single_spec(config)
    check_fresh(Path(HydraConfig.get().runtime.output_dir))
    return finish(config, result=train_stack([spec])[0])


def report(folder: Path) -> None:
    """Make the tables, figures and pages of a finished sweep and print its claim table."""
    from nfexp import report as reporting

    try:
        reporting.main([str(folder)])
    except Exception:
        log.exception(f"the runs are safe, the report is not: make it again with nfexp-report {folder}")


def explain(error: BaseException) -> str:
    """One message with the key, what was expected and what came."""
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    if own := next((e for e in chain if isinstance(e, SpecError | RunFailed)), None):
        return str(own)
    text = " ".join(str(error).split())
    if isinstance(error, MissingConfigException):
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        known = f"one of {', '.join(error.options)}" if error.options else "a file of the configuration"
        return f"{group or 'configuration'}: expected {known}; got {option!r}"
    if isinstance(error, OSError):
        return (
            f"{error.filename or 'output folder'}: expected a folder nfexp can write to; got {error.strerror or text}"
        )
    if isinstance(error, OverrideParseException):
        return f"{error.override}: expected Hydra's override syntax; got {str(error).splitlines()[0]}"
    if found := re.search(r"Could not override '([^']+)'", text):
        return f"{found[1]}: expected a key of the configuration (see nfexp --cfg job); got an unknown one"
    return " ".join([text, *str(error.__cause__ or "").split()])


def check_plain_run(arguments: Sequence[str]) -> None:
    """Raise what is wrong with a single run before Hydra makes its folder (a sweep checks its jobs itself)."""
    if any(a.startswith("-") for a in arguments):
        return
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("config", list(arguments), return_hydra_config=True)
        if config.hydra.sweeper.get("grids") or config.hydra.sweeper.get("params"):
            raise SpecError("hydra.sweeper.grids", "nfexp -m, for this is a sweep", Words("a single run"))
        with open_dict(config):
            del config["hydra"]
        single_spec(config)


def main() -> None:
    """Entry point of `nfexp` and ``python -m nfexp``."""
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands errors on instead of printing its own
    run: Any = hydra.main(version_base="1.3", config_path=conf_dir(), config_name="config")(job)
    try:
        check_plain_run(sys.argv[1:])
        run()
    except KeyboardInterrupt:
        sys.stderr.write("nfexp: interrupted; finished runs are kept\n")
        sys.stderr.flush()
        os._exit(130)  # stacks still in training are not waited for
    except (HydraException, OmegaConfBaseException, ValueError, OSError, RunFailed) as error:
        if wants_traceback:
            raise
        sys.stderr.write(f"nfexp: {explain(error)}\n")
        sys.exit(1)
