"""The `grids` sweeper: a union of grids, each configuration composed once and trained once."""

from __future__ import annotations

import itertools
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.nfexp.compose import Composer

if TYPE_CHECKING:
    from nfexp.spec import Spec

log = logging.getLogger(__name__)

Choices = dict[str, list[str]]  # override key → its values, as the command line would spell them


def spell(value: Any) -> str:
    """A YAML scalar as the command line spells it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def same(a: str, b: str) -> bool:
    """Whether two spellings mean one value: 1e-3 and 0.001."""
    try:
        return float(a) == float(b)
    except ValueError:
        return yaml.safe_load(a) == yaml.safe_load(b)


def since(begun: float) -> str:
    return f"{time.perf_counter() - begun:.1f} s"


def changes_no_number(key: str) -> bool:
    """Whether an override says only how a run is recorded, named or where it is computed."""
    return key in ("record", "name", "device") or key.startswith("record.")


class GridsSweeper(Sweeper):
    def __init__(self, params: Mapping[str, Any], grids: Mapping[str, Any]) -> None:
        from nfexp.spec import SpecError

        for key, value in {"params": params, "grids": grids}.items():
            if not OmegaConf.is_dict(value) and not isinstance(value, dict):
                raise SpecError(f"hydra.sweeper.{key}", "a group of keys", value)
        self.params, self.grids = params, grids

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.composer = getattr(self.launcher, "composer", None) or Composer(hydra_context.config_loader, config)

    def _choices(self, entries: Mapping[str, Any], where: str) -> Choices:
        from nfexp.spec import SpecError

        parser, choices = OverridesParser.create(config_loader=self.hydra_context.config_loader), {}
        for key, value in entries.items():
            listed = OmegaConf.to_container(value) if OmegaConf.is_list(value) else value
            if isinstance(listed, Mapping) or listed == []:
                raise SpecError(f"{where}.{key}", "a value or a list of values", listed)
            text = ",".join(map(spell, listed)) if isinstance(listed, list | tuple) else spell(listed)
            (override,) = parser.parse_overrides([f"{key}={text}"])
            if override.is_sweep_override() and not override.is_discrete_sweep():
                raise SpecError(f"{where}.{key}", "a list of values", text)
            values = override.sweep_string_iterator() if override.is_sweep_override() else [text]
            choices[str(key)] = [str(v) for v in values]
        return choices

    def _expand(self, grid: Any, where: str, params: Choices, cli: Choices) -> Iterator[dict[str, str]]:
        """The points of one grid: its own keys over `params`, `cli` keeping only what agrees with it.

        What a run records is no such key: there the command line simply wins.
        """
        from nfexp.spec import SpecError, Words

        if OmegaConf.is_list(grid):
            for i, part in enumerate(grid):
                yield from self._expand(part, f"{where}[{i}]", params, cli)
            return
        if grid is None or not OmegaConf.is_dict(grid):
            raise SpecError(where, "a grid: keys with lists of values", grid)
        side = grid.get("zip") or {}
        if not OmegaConf.is_dict(side) and side != {}:
            raise SpecError(f"{where}.zip", "keys with lists of values", side)
        zipped = self._choices(side, f"{where}.zip")
        own = self._choices({k: v for k, v in grid.items() if k != "zip"}, where)
        if not own and not zipped and "zip" in grid:
            raise SpecError(where, "a grid: keys with lists of values", "nothing")
        if both := sorted(set(own) & set(zipped)):
            raise SpecError(f"{where}.{both[0]}", "a key in the grid or in its zip", Words("it in both"))
        own = {k: v for k, v in own.items() if not (k in cli and changes_no_number(k))}
        if len({len(v) for v in zipped.values()}) > 1:
            lengths = ", ".join(f"{k}: {len(v)}" for k, v in zipped.items())
            raise SpecError(f"{where}.zip", "lists of one length", lengths)
        side_by_side = [dict(zip(zipped, row, strict=True)) for row in zip(*zipped.values(), strict=True)] or [{}]
        free = {k: v for k, v in (params | cli | own).items() if k not in zipped}
        for row in side_by_side:
            for values in itertools.product(*free.values()):
                point = dict(zip(free, values, strict=True)) | row
                if all(any(same(point[k], v) for v in cli[k]) for k in cli):
                    yield point

    def points(self, arguments: Sequence[str]) -> list[list[str]]:
        """Every job's overrides, duplicates of the configuration not yet dropped."""
        from nfexp.spec import SpecError

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        cli: Choices = {}
        for override in parser.parse_overrides(list(arguments)):
            key = override.get_key_element()
            if override.is_sweep_override():
                if key in ("experiment", "dry_run"):
                    raise SpecError(key, "one value, for it says what the sweep is", override.input_line)
                cli |= self._choices({key: override.input_line.split("=", 1)[1]}, "command line")
            else:
                cli[key] = [override.get_value_element_as_str()]
        params = self._choices(self.params, "hydra.sweeper.params")
        grids = self.grids or {"all": OmegaConf.create({})}
        found = [p for name, g in grids.items() for p in self._expand(g, f"hydra.sweeper.grids.{name}", params, cli)]
        return [[f"{k}={v}" for k, v in point.items()] for point in found]

    def sweep(self, arguments: list[str]) -> Any:
        from nfexp.cli import check_all, check_fresh, report, spec_of
        from nfexp.spec import SpecError, Words, run_id

        fixed, dry = [a for a in arguments if not re.fullmatch("dry_run=[^,]*", a)], self.config.dry_run
        if not isinstance(dry, bool):
            raise SpecError("dry_run", "true or false", dry)
        folder = Path(str(self.config.hydra.sweep.dir))  # fixes ${now:…} before any job copies it
        begun = time.perf_counter()
        points = self.points(fixed)
        jobs: dict[str, tuple[list[str], Spec]] = {}
        for overrides in points:
            spec = spec_of(self.composer.plain(overrides))
            jobs.setdefault(run_id(spec), (overrides, spec))
        if not jobs:
            raise SpecError("hydra.sweeper.grids", "at least one run", Words("none that agrees with the command line"))
        specs = [spec for _, spec in jobs.values()]
        check_all(specs)
        if dry:
            print(self._plan_text(specs, dropped=len(points) - len(jobs)))
            return []
        check_fresh(folder)
        self._describe(folder, jobs, fixed)
        log.info(
            f"{folder}: {len(points)} jobs, {len(points) - len(jobs)} of them duplicates; {since(begun)} to compose"
        )
        results = self.launcher.launch([overrides for overrides, _ in jobs.values()], initial_job_idx=0)
        begun = time.perf_counter()
        report(folder)
        log.info(f"{since(begun)} to report")
        for result in results:
            _ = result.return_value  # raises what a failed job raised
        return results

    def _plan_text(self, specs: list[Spec], dropped: int) -> str:
        from nfexp.run import training_rate
        from nfexp.spec import batch_points, training_cost

        stacks = self.launcher.stacks(specs) if hasattr(self.launcher, "stacks") else [[i] for i in range(len(specs))]
        lines = [f"{'runs':>5} {'flows':>5} {'depth':>5} {'width':>5} {'batch':>5} {'steps':>6}  architecture"]
        for stack in stacks:
            s, f = specs[stack[0]], specs[stack[0]].flow
            rest = f"{f.activation} {f.coupling} {f.conditioner} norm={f.norm} base={f.base}"
            shape = f"{f.n_flows:>5} {f.hidden_depth:>5} {f.hidden_width:>5} {batch_points(s):>5} {s.train.steps:>6}"
            lines.append(f"{len(stack):>5} {shape}  {rest}")
        targets = ", ".join(f"{n} {t}" for t, n in Counter(s.data.name for s in specs).items())
        steps = sum(s.train.steps for s in specs)
        seconds = sum(map(training_cost, specs)) / training_rate(specs[0])
        lines += [
            f"{len(specs)} runs ({targets}) in {len(stacks)} stacks; {dropped} duplicates dropped",
            f"{steps:,} member-steps; about {seconds / 60:.1f} minutes of training on this machine",
        ]
        return "\n".join(lines)

    def _describe(self, folder: Path, jobs: Mapping[str, tuple[list[str], Spec]], fixed: list[str]) -> None:
        """Write what the sweep intends: `multirun.yaml` as Hydra does, and `sweep.json` for the reports."""
        from nfexp.cli import job_folder, spec_of
        from nfexp.files import replacing
        from nfexp.spec import SCHEMA_VERSION, flatten, relevant

        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        single = [o.input_line for o in parser.parse_overrides(fixed) if not o.is_sweep_override()]
        single = [line for line in single if not line.startswith(("data=", "hydra."))]
        centres: dict[str, dict[str, Any]] = {}
        listed = []
        for k, (identity, (overrides, spec)) in enumerate(jobs.items()):
            name = spec.data.name
            if name not in centres:
                own = [o for o in overrides if o.startswith("data=")]
                centres[name] = flatten(spec_of(self.composer.plain([*own, *single])))
            differs = {k: v for k, v in relevant(spec).items() if v != centres[name][k] and k != "seed"}
            folder_name = job_folder(k)
            listed.append(
                {"job": folder_name, "run_id": identity, "data.name": name, "seed": spec.seed,
                 "overrides": overrides, "config": differs}
            )  # fmt: skip
        document = {
            "schema_version": SCHEMA_VERSION,
            "name": self.config.name,
            "centres": centres,
            "jobs": listed,
        }
        with replacing(folder / "sweep.json") as temporary:
            temporary.write_text(json.dumps(document, indent=1))
