"""Synthetic sweep directories that keep the record contract: no training, known effects.

`write_sweep` writes any list of runs; `ablation_sweep` the paper's ablation study with chosen effects.
"""

from __future__ import annotations

import itertools
import json
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

CENTRE: dict[str, Any] = {
    "name": "ablations", "data.name": "moons", "data.n_samples": 2000, "data.noise": 0.05,
    "data.n_val": 2000, "data.n_test": 10000, "data.text": None, "flow.n_flows": 6, "flow.hidden_depth": 2,
    "flow.hidden_width": 64, "flow.activation": "relu", "flow.mask": "alternating",
    "flow.coupling": "affine", "flow.conditioner": "separate", "flow.scale": "learned",
    "flow.init": "identity", "flow.standardise": "moments", "flow.norm": "none", "flow.norm_every": 2,
    "flow.base": "normal", "train.steps": 2000, "train.batch_size": 256, "train.lr": 0.005,
    "train.schedule": "cosine", "train.warmup": 50, "train.grad_clip": 5.0,
    "train.weight_decay": 0.0, "train.matmul_precision": "highest", "train.select": "val",
    "train.n_evals": 20, "record.samples": 200, "record.snapshots": 13, "record.grid": 0, "record.walk": 0,
    "seed": 0, "device": "cpu",
}  # fmt: skip
TARGETS = ("moons", "circles", "spiral2", "spiral4")
NOISES = {
    "moons": (0.01, 0.05, 0.1, 0.2, 0.4),
    "circles": (0.01, 0.05, 0.1, 0.2, 0.4),
    "spiral2": (0.25, 1.0, 2.0, 4.0),
    "spiral4": (0.25, 1.0, 2.0, 4.0),
}
METRICS = (
    "train_nll", "val_nll", "test_nll", "test_nll_se", "worst_nll", "true_nll", "kl", "kl_se",
    "test_bpd", "test_bpd_se", "test_bpd_iw", "test_bpd_iw_se",
    "clean_distance", "sample_distance", "sample_floor", "coverage_50", "coverage_90",
    "calibration_error", "coordinates_moved", "flattening", "batch_gap", "best_step",
    "steps_to_converge", "inverse_error", "n_parameters", "seconds", "stack_size", "diverged_at",
    "diverged_layer",
)  # fmt: skip
Run = tuple[Mapping[str, Any], Mapping[str, Any], str]


def centre(target: str = "moons", **overrides: Any) -> dict[str, Any]:
    """The flat configuration of the study's centre; `overrides` with "__" for ".", as flow__n_flows=3."""
    noise = {"spiral2": 1.0, "spiral4": 1.0}.get(target, 0.05)
    return CENTRE | {"data.name": target, "data.noise": noise} | {k.replace("__", "."): v for k, v in overrides.items()}


def write_sweep(
    folder: Path | str,
    runs: Iterable[Run],
    *,
    name: str = "ablations",
    centres: Mapping[str, Mapping[str, Any]] | None = None,
    sweep_json: bool = True,
    arrays: bool = True,
) -> Path:
    """Write one job per (configuration overrides, metrics overrides, status) and return the sweep directory.

    Overrides are on top of `centre(data.name)`. Status is completed, diverged or failed; "missing" (planned,
    no directory), or "unfinished" (a directory with `.hydra/` and no result.json).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    planned, names = [], []
    for number, (overrides, metrics, status) in enumerate(runs):
        config = centre(overrides.get("data.name", "moons")) | {"name": name} | dict(overrides)
        names.append(config["data.name"])
        job = f"{number:03d}"
        if status != "missing":
            write_run(folder / job, config, metrics, status, arrays=arrays)
        planned.append((job, config))
    centres = dict(centres or {t: centre(t) for t in dict.fromkeys(names)})
    (folder / "multirun.yaml").write_text("hydra: {}\n")
    if sweep_json:
        jobs = []
        for job, config in planned:
            middle = centres[config["data.name"]]
            differs = {k: v for k, v in config.items() if k not in ("seed", "name", "data.name") and v != middle.get(k)}
            words = [f"data={config['data.name']}", *(f"{k}={v}" for k, v in differs.items())]
            jobs.append({"job": job, "run_id": identity(config), "data.name": config["data.name"],
                         "seed": config["seed"], "overrides": words, "config": differs})  # fmt: skip
        record = {"schema_version": 1, "name": name, "centres": centres, "jobs": jobs}
        (folder / "sweep.json").write_text(json.dumps(record, indent=1))
    return folder


def identity(config: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(dict(config), sort_keys=True).encode()):016x}"


def write_run(
    folder: Path | str,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    status: str,
    *,
    arrays: bool = True,
) -> Path:
    """Write one run directory; metrics not given are plausible and depend on the configuration alone."""
    folder = Path(folder)
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    (folder / ".hydra" / "config.yaml").write_text("{}\n")
    (folder / "nfexp.log").write_text("")
    if status == "unfinished":
        return folder
    rng = np.random.default_rng(zlib.crc32(identity(config).encode()))
    full = default_metrics(config, rng) | dict(metrics)
    full["test_nll"] = full["true_nll"] + full["kl"] if full["kl"] is not None else None
    if status != "completed":
        full = dict.fromkeys(METRICS) | {"n_parameters": full["n_parameters"]}
        full["diverged_at"] = metrics.get("diverged_at", 37) if status == "diverged" else None
    if status != "failed":
        write_history(folder / "history.csv", config, full, rng)
        if arrays:
            np.savez_compressed(folder / "samples.npz", **fake_arrays(config, full, rng))
    record = {
        "schema_version": 1, "status": status, "run_id": identity(config), "config": dict(config),
        "metrics": full, "reason": {"completed": None, "diverged": "non-finite loss at step 37",
        "failed": "out of memory"}[status], "versions": {"nfexp": "0.1.0", "torch": "2.0"},
        "git_commit": None, "created": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(record, allow_nan=False))
    return folder


def default_metrics(config: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    true_nll = {"moons": 0.4, "circles": 0.6, "spiral2": 4.6, "spiral4": 5.4}.get(config["data.name"], 1.0)
    kl = 0.04 + 0.004 * rng.standard_normal()
    steps = config["train.steps"]
    return {
        "train_nll": true_nll + kl - 0.02, "val_nll": true_nll + kl, "test_nll": true_nll + kl,
        "test_nll_se": 0.01, "worst_nll": true_nll + 9.0, "true_nll": true_nll, "kl": kl, "kl_se": 0.004,
        "test_bpd": None, "test_bpd_se": None, "test_bpd_iw": None, "test_bpd_iw_se": None,
        "clean_distance": 0.05 + 0.5 * config["data.noise"], "sample_distance": 0.03 + kl / 10, "sample_floor": 0.02,
        "coverage_50": 0.5, "coverage_90": 0.9, "calibration_error": 0.02, "coordinates_moved": 1,
        "flattening": 0.1 if config["flow.norm"] == "batchnorm" else 0.3,
        "batch_gap": -0.01 if config["flow.norm"] == "batchnorm" else None,
        "best_step": steps, "steps_to_converge": steps // 4, "inverse_error": 1e-6,
        "n_parameters": config["flow.n_flows"] * config["flow.hidden_depth"] * config["flow.hidden_width"],
        "seconds": 1.0 + 0.1 * rng.random(), "stack_size": 8, "diverged_at": None, "diverged_layer": None,
    }  # fmt: skip


def write_history(path: Path, config: Mapping[str, Any], metrics: Mapping[str, Any], rng: np.random.Generator) -> None:
    steps = np.unique(np.geomspace(1, config["train.steps"], config["train.n_evals"]).round().astype(int))
    if metrics["val_nll"] is None:
        steps = steps[steps < (metrics["diverged_at"] or 1)]
    low = metrics["val_nll"] if metrics["val_nll"] is not None else 1.0
    val = low + 3 * np.exp(-8 * steps / config["train.steps"]) + 0.005 * rng.random(len(steps))
    rows = ["step,train_nll,val_nll,grad_norm,lr"]
    rows += [f"{s},{v - 0.02:.6g},{v:.6g},{1 / s:.6g},{config['train.lr']}" for s, v in zip(steps, val, strict=True)]
    path.write_text("\n".join(rows) + "\n")


def target_points(name: str, n: int, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Draws (n, 2) that look like the target; not its exact law."""
    u = rng.random(n)
    if name in ("spiral2", "spiral4"):
        angle = np.sqrt(u) * math.pi * (2 if name == "spiral2" else 4)
        points = (2 * angle + math.pi)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    elif name == "circles":
        radius = np.where(rng.random(n) < 0.5, 1.0, 0.8)
        points = radius[:, None] * np.stack([np.cos(2 * math.pi * u), np.sin(2 * math.pi * u)], 1)
    else:
        upper = rng.random(n) < 0.5
        x, y = np.cos(math.pi * u), np.sin(math.pi * u)
        points = np.stack([np.where(upper, x, 1 - x), np.where(upper, y, 0.5 - y)], 1)
    return points + noise * rng.standard_normal((n, 2))


def fake_arrays(
    config: Mapping[str, Any], metrics: Mapping[str, Any], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """The keys of samples.npz that `record.*` asks for, at the contract's shapes; float32."""
    out: dict[str, np.ndarray] = {}
    m, name, noise = config["record.samples"], config["data.name"], config["data.noise"]
    blur = noise + (0.3 * metrics["kl"] if metrics["kl"] is not None else 3.0)
    if m:
        base, best = rng.standard_normal((m, 2)), target_points(name, m, blur, rng)
        steps = np.unique(np.geomspace(1, config["train.steps"], config["record.snapshots"]).round().astype(int))
        share = np.linspace(0, 1, len(steps))[:, None, None]
        out |= {
            "base": base,
            "target": target_points(name, m, noise, rng),
            "snapshots": (1 - share) * base + share * best,
        }
        out |= {"best": best, "snapshot_steps": steps}
    if g := config["record.grid"]:
        points = target_points(name, 300, 0, rng)
        half = 1.2 * np.abs(points).max() + 3 * noise
        ticks = np.linspace(-half, half, g)
        grid = np.stack(np.meshgrid(ticks, ticks), -1)  # row = y, column = x
        square = ((grid[:, :, None] - points) ** 2).sum(-1)
        for key, width in (("grid_log_p", noise), ("grid_log_q", blur)):
            density = np.exp(-square / (2 * width**2)).mean(-1) / (2 * math.pi * width**2)
            out[key] = np.log(np.maximum(density, 1e-30))
        out["grid_extent"] = np.array([-half, half, -half, half])
    if k := config["record.walk"]:
        n_flows = config["flow.n_flows"]
        frames, names = [rng.standard_normal((k, 2))], ["base"]
        end = target_points(name, k, blur, rng) / 3
        for i in reversed(range(n_flows)):
            points = frames[-1].copy()
            points[:, i % 2] += (end[:, i % 2] - points[:, i % 2]) / (1 + i // 2)
            frames.append(points)
            names.append(f"coupling {i + 1}")
        out |= {"walk": np.stack([*frames, 3 * frames[-1]]), "walk_names": np.array([*names, "data"])}
    return {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in out.items()}


def ablation_configs(target: str) -> list[dict[str, Any]]:
    """The cells of the ablation study of one target as overrides of its centre, the centre first."""
    noises = NOISES[target]
    axes = {
        "flow.n_flows": (1, 2, 3, 4, 8, 12), "flow.hidden_depth": (1, 3, 4, 6),
        "flow.activation": ("leaky_relu", "tanh"),
        "data.n_samples": (100, 200, 400, 4000), "flow.mask": ("fixed", "random", "once", "half"),
        "data.noise": [n for n in noises if n != centre(target)["data.noise"]],
        "flow.coupling": ("additive",),
        "flow.norm": ("batchnorm", "actnorm"), "train.lr": (0.001, 0.02, 0.1),
    }  # fmt: skip
    cells: list[dict[str, Any]] = [{}]
    cells += [{key: value} for key, values in axes.items() for value in values]
    cells += [{"flow.n_flows": 1, "flow.hidden_depth": d} for d in (4, 6)]
    cells += [{"flow.n_flows": 1, "flow.hidden_width": 256}]
    cells += [{"flow.n_flows": 4, "data.n_samples": n} for n in (100, 400, 4000)]
    cells += [{"flow.n_flows": 12, "data.noise": max(noises)}]
    return [{"data.name": target} | cell for cell in cells]


def paper_effects(config: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics without seed noise in a world where the paper is right; the key "status" may say "diverged".

    `config` is the full flat configuration of a run.
    """
    hard = config["data.name"] in ("circles", "spiral4")
    flows, lr, n = config["flow.n_flows"], config["train.lr"], config["data.n_samples"]
    low, high = min(NOISES[config["data.name"]]), max(NOISES[config["data.name"]])
    kl = 0.03 + 0.8 * max(0, (6 if hard else 3) - flows) / 5 + 0.002 * max(0, flows - 6)
    kl += 0.005 * abs(config["flow.hidden_depth"] - 2)
    kl += {"tanh": 0.15, "leaky_relu": 0.002}.get(config["flow.activation"], 0)
    kl += {"fixed": 0.9, "half": 0.05, "once": 0.03, "random": 0.02}.get(config["flow.mask"], 0)
    kl += 0.1 * (config["flow.coupling"] == "additive") + {"batchnorm": -0.01, "actnorm": 0.002}.get(
        config["flow.norm"], 0
    )
    kl = max(0.01, kl + 20 / n * (flows == 6) + 0.3 * max(0, 4 - flows) * (n < 400))
    noise = (config["data.noise"] - low) / (high - low)
    metrics: dict[str, Any] = {"kl": kl, "clean_distance": 0.05 + kl / 10 + 0.6 * noise}
    metrics["steps_to_converge"] = int(200 + 40_000 / n)
    if lr > 0.05:
        metrics["status"] = "diverged" if config["seed"] % 3 else "completed"
    return metrics


def ablation_runs(
    seeds: int = 3,
    targets: Iterable[str] = TARGETS,
    effects: Callable[[dict[str, Any]], dict[str, Any]] = paper_effects,
    sd: float = 0.004,
) -> list[Run]:
    """The runs of the study: `effects` plus Gaussians of standard deviation `sd` per run and per seed."""
    runs: list[Run] = []
    for target in targets:
        for cell in ablation_configs(target):
            for seed in range(seeds):
                overrides = (
                    cell | {"seed": seed} | ({} if len(cell) > 1 or seed else {"record.grid": 48, "record.walk": 500})
                )
                config = centre(target) | overrides
                metrics = effects(config)
                status = metrics.pop("status", "completed")
                shared = np.random.default_rng([seed, zlib.crc32(target.encode())]).standard_normal()
                own = np.random.default_rng(
                    zlib.crc32(repr(sorted(config.items(), key=str)).encode())
                ).standard_normal()
                for key, scale in (("kl", sd), ("clean_distance", sd), ("steps_to_converge", 2000 * sd)):
                    if key in metrics:
                        metrics[key] = type(metrics[key])(max(metrics[key] + scale * (shared + own), 1e-3))
                runs.append((overrides, metrics, status))
    return runs


def grid_runs(seeds: int = 5, targets: Iterable[str] = TARGETS) -> list[Run]:
    """A full grid of flows, depth, samples and activation: 500 cells a target, most far from the centre."""
    axes = {
        "data.name": targets, "flow.n_flows": (1, 2, 3, 6, 12), "flow.hidden_depth": (1, 2, 3, 4),
        "data.n_samples": (100, 200, 400, 2000, 4000), "seed": range(seeds),
        "flow.activation": ("relu", "leaky_relu", "tanh", "silu", "elu"),
    }  # fmt: skip
    cells = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return [(cell, paper_effects(centre(cell["data.name"]) | cell), "completed") for cell in cells]


def ablation_sweep(
    folder: Path | str,
    seeds: int = 3,
    targets: Iterable[str] = TARGETS,
    effects: Callable[[dict[str, Any]], dict[str, Any]] = paper_effects,
    *,
    sd: float = 0.004,
    arrays: bool = True,
) -> Path:
    """Write the ablation study (about 40 cells a target); see `paper_effects` for what `effects` returns."""
    return write_sweep(folder, ablation_runs(seeds, targets, effects, sd), arrays=arrays)
