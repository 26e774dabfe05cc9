"""Recipes in two dimensions, compared on validation draws: how `flow=realnvp` with `train=quick` was chosen.

python -m reproduction.recipes docs/recipes.csv

Every candidate trains on 2,000 points of each of TARGETS at its default noise, in one stack, on one thread; seeds SEEDS
chose the recipe, seeds FRESH were trained once it stood. A flow is judged by its KL on 10,000 *validation* draws of
another seed, which choose nothing in its training: `fresh_kl`. `val_kl` is the one on the 1,000 validation points by
which it kept its weights. Test points are not looked at. CPU seconds are those of a run's share of its stack, without
scoring.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from torch import Tensor

from nfexp.configuration import conf_dir
from nfexp.data import load
from nfexp.run import train_stack
from nfexp.spec import Spec, from_mapping
from nfexp.train import padded

TARGETS = ("moons", "circles", "spiral2", "spiral4")
SEEDS = range(100, 110)
FRESH = range(200, 210)
JUDGED = 10_000  # points that a flow is judged by
OTHER_SEED = 900_000  # added to a run's seed: that of these points


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A recipe: options of the configuration with some keys changed."""

    train: str = "quick"
    flow: str = "realnvp"
    changes: Mapping[str, Any] = field(default_factory=dict)
    seeds: range = SEEDS


# The round before: the start and the size of `flow=compact train=brisk`, from which this round went on
BEFORE = {
    "flow.hidden_width": 32,
    "flow.init": "random",
    "flow.conditioner_input": "passed",
    "flow.base": "contaminated",
    "train.optimizer": "nadam",
    "train.lr": 0.01,
    "train.batch_size": 64,
    "train.warmup": 200,
    "train.steps": 1500,
}
NOISE = {"train.noise": 0.1, "train.noise_end": 0.025}
CALM = {"flow.scale": "soft", "flow.tail": "learned", "train.grad_clip": 1.0}
WIDER = {"flow.hidden_width": 32, "train.steps": 1500}
NARROW = {"flow.hidden_width": 16}
STILL = {"train.noise": 0.0, "train.noise_end": 0.0}


def _before(**changes: Any) -> Candidate:
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    return Candidate(flow="classic", train="classic_quick", changes=BEFORE | keys)


def _from_here(*parts: Mapping[str, Any]) -> Candidate:
    changes: dict[str, Any] = {}
    for part in parts:
        changes |= part
    return Candidate(changes=changes)


CANDIDATES: dict[str, Candidate] = {
    "classic, quick": Candidate(flow="classic", train="classic_quick"),
    "before, 800": _before(train__steps=800),
    "before": _before(),
    "before, noise": _before(**NOISE),
    "before, noise, tail": _before(**NOISE, flow__tail="learned"),
    "before, noise, spread": _before(**NOISE, flow__init="spread"),
    "before, noise, clip 1": _before(**NOISE, train__grad_clip=1.0),
    "before, noise, no clip": _before(**NOISE, train__grad_clip=None),
    "before, noise, masked": _before(**NOISE, flow__conditioner_input="masked"),
    "before, noise, width 64": _before(**NOISE, flow__hidden_width=64),
    "before, noise, tail, clip 1": _before(**NOISE, flow__tail="learned", train__grad_clip=1.0),
    "before, noise, calm": _before(**NOISE, **CALM),
    "before, noise, calm, actnorm": _before(**NOISE, **CALM, flow__norm="actnorm"),
    "before, noise, calm, lr .005": _before(**NOISE, **CALM, train__lr=0.005),
    "before, noise, calm, adam": _before(**NOISE, **CALM, train__optimizer="adam"),
    "before, noise, calm, 3,000": _before(**NOISE, **CALM, train__steps=3000),
    "before, noise, calm, width 16, 2,000": _before(**NOISE, **CALM, **NARROW, train__steps=2000),
    "width 32, 1,500": _from_here(WIDER),
    "width 32, 1,500, actnorm": _from_here(WIDER, {"flow.norm": "actnorm"}),
    "width 32, 1,500, no tail": _from_here(WIDER, {"flow.tail": "none"}),
    "width 32, 1,500, learned scale": _from_here(WIDER, {"flow.scale": "learned"}),
    "width 32, 1,500, lr .005": _from_here(WIDER, {"train.lr": 0.005}),
    "width 32, 1,500, masked": _from_here(WIDER, {"flow.conditioner_input": "masked"}),
    "width 32, 1,500, warm-up 400": _from_here(WIDER, {"train.warmup": 400}),
    "width 32, 1,500, no noise": _from_here(WIDER, STILL),
    "width 32, 1,000 x 128": _from_here(WIDER, {"train.steps": 1000, "train.batch_size": 128}),
    "width 24, 1,500, no noise": _from_here(STILL, {"train.steps": 1500}),
    "width 24, 1,500, no noise, lr .015": _from_here(
        STILL, {"train.steps": 1500, "train.lr": 0.015}
    ),
    "width 16, 2,000": _from_here(NARROW),
    "width 16, 2,000, actnorm": _from_here(NARROW, {"flow.norm": "actnorm"}),
    "width 16, 2,000, lr .02": _from_here(NARROW, {"train.lr": 0.02}),
    "width 16, 3,000": _from_here(NARROW, {"train.steps": 3000}),
    "width 16, 3,000 x 32": _from_here(NARROW, {"train.steps": 3000, "train.batch_size": 32}),
    "width 32, 6,000": _from_here({"flow.hidden_width": 32, "train.steps": 6000}),
    "quick": Candidate(),
    "classic, quick, fresh seeds": Candidate(flow="classic", train="classic_quick", seeds=FRESH),
    "quick, fresh seeds": Candidate(seeds=FRESH),
    "classic, default, three fresh seeds": Candidate(
        flow="classic", train="classic", seeds=FRESH[:3]
    ),
    "default, fresh seeds": Candidate(train="default", seeds=FRESH),
}


def _option(group: str, name: str) -> dict[str, Any]:
    """The values of an option of the configuration, with those that it rests on."""
    with open(f"{conf_dir()}/{group}/{name}.yaml", encoding="utf-8") as file:
        own = yaml.safe_load(file)
    values: dict[str, Any] = {}
    for other in own.pop("defaults", []):
        values |= own if other == "_self_" else _option(group, other)
    return values | own


def spec_of(target: str, seed: int, candidate: Candidate) -> Spec:
    """A run of a candidate."""
    with open(f"{conf_dir()}/config.yaml", encoding="utf-8") as file:
        config = yaml.safe_load(file)
    nested = {
        "name": "recipes",
        "seed": seed,
        "device": "cpu",
        "data": config["data"] | _option("data", target),
        "flow": _option("flow", candidate.flow),
        "train": _option("train", candidate.train),
        "record": _option("record", "none"),
    }
    for key, value in candidate.changes.items():
        group, _, leaf = key.rpartition(".")
        nested[group][leaf] = value
    spec: Spec = from_mapping(nested)
    return spec


@cache
def _judging(target: str, seed: int) -> tuple[Tensor, float]:
    """Validation draws of another seed, and the NLL of the target's own density on them, nats."""
    spec = spec_of(target, seed + OTHER_SEED, Candidate())
    dataset = load(replace(spec, data=replace(spec.data, n_samples=2, n_val=JUDGED, n_test=2)))
    assert dataset.log_prob is not None
    return dataset.val, -dataset.log_prob(dataset.val).mean().item()


def tried(name: str) -> list[dict[str, Any]]:
    """One row a run of a candidate; KL in nats."""
    candidate = CANDIDATES[name]
    specs = [spec_of(target, seed, candidate) for target in TARGETS for seed in candidate.seeds]
    datasets = [load(spec) for spec in specs]
    begun = time.process_time()
    flow, history = train_stack(specs, datasets)
    seconds = (time.process_time() - begun) / len(specs)
    judging = [_judging(spec.data.name, spec.seed) for spec in specs]
    points = padded([points for points, _ in judging]).to(flow.theta)
    with torch.no_grad():
        nll = -torch.cat(
            [flow.log_prob(part) for part in points.split(2000, dim=1)], dim=1
        ).double()
    rows = []
    for e, (spec, dataset) in enumerate(zip(specs, datasets, strict=True)):
        assert dataset.log_prob is not None
        kept = history.steps.index(history.best_step[e])
        val_kl = history.val_nll[e, kept].item() + dataset.log_prob(dataset.val).mean().item()
        lost = history.diverged_at[e] is not None
        rows.append(
            {
                "recipe": name,
                "data.name": spec.data.name,
                "seed": spec.seed,
                "val_kl": np.nan if lost else val_kl,
                "fresh_kl": np.nan if lost else nll[e].mean().item() - judging[e][1],
                "worst_nll": nll[e].max().item(),
                "cpu_seconds": seconds,
            }
        )
    return rows


def compared(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean KL of every recipe on the points that judge it, the lowest geometric mean over the targets first."""
    means = (
        runs.groupby(["recipe", "data.name"])["fresh_kl"]
        .agg(lambda kl: kl.mean(skipna=False))
        .unstack()
    )
    table = means[list(TARGETS)].copy()
    table["geometric mean"] = np.exp(np.log(table).mean(axis=1, skipna=False))
    table["CPU s"] = runs.groupby("recipe")["cpu_seconds"].mean()
    return table.sort_values("geometric mean")


def main(out: str, *names: str) -> None:
    torch.set_num_threads(1)
    rows = []
    for name in names or CANDIDATES:
        rows += tried(name)
        found = pd.DataFrame(rows)
        print(compared(found).round(3).to_string(), flush=True)
        found.to_csv(out, index=False, float_format="%.5g")


if __name__ == "__main__":
    main(*sys.argv[1:])
