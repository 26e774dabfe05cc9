"""Commands as text: how they are quoted, and which of their arguments may be repeated unasked."""

from __future__ import annotations

import argparse
import functools
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import NoReturn

from nfexp.spec import SpecError, Words

# the flags of Hydra's that a sweep may have
OF_A_SWEEP = ("config_dir", "config_name", "config_path")
# What nfexp-resume is not to say again
ONCE = ("redo", "mixed", "hydra.mode", "hydra.sweep.dir", "hydra.sweeper.resume")


def folder_word(folder: str | Path) -> str:
    """A folder's path as a word of a command: no option, nor Hydra's sign for a missing value.

    >>> folder_word("-m"), folder_word("runs")
    ('./-m', 'runs')
    """
    text = str(folder)
    return f"./{text}" if text.startswith("-") or text == "???" else text


def folder_command(command: str, *folders: str | Path) -> str:
    """A command on folders as a line to paste into a shell.

    >>> folder_command("nfexp-report", "Sweep (1)")
    "nfexp-report 'Sweep (1)'"
    """
    return shlex.join([command, *map(folder_word, folders)])


def hydra_text(text: str) -> str:
    """A text as the value of an override, whatever is in it; nothing of it is interpolated.

    >>> print(hydra_text("Sweep (1), ${x}"))
    'Sweep (1), \\${x}'
    """
    from hydra.core.override_parser.types import Quote, QuotedString

    from nfexp.arguments import literal

    return QuotedString(literal(text), Quote.single).with_quotes()


@dataclass
class CommandLine:
    """A command line as Hydra reads it."""

    flags: list[str]  # about the configuration, each as one word: --config-dir=conf
    overrides: list[str]

    def words(self) -> list[str]:
        return [*self.flags, *self.overrides]


def refuse(message: str | int) -> NoReturn:
    raise ValueError(f"a command line that begins no sweep ({message})")


def refuse_to_exit(status: int = 0, message: str | None = None) -> NoReturn:
    refuse(status)


def command_line(arguments: Sequence[str]) -> CommandLine:
    """The arguments of a sweep's command by kind, in any order; ``--multirun`` goes without saying.

    Raises
    ------
    ValueError
        If there is a flag that no sweep can have.
    """
    from hydra._internal.utils import get_args_parser

    parser: argparse.ArgumentParser = get_args_parser()
    # a parser prints its usage and ends the process otherwise
    parser.error = refuse  # type: ignore[method-assign]
    parser.exit = refuse_to_exit  # type: ignore[method-assign]
    words = list(arguments)
    literal: list[str] = []
    if "--" in words:
        # What follows is no flag, even if it begins with a dash; parse_intermixed_args forgets
        # that.
        end = words.index("--")
        literal = words[end + 1 :]
        words = words[:end]
    parsed = vars(parser.parse_intermixed_args(words))
    overrides = parsed.pop("overrides") + literal
    parsed.pop("multirun")
    flags = []
    for name in OF_A_SWEEP:
        value = parsed.pop(name)
        if value is not None:
            flags.append(f"{_flag(name)}={value}")
    for name, value in parsed.items():
        if value:
            refuse(_flag(name))
    return CommandLine(flags, overrides)


def _flag(name: str) -> str:
    """The flag of an argument of Hydra's parser: config_dir is --config-dir."""
    return f"--{name.replace('_', '-')}"


def name_of(word: str) -> str:
    """The key of an override, or the name of a flag; of neither, the text before its "=".

    >>> name_of("++train.steps=3"), name_of("--config-dir=conf"), name_of("(=3")
    ('train.steps', '--config-dir', '(')
    """
    from hydra.errors import HydraException

    from nfexp.arguments import key_of

    try:
        return key_of(word)
    except HydraException:
        return word.partition("=")[0]


def is_said_once(word: str) -> bool:
    """Whether a word of a command is an override that nfexp-resume is not to say again.

    >>> is_said_once("++redo=failed"), is_said_once("redo")  # the path of a flag, "--config-dir redo"
    (True, False)
    """
    return ("=" in word or word.startswith("~")) and name_of(word) in ONCE


# The keys of Hydra's that say nothing of code or places, whatever their values are
SETTINGS = re.compile(
    r"hydra\.(verbose|job\.chdir|job\.config\.override_dirname\.\w+|sweeper\.\w[\w./-]*"
    r"|launcher\.(max_stack|memory|workers|executor|backend|wait|slurm(\.\w+)*"
    r"|n_jobs|prefer|require|verbose|timeout|pre_dispatch|batch_size))"
)
# paths within the sweep's folder
BELOW = ("hydra.output_subdir", "hydra.job.name", "hydra.sweep.subdir")
SAFE = "arguments that are safe to repeat"
TARGET = "data.target"
# the other keys without a dot choose files
VALUES = ("name", "seed", "device", "dry_run", "fail_fast")


def stays_below(argument: str) -> bool:
    """Whether an override of a key of BELOW leads out of no folder, as far as its text tells."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    value = override.value()
    if override.is_sweep_override() or isinstance(value, list | dict):
        return False
    path = PureWindowsPath(str(value))  # knows the separators of every system
    return not path.anchor and ".." not in path.parts


@functools.cache
def harmless(argument: str) -> bool:
    """Whether an argument from a file can name neither code nor a place outside of the sweep.

    >>> harmless("data.text=a..b"), harmless("experiment=../../x"), harmless("--config-dir=x")
    (True, False, False)
    >>> harmless("data.target=x.py:X"), harmless("hydra.sweeper.params={data.target: x.py:X}")
    (False, False)
    """
    key = name_of(argument)
    value = argument.partition("=")[2]
    if TARGET in argument:  # it is executed, wherever in an argument it is named
        return False
    is_fixed = "${" not in value  # an interpolation may become anything
    if key == "hydra/sweeper":
        return value == "grids"
    if key.startswith("hydra/"):
        return bool(re.fullmatch(r"hydra/\w+=[\w-]+", argument.lstrip("+")))
    if key == "hydra.sweep.subdir":  # the sweeper looks where it leads once it is filled in
        return stays_below(argument)
    if key in BELOW:
        return is_fixed and stays_below(argument)
    if SETTINGS.fullmatch(key):
        return is_fixed and "_target_" not in argument
    if not re.fullmatch(r"(?!hydra\b)\w[\w./-]*", key):
        return False
    is_value = key in VALUES or "." in key
    return is_value or (is_fixed and ".." not in value)  # what is no value chooses a file


def to_repeat(arguments: Sequence[str]) -> list[str]:
    """What ``nfexp-resume`` repeats of a sweep's command; raises as :func:`command_line`."""
    return [word for word in command_line(arguments).words() if not is_said_once(word)]


def resume_command(folder: str | Path) -> str:
    """The line that goes on with the sweep which the command line of this process began.

    What nfexp-resume would ask for again is in it.
    """
    try:
        words = to_repeat(sys.argv[1:])
    except ValueError:  # nfexp was called by a program with a command line of its own
        words = []
    asked = [word for word in words if not harmless(word)]
    return shlex.join(["nfexp-resume", folder_word(folder), *asked])


def resumed(folder: str, stored: Sequence[str], given: Sequence[str], new: str) -> list[str]:
    """The command line that goes on with a sweep, from its own arguments and those given now.

    What is given may match the pattern `new`, or say again what is stored; what is not harmless
    must be.

    Raises
    ------
    SpecError
        If what is given would change the runs, or what must be said again is not given.
    """
    kept = _kept(folder, stored)
    asked = [word for word in kept if not harmless(word)]
    asked_names = [name_of(word) for word in asked]
    given_names = [name_of(word) for word in given]
    for word, name in zip(given, given_names, strict=True):
        if not (re.match(new, word) or word in kept or name in asked_names):
            expected = "redo=…, mixed=…, dry_run=…, fail_fast=… or hydra.launcher.…=…"
            raise SpecError(word, expected, Words("what would change the runs"))
    missing = [word for word in asked if name_of(word) not in given_names]
    if missing:
        raise SpecError(f"{folder}/sweep.json", SAFE, Words(_to_say_again(folder, missing, given)))
    words = [word for word in kept if name_of(word) not in given_names]
    parts = command_line([*words, *given])
    override = f"hydra.sweep.dir={hydra_text(folder_word(folder))}"
    return [*parts.flags, "--multirun", *parts.overrides, override, "hydra.sweeper.resume=true"]


def _kept(folder: str, stored: Sequence[str]) -> list[str]:
    try:
        return to_repeat(stored)
    except ValueError as error:
        raise SpecError(f"{folder}/sweep.json", SAFE, Words(str(error))) from None


def _to_say_again(folder: str, missing: Sequence[str], given: Sequence[str]) -> str:
    """The first argument that is missing, and the command that has all of them.

    A command that a terminal would not show as it is, is not recommended.
    """
    line = shlex.join(["nfexp-resume", folder_word(folder), *missing, *given])
    if not line.isprintable():
        return repr(missing[0])
    return f"{missing[0]!r}, which can name code or another place; if you trust it, type: {line}"
