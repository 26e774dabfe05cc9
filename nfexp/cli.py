"""The `nfexp` command: Hydra's command line in front of stacks, with one message for bad input."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from nfexp.commands import command_line, folder_command, resumed
from nfexp.files import trouble
from nfexp.folders import Refused, check_fresh, claims
from nfexp.record import Outcome, outcome
from nfexp.spec import Spec, SpecError, Words, from_mapping, from_text, run_id
from nfexp.surroundings import command
from nfexp.sweep.folder import REDO, locked, read_plan
from nfexp.sweep.worker import check_all, keep, train

log = logging.getLogger(__name__)


def conf_dir() -> str:
    """Absolute path of the configuration: packaged in a wheel, beside the package in a checkout."""
    packaged = Path(__file__).parent / "conf"
    return str(packaged if packaged.is_dir() else Path(__file__).parents[1] / "conf")


def job_folder(job: int) -> str:
    """The folder of a job below its sweep: its number, zero-padded."""
    return f"{job:04d}"


OmegaConf.register_new_resolver("nfexp.job_folder", job_folder, replace=True)


CONTROLS: dict[str, tuple[Any, ...]] = {  # keys that say how a command goes about it, not what a run is
    "dry_run": (False, True),
    "fail_fast": (False, True),
    "mixed": (False, True),
    "redo": tuple(REDO),
}


class RunFailed(RuntimeError):
    """A run raised; its record says why."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended a sweep in good order; the message says what is there and how to go on."""


def check_controls(config: Mapping[str, Any]) -> None:
    for key, options in CONTROLS.items():
        value = config.get(key)
        if value not in options or type(value) is not type(options[0]):
            words = "true or false" if options[0] is False else f"one of {', '.join(options)}"
            raise SpecError(key, words, value)


def plain_of(config: DictConfig) -> dict[str, Any]:
    """A configuration as plain containers. Text from an interpolation becomes the number or truth it spells.

    An environment variable is always text: ``seed=${oc.env:SEED}`` is meant as a typed configuration takes it.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True)

    def convert(node: Any, part: dict[str, Any], prefix: str) -> None:
        for key, value in part.items():
            if isinstance(value, dict):
                convert(node[key], value, f"{prefix}{key}.")
            elif isinstance(value, str) and OmegaConf.is_interpolation(node, key):
                truths = {"true": True, "false": False} if prefix + str(key) in CONTROLS else {}
                part[key] = truths.get(value.lower(), from_text(f"{prefix}{key}", value))

    convert(config, plain, "")
    return plain


def spec_of(config: DictConfig | dict[str, Any]) -> Spec:
    """The checked spec of a composed configuration without its `hydra` node."""
    plain = plain_of(config) if isinstance(config, DictConfig) else config
    if "experiment" in plain:  # where Hydra puts what names no package
        what = "a file without that line" if plain["experiment"] else "an empty file"
        raise SpecError("experiment", "a file whose first line is '# @package _global_'", Words(what))
    check_controls(plain)
    return from_mapping({k: v for k, v in plain.items() if k not in CONTROLS})


def single_spec(config: DictConfig) -> Spec:
    """The checked spec of a run that is not planned by the grids sweeper; raises before anything is trained."""
    spec = spec_of(config)
    if config.dry_run:
        raise SpecError("dry_run", "nfexp -m with the grids sweeper, which alone can plan", Words("a single run"))
    check_all([spec])
    return spec


def objective(end: Outcome | None) -> float:
    """The validation NLL of a run, nats (infinite if it diverged); raises if it failed or has not finished."""
    if end is None or end.status == "failed":
        raise RunFailed(end.reason if end else "not finished")
    return end.val_nll


def job(config: DictConfig) -> float:
    """One run, from its configuration to its directory: what every launcher but `stack` calls.

    A job of a sweep that is finished already is left as it is.
    """
    spec, hydra_config = single_spec(config), HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    done = None if OmegaConf.is_missing(hydra_config.job, "num") else outcome(folder)
    if done is None or done.run_id != run_id(spec):
        with locked(folder, "a folder"):
            check_fresh(folder)
            for _, result, trouble in train([spec], [folder]):
                keep(folder, result, trouble)
    return objective(outcome(folder))


def report(folder: Path) -> None:
    """Make the tables, figures and pages of a finished sweep and print its claim table."""
    from nfexp import report as reporting

    try:
        reporting.main([str(folder)])
    except Exception:
        again = folder_command("nfexp-report", folder)
        log.exception(f"the runs are safe, the report is not: make it again with {again}")


def explain_file(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """What is wrong with a file of the configuration, with its name and line."""
    name = "configuration"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = frame.f_locals.get("full_path", name)  # of Hydra's reader of files
    if isinstance(error, UnicodeDecodeError):
        line, byte = 1, error.object[error.start]
        try:
            Path(name).read_text(encoding="utf-8")
        except UnicodeDecodeError as whole:  # Hydra reads in parts; this error knows its place in the file
            line = whole.object[: whole.start].count(b"\n") + 1
        return f"{name}, line {line}: expected text in UTF-8; got the byte 0x{byte:02x}"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{name}, line {error.problem_mark.line + 1}: expected YAML; got {error.problem}"
    return f"{name}: expected YAML; got {' '.join(str(error).split())}"


# What a command ends with in one line; anything else is a fault of nfexp, and has a traceback
KNOWN_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError, RunFailed, Refused)


def explain(error: BaseException) -> str:
    """One message with the key, what was expected and what came."""
    if isinstance(error, Refused) and error.__cause__ is not None:
        error = error.__cause__
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    if own := next((e for e in chain if isinstance(e, SpecError | RunFailed)), None):
        return str(own)
    text = " ".join(str(error).split())
    if isinstance(error, yaml.YAMLError | UnicodeDecodeError):
        return explain_file(error)
    if isinstance(error, MissingConfigException):
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        known = f"one of {', '.join(error.options)}" if error.options else "a file of the configuration"
        return f"{group or 'configuration'}: expected {known}; got {option!r}"
    if isinstance(error, OSError):
        place, expected, got = trouble(error, "a folder nfexp can write to")
        return f"{place}: expected {expected}; got {got}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: expected Hydra's override syntax; got {str(error).splitlines()[0]}"
    if found := re.search(r"Could not override '([^']+)'", text):
        return f"{found[1]}: expected a key of the configuration (see nfexp --cfg job); got an unknown one"
    if found := re.search(r"Error merging override \+*([\w.]+)=(.*)", text):
        if "Sweep" in str(error.__cause__):
            return f"{found[1]}: expected quotes around range(…) and choice(…) within braces; got {found[2]}"
        if "DictConfig with ListConfig" in str(error.__cause__):
            return f"{found[1]}: expected '+{found[1]}.NAME={{…}}', for these grids have names; got a list"
    return " ".join([text, *str(error.__cause__ or "").split()])


@contextmanager
def configuration_of(asked: Namespace) -> Iterator[Hydra]:
    """Hydra as it will look for the configuration of a command: ``--config-dir`` and the like count."""
    file, module = detect_calling_file_or_module_from_task_function(job)
    search_path = create_automatic_config_search_path(file, module, asked.config_path or conf_dir())
    if asked.config_dir is not None:
        folder = os.path.abspath(asked.config_dir)
        if not os.path.isdir(folder):
            raise SpecError("--config-dir", "a folder", asked.config_dir)
        search_path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    before = HydraConfig.instance().cfg
    try:
        yield Hydra.create_main_hydra2(task_name="nfexp", config_search_path=search_path)
    finally:
        HydraConfig.instance().cfg = before
        GlobalHydra.instance().clear()


def check_plain_run(arguments: Sequence[str]) -> None:
    """Raise what is wrong with a single run before Hydra makes its folder (a sweep checks its jobs itself)."""
    asked = get_args_parser().parse_args(list(arguments))
    shows = asked.help or asked.hydra_help or asked.cfg or asked.info or asked.shell_completion
    if shows or asked.multirun or asked.experimental_rerun:
        return
    name = asked.config_name or "config"
    overrides = list(asked.overrides)
    with configuration_of(asked) as maker:
        if maker.get_mode(name, overrides) is RunMode.MULTIRUN:
            return
        config = maker.compose_config(name, overrides, RunMode.RUN, with_log_configuration=False)
        HydraConfig.instance().set_config(config)
        check_no_sweep(config.hydra.sweeper)
        with open_dict(config):
            del config["hydra"]
        single_spec(config)


def check_no_sweep(sweeper: DictConfig) -> None:
    """Raise if the configuration of a single run asks for several."""
    asked = [key for key in ("grids", "params", "zip", "exclude") if sweeper.get(key)]
    if sweeper.get("repeats", 1) != 1:
        asked.append("repeats")
    if asked:
        raise SpecError(f"hydra.sweeper.{asked[0]}", "nfexp -m, for this is a sweep", Words("a single run"))


@contextmanager
def errors_handed_on() -> Iterator[bool]:
    """Have Hydra raise its errors instead of printing its own message; gives whether the user asked for that, too."""
    name = "HYDRA_FULL_ERROR"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield before == "1"
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@command
def main() -> None:
    """Entry point of `nfexp` and ``python -m nfexp``."""
    run: Any = hydra.main(version_base="1.3", config_path=conf_dir(), config_name="config")(job)
    with errors_handed_on() as wants_traceback:
        try:
            check_plain_run(sys.argv[1:])
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


FREE = rf"({'|'.join(CONTROLS)}|hydra/launcher|hydra\.launcher\.\w+)="  # what may be new when a sweep is resumed

RESUME_USAGE = """\
usage: nfexp-resume DIR [redo=failed|diverged|both] [mixed=true] [hydra.launcher.KEY=VALUE …] [--config-dir=PATH] …

Go on with the sweep in the folder DIR: give its command again, train the runs that have no finished record, report.
Finished runs are kept, and every run keeps its number.

  DIR                      the folder of a sweep, the one that holds sweep.json
  redo=…                   train failed or diverged runs again, or both
  mixed=true               also where finished runs are of another code version
  dry_run=true             only say what there is to train
  fail_fast=true           end at the first run that fails
  hydra.launcher.KEY=VALUE how and where runs are trained, such as hydra.launcher.workers=2; also hydra/launcher=NAME
  --config-dir=PATH        again, if the sweep was begun with it: what can name code is not taken from DIR unasked
                           (so are --config-name, callbacks, …: the refusal says what to type)

examples:
  nfexp-resume outputs/sweeps/adhoc/2026-01-31_12-00-00
  nfexp-resume 'Sweep (1)' redo=failed --config-dir=my_experiments
"""


@command
def resume() -> None:
    """``nfexp-resume DIR [redo=…] [mixed=true] …``: give the command of a sweep again; finished runs are kept."""
    words = sys.argv[1:]
    if "-h" in words or "--help" in words:
        print(RESUME_USAGE, end="")
        return
    try:
        given = command_line(words)
        folder, *more = given.overrides or [""]
        plan = read_plan(Path(folder)) if folder else None
        if plan is None:
            raise SpecError("DIR", "the folder of a sweep", folder or Words("nothing"))
        sys.argv[1:] = resumed(folder, plan.arguments, [*given.flags, *more], FREE)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"nfexp-resume: {explain(error)}\n")
        sys.exit(1)
    main()
