"""From Hydra's configuration to a checked spec: where the YAML lies, which keys are no part of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nfexp.spec import Spec, SpecError, Words, from_mapping, from_text
from nfexp.tables import settled

REDO = {"none": (), "failed": ("failed",), "diverged": ("diverged",), "both": ("failed", "diverged")}
CONTROLS: dict[str, tuple[Any, ...]] = {  # keys that say how a command goes about it, not what a run is
    "dry_run": (False, True),
    "fail_fast": (False, True),
    "mixed": (False, True),
    "redo": tuple(REDO),
}


def conf_dir() -> str:
    """Absolute path of the configuration: packaged in a wheel, beside the package in a checkout."""
    packaged = Path(__file__).parent / "conf"
    return str(packaged if packaged.is_dir() else Path(__file__).parents[1] / "conf")


def job_folder(job: int) -> str:
    """The folder of a job below its sweep: its number, zero-padded."""
    return f"{job:04d}"


OmegaConf.register_new_resolver("nfexp.job_folder", job_folder, replace=True)


def check_controls(config: Mapping[str, Any]) -> None:
    for key, options in CONTROLS.items():
        value = config.get(key)
        if value not in options or type(value) is not type(options[0]):
            words = "true or false" if options[0] is False else f"one of {', '.join(options)}"
            raise SpecError(key, words, value)


def plain_of(config: DictConfig) -> dict[str, Any]:
    """A configuration as plain containers. Text from an interpolation becomes the number or truth it spells.

    An environment variable is always text: ``seed=${oc.env:SEED}`` is meant as a typed configuration takes it.
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
            truths = {"true": True, "false": False} if full in CONTROLS else {}
            part[key] = truths.get(value.lower(), from_text(full, value))


def values_of(node: Any) -> Any:
    """A node of `hydra.sweeper` as plain containers; text that an interpolation put into a list of values, converted.

    The last key on the way down is the one that the values are of: ``{seed: ["${oc.env:SEED}"]}``.
    """
    return _values(node, "")


def _values(node: Any, key: str) -> Any:
    if OmegaConf.is_dict(node):
        return {name: _values_at(node, name, str(name)) for name in node}
    if OmegaConf.is_list(node):
        return [_values_at(node, i, key) for i in range(len(node))]
    return node


def _values_at(node: Any, place: Any, key: str) -> Any:
    value = _values(node[place], key)
    if isinstance(value, str) and OmegaConf.is_interpolation(node, place):
        return from_text(key, value)
    return value


def spec_of(config: DictConfig | Mapping[str, Any]) -> Spec:
    """The checked spec of a composed configuration without its `hydra` node; a table that it names is read."""
    plain: dict[Any, Any] = plain_of(config) if isinstance(config, DictConfig) else dict(config)
    if "experiment" in plain:  # where Hydra puts what names no package
        what = "a file without that line" if plain["experiment"] else "an empty file"
        raise SpecError("experiment", "a file whose first line is '# @package _global_'", Words(what))
    check_controls(plain)
    spec: Spec = from_mapping({key: value for key, value in plain.items() if key not in CONTROLS})
    return settled(spec)
