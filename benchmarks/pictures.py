"""The pictures of docs/performance.md and docs/reproduction.md, from the CSVs alone."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from nfexp.analysis.statistics import share_interval

BLUE, ORANGE, GREEN, PINK, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#666666",
)  # colour-blind safe
KINDS = {
    "products": ("s", BLUE),
    "thin products": ("D", GREEN),
    "pointwise": ("^", PINK),
    "optimiser": ("v", ORANGE),
}
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.title_fontsize": 8,
    "savefig.dpi": 160,
}


def save(figure: plt.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def plain_numbers(ax: Axes) -> None:
    """1, 10, 100 along logarithmic axes."""
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")


def roofline(frame: pd.DataFrame, path: Path) -> None:
    """Attained rate against arithmetic intensity: kinds of operations of one stack, whole steps by width, peers."""
    machine = frame[frame["contender"] == "machine"].set_index("kind")
    peak = machine.loc["sgemm", "gflops"]
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(6.6, 4.4), layout="constrained")
        x = np.geomspace(0.06, 120, 200)
        for kind, style in zip(
            [k for k in machine.index if k != "sgemm"], ("-", "--"), strict=False
        ):
            rate = machine.loc[kind, "gbytes"]
            ax.plot(x, np.minimum(peak, rate * x), style, color=GREY, lw=1, zorder=1)
            along = {"rotation": math.degrees(math.atan(rate)), "transform_rotates_text": True}
            text = f"{kind} {rate:.0f} GB/s"
            ax.text(
                0.066, rate * 0.072, text, color=GREY, fontsize=8, rotation_mode="anchor", **along
            )
        ax.annotate(f"sgemm {peak:.0f} GFLOP/s", (115, peak), color=GREY, fontsize=8, ha="right",
                    xytext=(0, 3), textcoords="offset points")  # fmt: skip
        of_stack = frame["contender"].isin(["nfexp E=16", "nfexp torch E=16"])
        stack = frame[of_stack]
        for hidden, filled in (("64x2", True), ("256x2", False)):
            for kind, (marker, colour) in KINDS.items():
                row = stack[(stack["hidden"] == hidden) & (stack["kind"] == kind)]
                ax.plot(row["flop_per_byte"], row["gflops"], marker, color=colour, ms=6, ls="", zorder=3,
                        mfc=colour if filled else "white", label=kind if filled else None)  # fmt: skip
        steps = stack[stack["kind"] == "step"]
        ax.plot(
            steps["flop_per_byte"],
            steps["gflops"],
            "o-",
            color="black",
            ms=4,
            lw=1,
            label="whole step by width",
        )
        for row in steps.itertuples():
            ax.annotate(row.hidden, (row.flop_per_byte, row.gflops), fontsize=7, ha="right", xytext=(-3, 4),
                        textcoords="offset points")  # fmt: skip
        others = frame[(frame["kind"] == "step") & ~of_stack & frame["flop_per_byte"].notna()]
        ax.plot(others["flop_per_byte"], others["gflops"], "x", color="black", ms=5)
        for row in others.itertuples():
            ax.annotate(f"{row.contender} {row.hidden}", (row.flop_per_byte, row.gflops), fontsize=7,
                        xytext=(7, -3), textcoords="offset points")  # fmt: skip
        ax.set(
            xscale="log",
            yscale="log",
            xlim=(0.06, 120),
            ylim=(0.8, 1.5 * peak),
            xlabel="FLOP per byte touched",
            ylabel="GFLOP/s, one core",
        )
        plain_numbers(ax)
        ax.legend(
            frameon=False, fontsize=8, loc="lower right", title="E = 16: filled 64x2, open 256x2"
        )
        save(figure, path)


AXES = {
    "members": "members E", "n_samples": "training points, full batch", "batch": "points in a batch",
    "width": "hidden width", "n_flows": "coupling layers",
}  # fmt: skip


def growth(frame: pd.DataFrame, path: Path) -> None:
    """CPU time of a step of the stack as one thing grows; straight lines through the origin and the largest value."""

    def panel(ax: Axes, axis: str) -> None:
        own = frame[frame["axis"] == axis].sort_values("value")
        x, y, flop = own["value"], own["ms"] * own["members"], own["flop"] * own["members"]
        ax.plot(x, x * (y / x).iloc[-1], color=GREY, lw=1, label="straight line through the origin")
        if axis == "width":  # elsewhere the two coincide
            ax.plot(
                x,
                flop * (y / flop).iloc[-1],
                "--",
                color=ORANGE,
                lw=1,
                label="in step with the arithmetic",
            )
        ax.plot(x, y, "o-", color=BLUE, ms=4, lw=1.2, label="measured")
        ax.set(xscale="log", yscale="log", xlabel=AXES[axis])
        plain_numbers(ax)
        ax.set_xticks(x, [f"{v:g}" for v in x], fontsize=7)
        ax.minorticks_off()

    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(2, 3, figsize=(9, 5), layout="constrained")
        for ax, axis in zip(grid.flat, AXES, strict=False):
            panel(ax, axis)
        for ax in grid[:, 0]:
            ax.set_ylabel("CPU ms per step of the stack")
        grid[1, 2].axis("off")
        grid[1, 2].legend(*grid[1, 0].get_legend_handles_labels(), frameon=False, loc="center left")
        save(figure, path)


NORMS = {"none": ("o", BLUE), "batchnorm": ("s", ORANGE), "actnorm": ("^", GREEN)}


def blog(runs: pd.DataFrame, layers: pd.DataFrame, path: Path) -> None:
    """The blog's flow: how often it diverges by learning rate, and how flat each layer leaves the points."""
    usual = runs[
        (runs["flow.scale"] == "exp")
        & (runs["flow.init"] == "random")
        & runs["train.grad_clip"].isna()
    ]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.4), layout="constrained")
        for shift, (norm, (marker, colour)) in enumerate(NORMS.items()):
            own = usual[usual["flow.norm"] == norm].groupby("train.lr")["status"]
            shares = {lr: share_interval(s.to_numpy(object) == "diverged") for lr, s in own}
            x, (mid, low, high) = np.array(list(shares)), np.array(list(shares.values())).T
            left.errorbar(x * 1.07 ** (shift - 1), mid, [mid - low, high - mid], color=colour, marker=marker, ms=5,
                          lw=1, capsize=2, label=norm)  # fmt: skip
            part = layers[layers["flow.norm"] == norm]
            for _, seed in part.groupby("seed"):
                right.plot(seed["position"], seed["flattening"], color=colour, lw=0.6, alpha=0.35)
            middle = part.groupby("position")["flattening"].median()
            right.plot(middle.index, middle, color=colour, marker=marker, ms=4, lw=1.6)
        left.set(
            xscale="log",
            xlabel="learning rate",
            ylabel="share of runs that diverged",
            ylim=(-0.03, 1.03),
        )
        left.set_xticks(
            sorted(usual["train.lr"].unique()),
            [f"{v:g}" for v in sorted(usual["train.lr"].unique())],
        )
        left.minorticks_off()
        left.legend(title="normalisation", frameon=False, fontsize=8)
        right.set(yscale="log", xlabel="layers passed, from base to data",
                  ylabel="least / greatest standard deviation")  # fmt: skip
        right.yaxis.set_major_formatter("{x:g}")
        right.yaxis.set_minor_formatter("{x:g}")
        save(figure, path)


PICTURES = {"roofline": roofline, "growth": growth}
