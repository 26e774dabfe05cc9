"""python -m reproduction.others: held-out KL of other libraries' flows at this project's budget.

Each is trained on the draws of nfexp's own runs (`experiment=peers`: 2,000 steps of 256 points, each seen once), scaled
by their moments, and scored on the same test draws against the same exact density: by nfexp's recipe and, for zuko,
by that of its examples too. Neither was tuned for these targets, and the last weights count, where nfexp keeps those
with the best validation NLL. Writes docs/reproduction/peers_others.csv, a row per run, as runs end.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.cases import Case, make_spec
from benchmarks.children import ROOT
from nfexp.analysis.table import write_csv

OURS = "nfexp's"  # the recipe of conf/train/classic.yaml; the other one: Adam at a constant rate, as in zuko's examples
EXAMPLES_LR = 1e-3
CONTENDERS = [
    ("zuko", OURS), ("zuko", "adam 1e-3"), ("zuko_nsf", OURS), ("normflows", OURS), ("nflows", OURS),
]  # fmt: skip
TARGETS = {"moons": (0.05, 0.1), "circles": (0.1,), "spiral2": (1.0,), "spiral4": (1.0,)}
RESULT = ROOT / "docs" / "reproduction" / "peers_others.csv"


def trained(
    library: str, recipe: str, target: str, noise: float, seed: int, **flat: Any
) -> dict[str, Any]:
    """Train one flow of a library and score it: the KL on the test draws, in nats."""
    import torch

    from benchmarks.contenders import MODELS
    from nfexp.data import load
    from nfexp.train import lr_factor

    torch.set_num_threads(1)
    torch.manual_seed(seed)  # the libraries draw their weights from the global generator
    spec = make_spec(
        f"data={target}",
        **{"data__n_samples": 512_000, "data__noise": noise, "seed": seed, "device": "cpu"} | flat,
    )
    steps, size = spec.train.steps, int(spec.train.batch_size)
    dataset = load(spec)
    x = dataset.train[: steps * size]
    shift, scale = x.mean(0), x.std(0)
    batches = ((x - shift) / scale).float().split(size)
    ours = recipe == OURS
    begun = time.process_time()
    module, mean_nll = MODELS[library](
        Case(
            library=library,
            width=spec.flow.hidden_width,
            depth=spec.flow.hidden_depth,
            n_flows=spec.flow.n_flows,
        )
    )
    optimizer = torch.optim.Adam(module.parameters(), lr=EXAMPLES_LR)
    for step in range(1, steps + 1):
        if ours:
            factor = lr_factor(
                step, steps=steps, warmup=spec.train.warmup, schedule=spec.train.schedule
            )
            optimizer.param_groups[0]["lr"] = spec.train.lr * factor
        optimizer.zero_grad()
        mean_nll(batches[(step - 1) % len(batches)]).backward()
        if ours:
            torch.nn.utils.clip_grad_norm_(module.parameters(), spec.train.grad_clip)
        optimizer.step()
    test, log_p = dataset.test, dataset.true_log_prob()
    with torch.no_grad():
        nll = mean_nll(((test - shift) / scale).float()).item() + scale.log().sum().item()
    return {"model": library, "recipe": recipe, "data.name": target, "data.noise": noise, "seed": seed,
            "kl": nll + log_p.mean().item(), "cpu_seconds": time.process_time() - begun}  # fmt: skip


def study(seeds: int, workers: int, path: Path) -> pd.DataFrame:
    """Every contender, target and seed; what `path` holds is kept."""
    done = pd.read_csv(path).to_dict("records") if path.exists() else []
    keys = ("model", "recipe", "data.name", "data.noise", "seed")
    there = {tuple(row[k] for k in keys) for row in done}
    wanted = [
        (library, recipe, target, noise, seed)
        for seed in range(seeds)
        for target, noises in TARGETS.items()
        for noise in noises
        for library, recipe in CONTENDERS
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        tasks = {pool.submit(trained, *task): task for task in wanted if task not in there}
        for future in as_completed(tasks):
            if error := future.exception():
                print(*tasks[future], f"failed: {error}", flush=True)
                continue
            done.append(future.result())
            write_csv(pd.DataFrame(done).sort_values([*keys]).round(5), path)
            print(
                {k: round(v, 3) if isinstance(v, float) else v for k, v in done[-1].items()},
                flush=True,
            )
    return pd.DataFrame(done)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m reproduction.others", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    study(arguments.seeds, arguments.workers, arguments.out)
