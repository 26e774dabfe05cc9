"""What the console commands call.

Help is printed without the imports of a command, and a Ctrl-C during these imports is answered.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module


def _entry(module: str, function: str = "main", usage: str = "") -> Callable[[], int | None]:
    """The entry point of a command: a function of a module, and the name of its usage in `usages`.

    Without a usage the function prints its own help. After Ctrl-C the exit code is 130, from the
    first import on.
    """

    def enter() -> int | None:
        try:
            if usage and _printed_help(usage):
                return 0
            main: Callable[[], int | None] = getattr(import_module(module), function)
            return main()
        except KeyboardInterrupt:  # before the command could answer it in words
            sys.exit(130)

    return enter


def _printed_help(usage: str) -> bool:
    """Print the help or the version if one is asked for, which needs neither torch nor pandas."""
    from nfexp import usages
    from nfexp.surroundings import command
    from nfexp.usage import answered

    printed: bool = command(answered)(getattr(usages, usage), sys.argv[1:])
    return printed


nfexp = _entry("nfexp.cli")
resume = _entry("nfexp.cli", "resume", usage="RESUME")
report = _entry("nfexp.report", usage="REPORT")
plot = _entry("nfexp.report.figures", usage="PLOT")
baselines = _entry("nfexp.baselines", usage="BASELINES")
export = _entry("nfexp.export", usage="EXPORT")
doctor = _entry("nfexp.doctor", usage="DOCTOR")
