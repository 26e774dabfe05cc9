"""What each command says of itself, and how its arguments are read.

Folders and `key=value`, the same everywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nfexp.spec import SpecError, Words

HELP = ("-h", "--help")
RUNS = "a run, a sweep, or a folder with several of them"  # the folders that most commands read
VERSION = "--version"


@dataclass(frozen=True, kw_only=True)
class Usage:
    """A command: its purpose, its arguments with their meaning, examples to copy.

    >>> usage = Usage(command="nfexp-report", purpose="Make the report of a sweep.", folders="the folder of a sweep",
    ...               options={"out=PATH": "where to write"}, examples=["nfexp-report outputs/sweeps/mine"])
    >>> print(usage.text())
    usage: nfexp-report DIR… [out=PATH]
    <BLANKLINE>
    Make the report of a sweep.
    <BLANKLINE>
      DIR…        the folder of a sweep
      out=PATH    where to write
      -h, --help  this text
      --version   the version of nfexp
    <BLANKLINE>
    examples:
      nfexp-report outputs/sweeps/mine
    """

    command: str
    purpose: str
    folders: str  # what they are; empty if the command takes none
    options: Mapping[str, str] = field(default_factory=dict)
    examples: Sequence[str] = ()
    several: bool = True  # folders
    required: Sequence[str] = ()  # the names of options that cannot be left out

    @property
    def line(self) -> str:
        """The command with all its arguments; those in brackets can be left out."""
        options = []
        for option in self.options:
            is_required = option.partition("=")[0] in self.required
            options.append(option if is_required else f"[{option}]")
        return " ".join([self.command, *self._places(), *options])

    def _places(self) -> list[str]:
        """How the folders are written, of a command that takes any."""
        if not self.folders:
            return []
        return ["DIR…" if self.several else "DIR"]

    def text(self) -> str:
        meanings = dict.fromkeys(self._places(), self.folders) | dict(self.options)
        meanings |= {"-h, --help": "this text", VERSION: "the version of nfexp"}
        width = max(len(name) for name in meanings) + 2
        lines = [f"usage: {self.line}", "", self.purpose, ""]
        for name, meaning in meanings.items():
            lines.append(f"  {name:<{width}}{meaning}")
        lines += ["", "examples:"]
        lines += [f"  {example}" for example in self.examples]
        return "\n".join(lines)


def version_line() -> str:
    """The version of nfexp and of what its numbers rest on."""
    from nfexp.record import code_version, versions

    others = [
        f"{name} {number}" for name, number in versions().items() if name != "nfexp" and number
    ]
    return f"{code_version()} ({', '.join(others)})"


def answered(usage: Usage, words: Sequence[str]) -> bool:
    """Print the help or the version if that is asked for."""
    if any(word in words for word in HELP):
        print(usage.text())
        return True
    if VERSION in words:
        print(version_line())
        return True
    return False


def parsed(usage: Usage, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Split a command line into folders and the values of options.

    Raises
    ------
    SpecError
        For an unknown option, or without a folder.
    """
    known = [option.partition("=")[0] for option in usage.options]
    folders: list[str] = []
    values: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        exists = Path(word).exists()  # a folder may have any name
        if word.startswith("-") and not exists:
            raise SpecError(usage.command, usage.line, Words(f"the option {word}"))
        if exists or not equals or not key.isidentifier():
            folders.append(word)
        elif key in known and value:
            values[key] = value
        else:
            raise SpecError(usage.command, " or ".join(usage.options) or usage.line, Words(word))
    if not folders and usage.folders:
        raise SpecError(usage.command, usage.line, Words("no directory"))
    if folders and not usage.folders:
        raise SpecError(usage.command, usage.line, Words(folders[0]))
    return folders, values


def one_line(command: str, message: str) -> str:
    """What a command ends with: its name, once, and what is wrong."""
    return message if message.startswith(f"{command}: ") else f"{command}: {message}"


def run(
    usage: Usage, argv: Sequence[str] | None, main: Callable[[list[str], dict[str, str]], int]
) -> int:
    """Read the arguments of a command and call `main` with its folders and options.

    Its exit status.

    0 if all went well, 1 with one line that begins with the command's name if not, 130 after
    Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        folders, values = parsed(usage, words)
        return main(folders, values)
    except ValueError as error:
        print(one_line(usage.command, str(error)), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{usage.command}: interrupted; what is finished is kept", file=sys.stderr)
        return 130


def run_without_folders(
    usage: Usage, argv: Sequence[str] | None, main: Callable[[dict[str, str]], int]
) -> int:
    """As :func:`run`, of a command that takes no folders."""
    return run(usage, argv, lambda folders, values: main(values))
