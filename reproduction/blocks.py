"""The tables of docs/reproduction.md, each from stored tables alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.tables import markdown
from nfexp.analysis import claims
from nfexp.analysis import statistics as stats
from nfexp.analysis.claims.looks import evaluate_in_rounds
from nfexp.analysis.claims.measures import diverged
from nfexp.analysis.statistics import mean_interval, share_interval, studies
from nfexp.analysis.table.baselines import MODELS
from nfexp.report.contents import BADGES
from nfexp.report.words import interval, number, plain
from reproduction import DRAWS, Centres

OTHERS = "peers_others"  # of reproduction.others
TRAINING, VALIDATION = "train_truth", "val_truth"  # the targets' own NLL on those draws
VERDICTS, VERDICTS_BEFORE = "verdicts", "verdicts_before"  # by today's recipe, by the one before
Block = Callable[[Mapping[str, pd.DataFrame], Mapping[str, Centres]], str]


def mean(values: pd.Series) -> str:
    return interval(*mean_interval(values))


def cell_rows(runs: pd.DataFrame, centres: Centres) -> list[tuple[str, str, pd.DataFrame]]:
    """Every cell of a study: how it differs from the centre, the target, its runs; the centre first."""
    rows = []
    for target, study in studies(runs, centres).items():
        for key, own in study.cells.items():
            rows.append((stats.cell_name(key), target, own))
    order = {name: i for i, name in enumerate(dict.fromkeys(name for name, *_ in rows))}
    return sorted(rows, key=lambda r: (r[0] != "the centre", order[r[0]]))


def by_target(own: pd.DataFrame) -> str:
    """The verdict on each target of one claim, as marks; in brackets that of the signs where it differs."""
    marks = []
    for row in own[own["target"] != "all"].itertuples():
        mark = f"{row.target} {BADGES[row.verdict]}"
        if row.verdict != row.sign_verdict:
            mark += f" ({BADGES[row.sign_verdict]})"
        marks.append(mark)
    return ", ".join(marks) or "–"


def overall(own: pd.DataFrame) -> pd.Series:
    """The row of one claim that is about all targets."""
    return own[own["target"] == "all"].iloc[0]


def verdict_text(row: pd.Series) -> str:
    """A verdict, with that of the signs where it differs."""
    signs = f" (by signs: {row['sign_verdict']})" if row["verdict"] != row["sign_verdict"] else ""
    return f"**{row['verdict']}**{signs}"


def estimate_text(row: pd.Series) -> str:
    """An estimate with its interval and the number of values behind it."""
    return f"{interval(row['estimate'], row['low'], row['high'])}, n = {number(row['n']).split('.')[0]}"


def claims_table(frames: Mapping[str, pd.DataFrame], centres: Mapping[str, Centres]) -> str:
    rows = []
    for claim, own in frames[VERDICTS].groupby("claim", sort=False):
        row = overall(own)
        looks = "–"
        if not math.isnan(row.get("rounds", math.nan)):
            looks = f"{row['rounds']:.0f}, {row['stopped']}"
        rows.append([
            f"{claim} ({row['study']})", row["sentence"], verdict_text(row), by_target(own),
            estimate_text(row), looks, row["estimand"],
        ])  # fmt: skip
    head = [
        "claim",
        "sentence",
        "verdict",
        "by target",
        "estimate [95%]",
        "rounds",
        "what was estimated",
    ]
    return markdown(head, rows)


def recipes_table(frames: Mapping[str, pd.DataFrame], centres: Mapping[str, Centres]) -> str:
    """The claims on which two recipes, today's default and the one before, do not agree on every target."""
    today = frames[VERDICTS]
    before = frames[VERDICTS_BEFORE]
    rows = []
    for claim, own in today.groupby("claim", sort=False):
        then = before[before["claim"] == claim]
        verdicts = own.set_index("target")["verdict"]
        if then.set_index("target")["verdict"].equals(verdicts):
            continue
        row = [f"{claim}", overall(own)["sentence"]]
        for part in (own, then):
            row += [
                f"{verdict_text(overall(part))}: {by_target(part)}",
                estimate_text(overall(part)),
            ]
        rows.append(row)
    head = [
        "claim",
        "sentence",
        "today's recipe",
        "estimate [95%]",
        "`flow=classic train=classic`",
        "estimate [95%]",
    ]
    return markdown(head, rows)


FLOW_OF_THE_BLOG = {
    "B1": "blog",
    "B2": "blog",
    "B3": "blog_norm",
}  # claims that are judged on it, and by which study


def judge(
    frames: Mapping[str, pd.DataFrame], centres: Mapping[str, Centres], ablations: str = "ablations"
) -> pd.DataFrame:
    """The verdict on every claim: the blog's on instability from studies of its flow, all others from the ablations."""
    parts = []
    for study in (ablations, "blog", "blog_norm"):
        if study not in frames:
            continue
        rounds = frames[study].attrs.get("rounds")
        if rounds is None:
            found = claims.evaluate(frames[study], centres[study])
        else:
            found = evaluate_in_rounds(frames[study], centres[study], rounds)
        judged_by = found["claim"].map(lambda claim: FLOW_OF_THE_BLOG.get(claim, ablations))
        parts.append(found[judged_by == study].assign(study=study))
    found = pd.concat(parts)
    return found.sort_values(
        "claim", kind="stable", key=lambda ids: ids.map(lambda i: ("KBN".index(i[0]), i))
    )


def with_verdicts(
    frames: Mapping[str, pd.DataFrame], centres: Mapping[str, Centres]
) -> dict[str, pd.DataFrame]:
    """The tables with the verdicts by both recipes beside them, for all blocks that show some."""
    verdicts = {}
    for name, ablations in ((VERDICTS, "ablations"), (VERDICTS_BEFORE, "classic")):
        if ablations in frames:
            verdicts[name] = judge(frames, centres, ablations)
    return {**frames, **verdicts}


RESTED_ON = {  # claims of the report: what stands behind them in it, its code and its galleries
    "K1a": "no picture of a run with one flow; |s| < 1 on raw points, which bounds how near one flow can come",
    "K1b": "as K1a",
    "K1c": "3, 6, 9 and 12 flows with masks drawn at random: with 3, a quarter of the runs transforms one coordinate",
    "K1d": "as K1c; the text names 3 to 6 flows, two of its four figures have 8",
    "K2a": "depths 2, 4 and 6 (the flag for the scale network is ignored), one run each",
    "K2b": "no picture of one deep flow; see K1a",
    "K3a": "full batches, so that it holds by construction; no times are given",
    "K3b": "100, 200 and 400 points, 10,000 steps each, 13 snapshots; the training loss alone",
    "K3c": "one run of four flows, not among the pictures",
    "K4a": "moons and circles at two levels; spirals get N(0, I) whatever the flag says: one experiment, shown twice",
    "K4b": "as K4a, by eye",
    "K4c": "noise of 0.01 and 0.05 only: nothing that is high",
    "K5a": "galleries that link one ReLU picture under both names, for every target",
    "K5b": "no run: `-act tanh` builds ReLU networks, and none of the 954 pictures has it",
    "K6a": "no picture; the code draws every mask at random",
    "K6b": "as K6a",
    "B1": "the author's own runs, not counted",
    "B2": "as B1",
    "B3": "one picture of a flow with the tutorial's layer, which keeps 5% of its old statistics",
    "B4": "one picture; a fact of the construction",
    "N1": "images, in both papers; never compared in 2-D",
}


def evidence_table(frames: Mapping[str, pd.DataFrame], centres: Mapping[str, Centres]) -> str:
    """Claim by claim: what it rested on, and what is found here."""
    rows = []
    for claim, own in frames[VERDICTS].groupby("claim", sort=False):
        row = overall(own)
        each = own[own["target"] != "all"]
        found = row["verdict"]
        if found != row["sign_verdict"]:
            found += f" (by signs {row['sign_verdict']})"
        if len(each) and set(each["verdict"]) != {row["verdict"]}:
            parts = []
            for verdict, part in each.groupby("verdict", sort=False):
                parts.append(f"{verdict} on {', '.join(part['target'])}")
            found += ": " + "; ".join(parts)
        rows.append([claim, row["sentence"], RESTED_ON[claim], found])
    return markdown(["claim", "sentence", "what it rested on", "what we find"], rows)


AIMS = {  # data.name, data.noise: held-out KL aimed at, half of the best peer's when the aims were set; zuko's NSF then
    ("moons", 0.05): (0.029, 0.034), ("moons", 0.1): (0.0205, 0.025), ("circles", 0.1): (0.0225, 0.015),
    ("spiral2", 1.0): (0.0195, 0.038), ("spiral4", 1.0): (0.1595, 0.063),
}  # fmt: skip
KIND = {
    "zuko": "zuko RealNVP",
    "zuko_nsf": "zuko NSF (splines)",
    "normflows": "normflows",
    "nflows": "nflows",
}


def quality_table(frames: Mapping[str, pd.DataFrame], centres: Mapping[str, Centres]) -> str:
    """Held-out KL of this project's flows and of others at one budget, mean with its 95% interval over seeds."""
    runs, others = frames["peers"], frames[OTHERS]
    runs = runs[runs["status"] == "completed"]
    tuned = runs["flow.conditioner"] == "shared"
    columns = list(dict.fromkeys(zip(others["data.name"], others["data.noise"], strict=True)))
    parts = {}
    for n, text in (
        (runs["data.n_samples"].max(), "fresh draws"),
        (runs["data.n_samples"].min(), None),
    ):
        fixed = runs["data.n_samples"] == n
        text = text or f"{n:,.0f} fixed points"
        parts[f"nfexp, flow=tuned, {text}"] = runs[tuned & fixed]
        parts[f"nfexp, flow=classic, {text}"] = runs[~tuned & fixed]
    first = frames["peers_first"]
    parts["nfexp, the first choice, fresh draws"] = first
    parts["of these the first five seeds"] = first[first["seed"] < 5]
    parts["nfexp, the second search's, fresh draws"] = frames["peers_again"]
    for (model, recipe), own in others.groupby(["model", "recipe"], sort=False):
        parts[f"{KIND[model]}, {recipe}, fresh draws"] = own
    rows = []
    for name, own in parts.items():
        cells = [
            own.loc[(own["data.name"] == t) & (own["data.noise"] == s), "kl"] for t, s in columns
        ]
        lost = sum(int((~np.isfinite(kl)).sum()) for kl in cells)
        seeds = f"{max(map(len, cells))}" + f" (not finite: {lost})" * bool(lost)
        rows.append([name, seeds, *map(mean, cells)])
    return markdown(["flow and recipe", "seeds", *(f"{t} {s:g}" for t, s in columns)], rows)


def aims_table(frames: Mapping[str, pd.DataFrame], centres: Mapping[str, Centres]) -> str:
    """What was aimed at with fresh draws, and what came out."""
    runs, others = frames["peers"], frames[OTHERS]
    fresh = runs[
        (runs["data.n_samples"] == runs["data.n_samples"].max()) & (runs["status"] == "completed")
    ]
    rows = []
    for (target, noise), (half, spline) in AIMS.items():
        own = fresh[(fresh["data.name"] == target) & (fresh["data.noise"] == noise)]
        ours, plain_flow = (
            own.loc[own["flow.conditioner"] == kind, "kl"] for kind in ("shared", "separate")
        )
        peers = others[(others["data.name"] == target) & (others["data.noise"] == noise)].fillna(
            {"kl": np.inf}
        )
        means = peers[peers["model"] != "zuko_nsf"].groupby(["model", "recipe"])["kl"].mean()
        nsf = peers[peers["model"] == "zuko_nsf"].groupby("recipe")["kl"].mean().min()
        best = f"{number(means.min())} ({' '.join(means.idxmin())})"
        rows.append([f"{target} {noise:g}", mean(ours), mean(plain_flow), best,
                     *(f"{number(aim)} {'✓' if ours.mean() <= aim else '✗'}" for aim in (half, spline)),
                     number(nsf)])  # fmt: skip
    head = ["target", "flow=tuned", "flow=classic", "best RealNVP elsewhere, measured here",
            "aim: half the best peer's", "zuko NSF when the aim was set", "best zuko NSF, measured here"]  # fmt: skip
    return markdown(head, rows)


CHOSEN = {  # by study: how cells are named beside their changes
    "search": {
        "the centre": "the centre: soft, random, shared, Gaussian base",
        "flow.norm=actnorm": "**flow.norm=actnorm**",
    },
    "search_again": {
        "the centre": "**the centre**: soft, kaiming, shared, contaminated base, learned tail, 0.01"
    },
}


def search_table(study: str) -> Block:
    """What a flow was chosen by: validation NLL above the target's own, one change at a time."""

    def table(frames: Mapping[str, pd.DataFrame], centres: Mapping[str, Centres]) -> str:
        cells: dict[str, dict[tuple[str, float], pd.Series]] = {}
        for (target, noise), part in frames[study].groupby(["data.name", "data.noise"]):
            centre = {target: centres[study][target] | {"data.noise": noise}}
            for name, _, own in cell_rows(part, centre):
                lost = excess(own, frames[VALIDATION], "val_nll").where(
                    own["status"] == "completed", np.inf
                )
                cells.setdefault(CHOSEN[study].get(name, name), {})[target, noise] = lost
        rows = []
        for name, own in cells.items():
            shown = [mean(own[key]) if key in own else "–" for key in AIMS]
            met = sum(own[key].mean() <= AIMS[key][0] for key in AIMS if key in own)
            product = np.exp(np.mean([np.log(own[key].mean()) for key in AIMS if key in own]))
            n_tried = sum(key in own for key in AIMS)
            is_whole = n_tried == len(AIMS)
            rows.append([name, *shown, f"{met} of {n_tried}", number(product) if is_whole else "–"])
        return markdown(
            ["changed", *(f"{t} {s:g}" for t, s in AIMS), "aims met", "geometric mean"], rows
        )

    return table


def spiral4_table(frames: Mapping[str, pd.DataFrame], centres: Mapping[str, Centres]) -> str:
    """KL on spiral4 (two turns), one change at a time; explored, not corrected for the number of comparisons."""
    cells = cell_rows(frames["spiral4"], centres["spiral4"])
    centre = cells[0][2].set_index("seed")["kl"]
    rows = []
    for name, _, own in cells:
        done = own[own["status"] == "completed"].set_index("seed")
        gap = (done["kl"] - centre).dropna()
        best, worst = done["kl"].min(), done["kl"].max()
        rows.append([name, mean(done["kl"]), f"{number(best)} – {number(worst)}",
                     "–" if name == "the centre" else mean(gap), f"{len(done)} of {len(own)}",
                     number(done["n_parameters"].median())])  # fmt: skip
    head = [
        "changed",
        "KL [95%]",
        "least – greatest",
        "minus the centre's, paired [95%]",
        "completed",
        "parameters",
    ]
    return markdown(head, rows)


def excess(runs: pd.DataFrame, truth: pd.DataFrame, column: str = "train_nll") -> pd.Series:
    """Training or validation NLL above the target's own on the same points, by row of `runs`."""
    own = truth.set_index(list(DRAWS))["true_nll"]
    return runs[column] - own.reindex(pd.MultiIndex.from_frame(runs[list(DRAWS)])).to_numpy()


def original_table(frames: Mapping[str, pd.DataFrame], centres: Mapping[str, Centres]) -> str:
    """Training, held-out: how far each lies above the target's own NLL, by cell and target."""
    cells: dict[str, dict[str, str]] = {}
    targets = list(centres["paper_original"])
    for name, target, own in cell_rows(frames["paper_original"], centres["paper_original"]):
        done = own[own["status"] == "completed"]
        if (own["train.select"] == "val").all() and (own["train.schedule"] == "cosine").all():
            name = (
                f"corrected: flow=classic train=classic, {own['data.n_samples'].iloc[0]:.0f} points"
            )
        lost = f" ({len(own) - len(done)} of {len(own)} lost)" if len(done) < len(own) else ""
        text = (
            f"{mean(excess(done, frames[TRAINING]))} → {mean(done['kl'])}{lost}"
            if len(done)
            else f"–{lost}"
        )
        cells.setdefault(name.replace("the centre", "as in the report"), {})[target] = text
    return markdown(
        ["changed", *targets],
        [[n, *(own.get(t, "–") for t in targets)] for n, own in cells.items()],
    )


def layer_name(run: pd.Series) -> str:
    """Where a run diverged: the name of the layer on the way from data to base."""
    from nfexp.flows.stack import without_numbers
    from nfexp.spec import Flow

    shape: dict[str, Any] = {}
    for f in fields(Flow):
        value = run.get(f"flow.{f.name}", f.default)  # a key of images is in no record of vectors
        if isinstance(value, float):
            value = None if math.isnan(value) else value
        shape[f.name] = int(value) if isinstance(value, float) and value.is_integer() else value
    return without_numbers(Flow(**shape), dim=2).layer_name(int(run["diverged_layer"]))


def blog_table(frames: Mapping[str, pd.DataFrame], centres: Mapping[str, Centres]) -> str:
    """Rate of divergence, when and where it arose, and what the survivors are worth, by cell."""
    rows = []
    for name, _, own in cell_rows(frames["blog"], centres["blog"]):
        lost, done = own[own["status"] == "diverged"], own[own["status"] == "completed"]
        ended = diverged(own)
        where = lost.apply(layer_name, axis=1).value_counts() if len(lost) else pd.Series(dtype=int)
        rows.append([name, f"{ended.sum()} of {len(ended)}", interval(*share_interval(ended)),
                     f"{lost['diverged_at'].median():.0f}" if len(lost) else "–",
                     f"{where.index[0]} ({where.iloc[0]})" if len(where) else "–",
                     number(done["kl"].median()), number(done["kl"].max()), number(done["flattening"].median()),
                     number(done["batch_gap"].median())])  # fmt: skip
    head = ["cell", "diverged", "rate [95%]", "median step", "most often in", "KL, median", "largest",
            "flattening, median", "batch gap, median"]  # fmt: skip
    return markdown(head, sorted(rows, key=lambda r: (r[0].count("="), r[0])))


def layers_table(frames: Mapping[str, pd.DataFrame], centres: Mapping[str, Centres]) -> str:
    """Median over seeds of how flat each layer leaves the points, from base to data."""
    layers = frames["blog_layers"]
    table = layers.pivot_table(
        index=["position", "layer"], columns="flow.norm", values="flattening", aggfunc="median"
    )
    rows = {}
    for norm in table:
        for (_, name), value in table[norm].dropna().items():
            rows.setdefault(name, {})[norm] = number(value)
    return markdown(
        ["after", *table], [[name, *(own.get(n, "–") for n in table)] for name, own in rows.items()]
    )


def baselines_table(frames: Mapping[str, pd.DataFrame], centres: Mapping[str, Centres]) -> str:
    """KL of the centre's flow and of densities without a flow on the same draws, by the number of training points."""
    runs, fits, rows = frames["ablations"], frames["baselines"], []
    models = [m for m in MODELS if m in set(fits["model"])]
    compared = [m for m in models if m != "gaussian"]
    for target, study in studies(runs, centres["ablations"]).items():
        c = study.centre
        here = fits[(fits["data.name"] == target) & (fits["data.noise"] == c["data.noise"])]
        for n in study.axis("data.n_samples"):
            own = here[here["data.n_samples"] == n]
            flow = study.values("kl", {"data.n_samples": n})
            flow = flow[flow.index.isin(own["seed"])]  # the draws that the others were fitted to
            kl = {m: own[own["model"] == m].set_index("seed")["kl"] for m in models}
            gaps = [mean((flow - kl[m]).dropna()) for m in compared]
            rows.append([target, f"{n:,}", mean(flow), *(mean(kl[m]) for m in models), *gaps])
    head = [f"RealNVP − {MODELS[m]}, paired" for m in compared]
    return markdown(["target", "points", "RealNVP", *(MODELS[m] for m in models), *head], rows)


def axes_tables(frames: Mapping[str, pd.DataFrame], centres: Mapping[str, Centres]) -> str:
    """KL along every single axis of the ablation study."""
    out = []
    for axis, table in stats.ablations(frames["ablations"], centres["ablations"]).items():
        column = next(
            (c for c in table if c.startswith(("flow.", "train.", "data.")) and c != "data.name"),
            "",
        )
        if "_x_" in axis:
            continue
        targets = list(dict.fromkeys(table["data.name"]))
        cells = {(r["data.name"], r[column]): r for r in table.to_dict("records")}
        values = sorted(dict.fromkeys(table[column]), key=lambda v: (isinstance(v, str), v))
        rows = [
            [plain(v),
             *(interval(r["kl_mean"], r["kl_low"], r["kl_high"]) + f" ({r['n_diverged']} lost)" * bool(r["n_diverged"])
               if (r := cells.get((t, v))) else "–" for t in targets)]
            for v in values
        ]  # fmt: skip
        out.append(f"**{axis}** (`{column}`)\n\n{markdown([axis, *targets], rows)}")
    return "\n\n".join(out)


CELL = {"data.name": "target", "data.noise": "noise", "data.n_samples": "points", "flow.n_flows": "flows",
        "flow.hidden_depth": "hidden layers", "flow.hidden_width": "width", "flow.activation": "activation",
        "seed": "seed"}  # fmt: skip


def grid_table(frames: Mapping[str, pd.DataFrame], centres: Mapping[str, Centres]) -> str:
    """The cells of the paper's grid that were drawn and trained."""
    runs = stats.distinct(frames["paper_grid"]).sort_values([*CELL])
    runs = runs.assign(excess=excess(runs, frames[TRAINING]))
    rows = [
        [*(plain(r[k]) for k in CELL), number(r["excess"]), number(r["kl"])]
        for r in runs.to_dict("records")
    ]
    return markdown([*CELL.values(), "training NLL − truth", "held-out KL"], rows)


def corner_table(frames: Mapping[str, pd.DataFrame], centres: Mapping[str, Centres]) -> str:
    """The same cells of the paper's grid at a small budget and at theirs."""
    runs = stats.distinct(frames["paper_corner"])
    runs = runs.assign(excess=excess(runs, frames[TRAINING]))
    key, budgets = ["data.name", "data.noise", "seed"], sorted(runs["train.steps"].unique())
    rows = []
    for cell, own in runs.groupby(key):
        at = own.set_index("train.steps")
        rows.append(
            [*map(plain, cell), *(number(at.loc[n, c]) for c in ("excess", "kl") for n in budgets)]
        )
    head = [
        f"{c}, {n:,.0f} steps" for c in ("training NLL − truth", "held-out KL") for n in budgets
    ]
    return markdown(["target", "noise", "seed", *head], rows)


BLOCKS: dict[str, tuple[tuple[str, ...], Block]] = {
    "claims": (("ablations", "blog", "blog_norm"), claims_table),
    "recipes": (("ablations", "classic"), recipes_table),
    "axes": (("ablations",), axes_tables),
    "baselines": (("ablations", "baselines"), baselines_table),
    "evidence": (("ablations", "blog", "blog_norm"), evidence_table),
    "original": (("paper_original", TRAINING), original_table),
    "grid": (("paper_grid", TRAINING), grid_table),
    "corner": (("paper_corner", TRAINING), corner_table),
    "blog": (("blog",), blog_table),
    "layers": (("blog_layers",), layers_table),
    "quality": (("peers", "peers_first", "peers_again", OTHERS), quality_table),
    "aims": (("peers", OTHERS), aims_table),
    "search": (("search", VALIDATION), search_table("search")),
    "search_again": (("search_again", VALIDATION), search_table("search_again")),
    "spiral4": (("spiral4",), spiral4_table),
}
