"""Compose the configuration of a job as Hydra does, but the config groups only once per choice of groups."""

from __future__ import annotations

import copy
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf._utils import OmegaConfDumper

from nfexp.configuration import job_folder, plain_of, spec_of, written

if TYPE_CHECKING:
    from nfexp.spec import Spec


_Dumper: Any = getattr(yaml, "CDumper", yaml.Dumper)


class FastDumper(_Dumper):
    """OmegaConf's way to write YAML, by the C library where PyYAML has it."""


FastDumper.add_representer(str, OmegaConfDumper.str_representer)


def to_yaml(content: Any) -> str:
    return yaml.dump(content, Dumper=FastDumper, default_flow_style=False, allow_unicode=True, sort_keys=False)


class Base(NamedTuple):
    """The configuration of a choice of groups: composed, as plain containers, and how its jobs log.

    `task` is None if the task part interpolates, `logging` is None if it depends on more than the folder of a job:
    then each job is composed in full.
    """

    config: DictConfig
    task: Mapping[str, Any] | None
    hydra: dict[str, Any]
    logging: Mapping[str, Any] | None
    texts: dict[str, str]

    def section(self, key: str, value: Any) -> str:
        """A part of `hydra.yaml`; what all jobs share is written once."""
        if value is not self.hydra[key]:
            return to_yaml({"hydra": {key: value}}).partition("\n")[2]
        if key not in self.texts:
            self.texts[key] = to_yaml({"hydra": {key: value}}).partition("\n")[2]
        return self.texts[key]


class Page(NamedTuple):
    """What Hydra leaves of a job: its folder, `.hydra/` (path below it → text), its logging configuration."""

    folder: str
    files: Mapping[str, str]
    logging: Mapping[str, Any] | None


FOLDER = "<output_dir>"  # stands for the folder of a job in the logging configuration of all
KNOWN = {"${hydra.runtime.output_dir}", "${hydra.job.name}"}
DEFAULT_SUBDIR = "${nfexp.job_folder:${hydra:job.num}}"


def filled(node: Any, folder: str) -> Any:
    """A copy of nested containers with `folder` in place of FOLDER."""
    if isinstance(node, dict):
        return {k: filled(v, folder) for k, v in node.items()}
    if isinstance(node, list):
        return [filled(v, folder) for v in node]
    return node.replace(FOLDER, folder) if isinstance(node, str) else node


def logging_of(config: DictConfig) -> dict[str, Any]:
    """`hydra.job_logging` with `hydra.verbose`, as logging.config takes it; {} where that asks for nothing."""
    if not config.hydra.job_logging:
        return {}
    found: Any = OmegaConf.to_container(config.hydra.job_logging, resolve=True)
    if not found.get("root"):
        return {}
    verbose = config.hydra.verbose
    if verbose is True:
        found["root"]["level"] = logging.DEBUG
    elif verbose:
        names = [verbose] if isinstance(verbose, str) else verbose
        found.setdefault("loggers", {}).update({name: {"level": logging.DEBUG} for name in names})
    return found


@contextmanager
def current(config: DictConfig) -> Iterator[DictConfig]:
    """Make a configuration the one that ``${hydra:…}`` reads."""
    before = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().set_config(config)
        yield config
    finally:
        HydraConfig.instance().cfg = before


class Composer:
    """Group choices (``data=moons``) go through Hydra once; plain values (``seed=3``) are set on a copy of the outcome.

    :meth:`plain` gives the task configuration as nested dicts, and :meth:`page` what lies in the job's directory,
    both cheap enough for every job of a large sweep; a call gives the full configuration with its `hydra` node.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self.loader, self.master = loader, master
        self.parser = OverridesParser.create(config_loader=loader)
        self.by_groups: dict[tuple[str, ...], Base] = {}
        self.by_line: dict[str, tuple[Override, bool]] = {}
        self.by_job: dict[tuple[str, ...], Spec] = {}

    def _parsed(self, line: str) -> tuple[Override, bool]:
        """An override, and whether it sets a plain value (all others go through Hydra)."""
        if line not in self.by_line:
            (override,) = self.parser.parse_overrides([line])
            changes = not (override.is_add() or override.is_force_add() or override.is_delete())
            group = override.package is not None or self.loader.get_group_options(override.key_or_group)
            self.by_line[line] = override, changes and not group and not override.is_hydra_override()
        return self.by_line[line]

    def _base(self, groups: tuple[str, ...]) -> Base:
        if groups not in self.by_groups:
            config = self.loader.load_sweep_config(self.master, list(groups))
            raw = written(config)
            hydra = raw.pop("hydra")
            asks = set(re.findall(r"\$\{[^}]*\}", repr(hydra["job_logging"])))
            how = None
            if asks <= KNOWN:
                placed = copy.deepcopy(config)
                with open_dict(placed):
                    placed.hydra.runtime.output_dir = FOLDER
                how = logging_of(placed)
            self.by_groups[groups] = Base(config, None if "${" in repr(raw) else raw, hydra, how, {})
        return self.by_groups[groups]

    def _split(self, overrides: Sequence[str]) -> tuple[tuple[str, ...], list[Override]]:
        parsed = [(line, *self._parsed(line)) for line in overrides]
        return tuple(line for line, _, value in parsed if not value), [o for _, o, value in parsed if value]

    def _task(self, overrides: Sequence[str]) -> dict[str, Any] | None:
        """The task configuration where nothing interpolates and values are plain."""
        groups, values = self._split(overrides)
        base = self._base(groups).task
        if base is None or any(isinstance(o.value(), dict | list) or "${" in str(o.value()) for o in values):
            return None
        out: dict[str, Any] = {k: dict(v) if isinstance(v, dict) else v for k, v in base.items()}
        for override in values:
            *path, leaf = override.key_or_group.split(".")
            node: Any = out
            for key in path:
                node = node.get(key) if isinstance(node, dict) else None
            if not isinstance(node, dict) or leaf not in node:
                self.loader.load_sweep_config(self.master, list(overrides))  # Hydra says what is wrong with the key
            else:
                node[leaf] = override.value()
        return out

    def plain(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The task configuration of a job as nested dicts."""

        task = self._task(overrides)
        if task is None:
            config = self(overrides)
            with open_dict(config):
                del config["hydra"]
            task = plain_of(config)
        return task

    def spec(self, overrides: Sequence[str]) -> Spec:
        """The checked spec of a job."""

        key = tuple(overrides)
        if key not in self.by_job:
            self.by_job[key] = spec_of(self.plain(overrides))
        return self.by_job[key]

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """The full configuration of a job, its `hydra` node included."""
        groups, values = self._split(overrides)
        config = copy.deepcopy(self._base(groups).config)
        OmegaConf.copy_cache(from_config=self.master, to_config=config)
        for override in values:
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        task = [o for o, _ in map(self._parsed, overrides) if not o.is_hydra_override()]
        with open_dict(config):
            config.hydra.overrides.task = [o.input_line for o in task]
            config.hydra.job.override_dirname = get_overrides_dirname(task, **config.hydra.job.config.override_dirname)
        return config

    def numbered(self, overrides: Sequence[str], number: int) -> DictConfig:
        """The full configuration of a job that has its number."""
        config = self(overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return config

    def folder(self, overrides: Sequence[str], number: int) -> str:
        """The absolute path of a job's directory."""

        top = str(self.master.hydra.sweep.dir)  # fixes ${now:…} before any job copies it
        if self._base(self._split(overrides)[0]).hydra["sweep"]["subdir"] == DEFAULT_SUBDIR:
            return os.path.abspath(os.path.join(top, job_folder(number)))
        with current(self.numbered(overrides, number)) as config:
            return os.path.abspath(os.path.join(top, str(config.hydra.sweep.subdir)))

    def page(self, overrides: Sequence[str], number: int) -> Page:
        """What Hydra would leave of a job in its directory, before it runs."""
        base, task = self._base(self._split(overrides)[0]), self._task(overrides)
        folder = self.folder(overrides, number)
        if task is None or base.logging is None or any(o.is_hydra_override() for o, _ in map(self._parsed, overrides)):
            full = self.numbered(overrides, number)
            with open_dict(full):
                full.hydra.runtime.output_dir = folder
            with current(full) as config:
                how = logging_of(config)
                task = written(config)
            hydra = task.pop("hydra")
        else:
            lines = [o for o, _ in map(self._parsed, overrides)]
            naming, how = base.hydra["job"]["config"]["override_dirname"], filled(base.logging, folder)
            own = {"id": str(number), "num": number, "override_dirname": get_overrides_dirname(lines, **naming)}
            hydra = base.hydra | {
                "overrides": base.hydra["overrides"] | {"task": [o.input_line for o in lines]},
                "job": base.hydra["job"] | own,
                "runtime": base.hydra["runtime"] | {"output_dir": folder},
            }
        if (below := hydra["output_subdir"]) is None:
            return Page(folder, {}, how or None)
        sections = [base.section(key, value) for key, value in hydra.items()]
        texts = {
            "config": to_yaml(task),
            "hydra": "".join(["hydra:\n", *sections]),
            "overrides": to_yaml(hydra["overrides"]["task"]),
        }
        return Page(folder, {f"{below}/{name}.yaml": text for name, text in texts.items()}, how or None)
