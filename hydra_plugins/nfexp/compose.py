"""Compose the configuration of a job as Hydra does, but the config groups only once per choice of groups."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict


class Composer:
    """Group choices (``data=moons``) go through Hydra once; plain values (``seed=3``) are set on a copy of the outcome.

    :meth:`plain` gives the task configuration as nested dicts, cheap enough for every job of a large sweep; a call
    gives the full configuration with its `hydra` node, for the moment at which the job leaves its directory.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self.loader, self.master = loader, master
        self.parser = OverridesParser.create(config_loader=loader)
        self.by_groups: dict[tuple[str, ...], tuple[DictConfig, dict[str, Any] | None]] = {}
        self.is_group: dict[str, bool] = {}

    def _is_value(self, override: Override) -> bool:
        key = override.key_or_group
        if key not in self.is_group:
            self.is_group[key] = bool(self.loader.get_group_options(key))
        changes = not (override.is_add() or override.is_force_add() or override.is_delete())
        return changes and not self.is_group[key] and override.package is None

    def _base(self, groups: tuple[str, ...]) -> tuple[DictConfig, dict[str, Any] | None]:
        """The configuration of a choice of groups, and its task part as dicts unless that interpolates."""
        if groups not in self.by_groups:
            config = self.loader.load_sweep_config(self.master, list(groups))
            raw = {k: v for k, v in OmegaConf.to_container(config, resolve=False).items() if k != "hydra"}
            self.by_groups[groups] = config, None if "${" in repr(raw) else raw
        return self.by_groups[groups]

    def _parse(self, overrides: Sequence[str]) -> tuple[tuple[str, ...], list[Override], list[Override]]:
        parsed = self.parser.parse_overrides(list(overrides))
        values = [o for o in parsed if self._is_value(o)]
        return tuple(line for line, o in zip(overrides, parsed, strict=True) if o not in values), values, parsed

    def plain(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The task configuration of a job as nested dicts."""
        groups, values, _ = self._parse(overrides)
        base = self._base(groups)[1]
        if base is None or any(isinstance(o.value(), dict | list) or "${" in str(o.value()) for o in values):
            config = self(overrides)
            with open_dict(config):
                del config["hydra"]
            return OmegaConf.to_container(config, resolve=True)
        out = {k: dict(v) if isinstance(v, dict) else v for k, v in base.items()}
        for override in values:
            *path, leaf = override.key_or_group.split(".")
            node = out
            for key in path:
                node = node.get(key) if isinstance(node, dict) else None
            if not isinstance(node, dict) or leaf not in node:
                self.loader.load_sweep_config(self.master, list(overrides))  # Hydra says what is wrong with the key
            else:
                node[leaf] = override.value()
        return out

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """The full configuration of a job, its `hydra` node included."""
        groups, values, parsed = self._parse(overrides)
        config = copy.deepcopy(self._base(groups)[0])
        OmegaConf.copy_cache(from_config=self.master, to_config=config)
        for override in values:
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        task = [line for line, o in zip(overrides, parsed, strict=True) if not o.is_hydra_override()]
        with open_dict(config):
            config.hydra.overrides.task = task
            config.hydra.job.override_dirname = ",".join(task)
        return config
