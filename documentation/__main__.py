"""`python -m documentation`: gather the pages, written and generated, and build the site of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from documentation import keys, pages

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build/docs"
SITE = ROOT / "build/site"
GENERATED: dict[str, Callable[[], str]] = {
    "keys.md": keys.page,
    "catalogue.md": pages.claims_page,
    "commands.md": pages.commands_page,
    "interface.md": pages.interface_page,
}
COPIED = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
SUFFIXES = (".md", ".png", ".gif", ".css", ".csv", ".gz", ".json", ".ipynb", ".svg")
# A link that leads out of docs/ becomes its text, for the site stands alone.
OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?!docs/)[^)#]+\.(?:py|toml|txt|yaml)[^)]*\)")

# What a page would load from elsewhere
FETCHED = re.compile(
    r"""<(?:script|img|iframe|link rel="stylesheet")[^>]*(?:src|href)="(https?:[^"]*)"""
)


def gather(folder: Path = PAGES) -> None:
    """Write all pages of the site, and what they show, into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for source in sorted((ROOT / "docs").rglob("*")):
        place = folder / source.relative_to(ROOT / "docs")
        if not source.is_file() or source.suffix not in SUFFIXES:
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":
            place.write_text(standing_alone(source.read_text(encoding="utf-8")), encoding="utf-8")
        else:
            shutil.copyfile(source, place)
    for name, make in GENERATED.items():
        (folder / name).write_text(make(), encoding="utf-8")
    for name, source_name in COPIED.items():
        text = (ROOT / source_name).read_text(encoding="utf-8").replace("](docs/", "](")
        (folder / name).write_text(standing_alone(text), encoding="utf-8")


def standing_alone(text: str) -> str:
    """A page without links that lead out of the site.

    >>> standing_alone("[a](b.md) [code](../nfexp/run.py)")
    '[a](b.md) code'
    """
    return OUTSIDE.sub(r"\1", text)


def build() -> None:
    """Build the site from the gathered pages; CalledProcessError where there is any warning."""
    command = [
        sys.executable,
        "-m",
        "zensical",
        "build",
        "--clean",
        "--strict",
        "--config-file",
        "mkdocs.yml",
    ]
    subprocess.run(command, check=True, cwd=ROOT)
    for page in SITE.rglob("*.html"):
        fetched = FETCHED.search(page.read_text(encoding="utf-8"))
        if fetched is not None:
            raise SystemExit(f"{page}: fetches {fetched[1]}, but the site is to stand alone")


if __name__ == "__main__":
    gather()
    build()
    print(SITE / "index.html")
    # a page that is opened as a file may not read the index of the search
    print(
        "To search in it, serve it: python -m http.server --bind 127.0.0.1 --directory",
        SITE.relative_to(ROOT),
    )
