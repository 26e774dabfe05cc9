"""What a sweep intends.

The runs of its command line or of its folder, contrasts, rounds of seeds.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from nfexp.arguments import argument, key_of
from nfexp.commands import TARGET, harmless
from nfexp.configuration import CONTROLS, values_of
from nfexp.record.plan import Plan
from nfexp.spec import SpecError, Words, flatten
from nfexp.sweep.compose import Composer
from nfexp.sweep.folder import NumberedJob, Step, read_plan, settle
from nfexp.sweep.grids import Grids, Point, overrides_of
from nfexp.sweep.options import Options
from nfexp.sweep.requests import Chosen, Request, choose

if TYPE_CHECKING:
    from nfexp.analysis.contrasts import OwnContrast
    from nfexp.analysis.sequential import Rounds

# what a target or a table is; p(x | c) is one by itself
NAMING = ("data", "data.name", "data.path", "data.context")


@dataclass(frozen=True, kw_only=True)
class Command:
    """The command of a sweep: its configuration, its arguments, and what makes runs of them.

    `arguments` are those that say what runs are (:func:`of_runs`); `parser` is Hydra's, which knows
    the groups of the configuration.
    """

    config: DictConfig
    options: Options
    composer: Composer
    parser: OverridesParser
    arguments: Sequence[str]

    def points(self) -> tuple[list[list[str]], int]:
        """Overrides of every point, equal ones not yet dropped, and how many `exclude` left out."""
        grids = Grids(self.options, self.parser, self._values)
        points, excluded = grids.points(self.arguments)
        return [overrides_of(point) for point in points], excluded

    def _values(self, point: Point) -> dict[str, Any]:
        """The configuration of a point by key, not yet checked, and the option of each group."""
        values = dict(self.config.hydra.runtime.choices)
        for key, one in point.items():
            values[key] = one.value
        for key, value in self.composer.plain(overrides_of(point)).items():
            if isinstance(value, Mapping):
                for leaf, inner in value.items():
                    values[f"{key}.{leaf}"] = inner
            else:
                values[key] = value
        return values

    def chosen(self, folder: Path) -> Chosen:
        """The runs of the command line or, on resuming, of the folder."""
        old = read_plan(folder)
        if self.options.resume:
            if old is None:
                got = Words("one without sweep.json")
                raise SpecError(str(folder), "the folder of an earlier sweep", got)
            return self.composed(_stored(folder, old))
        overrides, excluded = self.points()
        sample = self.options.sample
        chosen = choose(overrides, self.composer.spec, excluded=excluded, sample=sample)
        if old is not None and old.rounds:
            # What the rounds have added to this folder belongs to the command that began it.
            first = set(old.rounds["first"])
            for identity, request in self.composed(_stored(folder, old)).requests.items():
                if request.spec.seed not in first:
                    chosen.requests.setdefault(identity, request)
        return chosen

    def composed(self, overrides: Sequence[Sequence[str]]) -> Chosen:
        """The runs that lists of overrides say."""
        return choose(overrides, self.composer.spec, excluded=0, sample=None)

    def centres(self, jobs: Iterable[Request | NumberedJob]) -> dict[str, dict[str, Any]]:
        """The centre of the study by target: what the command line fixes, not what is varied."""
        fixed = []
        for one in self.arguments:
            if not argument(one).swept and key_of(one) not in NAMING:
                fixed.append(one)
        centres = {}
        for job in jobs:
            name = job.spec.data.name
            if name not in centres:
                target = [override for override in job.overrides if key_of(override) in NAMING]
                centres[name] = flatten(self.composer.spec([*target, *fixed]))
        return centres

    def settled(self, folder: Path, chosen: Chosen, *, grows: bool = False) -> Step:
        """The jobs with their numbers and folders, and what of them is in the sweep's folder.

        `grows` lets the folder take more jobs than its plan has.
        """

        def place(overrides: Sequence[str], number: int) -> str:
            return os.path.relpath(self.composer.folder(overrides, number), folder)

        return settle(
            folder,
            read_plan(folder),
            chosen.requests,
            place,
            mixed=self.config.mixed or grows,
            redo="none" if grows else self.config.redo,
        )


@dataclass(frozen=True, kw_only=True)
class Intent:
    """What a command intends in a folder; `rounds` is None if the command says all seeds."""

    command: Command
    chosen: Chosen
    contrasts: tuple[OwnContrast, ...]
    rounds: Rounds | None


def intent_of(command: Command, folder: Path, chosen: Chosen) -> Intent:
    """The intent to train the chosen runs.

    Raises for contrasts or rounds that they do not allow.
    """
    contrasts = _contrasts(command, chosen)
    rounds = _rounds(command, folder, chosen, contrasts)
    return Intent(command=command, chosen=chosen, contrasts=contrasts, rounds=rounds)


def _contrasts(command: Command, chosen: Chosen) -> tuple[OwnContrast, ...]:
    """The contrasts of the study's own; raises for one whose cells the sweep does not have."""
    if command.config.get("contrasts") is None:
        return ()
    from nfexp.analysis.contrasts import contrasts_of
    from nfexp.sweep.rounds import check_contrasts  # with pandas, which most sweeps plan without

    contrasts = contrasts_of(values_of(command.config.contrasts))
    requests = chosen.requests.values()
    check_contrasts([request.spec for request in requests], command.centres(requests), contrasts)
    return contrasts


def _rounds(
    command: Command,
    folder: Path,
    chosen: Chosen,
    contrasts: tuple[OwnContrast, ...],
) -> Rounds | None:
    """The rule of the rounds; None if all seeds are said. Raises if the folder has another."""
    config = command.config
    old = read_plan(folder)
    if config.until is None and (old is None or not old.rounds):
        return None
    from nfexp.sweep.rounds import check_claims, check_same_rule, rounds_of_sweep  # with pandas

    specs = [request.spec for request in chosen.requests.values()]
    if old is not None and old.rounds:
        of_first = [spec for spec in specs if spec.seed in old.rounds["first"]]
        specs = of_first or specs
    rounds = None
    if config.until is not None:
        rounds = rounds_of_sweep(specs, config.max_seeds, config.margin)
        check_claims(specs, command.centres(chosen.requests.values()), rounds, contrasts)
    check_same_rule(folder, old, rounds, contrasts)
    return rounds


def of_runs(arguments: Sequence[str]) -> list[str]:
    """The arguments that say what runs are, and not how the sweep goes about them.

    One that lists several values stays among them, for it to be refused.

    >>> of_runs(["flow.n_flows=2,4", "dry_run=true"])
    ['flow.n_flows=2,4']
    """
    kept = []
    for one in arguments:
        if key_of(one).partition(".")[0] not in CONTROLS or argument(one).swept:
            kept.append(one)
    return kept


def check_targets(requests: Iterable[Request]) -> None:
    """Raise if a job names code by itself: when it is resumed, nobody could say whom to trust."""
    for request in requests:
        for override in request.overrides:
            if key_of(override) == TARGET:
                expected = "a file data/NAME.yaml in --config-dir that says it, and data=NAME"
                raise SpecError(TARGET, expected, Words(f"{override!r} of a sweep"))


def _stored(folder: Path, old: Plan) -> list[list[str]]:
    """The overrides of the jobs that a folder lists, which may come from elsewhere."""
    stored = []
    for job in old.jobs:
        for override in job["overrides"]:
            if not harmless(override):
                expected = "jobs with overrides that are safe to repeat"
                raise SpecError(f"{folder}/sweep.json", expected, override)
        stored.append(job["overrides"])
    return stored
