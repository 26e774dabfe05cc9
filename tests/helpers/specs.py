"""A spec that trains in a second."""

from pathlib import Path

import yaml

from nfexp import spec as specs
from nfexp.configuration import conf_dir
from nfexp.tables import settled

SMALL = {"flow.n_flows": 3, "flow.hidden_width": 16, "train.steps": 40, "train.batch_size": 32, "train.warmup": 5,
         "train.n_evals": 13, "device": "cpu"}  # fmt: skip


def values_of(group, name):
    """An option of a group with those that it rests on."""
    own = yaml.safe_load((Path(conf_dir()) / group / f"{name}.yaml").read_text())
    values = {}
    for other in own.pop("defaults", []):
        if isinstance(other, dict):  # an override of another group
            continue
        values |= own if other == "_self_" else values_of(group, other)
    return values | own


def _composed(data, flow="classic", train="classic"):
    config = yaml.safe_load((Path(conf_dir()) / "config.yaml").read_text())
    nested = {k: config[k] for k in ("name", "seed", "device", "data")}
    for group, option in {"data": data, "flow": flow, "train": train, "record": "none"}.items():
        nested[group] = nested.get(group, {}) | values_of(group, option)
    return nested


def table_spec(data="table", **flat):
    """As `small_spec`, of a table or of images that are not read yet."""
    is_image = values_of("data", data).get("kind") == "image"
    nested = _composed(data, "image", "image") if is_image else _composed(data)
    for key, value in (SMALL | {k.replace("__", "."): v for k, v in flat.items()}).items():
        group, _, leaf = key.rpartition(".")
        (nested[group] if group else nested)[leaf] = value
    nested["train"]["warmup"] = "up_to_5"
    return specs.from_mapping(nested)


IMAGES = {
    "data.n_samples": 60, "data.n_val": 20, "data.n_test": 20, "flow.n_flows": 1, "flow.hidden_width": 8,
    "train.steps": 5, "train.batch_size": 16, "train.warmup": 2, "train.n_evals": 3, "record.samples": 8,
    "device": "cpu",
}  # fmt: skip


def image_spec(**flat):
    """A run of a second on scikit-learn's digits, settled; keys with "__" for "."."""
    nested = _composed("digits", flow="image", train="image")
    for key, value in (IMAGES | {k.replace("__", "."): v for k, v in flat.items()}).items():
        group, _, leaf = key.rpartition(".")
        (nested[group] if group else nested)[leaf] = value
    return settled(specs.from_mapping(nested))


def small_spec(**flat):
    """A run of a second: the values of conf/ with fewer steps and points; keys with "__" for "."."""
    values = specs.flatten(specs.from_mapping(_composed("moons"))) | {
        "data.n_samples": 200, "data.n_val": 100, "data.n_test": 200, "flow.n_flows": 3, "flow.hidden_width": 16,
        "train.steps": 40, "train.batch_size": 32, "train.warmup": 5, "train.n_evals": 13, "device": "cpu",
    }  # fmt: skip
    return specs.unflatten(values | {k.replace("__", "."): v for k, v in flat.items()})
