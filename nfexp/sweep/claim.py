"""Claim the folder of a run or a sweep before anything is trained or written there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nfexp.configuration import written
from nfexp.spec import SpecError, Words
from nfexp.sweep.folder import locked


class Refused(BaseException):
    """A folder cannot be claimed; its cause says why.

    It is no Exception, for Hydra turns an Exception that a callback raises into a mere warning.
    """


def check_fresh(folder: Path) -> None:
    """Raise if a folder holds a run or a sweep: nothing that is finished is ever overwritten."""
    for name in ("result.json", "sweep.json"):
        if (folder / name).exists():
            raise SpecError(str(folder), "a new or empty folder", Words(f"one that holds {name}"))


def check_no_runs(folder: Path) -> None:
    """Raise if there is a run below a folder: Hydra's own launchers would write over its files."""
    record = next(folder.rglob("result.json"), None)
    if record is not None:
        got = Words(f"one that holds {record.relative_to(folder)}")
        raise SpecError(str(folder), "a new or empty folder", got)


def named_folder(config: DictConfig, kind: str) -> Path:
    """The folder that `hydra.run.dir` or `hydra.sweep.dir` names; `kind` is "run" or "sweep"."""
    name = str(config.hydra[kind].dir)
    if not name.strip():
        raise SpecError(f"hydra.{kind}.dir", "a folder", name)
    return Path(name)


def check_output_subdir(config: DictConfig) -> None:
    """Raise if `.hydra/`, whatever its name, would lie outside the folder of its run."""
    name = written(config.hydra)["output_subdir"]
    leads_out = name is not None and (os.path.isabs(name) or os.pardir in Path(name).parts)
    if leads_out:
        raise SpecError("hydra.output_subdir", "a folder below that of the run, or null", name)


def is_clock(pattern: str) -> bool:
    """Whether a pattern of ``${now:…}`` names the second."""
    return "%S" in pattern


def is_named_by_clock(config: DictConfig, kind: str) -> bool:
    """Whether a folder is named after the second, as both are unless the command says otherwise."""
    name = written(config.hydra[kind])["dir"]
    patterns = re.findall(r"\$\{now:([^}]*)\}", name)
    return any(is_clock(pattern) for pattern in patterns)


def make_folder(config: DictConfig, kind: str) -> Path:
    """Make the folder named after this second; if it exists, one with _1, _2, … after its name.

    ``${now:…}`` is read once and then remembered in a cache. The cache is changed here, so that the
    folders of the runs and the log get the new name as well.
    """
    folder = named_folder(config, kind)  # fills the cache
    times = OmegaConf.get_cache(config)["now"]  # (pattern,) → text
    first = dict(times)
    number = 0
    while True:
        try:
            folder.mkdir(parents=True)  # of two processes only one can make it
            return folder
        except FileExistsError:
            number += 1
        for pattern, time in first.items():
            if is_clock(pattern[0]):
                times[pattern] = f"{time}_{number}"
        folder = named_folder(config, kind)


@contextmanager
def claimed(config: DictConfig, kind: str) -> Iterator[Path]:
    """Yield the folder of this run or sweep; in the body no other process may write there.

    A folder that is named by the clock is a new one.

    Raises
    ------
    SpecError
        If another process writes there.
    """
    if is_named_by_clock(config, kind):
        folder = make_folder(config, kind)
    else:
        folder = named_folder(config, kind)
    with locked(folder, "a sweep" if kind == "sweep" else "a folder"):
        yield folder


claims = ExitStack()  # the folders that Hydra itself is about to write to, until the command ends


class ClaimFolder(Callback):
    """Has Hydra claim a folder before it writes there: of a single run, or of another sweeper.

    The grids sweeper claims its own once it has checked the jobs.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        self.claim(config, "run")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        if config.hydra.runtime.choices.get("hydra/sweeper") != "grids":
            self.claim(config, "sweep")

    def claim(self, config: DictConfig, kind: str) -> None:
        try:
            check_output_subdir(config)
            folder = claims.enter_context(claimed(config, kind))
            check_fresh(folder)
            launcher = config.hydra.runtime.choices.get("hydra/launcher")
            if kind == "sweep" and launcher != "stack":  # stack checks each job, and resumes
                check_no_runs(folder)
        except (ValueError, OSError, OmegaConfBaseException) as error:
            raise Refused from error
