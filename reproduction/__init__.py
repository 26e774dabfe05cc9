"""The tables behind docs/reproduction.md, and the page; the commands are in `__main__`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.children import ROOT
from nfexp.analysis.sequential import rounds_of
from nfexp.analysis.table import read_runs
from nfexp.analysis.table.baselines import BASELINES, load_baselines
from nfexp.spec import ADDED

PAGE, DATA = ROOT / "docs" / "reproduction.md", ROOT / "docs" / "reproduction"
PICTURES = DATA / "img"
STUDIES: dict[str, tuple[str, ...]] = {  # with the pictures that need what its runs recorded
    "ablations": ("summary_centre", "gallery_*", "density_*", "walk_*", "gif_*_moons"),
    "classic": (),  # the ablations by the recipe that was the default before, ten seeds
    "paper_original": ("gallery_*",),
    "paper_grid": (),
    "paper_corner": (),
    "blog": ("walk_*",),
    "blog_norm": (),  # B3 alone, in rounds of fresh seeds
    "peers": (),
    "peers_first": (),
    "search": (),
    "search_again": (),
    "peers_again": (),
    "spiral4": ("density_*", "walk_*"),
}
OF_IMAGES: dict[
    str, tuple[str, ...]
] = {  # studies that are kept in docs/images/, with pictures as above
    "images_digits": (),
    "images_headline": ("images_*", "temperatures_*", "interpolation_*", "scales_*", "imagewalk_*"),
    "images_moments": (),  # the headline with the logit
    "images_sets": ("images_*",),
}
TRUTHS = {  # the draws that they are judged on beside the test draws
    "paper_original": "train", "paper_grid": "train", "paper_corner": "train", "search": "val",
    "search_again": "val",
}  # fmt: skip
DRAWS = ("data.name", "data.noise", "data.n_samples", "seed")
CENTRES = "centres.json"
CLAIMS = "claims.csv"  # every verdict of the page
ROUNDS = "rounds.json"  # of the studies whose seeds came in rounds
Centres = dict[str, dict[str, Any]]


def read_json(path: Path) -> dict[str, Any]:
    """What a file holds by study; nothing if it is not there."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def load(data: Path = DATA) -> tuple[dict[str, pd.DataFrame], dict[str, Centres]]:
    """The stored tables by name, and the centres of each study.

    A table whose seeds came in rounds has their rule as ``attrs["rounds"]``.
    """
    frames = {p.name.removesuffix(".csv.gz"): read_runs(p) for p in sorted(data.glob("*.csv.gz"))}
    frames |= {p.stem: pd.read_csv(p) for p in sorted(data.glob("*_*.csv"))}
    for study, written in read_json(data / ROUNDS).items():
        frames[study].attrs["rounds"] = rounds_of(written)
    if (data / BASELINES).exists():
        frames["baselines"] = load_baselines(data)
    centres: dict[str, Centres] = read_json(data / CENTRES)
    for study in centres.values():
        for target, centre in study.items():
            study[target] = ADDED | centre
    return frames, centres
