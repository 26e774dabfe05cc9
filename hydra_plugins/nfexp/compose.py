"""Compose the configuration of a job as Hydra does, but the config groups only once per choice of groups."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict


class Composer:
    """Composes each job once for sweeper and launcher together.

    Group choices (``data=moons``) go through Hydra; plain values (``seed=3``) are set on a copy of what came out.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self.loader, self.master = loader, master
        self.parser = OverridesParser.create(config_loader=loader)
        self.by_groups: dict[tuple[str, ...], DictConfig] = {}
        self.ready: dict[tuple[str, ...], DictConfig] = {}
        self.is_group: dict[str, bool] = {}

    def _plain(self, override: Override) -> bool:
        key = override.key_or_group
        if key not in self.is_group:
            self.is_group[key] = bool(self.loader.get_group_options(key))
        changes = not (override.is_add() or override.is_force_add() or override.is_delete())
        return changes and not self.is_group[key] and override.package is None

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """The full configuration of a job, its `hydra` node included."""
        if tuple(overrides) in self.ready:
            return self.ready.pop(tuple(overrides))
        parsed = self.parser.parse_overrides(list(overrides))
        values = [o for o in parsed if self._plain(o)]
        groups = tuple(line for line, o in zip(overrides, parsed, strict=True) if not self._plain(o))
        if groups not in self.by_groups:
            self.by_groups[groups] = self.loader.load_sweep_config(self.master, list(groups))
        config = copy.deepcopy(self.by_groups[groups])
        OmegaConf.copy_cache(from_config=self.master, to_config=config)
        for override in values:
            if OmegaConf.select(config, override.key_or_group, throw_on_missing=False, default=self) is self:
                # an unknown key: let Hydra say so
                return self.loader.load_sweep_config(self.master, list(overrides))
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        task = [line for line, o in zip(overrides, parsed, strict=True) if not o.is_hydra_override()]
        with open_dict(config):
            config.hydra.overrides.task = task
            config.hydra.job.override_dirname = ",".join(task)
        return config

    def keep(self, overrides: Sequence[str], config: DictConfig) -> None:
        """Hand a composed configuration on to whoever asks for these overrides next."""
        self.ready[tuple(overrides)] = config
