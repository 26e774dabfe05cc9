"""The tables of docs/images.md, each from the stored tables in docs/images/ alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from benchmarks.children import ROOT
from benchmarks.tables import markdown
from nfexp.analysis import claims
from nfexp.analysis import statistics as stats
from nfexp.analysis.claims.images import IMAGE_CLAIMS
from nfexp.analysis.statistics import mean_interval
from nfexp.analysis.table.baselines import ALL_MODELS
from nfexp.report.contents import BADGES
from nfexp.report.words import interval, number, plain
from reproduction import Centres
from reproduction.blocks import Block

IMAGES_PAGE, IMAGES_DATA = ROOT / "docs" / "images.md", ROOT / "docs" / "images"
IMAGES_PICTURES = IMAGES_DATA / "img"
STUDY, HEADLINE = "images_digits", "images_headline"
BEFORE = (
    "images_moments"  # the headline's flows with the logit instead of the pixels' own distributions
)
Frames = Mapping[str, pd.DataFrame]
AllCentres = Mapping[str, Centres]


def _mean(values: pd.Series) -> str:
    return interval(*mean_interval(values.dropna()))


def headline_table(frames: Frames, centres: AllCentres) -> str:
    """Flows at full length, by where a level lies in its cell, and an ensemble of them."""
    runs = pd.concat([frames[HEADLINE], frames[BEFORE]])
    done = runs[runs["status"] == "completed"]
    rows = []
    what = ["flow.standardise", "flow.members", "flow.dequantisation"]
    for (begin, members, way), own in done.groupby(what):
        train = own["train_nll"] / (own["data.dim"] * math.log(2))
        bits = [_mean(values) for values in (own["test_bpd"], own["test_bpd_iw"], train)]
        size = f"{own['n_parameters'].max():,.0f}"
        rows.append([str(begin), str(way), str(members), str(len(own)), *bits, size])
    head = [
        "`flow.standardise`",
        "dequantisation",
        "flows",
        "seeds",
        "bits/dim",
        "importance-weighted",
        "training",
        "parameters",
    ]
    return markdown(head, rows)


def baselines_table(frames: Frames, centres: AllCentres) -> str:
    """Densities without a flow of images, on the splits of the study."""
    (centre,) = centres[STUDY].values()
    unit = float(centre["data.dim"]) * math.log(2)
    fits = frames["baselines"]
    rows = []
    for model, name in ALL_MODELS.items():
        own = fits[fits["model"] == model]
        if not len(own):
            continue
        size = own["n_parameters"].max()
        shown = f"{size:,.0f}" if size == size else "–"
        rows.append([name, str(len(own)), _mean(own["test_nll"] / unit), shown])
    return markdown(["density", "seeds", "bits/dim", "parameters"], rows)


def verdicts_table(frames: Frames, centres: AllCentres) -> str:
    """The verdict on every claim about images."""
    judged = claims.evaluate(frames[STUDY], centres[STUDY], IMAGE_CLAIMS)
    rows = []
    for claim, own in judged.groupby("claim", sort=False):
        row = own.iloc[-1]
        estimate = interval(row["estimate"], row["low"], row["high"])
        named = f"{claim} {BADGES[row['verdict']]}"
        verdict = f"**{row['verdict']}**"
        if row["n"] == 0:
            verdict, estimate = "not trained yet", "–"
        rows.append([named, row["sentence"], verdict, estimate, f"{row['n']:.0f}", row["estimand"]])
    return markdown(
        ["claim", "sentence", "verdict", "estimate [95%]", "seeds", "what was estimated"], rows
    )


def axes_table(frames: Frames, centres: AllCentres) -> str:
    """Bits/dim along every axis of the study of digits, and the difference to the centre paired by seed."""
    rows = []
    for axis, table in stats.ablations(frames[STUDY], centres[STUDY]).items():
        columns = [
            column
            for column in table.columns[: list(table.columns).index("n")]
            if column != "data.name"
        ]
        for row in table.to_dict("records"):
            bits = interval(row["test_bpd_mean"], row["test_bpd_low"], row["test_bpd_high"])
            gap = interval(row["kl_diff_mean"], row["kl_diff_low"], row["kl_diff_high"])
            value = ", ".join(plain(row[column]) for column in columns)
            lost = f" ({row['n_diverged']:.0f} diverged)" if row["n_diverged"] else ""
            gap = "the centre" if row["is_centre"] else gap
            if row["n_missing"]:
                lost += f" ({row['n_missing']:.0f} not trained yet)"
            rows.append([axis, value, bits, gap, f"{row['n']:.0f}{lost}"])
    return markdown(["axis", "value", "bits/dim", "− the centre", "seeds"], rows)


def sets_table(frames: Frames, centres: AllCentres) -> str:
    """Every other set that was trained once: what came of it."""
    rows = []
    for row in frames["images_sets"].to_dict("records"):
        truth = (
            row["true_nll"] / (row["data.dim"] * math.log(2))
            if row["true_nll"] == row["true_nll"]
            else math.nan
        )
        shape = " × ".join(plain(row[f"data.{side}"]) for side in ("channels", "height", "width"))
        shape = f"{shape}, {plain(row['data.levels'])} levels"
        scores = [number(value) for value in (row["test_bpd"], row["test_bpd_iw"], truth)]
        rows.append([row["data.name"], shape, plain(row["train.steps"]), *scores])
    return markdown(["set", "images", "steps", "bits/dim", "importance-weighted", "truth"], rows)


IMAGE_BLOCKS: dict[str, tuple[tuple[str, ...], Block]] = {
    "headline": ((HEADLINE, BEFORE), headline_table),
    "baselines": ((STUDY, "baselines"), baselines_table),
    "verdicts": ((STUDY,), verdicts_table),
    "axes": ((STUDY,), axes_table),
    "sets": (("images_sets",), sets_table),
}
