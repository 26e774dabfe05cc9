"""A density of the user's own: where its source lies, and a digest of it.

Nothing is executed here; no torch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.machinery import PathFinder
from pathlib import Path

from nfexp.files import read_plain
from nfexp.spec import Data, SpecError, Words

KEY = "data.target"
LIMIT = 2**22  # bytes of a source


@dataclass(frozen=True, kw_only=True)
class TargetSource:
    """The source of a target, and the name in it that is the density."""

    place: str  # an absolute path, or the name of a module
    name: str
    code: bytes

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of a hash of the source and the name."""
        return hashlib.sha256(self.code + b"\0" + self.name.encode()).hexdigest()[:16]

    @property
    def is_file(self) -> bool:
        return self.place.endswith(".py")


def find_source(target: str, folders: Iterable[str] = ()) -> TargetSource:
    """The source that ``file.py:Name`` or ``module:Name`` names, read but not executed.

    A relative file is looked for in `folders`, then in the working folder; a module where Python
    finds installed ones.

    Raises
    ------
    SpecError
        If it is not there or cannot be read.

    >>> find_source("nfexp.targets:Ring").place
    'nfexp.targets'
    """
    place, _, name = target.rpartition(":")
    if place.endswith(".py"):
        path = _file(place, folders)
        return TargetSource(place=path, name=name, code=_read(path))
    origin = _origin(place)
    return TargetSource(place=place, name=name, code=_read(origin))


def _file(place: str, folders: Iterable[str]) -> str:
    tried = [*folders, os.getcwd()]
    for folder in tried:
        path = os.path.abspath(os.path.join(folder, os.path.expanduser(place)))
        if os.path.isfile(path):
            return path
    expected = f"a Python file in {' or '.join(tried)}"
    raise SpecError(KEY, expected, place)


def _origin(module: str) -> str:
    """The file of a module. No package on the way to it is imported."""
    paths = None
    for length in range(1, module.count(".") + 2):
        name = ".".join(module.split(".")[:length])
        module_spec = PathFinder.find_spec(name, paths)
        if module_spec is None:
            expected = "a module that Python finds, or a file that ends in .py"
            raise SpecError(KEY, expected, Words(f"no module {name!r}"))
        paths = list(module_spec.submodule_search_locations or [])
    origin = module_spec.origin if module_spec is not None else None
    if origin is None or not origin.endswith(".py"):
        raise SpecError(
            KEY, "a module with a source in Python, for that is what names its runs", module
        )
    return origin


def _read(path: str) -> bytes:
    try:
        return read_plain(Path(os.path.realpath(path)), LIMIT)[0]  # its owner may link it
    except (OSError, ValueError) as error:
        got = Words(" ".join(str(error).split()))
        raise SpecError(KEY, "a source that can be read", got) from None


def settled_target(data: Data, folders: Iterable[str] = ()) -> Data:
    """The data of a target of the user's own with an absolute path, a name and a digest."""
    source = find_source(str(data.target), folders)
    name = source.name if data.name == "own" else data.name
    return replace(data, target=f"{source.place}:{source.name}", name=name, digest=source.digest)
