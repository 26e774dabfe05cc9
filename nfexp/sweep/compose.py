"""Compose the configuration of a job as Hydra does, but the groups only once per choice."""

from __future__ import annotations

import copy
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml
from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf._utils import OmegaConfDumper

from nfexp.configuration import job_folder, own_folders, plain_of, spec_of, written

if TYPE_CHECKING:
    from nfexp.spec import Spec

FOLDER = "<output_dir>"  # stands for the folder of a job in the logging configuration of all
# What a logging configuration may ask for and still be the same for all jobs but for FOLDER
SAME_FOR_ALL = {"${hydra.runtime.output_dir}", "${hydra.job.name}"}
DEFAULT_SUBDIR = "${nfexp.job_folder:${hydra:job.num}}"  # hydra.sweep.subdir of conf/config.yaml


# --- YAML ------------------------------------------------------------------------------

_Dumper: Any = getattr(yaml, "CDumper", yaml.Dumper)


class FastDumper(_Dumper):
    """OmegaConf's way to write YAML, by the faster C library where PyYAML has it."""


FastDumper.add_representer(str, OmegaConfDumper.str_representer)


def to_yaml(content: Any) -> str:
    return yaml.dump(
        content,
        Dumper=FastDumper,
        default_flow_style=False,
        allow_unicode=True,
        sort_keys=False,
    )


# --- What is composed ------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A parsed override, and whether it sets a plain value: if not, it goes through Hydra."""

    override: Override
    sets_value: bool


@dataclass(frozen=True)
class Base:
    """The configuration of one choice of groups, which many jobs share.

    `config` is what Hydra composes, `hydra` its node of that name as plain containers. `task` is
    the rest of it, or None if that interpolates; `logging` is how the jobs log, or None if that
    depends on more than the folder of a job. Where one is None each job is composed in full.
    """

    config: DictConfig
    task: Mapping[str, Any] | None
    hydra: dict[str, Any]
    logging: Mapping[str, Any] | None
    texts: dict[str, str] = field(default_factory=dict)  # parts of `hydra` that are written already

    def section(self, key: str, value: Any) -> str:
        """A part of `hydra.yaml`; one that all jobs share is written once."""
        if value is not self.hydra[key]:  # this job has its own
            return _section(key, value)
        if key not in self.texts:
            self.texts[key] = _section(key, value)
        return self.texts[key]


def _section(key: str, value: Any) -> str:
    """The lines of one key below ``hydra:``, indented as they stand there."""
    return to_yaml({"hydra": {key: value}}).removeprefix("hydra:\n")


@dataclass(frozen=True)
class Page:
    """What Hydra leaves of a job: its folder, `.hydra/` (path below it → text), how it logs."""

    folder: str
    files: Mapping[str, str]
    logging: Mapping[str, Any] | None


@dataclass(frozen=True)
class _Job:
    """The configuration of one job, as plain containers with its interpolations as written."""

    task: Mapping[str, Any]
    hydra: Mapping[str, Any]
    logging: Mapping[str, Any]


def filled(node: Any, folder: str) -> Any:
    """A copy of nested containers with `folder` in place of FOLDER.

    >>> filled({"handlers": {"file": {"filename": "<output_dir>/nfexp.log"}}}, "s/0001")
    {'handlers': {'file': {'filename': 's/0001/nfexp.log'}}}
    """
    if isinstance(node, dict):
        return {key: filled(value, folder) for key, value in node.items()}
    if isinstance(node, list):
        return [filled(value, folder) for value in node]
    if isinstance(node, str):
        return node.replace(FOLDER, folder)
    return node


def _copied(node: Any) -> Any:
    """A copy of nested mappings; what they hold is shared."""
    if not isinstance(node, Mapping):
        return node
    return {key: _copied(value) for key, value in node.items()}


def logging_of(config: DictConfig) -> dict[str, Any]:
    """`hydra.job_logging` with `hydra.verbose`, for logging.config; {} if it asks for nothing."""
    if not config.hydra.job_logging:
        return {}
    logging_config: Any = OmegaConf.to_container(config.hydra.job_logging, resolve=True)
    if not logging_config.get("root"):
        return {}
    verbose = config.hydra.verbose
    if verbose is True:
        logging_config["root"]["level"] = logging.DEBUG
    elif verbose:  # the name of a logger, or several
        names = [verbose] if isinstance(verbose, str) else verbose
        loggers = logging_config.setdefault("loggers", {})
        for name in names:
            loggers[name] = {"level": logging.DEBUG}
    return logging_config


@contextmanager
def current(config: DictConfig) -> Iterator[DictConfig]:
    """In the body, make a configuration the one that ``${hydra:…}`` reads: that is global."""
    before = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().set_config(config)
        yield config
    finally:
        HydraConfig.instance().cfg = before


def set_value(task: dict[str, Any], override: Override) -> bool:
    """Set the value of an override in nested dicts; False if there is no such key."""
    *path, leaf = override.key_or_group.split(".")
    node: Any = task
    for key in path:
        node = node.get(key)
        if not isinstance(node, dict):
            return False
    if leaf not in node:
        return False
    node[leaf] = override.value()
    return True


def _is_plain(value: Any) -> bool:
    return not isinstance(value, dict | list) and "${" not in str(value)


# --- Composing -------------------------------------------------------------------------


class Composer:
    """Composes jobs: choices of groups (``data=moons``) by Hydra, values (``seed=3``) on a copy.

    :meth:`plain` gives the task configuration as nested dicts and :meth:`page` what lies in the
    job's directory, both cheap enough for every job of a large sweep. :meth:`full` gives the whole
    configuration with its `hydra` node.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self.loader = loader
        self.master = master
        self.parser = OverridesParser.create(config_loader=loader)
        self.by_groups: dict[tuple[str, ...], Base] = {}
        self.by_line: dict[str, Line] = {}
        self.by_job: dict[tuple[str, ...], Spec] = {}

    def plain(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The task configuration of a job as nested dicts."""
        task = self._task(overrides)
        if task is None:
            config = self.full(overrides)
            with open_dict(config):
                del config["hydra"]
            task = plain_of(config)
        return task

    def spec(self, overrides: Sequence[str]) -> Spec:
        """The checked spec of a job."""
        key = tuple(overrides)
        if key not in self.by_job:
            self.by_job[key] = spec_of(self.plain(overrides), own_folders(self.master.hydra))
        return self.by_job[key]

    def full(self, overrides: Sequence[str]) -> DictConfig:
        """The whole configuration of a job, its `hydra` node included."""
        groups, values = self._split(overrides)
        config = copy.deepcopy(self._base(groups).config)
        OmegaConf.copy_cache(from_config=self.master, to_config=config)  # what ${now:…} gave
        for override in values:
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        task = [one for one in self._overrides(overrides) if not one.is_hydra_override()]
        naming = config.hydra.job.config.override_dirname
        with open_dict(config):
            config.hydra.overrides.task = [override.input_line for override in task]
            config.hydra.job.override_dirname = get_overrides_dirname(task, **naming)
        return config

    def numbered(self, overrides: Sequence[str], number: int) -> DictConfig:
        """The whole configuration of a job, with the job's number in it."""
        config = self.full(overrides)
        with open_dict(config):
            config.hydra.job.id = number
            config.hydra.job.num = number
        return config

    def folder(self, overrides: Sequence[str], number: int) -> str:
        """The absolute path of a job's directory."""
        top = str(self.master.hydra.sweep.dir)  # fixes ${now:…} before any job copies it
        groups, _ = self._split(overrides)
        if self._base(groups).hydra["sweep"]["subdir"] == DEFAULT_SUBDIR:
            below = job_folder(number)  # known without composing the job
        else:
            with current(self.numbered(overrides, number)) as config:
                below = str(config.hydra.sweep.subdir)
        return os.path.abspath(os.path.join(top, below))

    def page(self, overrides: Sequence[str], number: int) -> Page:
        """What Hydra would leave of a job in its directory, before it runs."""
        groups, _ = self._split(overrides)
        base = self._base(groups)
        folder = self.folder(overrides, number)
        job = self._job_from(base, overrides, number, folder)
        if job is None:
            job = self._job_in_full(overrides, number, folder)
        below = job.hydra["output_subdir"]
        files = {}
        if below is not None:
            sections = [base.section(key, value) for key, value in job.hydra.items()]
            files[f"{below}/config.yaml"] = to_yaml(job.task)
            files[f"{below}/hydra.yaml"] = "".join(["hydra:\n", *sections])
            files[f"{below}/overrides.yaml"] = to_yaml(job.hydra["overrides"]["task"])
        return Page(folder, files, job.logging or None)

    def _job_in_full(self, overrides: Sequence[str], number: int, folder: str) -> _Job:
        full = self.numbered(overrides, number)
        with open_dict(full):
            full.hydra.runtime.output_dir = folder
        with current(full) as config:
            how = logging_of(config)
            task = written(config)
        hydra = task.pop("hydra")
        return _Job(task, hydra, how)

    def _job_from(
        self,
        base: Base,
        overrides: Sequence[str],
        number: int,
        folder: str,
    ) -> _Job | None:
        """The same, from what all jobs of its groups share; None if it must be composed in full."""
        task = self._task(overrides)
        lines = self._overrides(overrides)
        changes_hydra = any(one.is_hydra_override() for one in lines)
        if task is None or base.logging is None or changes_hydra:
            return None
        naming = base.hydra["job"]["config"]["override_dirname"]
        of_job = {
            "id": str(number),  # a text, as Hydra's typed configuration makes of it
            "num": number,
            "override_dirname": get_overrides_dirname(lines, **naming),
        }
        hydra = base.hydra | {
            "overrides": base.hydra["overrides"] | {"task": [one.input_line for one in lines]},
            "job": base.hydra["job"] | of_job,
            "runtime": base.hydra["runtime"] | {"output_dir": folder},
        }
        return _Job(task, hydra, filled(base.logging, folder))

    def _task(self, overrides: Sequence[str]) -> dict[str, Any] | None:
        """The task configuration as nested dicts; None if something in it interpolates or nests."""
        groups, values = self._split(overrides)
        base = self._base(groups)
        if base.task is None or not all(_is_plain(one.value()) for one in values):
            return None
        task: dict[str, Any] = _copied(base.task)
        for override in values:
            if not set_value(task, override):
                # It raises, and says what is wrong with the key.
                self.loader.load_sweep_config(self.master, list(overrides))
        return task

    def _base(self, groups: tuple[str, ...]) -> Base:
        if groups not in self.by_groups:
            config = self.loader.load_sweep_config(self.master, list(groups))
            task = written(config)
            hydra = task.pop("hydra")
            asks = set(re.findall(r"\$\{[^}]*\}", repr(hydra["job_logging"])))
            how = None
            if asks <= SAME_FOR_ALL:
                placed = copy.deepcopy(config)
                with open_dict(placed):
                    placed.hydra.runtime.output_dir = FOLDER
                how = logging_of(placed)
            interpolates = "${" in repr(task)
            base = Base(config, None if interpolates else task, hydra, how)
            self.by_groups[groups] = base
        return self.by_groups[groups]

    def _line(self, text: str) -> Line:
        if text not in self.by_line:
            (override,) = self.parser.parse_overrides([text])
            key = override.key_or_group
            changes = not (override.is_add() or override.is_force_add() or override.is_delete())
            is_group = override.package is not None or bool(self.loader.get_group_options(key))
            sets_value = changes and not is_group and not override.is_hydra_override()
            self.by_line[text] = Line(override, sets_value)
        return self.by_line[text]

    def _overrides(self, texts: Sequence[str]) -> list[Override]:
        return [self._line(text).override for text in texts]

    def _split(self, texts: Sequence[str]) -> tuple[tuple[str, ...], list[Override]]:
        """The overrides that go through Hydra, as text, and those that set a plain value."""
        groups = []
        values = []
        for text in texts:
            line = self._line(text)
            if line.sets_value:
                values.append(line.override)
            else:
                groups.append(text)
        return tuple(groups), values
