"""What the console commands call: the module of each is imported within reach of a Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module


def _entry(module: str, function: str = "main") -> Callable[[], int | None]:
    """The entry point of a command; after Ctrl-C its status is 130, from the first import on."""

    def enter() -> int | None:
        try:
            main: Callable[[], int | None] = getattr(import_module(module), function)
            return main()
        except KeyboardInterrupt:  # before the command could answer it in words
            sys.exit(130)

    return enter


nfexp = _entry("nfexp.cli")
resume = _entry("nfexp.cli", "resume")
report = _entry("nfexp.report")
plot = _entry("nfexp.report.figures")
baselines = _entry("nfexp.baselines")
export = _entry("nfexp.export")
doctor = _entry("nfexp.doctor")
