"""A spec that trains in a second."""

from pathlib import Path

import yaml

from nfexp import spec as specs
from nfexp.configuration import conf_dir


def small_spec(**flat):
    """A run of a second: the values of conf/ with fewer steps and points; keys with "__" for "."."""
    conf = Path(conf_dir())
    config = yaml.safe_load((conf / "config.yaml").read_text())
    nested = {k: config[k] for k in ("name", "seed", "device", "data")}
    for group, option in {"data": "moons", "flow": "realnvp", "train": "default", "record": "none"}.items():
        nested[group] = nested.get(group, {}) | yaml.safe_load((conf / group / f"{option}.yaml").read_text())
    values = specs.flatten(specs.from_mapping(nested)) | {
        "data.n_samples": 200, "data.n_val": 100, "data.n_test": 200, "flow.n_flows": 3, "flow.hidden_width": 16,
        "train.steps": 40, "train.batch_size": 32, "train.warmup": 5, "train.n_evals": 13, "device": "cpu",
    }  # fmt: skip
    return specs.unflatten(values | {k.replace("__", "."): v for k, v in flat.items()})
