"""The `nfexp` command: Hydra's command line in front of stacks, with one message for bad input."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
import yaml
from hydra._internal.hydra import Hydra
from hydra._internal.utils import (
    create_automatic_config_search_path,
    detect_calling_file_or_module_from_task_function,
    get_args_parser,
)
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from nfexp.commands import CommandLine, command_line, folder_word, hydra_text, resumed
from nfexp.configuration import CONTROLS, conf_dir, own_folders, spec_of
from nfexp.explanations import explain
from nfexp.record import RunFailed, objective, outcome
from nfexp.spec import Spec, SpecError, Words, run_id
from nfexp.surroundings import command, environment
from nfexp.sweep.claim import Refused, check_fresh, claims
from nfexp.sweep.conclusion import Interrupted
from nfexp.sweep.folder import locked, read_plan
from nfexp.sweep.planning import check_room, machine
from nfexp.sweep.views import alone, is_terminal
from nfexp.sweep.worker import check_all, keep, train
from nfexp.tables import tell
from nfexp.trackers import Tracking
from nfexp.usage import VERSION, one_line, version_line
from nfexp.usages import RESUME

if TYPE_CHECKING:
    from nfexp.train import State, Training

log = logging.getLogger(__name__)


def single_spec(config: DictConfig) -> Spec:
    """The checked spec of a run that is not planned by the grids sweeper.

    Raises
    ------
    SpecError
        If the run cannot be trained as it is asked for.
    """
    spec = spec_of(config, own_folders(HydraConfig.get()))
    if config.dry_run:
        expected = "nfexp -m with the grids sweeper, which alone can plan"
        raise SpecError("dry_run", expected, Words("a single run"))
    check_all([spec])
    if spec.flow.kind == "image":
        check_room([spec], machine([spec.device]).free_bytes)
    return spec


@contextmanager
def going_on(folder: Path, is_of_sweep: bool) -> Iterator[None]:
    """After Ctrl-C, say how to go on with a single run; a sweep has `nfexp-resume`."""
    try:
        yield
    except KeyboardInterrupt:
        if is_of_sweep:
            raise
        word = folder_word(os.path.relpath(folder))
        if not re.fullmatch(r"[\w./-]+", word):
            word = hydra_text(word)
        again = shlex.quote(f"hydra.run.dir={word}")
        told = f"the run is not finished; go on with its command and {again}"
        raise Interrupted(f"interrupted; {told}") from None


def job(config: DictConfig) -> float:
    """One run, from its configuration to its directory: what every launcher but `stack` calls.

    A job of a sweep that is finished already is left as it is.
    """
    spec = single_spec(config)
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    is_of_sweep = not OmegaConf.is_missing(hydra_config.job, "num")
    done = outcome(folder) if is_of_sweep else None
    if done is None or done.run_id != run_id(spec):
        with locked(folder, "a folder"):
            check_fresh(folder)
            tell([spec])
            tracking = Tracking(config.tracker, folder, {run_id(spec): "."})
            with (
                going_on(folder, is_of_sweep),
                alone(spec, live=not is_of_sweep and is_terminal()) as shown,
            ):

                def observe(training: Training, state: State) -> None:
                    shown(training, state)
                    tracking.observe(training, state)

                trained = list(train([spec], [folder], observer=observe))
            for _, result, failure in trained:
                keep(folder, result, failure)
                tracking.end(spec, result.status, result.metrics)
    return objective(outcome(folder))


# What a command ends with in one line; anything else is a fault of nfexp, and has a traceback
KNOWN_ERRORS = (
    HydraException,
    OmegaConfBaseException,
    yaml.YAMLError,
    ValueError,
    OSError,
    RunFailed,
    Refused,
)


@contextmanager
def configuration_of(asked: Namespace) -> Iterator[Hydra]:
    """Hydra as it will look for a command's configuration: ``--config-dir`` and the like count."""
    file, module = detect_calling_file_or_module_from_task_function(job)
    home = asked.config_path or conf_dir()
    search_path = create_automatic_config_search_path(file, module, home)
    if asked.config_dir is not None:
        folder = os.path.abspath(asked.config_dir)
        if not os.path.isdir(folder):
            raise SpecError("--config-dir", "a folder", asked.config_dir)
        before_ours = SearchPathQuery(provider="schema")
        search_path.prepend("command-line", f"file://{folder}", before_ours)
    before = HydraConfig.instance().cfg
    try:
        yield Hydra.create_main_hydra2(task_name="nfexp", config_search_path=search_path)
    finally:
        HydraConfig.instance().cfg = before
        GlobalHydra.instance().clear()


def parsed_flags(arguments: Sequence[str]) -> Namespace:
    """What Hydra reads of a command line, with one line for a flag that it does not know.

    Its parser by itself prints a usage of eight lines and ends the process with 2.

    Raises
    ------
    SpecError
        For the first flag that is unknown or has no fitting value.
    """

    def refuse(message: str) -> NoReturn:
        _, is_unknown, flags = message.partition("unrecognized arguments: ")
        if is_unknown:
            first = flags.split()[0]
            if not first.startswith("-"):  # argparse takes one group of words alone
                raise SpecError(first, "all KEY=VALUE side by side", Words("a flag between them"))
            known = "KEY=VALUE, or a flag that nfexp --hydra-help lists"
            raise SpecError(first, known, Words("an unknown flag"))
        of_choice = re.fullmatch(
            r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message
        )
        if of_choice:
            flag, got, choices = of_choice.groups()
            names = choices.replace("'", "")  # since Python 3.12 they have no quotes
            raise SpecError(flag, f"one of {names}", got)
        of_flag = re.fullmatch(r"argument (\S+): .*", message)
        raise SpecError(
            of_flag[1] if of_flag else "flags", "a value, as nfexp --hydra-help says", Words("none")
        )

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    asked = parser.parse_args(list(arguments))
    for word in asked.overrides:
        if word.startswith("="):
            raise SpecError(word, "KEY=VALUE", Words("no key"))
    return asked


def run_alone(arguments: Sequence[str]) -> bool:
    """Train a single run, if that is what a command asks for; else False, and nothing has happened.

    What is wrong with the run is raised before Hydra makes its folder. A sweep checks its jobs
    itself.
    """
    asked = parsed_flags(arguments)
    shows = (
        asked.help
        or asked.hydra_help
        or asked.cfg
        or asked.info
        or asked.shell_completion
        or asked.resolve
    )
    if shows or asked.multirun or asked.experimental_rerun:
        return False
    name = asked.config_name or "config"
    overrides = list(asked.overrides)
    with configuration_of(asked) as maker:
        config = composed_alone(maker, name, overrides)
        if config is None:
            return False
        if config.hydra.mode is None:
            overrides.append("hydra.mode=RUN")  # as Hydra itself notes it in the records of a run
        check_plain_run(config)
        with claims:
            maker.run(name, job, overrides)
    return True


def composed_alone(maker: Hydra, name: str, overrides: list[str]) -> DictConfig | None:
    """The configuration of a single run; None if `hydra.mode` asks for a sweep.

    Hydra's own command would compose once for `hydra.mode` and once more for the run.
    """
    try:
        config = maker.compose_config(name, overrides, RunMode.RUN, with_log_configuration=False)
    except Exception:
        # with overrides that only a sweep can have
        if maker.get_mode(name, overrides) is RunMode.MULTIRUN:
            return None
        raise
    return None if config.hydra.mode is RunMode.MULTIRUN else config


def check_plain_run(config: DictConfig) -> None:
    """Raise what is wrong with a single run; takes the node `hydra` out of its configuration."""
    HydraConfig.instance().set_config(config)
    check_no_sweep(config.hydra.sweeper)
    if config.until is not None:
        raise SpecError("until", "nfexp -m, for rounds of seeds are a sweep", Words("a single run"))
    with open_dict(config):
        del config["hydra"]
    single_spec(config)


def check_no_sweep(sweeper: DictConfig) -> None:
    """Raise if the configuration of a single run asks for several."""
    asked = [key for key in ("grids", "params", "zip", "exclude") if sweeper.get(key)]
    if sweeper.get("repeats", 1) != 1:
        asked.append("repeats")
    if asked:
        key = f"hydra.sweeper.{asked[0]}"
        raise SpecError(key, "nfexp -m, for this is a sweep", Words("a single run"))


@command
def main() -> None:
    """Entry point of `nfexp` and ``python -m nfexp``."""
    if VERSION in sys.argv[1:]:
        print(version_line())
        return
    how = {"version_base": "1.3", "config_path": conf_dir(), "config_name": "config"}
    run: Any = hydra.main(**how)(job)
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Hydra then hands errors on instead of printing its own
    with environment(HYDRA_FULL_ERROR="1"):
        try:
            if not run_alone(sys.argv[1:]):
                with claims:
                    run()
        except KeyboardInterrupt as stop:
            told = stop if isinstance(stop, Interrupted) else "interrupted; finished runs are kept"
            sys.stderr.write(f"nfexp: {told}\n")
            sys.stderr.flush()
            sys.stdout.flush()
            os._exit(130)  # nothing that still runs is waited for
        except KNOWN_ERRORS as error:
            if wants_traceback:
                raise
            sys.stderr.write(f"nfexp: {explain(error)}\n")
            sys.exit(1)


# What may be new when a sweep is resumed
NEW_ON_RESUME = rf"({'|'.join(CONTROLS)}|hydra/launcher|hydra\.launcher\.\w+)="


@command
def resume() -> None:
    """``nfexp-resume DIR [redo=…] [mixed=true] …``: give the command of a sweep again.

    Finished runs are kept.
    """
    try:
        given = _resume_words(sys.argv[1:])
        folder, *more = given.overrides or [""]
        plan = read_plan(Path(folder)) if folder else None
        if plan is None:
            is_run = folder and Path(folder, ".hydra").is_dir()
            got = Words("a single run: give its own command again") if is_run else folder
            raise SpecError("DIR", "the folder of a sweep", got or Words("nothing"))
        sys.argv[1:] = resumed(folder, plan.arguments, [*given.flags, *more], NEW_ON_RESUME)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{one_line(RESUME.command, explain(error))}\n")
        sys.exit(1)
    main()


def _resume_words(words: Sequence[str]) -> CommandLine:
    try:
        return command_line(words)
    except ValueError as error:
        raise SpecError(RESUME.command, RESUME.line, Words(str(error))) from None
