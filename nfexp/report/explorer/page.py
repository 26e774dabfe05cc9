"""The explorer as one file of HTML.

Code, style and data within it, nothing fetched, one content policy.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from nfexp.report.explorer.charts import ablation, samples
from nfexp.report.explorer.frames import MOST_POINTS
from nfexp.report.explorer.libraries import Libraries
from nfexp.spec import counted

HERE = Path(__file__).parent


def to_page(contents: Mapping[str, Any], code: Libraries) -> str:
    """The page.

    Its policy admits the scripts and styles that stand in it, by their hashes, and no others.
    """
    wiring = (HERE / "explorer.js").read_text(encoding="utf-8")
    colours = (HERE.parent / "colours.css").read_text(encoding="utf-8")
    style = colours + (HERE / "explorer.css").read_text(encoding="utf-8")
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True)
    return environment.get_template("explorer.html.j2").render(
        title=contents["title"],
        n_runs=len(contents["rows"]),
        report=True,
        versions=code.versions,
        samples_note=samples_note(contents["samples"]),
        policy=policy(
            scripts=[code.charts, code.tables, wiring],
            styles=[code.tables_style, style],
        ),
        data=as_json(contents),
        charts=as_json({"ablation": ablation(), "samples": samples()}),
        charts_code=Markup(code.charts),
        tables_code=Markup(code.tables),
        wiring=Markup(wiring),
        tables_style=Markup(code.tables_style),
        style=Markup(style),
    )


def policy(*, scripts: list[str], styles: list[str]) -> str:
    """A content policy under which only these scripts and styles count.

    Nothing is loaded or sent.
    """
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(map(_hashed, scripts))}",
            f"style-src {' '.join(map(_hashed, styles))}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _hashed(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def as_json(value: Any) -> Markup:
    """JSON that may stand within <script>: no letter of it can end the script.

    >>> as_json({"a": "</script>"})
    Markup('{"a":"\\\\u003c/script\\\\u003e"}')
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def samples_note(frames: Mapping[str, Any]) -> str:
    """What is shown of the samples, in a sentence or two."""
    if not frames["runs"]:
        return "No run stored samples in the plane."
    words = (
        f"Thinned for this page: {frames['n_points']} points of each cloud at most ({MOST_POINTS} where there "
        "is room), rounded to 1/254 of the frame. All clouds of a run come from one base draw."
    )
    if frames["n_left_out"]:
        words += f" There is no room for the samples of {counted(frames['n_left_out'], 'run')}."
    return words
