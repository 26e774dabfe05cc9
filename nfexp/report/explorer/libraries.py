"""The code of the libraries that the explorer embeds.

Taken from the Python packages that ship it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from nfexp.analysis.table import ReportError

PACKAGES = ("itables", "vl-convert-python")  # DataTables (MIT); Vega and Vega-Lite (BSD-3-Clause)
HOW_TO_GET = "pip install 'nfexp[explorer]'"


@dataclass(frozen=True)
class Libraries:
    """The code of the libraries, fit to stand within <script> and <style>.

    The scripts define `DataTable` and `vegaEmbed`.
    """

    charts: str
    tables: str  # a module
    tables_style: str
    versions: dict[str, str]


def lacking() -> list[str]:
    """The packages that are needed and not installed."""
    missing = []
    for name in PACKAGES:
        try:
            distribution(name)
        except PackageNotFoundError:
            missing.append(name)
    return missing


@cache
def load_libraries() -> Libraries:
    """Read the code of the libraries; about three seconds, once in a process.

    Raises
    ------
    ReportError
        If a package is not installed, or holds something else than is known.
    """
    missing = lacking()
    if missing:
        raise ReportError("explorer", HOW_TO_GET, f"{' and '.join(missing)} not installed")
    import vl_convert

    folder = Path(str(distribution("itables").locate_file("itables/html")))
    try:
        script = (folder / "dt_bundle.js").read_text(encoding="utf-8")
        style = (folder / "dt_bundle.css").read_text(encoding="utf-8")
    except OSError as error:
        raise ReportError(folder, "the files of DataTables", error.strerror) from None
    snippet = "window.vegaEmbed = vegaEmbed;"
    return Libraries(
        charts=within_script(vl_convert.javascript_bundle(snippet)),
        tables=within_script(_as_global(script)),
        tables_style=style.replace("</", r"<\/"),
        versions={name: distribution(name).version for name in PACKAGES},
    )


def _as_global(module: str) -> str:
    """The bundle of itables with the class DataTable, its default export, as a global name."""
    exports = re.search(r"export\{[^}]*\b([\w$]+) as default\b[^}]*\};?", module)
    if exports is None:
        raise ReportError("itables", "a module with a default export", "another one")
    return module.replace(exports[0], f"window.DataTable={exports[1]};")


def within_script(code: str) -> str:
    """Code whose texts cannot end the script that it stands in.

    >>> within_script("a = '</script>'; b = '<!--'")
    "a = '\\\\x3C/script>'; b = '\\\\x3C!--'"
    """
    code = code.replace("\r\n", "\n")  # a browser does so too, and the content policy holds a hash
    return re.sub(r"<(?=!--|/?script)", r"\\x3C", code, flags=re.IGNORECASE)
