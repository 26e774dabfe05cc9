"""From Hydra's configuration to a checked spec: where the YAML lies, which keys are of no run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nfexp.spec import Spec, SpecError, Words, check_shape, from_mapping, from_text
from nfexp.tables import settled
from nfexp.targets import settled_target
from nfexp.trackers import MODULES, check_tracker

# The values of `redo`, and the status of the finished runs that each trains again
REDO = {
    "none": (),
    "failed": ("failed",),
    "diverged": ("diverged",),
    "both": ("failed", "diverged"),
}


@dataclass(frozen=True)
class Control:
    """A key that says how a command goes about it, not what a run is: what it takes."""

    expected: str
    allows: Callable[[Any], bool]


def _truth(value: Any) -> bool:
    return isinstance(value, bool)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 2


def _amount(value: Any) -> bool:
    """A number above 0, or null."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (is_number and 0 < value < math.inf)


def _mapping(value: Any) -> bool:
    return value is None or isinstance(value, Mapping)


CONTROLS = {
    "dry_run": Control("true or false", _truth),
    "fail_fast": Control("true or false", _truth),
    "explorer": Control("true or false", _truth),
    "mixed": Control("true or false", _truth),
    "redo": Control(f"one of {', '.join(REDO)}", lambda value: value in tuple(REDO)),
    "until": Control("decided, or null", lambda value: value in (None, "decided")),
    "max_seeds": Control("an integer >= 2", _count),
    "margin": Control("a number > 0, in nats, or null", _amount),
    "tracker": Control("tensorboard, mlflow, or null", lambda value: value in (None, *MODULES)),
    "time_budget": Control("a number of minutes > 0, or null", _amount),
    "contrasts": Control("contrasts by name, or null (docs/own-study.md)", _mapping),
}


def conf_dir() -> str:
    """Absolute path of the configuration: packaged in a wheel, beside the package in a checkout."""
    packaged = Path(__file__).parent / "conf"
    if packaged.is_dir():
        return str(packaged)
    return str(Path(__file__).parents[1] / "conf")


def job_folder(job: int) -> str:
    """The folder of a job below its sweep: its number, zero-padded."""
    return f"{job:04d}"


OmegaConf.register_new_resolver("nfexp.job_folder", job_folder, replace=True)


def check_controls(config: Mapping[str, Any]) -> None:
    """Raise for a control with a value that it cannot have."""
    for key, control in CONTROLS.items():
        value = config.get(key)
        if not control.allows(value):
            raise SpecError(key, control.expected, value)
    if config.get("tracker") is not None:
        check_tracker("tracker", config["tracker"])
    for key in ("margin", "time_budget"):
        if config.get(key) is not None and config.get("until") is None:
            raise SpecError(key, "until=decided beside it", config.get(key))


def plain_of(config: DictConfig) -> dict[str, Any]:
    """A configuration as plain containers, in which text from an interpolation is converted.

    It becomes the number or the truth that it spells, as a typed configuration would take it. An
    environment variable is always text: ``seed=${oc.env:SEED}`` is to be a number all the same.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True)
    _convert(config, plain, "")
    return dict(plain)


def written(config: DictConfig) -> dict[str, Any]:
    """A configuration as plain containers, with its interpolations as they are written."""
    plain: Any = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
    return dict(plain)


def _convert(node: Any, part: dict[str, Any], prefix: str) -> None:
    """Convert what interpolates in `node` where its value stands in `part`, in place."""
    for key, value in part.items():
        full = f"{prefix}{key}"
        if isinstance(value, dict):
            _convert(node[key], value, f"{full}.")
        elif isinstance(value, str) and OmegaConf.is_interpolation(node, key):
            part[key] = _converted(full, value)


def _converted(key: str, text: str) -> Any:
    """What a text spells, as the type of its key asks for; text that spells nothing else stays."""
    if key in CONTROLS and text.lower() in ("true", "false"):
        return text.lower() == "true"
    return from_text(key, text)


def values_of(node: Any) -> Any:
    """A node of `hydra.sweeper` as plain containers, with text from interpolations converted.

    The last key on the way down is the one that values are of: ``{seed: ["${oc.env:SEED}"]}``.
    """
    return _values(node, "")


def _values(node: Any, key: str) -> Any:
    """A node as plain containers; `key` is the last one on the way down to it."""
    if OmegaConf.is_dict(node):
        return {name: _values_at(node, name, str(name)) for name in node}
    if OmegaConf.is_list(node):
        return [_values_at(node, i, key) for i in range(len(node))]
    return node


def _values_at(node: Any, place: Any, key: str) -> Any:
    """What stands at one place of a node, a key or a position; only here an interpolation shows."""
    value = _values(node[place], key)
    if isinstance(value, str) and OmegaConf.is_interpolation(node, place):
        return from_text(key, value)
    return value


def own_folders(hydra: Any) -> list[str]:
    """The folders of ``--config-dir`` and the like, from the `hydra` node of a configuration.

    There a target's file is looked for.
    """
    folders = []
    for source in hydra.runtime.config_sources:
        if source.schema == "file" and source.path and source.path != conf_dir():
            folders.append(str(source.path))
    return folders


def spec_of(config: DictConfig | Mapping[str, Any], folders: Sequence[str] = ()) -> Spec:
    """The checked spec of a composed configuration without its `hydra` node.

    A table that it names is read, and so is the source of a target of the user's own, which is
    looked for in `folders` first; nothing of it is executed.
    """
    plain: dict[Any, Any] = plain_of(config) if isinstance(config, DictConfig) else dict(config)
    if "experiment" in plain:  # where Hydra puts a file of this group that names no package
        got = Words("a file without that line" if plain["experiment"] else "an empty file")
        raise SpecError("experiment", "a file whose first line is '# @package _global_'", got)
    check_controls(plain)
    spec: Spec = from_mapping({key: value for key, value in plain.items() if key not in CONTROLS})
    if spec.data.kind == "own":
        return replace(spec, data=settled_target(spec.data, folders))
    whole = settled(spec)
    check_shape(whole)  # of images, which is known now
    return whole
