"""What sweeps left, taken over into docs/reproduction/."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.cases import make_spec
from nfexp.analysis.sequential import Rounds
from nfexp.analysis.table import ReportError, collect, load_arrays, write_csv
from nfexp.analysis.table.baselines import BASELINES, load_baselines
from nfexp.data import density_of, load
from nfexp.files import replacing
from nfexp.report.figures import draw_all
from nfexp.spec import counted
from reproduction import (
    CENTRES,
    DATA,
    DRAWS,
    OF_IMAGES,
    PICTURES,
    ROUNDS,
    STUDIES,
    TRUTHS,
    read_json,
)


def copied(pictures: Iterable[Path], images: Path, prefix: str = "") -> None:
    """Put pictures beside the page, each whole or not at all."""
    images.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        with replacing(images / f"{prefix}{picture.name}") as path:
            path.write_bytes(picture.read_bytes())


def take(
    study: str, dirs: Sequence[str], data: Path = DATA, images: Path | None = PICTURES
) -> None:
    """Store the table, the centres, the layers, the baselines and the recorded pictures of a study's sweeps.

    Runs that are planned and were never trained are left out, and counted in one line.
    """
    found = collect(*dirs)
    is_missing = found.runs["status"] == "missing"
    runs = found.runs[~is_missing]
    if is_missing.any():
        print(
            f"{study}: left out {counted(int(is_missing.sum()), 'run')}, planned and never trained"
        )
    data.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        plain = Path(name) / f"{study}.csv"
        write_csv(runs.drop(columns="dir").sort_values(["data.name", "job"], kind="stable"), plain)
        with replacing(data / f"{study}.csv.gz") as path:
            path.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
    centres = read_json(data / CENTRES) | {study: found.sweep.centres}
    with replacing(data / CENTRES) as path:
        path.write_text(json.dumps(centres, indent=1, sort_keys=True) + "\n")
    _keep_rounds(study, found.sweep.rounds, data / ROUNDS)
    if split := TRUTHS.get(study):
        path = data / f"{split}_truth.csv"
        parts = [pd.read_csv(path)] if path.exists() else []
        write_csv(pd.concat([*parts, truth(runs, split)]).drop_duplicates([*DRAWS]), path)
    if study == "blog":
        write_csv(layer_table(runs), data / "blog_layers.csv")
    if len(fits := load_baselines(*dirs)):
        write_csv(fits.astype({"n_components": "Int64"}), data / BASELINES)
    patterns = (STUDIES | OF_IMAGES)[study]
    if images and patterns:
        with tempfile.TemporaryDirectory() as name:
            drawn = draw_all(Path(name), runs, found.sweep, {}, only=patterns)
            copied(drawn.values(), images, f"{study}_")


def _keep_rounds(study: str, rounds: Rounds | None, kept: Path) -> None:
    """Keep the rule of the rounds of a study beside its table, or that it has none."""
    rules = read_json(kept)
    rules.pop(study, None)
    if rounds is not None:
        rules[study] = rounds.written()
    if rules or kept.exists():
        with replacing(kept) as path:
            path.write_text(json.dumps(rules, indent=1, sort_keys=True) + "\n")


def layer_table(runs: pd.DataFrame) -> pd.DataFrame:
    """How flat every layer leaves the points, from stored walks: least over greatest standard deviation."""
    rows = []
    done = runs[runs["status"] == "completed"]
    for run in done.to_dict("records"):
        try:
            arrays = load_arrays(run["dir"], only=("walk", "walk_names"))
        except ReportError:
            continue
        if not {"walk", "walk_names"} <= arrays.keys() or not np.isfinite(arrays["walk"]).all():
            continue
        for position, (name, points) in enumerate(
            zip(arrays["walk_names"], arrays["walk"], strict=True)
        ):
            spread = np.linalg.svd(points - points.mean(0), compute_uv=False)
            own = {k: run[k] for k in ("data.name", "flow.norm", "flow.scale", "train.lr", "seed")}
            flat = float(f"{spread[-1] / spread[0]:.4g}")
            rows.append(own | {"position": position, "layer": str(name), "flattening": flat})
    return pd.DataFrame(rows)


def truth(runs: pd.DataFrame, split: str) -> pd.DataFrame:
    """The target's own NLL on the points that `train_nll` or `val_nll` is of: at most `data.n_val` of the split."""
    rows = []
    for key, own in runs.groupby([*DRAWS]):
        (name, noise, n, seed), shown = key, int(own["data.n_val"].iloc[0])
        spec = make_spec(
            data__name=name,
            data__noise=noise,
            data__n_samples=int(n),
            data__n_val=shown,
            seed=int(seed),
        )
        x = getattr(load(spec), split)[:shown]
        rows.append(
            dict(zip(DRAWS, key, strict=True))
            | {"true_nll": -float(density_of(spec.data).log_prob(x).mean())}
        )
    return pd.DataFrame(rows)
