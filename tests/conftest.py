"""Shared cases: a small spec, and the command line run in this process."""

import logging
import sys
from pathlib import Path

import pytest
import yaml

from nfexp import spec as specs
from nfexp.cli import conf_dir, main


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


@pytest.fixture
def make_spec():
    return small_spec


@pytest.fixture
def nfexp(tmp_path, monkeypatch, capsys):
    """Call the command line in an empty folder; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nfexp", *arguments])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        code = 0
        handlers, level = logging.root.handlers[:], logging.root.level
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            for handler in set(logging.root.handlers) - set(handlers):
                handler.close()
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)
            logging.root.manager.disable = 0
        out = capsys.readouterr()
        return int(code), out.out, out.err

    return call


SMALL = (
    "data.n_samples=200", "data.n_val=100", "data.n_test=200", "train.steps=20", "train.batch_size=32",
    "train.warmup=2", "train.n_evals=13", "flow.hidden_width=8", "device=cpu",
)  # fmt: skip


@pytest.fixture
def small_args():
    return SMALL
