"""Docstrings as Markdown: examples become code, and Sphinx's roles before a name go."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

# `:func:` and the like, which help() and editors show, before the code that it names
ROLE = re.compile(r":(?:func|class|mod|meth|data|attr):`~?([^`]+)`")


class AsMarkdown(Extension):
    """Called by mkdocstrings for everything that it reads."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """A docstring whose examples, each up to the next empty line, stand in fences."""
    lines: list[str] = []
    inside = False
    for line in ROLE.sub(r"`\1`", text).split("\n"):
        bare = line.strip()
        if not inside and bare.startswith(">>>"):
            indent = line[: len(line) - len(line.lstrip())]
            lines.append(f"{indent}```pycon")
            inside = True
        elif inside and not bare:
            lines.append(f"{indent}```")
            inside = False
        lines.append(line)
    if inside:
        lines.append(f"{indent}```")
    return "\n".join(lines).rstrip()
