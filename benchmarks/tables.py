"""CSV in, tables and pictures out: the same for the terminal and for docs/performance.md."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from benchmarks.children import ROOT

PAGE, DOCS, IMAGES = (ROOT / "docs" / name for name in ("performance.md", "performance", "img"))
Columns = dict[str, Callable[[pd.Series], str]]  # heading → the text of a row's cell


def number(value: object, digits: int = 3) -> str:
    """Three significant digits, thousands separated; an en dash for what was not measured."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    if value == 0 or 1e-3 <= abs(value) < 999.5:
        return f"{float(f'{value:.{digits}g}'):g}"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.1e}"


def markdown(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table with aligned columns, the first to the left."""
    grid = [list(headings), *map(list, rows)]
    # a rule needs a dash beside its colon
    widths = [max(2, *map(len, column)) for column in zip(*grid, strict=True)]
    rule = ["-" * (w - bool(i)) + ":" * bool(i) for i, w in enumerate(widths)]
    aligned = [
        [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        for row in grid
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (aligned[0], rule, *aligned[1:]))


def columns(frame: pd.DataFrame, wanted: dict[str, str]) -> str:
    """A table of some columns under other headings."""
    cells = [
        [v if isinstance(v, str) else number(v) for v in row]
        for row in frame[list(wanted)].values.tolist()
    ]
    return markdown(wanted.values(), cells)


def step_tables(frame: pd.DataFrame) -> dict[str, str]:
    """One table per kind of conditioner, a column group per hidden shape: ms, ratio, share of the sgemm rate."""
    out = {}
    for conditioner, title in {
        "separate": "separate s and t networks",
        "shared": "one shared network",
    }.items():
        part = frame[
            (frame["conditioner"] == conditioner) & ~frame["library"].isin(["sgemm", "openblas"])
        ]
        cell = {(r.contender, r.hidden): r for r in part.itertuples()}
        shapes = list(dict.fromkeys(part["hidden"]))
        rows = []
        for name in dict.fromkeys(part["contender"]):
            rows.append([name])
            for shape in shapes:
                r = cell.get((name, shape))
                rows[-1] += (
                    [f"{number(r.ms)} ({number(r.ms_q25)}–{number(r.ms_q75)})", number(r.ratio),
                     f"{r.percent_of_sgemm:.0f}"] if r else ["–"] * 3
                )  # fmt: skip
        out[title] = markdown(
            ["contender", *(f"{s} {h}" for s in shapes for h in ("ms", "ratio", "%"))], rows
        )
    rates = frame[frame["library"].isin(["sgemm", "openblas"])]
    names = {"sgemm": "torch", "openblas": "NumPy"}
    rate = rates.groupby("library", sort=False)["gflops"].median()
    text = ", ".join(f"{names[k]} {v:.0f} GFLOP/s" for k, v in rate.items())
    out["the machine's rate in the same rounds"] = f"1024³ in float32, one thread: {text}"
    return out


def sweep_tables(frame: pd.DataFrame) -> dict[str, str]:
    wanted = {
        "contender": "240 runs", "measured": "jobs run", "wall": "wall s", "wall_ratio": "wall ratio", "cpu": "CPU s",
        "cpu_ratio": "CPU ratio", "peak_mb": "peak MB", "test_nll": "mean test NLL",
    }  # fmt: skip
    jobs, steps, cores = (frame[k].iloc[0] for k in ("jobs", "steps", "cores"))
    return {
        f"{jobs} runs of {steps} steps, end to end, {cores} cores": columns(
            frame, wanted | {"contender": "sweep"}
        )
    }


def overhead_tables(frame: pd.DataFrame) -> dict[str, str]:
    own = frame["contender"] == "nfexp"
    rest = (frame["wall"] - frame["train"]).where(own)
    frame = frame.assign(more=1e3 * rest.diff() / frame["jobs"].diff())
    wanted = {
        "contender": "sweep", "jobs": "jobs", "wall": "wall s", "train": "of it training", "compose": "of it compose",
        "report": "of it report", "ms_per_job": "ms per job", "more": "ms per further job", "peak_mb": "peak MB",
    }  # fmt: skip
    return {"seconds that are not training": columns(frame.reindex(columns=[*wanted]), wanted)}


def growth_tables(frame: pd.DataFrame) -> dict[str, str]:
    wanted = {
        "value": "",
        "ms": "ms per member-step",
        "us_per_mflop": "µs per MFLOP",
        "percent_of_sgemm": "% sgemm",
    }
    frame = frame.assign(us_per_mflop=1e9 * frame["ms"] / frame["flop"])
    return {
        axis: columns(part, wanted | {"value": axis})
        for axis, part in frame.groupby("axis", sort=False)
    }


def deviation_tables(frame: pd.DataFrame) -> dict[str, str]:
    wanted = {
        "runs": "runs", "steps": "steps", "largest": "largest difference, nats", "median": "median",
        "seed_sd": "sd over seeds",
    }  # fmt: skip
    return {"final test NLL, trained alone and in one stack, float32": columns(frame, wanted)}


def gpu_tables(frame: pd.DataFrame) -> dict[str, str]:
    frame = frame.reindex(columns=[*dict.fromkeys([*frame, "minutes"])]).fillna(
        {"precision": "default"}
    )
    steps, grid = frame[frame["what"] == "step"], frame[frame["what"] != "step"]
    wanted = {
        "precision": "precision", "hidden": "hidden", "members": "E", "ms": "ms per member-step",
        "solo_ratio": "times solo", "gflops": "GFLOP/s", "deviation": "NLL, stacked against solo",
    }  # fmt: skip
    return {
        "wall time of a member-step": columns(steps, wanted),
        "the paper's 1,152 runs, extrapolated": columns(
            grid, {"precision": "precision", "minutes": "minutes"}
        ),
    }


def roofline_tables(frame: pd.DataFrame) -> dict[str, str]:
    machine = frame[frame["contender"] == "machine"].set_index("kind")
    own = frame[frame["contender"] != "machine"].copy()
    own["percent"] = 100 * own["us"] / own.groupby(["contender", "hidden"])["us"].transform("max")
    shown = own[(own["hidden"].isin(["64x2", "256x2"]))]
    wanted = {
        "contender": "contender", "hidden": "hidden", "kind": "kind", "calls": "calls", "us": "µs", "mflop": "MFLOP",
        "mbytes": "MB touched", "flop_per_byte": "FLOP/byte", "gflops": "GFLOP/s", "gbytes": "GB/s",
    }  # fmt: skip
    rates = (
        f"sgemm {machine.loc['sgemm', 'gflops']:.0f} GFLOP/s; copies, read and written: "
        + ", ".join(
            f"{name} {machine.loc[name, 'gbytes']:.0f} GB/s"
            for name in machine.index
            if name != "sgemm"
        )
    )
    return {"the machine, one thread": rates, "per member-step": columns(shown, wanted)}


def kernel_tables(frame: pd.DataFrame) -> dict[str, str]:
    wanted = {
        "network": "network", "batch": "batch", "members": "E", "activation": "σ",
        "sgemm": "sgemm GFLOP/s", "fused": "fused ms", "torch": "torch ms", "ratio": "torch / fused",
        "percent_of_sgemm": "% of sgemm",
    }  # fmt: skip
    return {"a member-step by the fused kernel and by torch": columns(frame, wanted)}


def threads_tables(frame: pd.DataFrame) -> dict[str, str]:
    wanted = {
        "network": "network", "batch": "batch", "members": "E", "one": "one thread ms", "two": "two threads ms",
        "gain": "gain", "best_one": "best: one ms", "best_two": "two ms", "best_gain": "gain of the best",
    }  # fmt: skip
    return {"wall time of a member-step with one thread and with two": columns(frame, wanted)}


def pieces_tables(frame: pd.DataFrame) -> dict[str, str]:
    """One table of CPU µs and one of GFLOP/s, a row for each part and a column for each width."""
    tables = {}
    for value, title in (
        ("us", "CPU µs of a tile of 64 points, by width"),
        ("gflops", "GFLOP/s of the products"),
    ):
        shown = frame[frame[value] > 0]
        wide = shown.pivot(index="part", columns="width", values=value).reindex(
            shown["part"].unique()
        )
        wide.columns = [str(width) for width in wide.columns]
        wide = wide.reset_index()
        tables[title] = columns(wide, {name: name for name in wide.columns})
    return tables


def prices_tables(frame: pd.DataFrame) -> dict[str, str]:
    wanted = {
        "network": "network", "batch": "batch", "kernel": "kernel", "ms": "ms", "fitted_ms": "estimated",
        "ratio": "ratio",
    }  # fmt: skip
    return {"a member-step, measured and as a sweep's plan estimates it": columns(frame, wanted)}


TABLES = {
    "step": step_tables, "kernel": kernel_tables, "pieces": pieces_tables, "threads": threads_tables,
    "sweep": sweep_tables, "overhead": overhead_tables, "growth": growth_tables,
    "gpu": gpu_tables, "deviation": deviation_tables, "roofline": roofline_tables,
    "prices": prices_tables,
}  # fmt: skip


def shown(part: str, frame: pd.DataFrame) -> str:
    """The tables of a part as Markdown."""
    return "\n\n".join(f"**{title}**\n\n{table}" for title, table in TABLES[part](frame).items())


def targets(frames: dict[str, pd.DataFrame]) -> str:
    """What was aimed at, what was measured."""
    rows = []

    def add(text: str, goal: float, value: float, *, at_most: bool = False) -> None:
        met = value <= goal if at_most else value >= goal
        rows.append(
            [
                text,
                f"{'≤' if at_most else '≥'} {number(goal)}",
                number(value),
                "met" if met else "not met",
            ]
        )

    if "step" in frames:
        step = frames["step"].set_index(["hidden", "contender", "conditioner"])
        for hidden, peer, kind, goal in (
            ("64x2", "normflows", "separate", 6), ("64x2", "zuko", "shared", 5),
            ("64x2", "flowjax E=16", "shared", 1.6), ("64x2, batch 32", "normflows", "separate", 10),
        ):  # fmt: skip
            if (hidden, peer, kind) in step.index:
                add(
                    f"CPU time of {peer} over nfexp's, {hidden}",
                    goal,
                    step.loc[(hidden, peer, kind), "ratio"],
                )
        if len(
            wide := frames["step"].query(
                "hidden == '256x2' and library not in ('nfexp', 'sgemm', 'openblas')"
            )
        ):
            best = wide.loc[wide["ratio"].idxmin()]
            add(
                f"CPU time of the best peer ({best['contender']}) over nfexp's, 256x2",
                1.4,
                best["ratio"],
            )
        ours = frames["step"].query("library == 'nfexp' and conditioner == 'separate'")
        for hidden, goal in (("64x2", 70), ("256x2", 70)):
            if len(own := ours[ours["hidden"] == hidden]):
                add(f"% of the sgemm rate, {hidden}", goal, own["percent_of_sgemm"].max())
        best = ours[ours["hidden"] == "64x2"].groupby("members")["ratio"].min()
        if {1, 16} <= set(best.index):
            add(
                "CPU time of a member alone over that in a stack of 16, 64x2",
                1.15,
                best[1] / best[16],
                at_most=True,
            )
    if "kernel" in frames:
        centre = frames["kernel"].query(
            "network == '64x2 separate' and batch == 256 and members == 16"
        )
        by_activation = centre.set_index("activation")["fused"]
        for activation in ("tanh", "silu", "elu"):
            if {activation, "relu"} <= set(by_activation.index):
                slower = by_activation[activation] / by_activation["relu"]
                add(
                    f"CPU time of a step with {activation} over one with relu, 64x2, E = 16",
                    1.3,
                    slower,
                    at_most=True,
                )
    if "sweep" in frames:
        wall, jobs = (
            frames["sweep"].set_index("contender")["wall_ratio"],
            frames["sweep"]["jobs"].iloc[0],
        )
        for launcher, goal in (("joblib", 6), ("basic", 10)):
            for name in wall.index[wall.index.str.contains(launcher)]:
                add(f"wall time of {name} over nfexp's, {jobs} runs", goal, wall[name])
    if "overhead" in frames:
        own = frames["overhead"].query("contender == 'nfexp'").set_index("jobs")
        if 480 in own.index:
            add(
                "ms per job that are not training, 480 jobs",
                20,
                own.loc[480, "ms_per_job"],
                at_most=True,
            )
        if 4800 in own.index:
            add("peak MB, 4,800 jobs", 2000, own.loc[4800, "peak_mb"], at_most=True)
    return (
        markdown(["target", "aimed at", "measured", ""], rows) if rows else "None for these parts."
    )


def rewritten(page: str, write: Callable[[str], str]) -> str:
    """A page with what stands between each `<!-- name -->` and `<!-- end -->` replaced by `write(name)`."""

    def block(match: re.Match) -> str:
        return f"<!-- {match[1]} -->\n{write(match[1])}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", block, page, flags=re.S)


def refreshed(page: str, folder: Path = DOCS) -> str:
    """The page with what stands between each `<!-- name -->` and `<!-- end -->` written anew from the CSVs."""
    frames = {p.stem: pd.read_csv(p) for p in sorted(folder.glob("*.csv"))}
    blocks = {part: shown(part, frame) for part, frame in frames.items() if part in TABLES}
    if "machine" in frames:
        blocks["targets"] = targets(frames)
        blocks["machine"] = columns(frames["machine"], {"what": "machine", "value": ""})

    return rewritten(page, lambda name: blocks.get(name, "Not measured yet."))


def draw(folder: Path = DOCS, images: Path = IMAGES) -> None:
    """The pictures of the parts whose CSVs are there."""
    from benchmarks.pictures import PICTURES

    for part, picture in PICTURES.items():
        if (folder / f"{part}.csv").exists():
            picture(pd.read_csv(folder / f"{part}.csv"), images / f"performance_{part}.png")
