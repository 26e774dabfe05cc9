"""Recipes at the budget of `train=quick`, compared by validation KL: how `flow=compact train=brisk` was chosen.

python -m reproduction.recipes docs/recipes.csv

The rule, written down before the first number was seen: every candidate trains on 2,000 points of each of TARGETS at
its default noise, seeds SEEDS, by torch on one thread. Candidates that take more than 1.1 times the CPU time of
`train=quick`, or of which a run diverges, are out. Of the others that is chosen which has the lowest geometric mean,
over the targets, of its mean validation KL: the validation NLL of the kept weights minus the exact NLL of the same
points. Test points are not looked at.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from nfexp.configuration import conf_dir
from nfexp.data import load
from nfexp.run import run_stack
from nfexp.spec import Spec, from_mapping

TARGETS = ("moons", "circles", "spiral2", "spiral4")
SEEDS = range(100, 110)
SLOWEST = 1.1  # times the CPU time of train=quick

NEW = {
    "flow.hidden_width": 32,
    "flow.init": "random",
    "flow.conditioner_input": "passed",
    "flow.base": "contaminated",
    "train.optimizer": "nadam",
    "train.lr": 0.01,
    "train.batch_size": 64,
    "train.warmup": 200,
    "train.steps": 800,
}
ACTNORM = {"flow.norm": "actnorm"}
TAIL = {"flow.tail": "learned"}
NOISE = {"train.noise": 0.1, "train.noise_end": 0.025}
LONG = {"train.steps": 1500}
CANDIDATES: dict[str, dict[str, Any]] = {
    "quick": {},
    "new": NEW,
    "new, actnorm": NEW | ACTNORM,
    "new, tail": NEW | TAIL,
    "new, noise, 1,500 steps": NEW | NOISE | LONG,
    "new, actnorm, noise, 1,500 steps": NEW | ACTNORM | NOISE | LONG,
    "new, tail, noise, 1,500 steps": NEW | TAIL | NOISE | LONG,
}


def _option(group: str, name: str) -> dict[str, Any]:
    """The values of an option of the configuration, with those that it rests on."""
    with open(f"{conf_dir()}/{group}/{name}.yaml", encoding="utf-8") as file:
        own = yaml.safe_load(file)
    values: dict[str, Any] = {}
    for other in own.pop("defaults", []):
        values |= own if other == "_self_" else _option(group, other)
    return values | own


def spec_of(target: str, seed: int, changes: Mapping[str, Any]) -> Spec:
    """A run of `flow=realnvp train=quick` with some keys changed."""
    with open(f"{conf_dir()}/config.yaml", encoding="utf-8") as file:
        config = yaml.safe_load(file)
    nested = {
        "name": "recipes",
        "seed": seed,
        "device": "cpu",
        "data": config["data"] | _option("data", target),
        "flow": _option("flow", "realnvp"),
        "train": _option("train", "quick") | {"kernel": "torch"},
        "record": _option("record", "none"),
    }
    for key, value in changes.items():
        group, _, leaf = key.rpartition(".")
        nested[group][leaf] = value
    spec: Spec = from_mapping(nested)
    return spec


def tried(name: str, seeds: range) -> list[dict[str, Any]]:
    """One row a run: its validation KL, nats, and its share of the CPU time of its stack."""
    rows = []
    for target in TARGETS:
        specs = [spec_of(target, seed, CANDIDATES[name]) for seed in seeds]
        begun = time.process_time()
        results = run_stack(specs)
        seconds = (time.process_time() - begun) / len(specs)
        for spec, result in zip(specs, results, strict=True):
            dataset = load(spec)
            assert dataset.log_prob is not None
            truth = -dataset.log_prob(dataset.val).mean().item()
            val_nll = result.metrics.get("val_nll")
            val_kl = np.nan if val_nll is None else val_nll - truth
            rows.append(
                {"recipe": name, "data.name": target, "seed": spec.seed, "val_kl": val_kl, "cpu_seconds": seconds}
            )
    return rows


def chosen(runs: pd.DataFrame) -> pd.DataFrame:
    """The table of recipes by the rule above, the best first; `out` says why one cannot be chosen."""
    means = runs.groupby(["recipe", "data.name"])["val_kl"].agg(lambda kl: kl.mean(skipna=False)).unstack()
    table = means[list(TARGETS)].copy()
    table["geometric mean"] = np.exp(np.log(table).mean(axis=1, skipna=False))
    table["CPU s"] = runs.groupby("recipe")["cpu_seconds"].mean()
    slow = table["CPU s"] > SLOWEST * table.loc["quick", "CPU s"]
    table["out"] = np.where(table["geometric mean"].isna(), "diverged", np.where(slow, "slow", ""))
    return table.sort_values(["out", "geometric mean"])


def main(out: str) -> None:
    torch.set_num_threads(1)
    rows = []
    for name in CANDIDATES:
        rows += tried(name, SEEDS)
        found = pd.DataFrame(rows)
        print(chosen(found).round(3).to_string(), flush=True)
        found.to_csv(out, index=False, float_format="%.5g")


if __name__ == "__main__":
    main(*sys.argv[1:])
