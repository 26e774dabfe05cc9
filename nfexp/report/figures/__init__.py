"""Every figure of a sweep or of a single run, drawn again from its stored results alone."""

# ruff: noqa: E402
from __future__ import annotations

from collections.abc import Sequence

from nfexp.surroundings import command, load_matplotlib

load_matplotlib()  # before the modules of this folder import it

from nfexp import usages
from nfexp.analysis import statistics as stats
from nfexp.analysis import table
from nfexp.report.figures.catalogue import draw_all, plan
from nfexp.report.folders import output_folder
from nfexp.usage import run

__all__ = ["draw_all", "main", "plan"]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """``nfexp-plot DIR… [figures=NAME,PATTERN_*] [out=PATH]``: draw, and print the paths."""
    return run(usages.PLOT, argv, _plot)


def _plot(folders: list[str], options: dict[str, str]) -> int:
    out = output_folder(folders, options.get("out"))
    collected = table.collect(*folders)
    tables = stats.ablations(collected.runs, collected.sweep.centres)
    only = _names(options.get("figures", "*"))
    for path in draw_all(out, collected.runs, collected.sweep, tables, only=only).values():
        print(path)
    return 0


def _names(words: str) -> list[str]:
    """The names in a list with or without the brackets that Hydra writes around it.

    >>> _names("[gallery_*, walk_moons]")
    ['gallery_*', 'walk_moons']
    """
    if words.startswith("[") and words.endswith("]"):
        words = words[1:-1]
    return [name.strip() for name in words.split(",") if name.strip()]
