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
    """A folder cannot be claimed; its cause says why. Of a callback's errors Hydra makes warnings, but not of this."""


def check_fresh(folder: Path) -> None:
    """Raise if a folder already holds a run or a sweep: nothing that is finished is ever overwritten."""
    for name in ("result.json", "sweep.json"):
        if (folder / name).exists():
            raise SpecError(str(folder), "a new or empty folder", Words(f"one that holds {name}"))


def check_no_runs(folder: Path) -> None:
    """Raise if there is a run below a folder: Hydra's own launchers would write over its configuration."""
    found = next(folder.rglob("result.json"), None)
    if found:
        raise SpecError(str(folder), "a new or empty folder", Words(f"one that holds {found.relative_to(folder)}"))


def named_folder(config: DictConfig, kind: str) -> Path:
    """The folder that `hydra.run.dir` or `hydra.sweep.dir` names; `kind` is "run" or "sweep"."""
    name = str(config.hydra[kind].dir)
    if not name.strip():
        raise SpecError(f"hydra.{kind}.dir", "a folder", name)
    return Path(name)


def check_output_subdir(config: DictConfig) -> None:
    """Raise if `.hydra/`, whatever its name, would lie outside the folder of its run."""
    name = written(config.hydra)["output_subdir"]
    if name is not None and (os.path.isabs(name) or os.pardir in Path(name).parts):
        raise SpecError("hydra.output_subdir", "a folder below that of the run, or null", name)


def is_clock(pattern: str) -> bool:
    return "%S" in pattern


def is_named_by_clock(config: DictConfig, kind: str) -> bool:
    """Whether a folder is named after the second, as both are unless the command says otherwise."""
    name = written(config.hydra[kind])["dir"]
    return any(is_clock(pattern) for pattern in re.findall(r"\$\{now:([^}]*)\}", name))


def make_folder(config: DictConfig, kind: str) -> Path:
    """Make the folder that is named after this second; where it is there, one with _1, _2, … after the second."""
    folder = named_folder(config, kind)  # from here on Hydra remembers what ${now:…} gave
    times = OmegaConf.get_cache(config)["now"]
    first = dict(times)
    number = 0
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
        for pattern, time in first.items():
            if is_clock(pattern[0]):
                times[pattern] = f"{time}_{number}"
        folder = named_folder(config, kind)


@contextmanager
def claimed(config: DictConfig, kind: str) -> Iterator[Path]:
    """The folder of a run or a sweep, which no other process may write meanwhile; one named by the clock is new.

    Raises
    ------
    SpecError
        If another process writes there.
    """
    by_clock = is_named_by_clock(config, kind)
    folder = make_folder(config, kind) if by_clock else named_folder(config, kind)
    with locked(folder, "a sweep" if kind == "sweep" else "a folder"):
        yield folder


claims = ExitStack()  # the folders that Hydra itself is about to write to, until the command ends


class ClaimFolder(Callback):
    """Has Hydra claim a folder before it writes there: that of a single run, or of another sweeper's jobs.

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
            if kind == "sweep" and config.hydra.runtime.choices.get("hydra/launcher") != "stack":
                check_no_runs(folder)  # the stack launcher looks for itself, and takes its own up again
        except (ValueError, OSError, OmegaConfBaseException) as error:
            raise Refused from error
