"""The `grids` sweeper: a union of grids, each configuration composed once and trained once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from nfexp.sweep.compose import Composer
    from nfexp.sweep.intent import Command
    from nfexp.sweep.options import Options
    from nfexp.sweep.stacking import Stacking


class GridsSweeper(Sweeper):
    """Translates `hydra.sweeper` and the command line for :mod:`nfexp.sweep`."""

    config: DictConfig
    hydra_context: HydraContext
    launcher: Any  # a Launcher of Hydra's; ours has `stacking` besides
    composer: Composer

    def __init__(self, **options: Any) -> None:
        self.options = _checked(options)

    def setup(
        self,
        *,
        hydra_context: HydraContext,
        task_function: TaskFunction,
        config: DictConfig,
    ) -> None:
        from nfexp.sweep.compose import Composer

        # The options are checked a second time. Hydra had already resolved those that `__init__`
        # got; only these still show which text came by an interpolation, and is to be converted.
        sweeper = config.hydra.sweeper
        options = {name: sweeper[name] for name in sweeper if name != "_target_"}
        self.options = _checked(options)
        self.hydra_context = hydra_context
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        # The stack launcher trains many jobs at once; any other of Hydra's gets them one by one.
        self.stacking: Stacking | None = getattr(self.launcher, "stacking", None)
        if self.stacking is not None:
            self.composer = self.launcher.composer
        else:
            self.composer = Composer(hydra_context.config_loader, config)

    def command(self, arguments: list[str]) -> Command:
        """The command of a sweep, from the arguments of Hydra's command line."""
        from nfexp.sweep.intent import Command, of_runs

        return Command(
            config=self.config,
            options=self.options,
            composer=self.composer,
            parser=OverridesParser.create(config_loader=self.hydra_context.config_loader),
            arguments=of_runs(arguments),
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Plan the sweep of a command line, have the launcher run it, report."""
        from nfexp.sweep.running import Running

        return Running(self.command(arguments), self.launcher, self.stacking).run()


def _checked(options: Mapping[str, Any]) -> Options:
    from nfexp.configuration import values_of
    from nfexp.sweep.options import checked_options

    plain = {}
    for name, value in options.items():
        plain[name] = values_of(value)
    return checked_options(plain)
