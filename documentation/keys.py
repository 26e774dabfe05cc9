"""The page of all configuration keys: type and range from `nfexp.spec`, value and meaning from `conf/`.

The meaning of a key is the comment behind its value in `conf/`, and stands nowhere else. Of a key
that no file there holds it is the `meaning` of its field in `nfexp/spec/schema.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from nfexp.configuration import CONTROLS, conf_dir
from nfexp.spec import Spec

CONF = Path(conf_dir())
# Files of each group, the first that holds a key tells of it
FILES = {
    "": ["config.yaml"],
    "data": ["config.yaml", "data/moons.yaml", "data/table.yaml"],
    "flow": ["flow/realnvp.yaml"],
    "train": ["train/default.yaml"],
    "record": ["record/full.yaml"],
    "hydra.sweeper": ["hydra/sweeper/grids.yaml"],
    "hydra.launcher": ["hydra/launcher/stack.yaml"],
}
GROUPS = {
    "": "One run",
    "data": "Data",
    "flow": "Flow",
    "train": "Training",
    "record": "What a run keeps for figures",
}
LINE = re.compile(r"( *)(\w+):(?:\s+(?!#)(.*?))?(?:\s+# (.*))?")


@dataclass(frozen=True)
class Key:
    """A key of the configuration as the page tells of it; `meaning` is empty where nobody wrote one."""

    name: str
    takes: str
    default: str
    meaning: str
    place: str  # where the meaning belongs


@dataclass(frozen=True)
class Written:
    """A line of a YAML file: a value and the comment behind it."""

    value: str
    comment: str


def written(path: Path) -> dict[str, Written]:
    """The lines of a file of `conf/` by their full key: `group.key` for those of a group.

    >>> written(CONF / "train/default.yaml")["weight_decay"].value
    '0.0'
    """
    found = {}
    parents: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = LINE.fullmatch(line)
        if match is None:
            continue
        indent, key, value, comment = match.groups()
        parents = [*parents[: len(indent) // 2], key]
        found[".".join(parents)] = Written(value or "", comment or "")
    return found


def spec_keys() -> Iterator[tuple[str, list[Key]]]:
    """The keys of a run by group, in the order of the schema."""
    hints = get_type_hints(Spec)
    alone = [field for field in fields(Spec) if not is_dataclass(hints[field.name])]
    yield "", [_key("", field, hints[field.name]) for field in alone]
    for group, cls in hints.items():
        if is_dataclass(cls):
            own = get_type_hints(cls)
            yield group, [_key(group, field, own[field.name]) for field in fields(cls)]


def _key(group: str, field: Field[Any], hint: Any) -> Key:
    name = f"{group}.{field.name}" if group else field.name
    line = _line(group, field.name)
    if line is None:
        line = Written("", field.metadata.get("meaning", ""))
    default = line.value
    if field.default is not MISSING:
        default = "null" if field.default is None else str(field.default)
        if line.value not in ("", default):
            default += f" ({line.value} of a table)" if group == "data" else f" ({line.value})"
    return Key(name, takes(hint, field.metadata), default, line.comment, _place(group))


def _files(group: str) -> list[Path]:
    """The files that may tell of a key, in the order in which they are asked."""
    first = [CONF / file for file in FILES.get(group, [])]
    others = sorted((CONF / group).glob("*.yaml")) if group else []
    return [*first, *(path for path in others if path not in first)]


def _line(group: str, name: str) -> Written | None:
    """The first line with a comment that holds the key, or else the first that holds it."""
    found = None
    for path in _files(group):
        of_root = path.name == "config.yaml" and group
        line = written(path).get(f"{group}.{name}" if of_root else name)
        if line is not None and line.comment:
            return line
        found = found or line
    return found


def _place(group: str) -> str:
    files = FILES.get(group) or [f"{group}/*.yaml"]
    return f"a comment behind its value in {' or '.join(f'conf/{file}' for file in files)}"


def takes(hint: Any, meta: Mapping[str, Any]) -> str:
    """What a field takes, in words.

    >>> takes(int | str, {"low": 2, "high": 10, "exclusive": False, "words": ("full",)})
    'whole number from 2 to 10, or `full`'
    """
    kinds = getattr(hint, "__args__", (hint,))
    null = ", or `null`" if type(None) in kinds else ""
    if "choices" in meta:
        return ", ".join(f"`{option}`" for option in meta["choices"]) + null
    if "low" in meta:
        kind = "whole number" if int in kinds else "number"
        low = (
            f"above {_number(meta['low'])}" if meta["exclusive"] else f"from {_number(meta['low'])}"
        )
        high = "" if meta["high"] == float("inf") else f" to {_number(meta['high'])}"
        words = "".join(f", or `{word}`" for word in meta["words"])
        return f"{kind} {low}{high}{words}{null}"
    if "listed" in meta:
        return f"names or positions of columns{null}"
    return f"{'name' if 'pattern' in meta else 'text'}{null}"


def _number(value: float) -> str:
    if value == 2**63 - 1:
        return "2⁶³ − 1"
    return (
        f"{value:,}" if isinstance(value, int) and value < 1e6 else f"{value:g}".replace("e+0", "e")
    )


def control_keys() -> list[Key]:
    """The keys that say how a sweep goes about it."""
    lines = written(CONF / "config.yaml")
    keys = []
    for name, control in CONTROLS.items():
        line = lines.get(name, Written("", ""))
        place = "a comment behind its value in conf/config.yaml"
        keys.append(Key(name, control.expected, line.value, line.comment, place))
    return keys


def hydra_keys(group: str) -> list[Key]:
    """The keys of the sweeper or the launcher."""
    (file,) = FILES[group]
    keys = []
    for name, line in written(CONF / file).items():
        if name.startswith("_") or not line.value:  # of Hydra, or the head of a group
            continue
        place = f"a comment behind its value in conf/{file}"
        keys.append(Key(f"{group}.{name}", "", line.value, line.comment, place))
    return keys


def page() -> str:
    """The page in Markdown."""
    parts = [
        "# Configuration keys",
        "Every key that a run or a sweep takes: `KEY=VALUE` on the command line, or a line of a file. This page is "
        "generated from the schema and from `conf/`. `nfexp --cfg job` prints the values in force; a wrong one ends "
        "in a line that says what was expected.",
        "The default is the one of `data=moons flow=realnvp train=default record=full`; other options of these groups "
        "bring other values.",
    ]
    for group, keys in spec_keys():
        heading = GROUPS.get(group, group)
        parts += [f"## {heading}", _table(keys)]
    parts += [
        "## How a sweep goes about it",
        "None of these changes a run.",
        _table(control_keys()),
    ]
    parts += ["## Which runs a sweep has", _table(hydra_keys("hydra.sweeper"), typed=False)]
    parts += [
        "## Who trains them, and how many at a time",
        _table(hydra_keys("hydra.launcher"), typed=False),
    ]
    return "\n\n".join(parts) + "\n"


def _table(keys: list[Key], *, typed: bool = True) -> str:
    head = ["key", "takes", "default", "meaning"] if typed else ["key", "default", "meaning"]
    rows = [head, ["---"] * len(head)]
    for key in keys:
        default = f"`{key.default}`" if key.default else "–"
        cells = [f"`{key.name}`", key.takes, default, key.meaning]
        if not typed:
            del cells[1]
        rows.append([cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
