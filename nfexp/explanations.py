"""What went wrong in a command, in one message: the key, what was expected and what came."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from hydra.conf import HydraConf
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import OmegaConf

from nfexp.configuration import CONTROLS, conf_dir
from nfexp.files import trouble
from nfexp.record import RunFailed
from nfexp.spec import Data, Flow, Record, Spec, SpecError, Train, near
from nfexp.sweep.claim import Refused


def explain(error: BaseException) -> str:
    """One message with the key, what was expected and what came."""
    if isinstance(error, Refused) and error.__cause__ is not None:
        error = error.__cause__
    for cause in causes(error):
        if isinstance(cause, SpecError | RunFailed):
            return str(cause)  # Hydra wraps what a job or a launcher raises
    if isinstance(error, yaml.YAMLError | UnicodeDecodeError):
        return explain_file(error)
    if isinstance(error, MissingConfigException):
        return explain_missing(error)
    if isinstance(error, OSError):
        path, expected, got = trouble(error, "a folder nfexp can write to")
        return f"{path}: expected {expected}; got {got}"
    if isinstance(error, OverrideParseException):
        if "=" not in str(error.override).strip("~"):
            return f"{error.override}: expected KEY=VALUE; got no '='"
        got = str(error).splitlines()[0]
        return f"{error.override}: expected Hydra's override syntax; got {got}"
    return explain_override(error)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from, what that was raised from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def explain_file(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """What is wrong with a file of the configuration, with its name and line."""
    name = "configuration"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = frame.f_locals.get("full_path", name)  # of Hydra's reader of files
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        line = _line_that_is_no_text(name)
        return f"{name}, line {line}: expected text in UTF-8; got the byte 0x{byte:02x}"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        line = error.problem_mark.line + 1
        return f"{name}, line {line}: expected YAML; got {error.problem}"
    return f"{name}: expected YAML; got {_one_line(error)}"


def _line_that_is_no_text(name: str) -> int:
    """The first line of a file that is not UTF-8; Hydra reads in parts and knows no lines."""
    try:
        Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as whole:
        return whole.object[: whole.start].count(b"\n") + 1
    return 1


def explain_missing(error: MissingConfigException) -> str:
    """Which files of the configuration there are, where one is asked for that is not there."""
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    options = error.options or []
    known = f"one of {', '.join(options)}" if options else "a file of the configuration"
    return f"{group or 'configuration'}: expected {known}; got {option!r}{near(option, options)}"


def explain_override(error: BaseException) -> str:
    """Why Hydra refuses an override: in plain words where its text tells which case it is, else that text."""
    text = _one_line(error)
    cause = str(error.__cause__ or "")
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        expected = "a key of the configuration (see nfexp --cfg job)"
        known = [*_own_keys(), *_hydra_keys()]
        # a known key is refused where this run has none such, as data.path of a built-in target
        hint = "" if unknown[1] in known else near(unknown[1], known)
        return f"{unknown[1]}: expected {expected}; got an unknown one{hint}"
    several = re.search(r"Ambiguous value for argument '(.+?)' 1\.", text)
    if several:
        key, _, values = several[1].partition("=")
        expected = "one value, nfexp -m for a sweep, or quotes around a text with commas"
        return f"{key}: expected {expected}; got {values}"
    unfit = re.search(r"Error merging override \+*([\w.]+)=(.*)", text)
    if unfit:
        key, value = unfit.groups()
        if "Sweep" in cause:
            expected = "quotes around range(…) and choice(…) within braces"
            return f"{key}: expected {expected}; got {value}"
        if "DictConfig with ListConfig" in cause:
            return f"{key}: expected '+{key}.NAME={{…}}', for these grids have names; got a list"
    return " ".join([text, *cause.split()])


def _own_keys() -> list[str]:
    """The keys of a run, and those that say how a command goes about it."""
    keys = [field.name for field in fields(Spec)] + ["experiment", *CONTROLS]
    for group, cls in (("data", Data), ("flow", Flow), ("train", Train), ("record", Record)):
        keys += [f"{group}.{field.name}" for field in fields(cls)]
    return keys


def _hydra_keys() -> list[str]:
    """The keys and groups below `hydra`, with those of our launcher and our sweeper."""
    keys = _keys_below("hydra", OmegaConf.structured(HydraConf))
    for group, option in (("launcher", "stack"), ("sweeper", "grids")):
        keys.append(f"hydra/{group}")
        node = OmegaConf.load(Path(conf_dir(), "hydra", group, f"{option}.yaml"))
        keys += _keys_below(f"hydra.{group}", node)
    return keys


def _keys_below(name: str, node: Any) -> list[str]:
    """A key of a configuration and all below it, in the dotted form of an override."""
    keys = [name]
    if OmegaConf.is_dict(node):
        for key in node:
            child = None if OmegaConf.is_missing(node, key) else node[key]
            keys += _keys_below(f"{name}.{key}", child)
    return keys


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
