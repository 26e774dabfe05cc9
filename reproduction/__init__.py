"""The tables behind docs/reproduction.md, and the page; the commands are in `__main__`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.children import ROOT
from nfexp.analysis.table import read_runs
from nfexp.analysis.table.baselines import BASELINES, load_baselines
from nfexp.spec import ADDED

PAGE, DATA = ROOT / "docs" / "reproduction.md", ROOT / "docs" / "reproduction"
PICTURES = DATA / "img"
STUDIES: dict[str, tuple[str, ...]] = {  # with the pictures that need what its runs recorded
    "ablations": ("summary_centre", "gallery_*", "density_*", "walk_*", "gif_*_moons"),
    "paper_original": ("gallery_*",),
    "paper_grid": (),
    "paper_corner": (),
    "blog": ("walk_*",),
    "peers": (),
    "peers_first": (),
    "search": (),
    "spiral4": ("density_*", "walk_*"),
}
TRUTHS = {  # the draws that they are judged on beside the test draws
    "paper_original": "train", "paper_grid": "train", "paper_corner": "train", "search": "val",
}  # fmt: skip
DRAWS = ("data.name", "data.noise", "data.n_samples", "seed")
CENTRES = "centres.json"
Centres = dict[str, dict[str, Any]]


def load(data: Path = DATA) -> tuple[dict[str, pd.DataFrame], dict[str, Centres]]:
    """The stored tables by name, and the centres of each study."""
    frames = {p.name.removesuffix(".csv.gz"): read_runs(p) for p in sorted(data.glob("*.csv.gz"))}
    frames |= {p.stem: pd.read_csv(p) for p in sorted(data.glob("*_*.csv"))}
    if (data / BASELINES).exists():
        frames["baselines"] = load_baselines(data)
    centres: dict[str, Centres] = json.loads((data / CENTRES).read_text())
    for study in centres.values():
        for target, centre in study.items():
            study[target] = ADDED | centre
    return frames, centres
