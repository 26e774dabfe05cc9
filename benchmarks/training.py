"""What a training step costs: against other libraries, as stacks grow, on a GPU; and that stacks change no number."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import fields, replace

import pandas as pd

from benchmarks.cases import HIDDEN, PEERS, SHAPES, Case, installed, make_spec, stack_of
from benchmarks.children import Bench
from nfexp.spec import Train

STACKS = (1, 4, 16, 64)
VMAPPED = 16
LARGEST = 1e11  # a step of a stack that takes a second; larger ones are measured with --full


def contenders(hidden: str, stacks: Sequence[int], libraries: Sequence[str]) -> list[Case]:
    """Everyone at one hidden shape, the machine's own rate first."""
    shape = SHAPES[hidden]
    peers = [replace(shape, library=peer, conditioner=PEERS[peer]) for peer in libraries]
    peers += [replace(peer, members=VMAPPED) for peer in peers if peer.library == "flowjax"]
    ours = [
        replace(shape, conditioner=c, members=e) for c in ("separate", "shared") for e in stacks
    ]
    ours += [replace(case, kernel="torch") for case in ours if case.members in (1, VMAPPED)]
    return [Case(library="sgemm"), Case(library="openblas"), *ours, *peers]


def step(
    *, hidden: Sequence[str] = tuple(SHAPES), stacks: Sequence[int] = STACKS, repeats: int = 5, seconds: float = 0.2,
    budget: float = 25.0, full: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """CPU time per member-step of every contender, its ratio to nfexp's best stack, and its share of the sgemm rate."""
    tables, libraries = [], installed()
    with Bench() as bench:
        for shape in hidden:
            cases = [
                c
                for c in contenders(shape, stacks, libraries)
                if full or c.members * c.flop < LARGEST
            ]
            raw = bench.rounds(cases, repeats=repeats, seconds=seconds, budget=budget)
            tables.append(summary(raw).assign(hidden=shape))
    return pd.concat(tables, ignore_index=True)


def summary(raw: pd.DataFrame) -> pd.DataFrame:
    """Medians over rounds; every ratio is taken inside a round."""
    rate = raw["flop"] / raw["seconds"]
    roof = rate[raw["library"] == "sgemm"].set_axis(raw.loc[raw["library"] == "sgemm", "round"])
    raw = raw.assign(
        gflops=rate / 1e9, share=100 * rate.to_numpy() / roof.reindex(raw["round"]).to_numpy()
    )
    rows = []
    for conditioner, part in raw.groupby("conditioner", sort=False):
        ours = part[part["library"] == "nfexp"].groupby("case")["seconds"].median()
        best = part[part["case"] == ours.idxmin()].set_index("round")["seconds"]
        for (library, case), own in part.groupby(["library", "case"], sort=False):
            low, mid, high = own["seconds"].quantile([0.25, 0.5, 0.75])
            rows.append({
                "conditioner": conditioner, "contender": case, "library": library,
                "members": own["members"].iloc[0], "ms": 1e3 * mid, "ms_q25": 1e3 * low, "ms_q75": 1e3 * high,
                "ratio": (own.set_index("round")["seconds"] / best).median(),
                "gflops": own["gflops"].median(), "percent_of_sgemm": own["share"].median(),
                "sgemm_gflops": roof.median() / 1e9, "loss_first": own["loss_first"].iloc[0],
                "loss_last": own["loss_last"].iloc[0], "rounds": len(own),
            })  # fmt: skip
    return pd.DataFrame(rows)


CENTRE = Case(members=16)
GROWTH = {
    "members": (1, 2, 4, 8, 16, 32, 64, 128),
    "n_samples": (64, 256, 1024, 4096),  # full batch
    "batch": (32, 128, 512, 2048),
    "width": (16, 24, 32, 48, 64, 96, 128, 256),
    "n_flows": (1, 2, 4, 8, 16),
}


def growth(
    *,
    axes: dict[str, Sequence[int]] = GROWTH,
    repeats: int = 5,
    seconds: float = 0.2,
    budget: float = 60.0,
) -> pd.DataFrame:
    """CPU time per member-step as one thing grows from the centre: 16 members, 6 flows of 64x2, 256 points."""
    cases = {
        (axis, value): replace(CENTRE, batch=value, full=True)
        if axis == "n_samples"
        else replace(CENTRE, **{axis: value})
        for axis, values in axes.items()
        for value in values
    }
    distinct = [Case(library="sgemm"), *dict.fromkeys([CENTRE, *cases.values()])]
    with Bench() as bench:
        raw = bench.rounds(distinct, repeats=repeats, seconds=seconds, budget=budget)
    names = [f.name for f in fields(Case)]
    raw["share"] = raw["flop"] / raw["seconds"]
    roof = raw[raw["library"] == "sgemm"].set_index("round")["share"]
    raw["share"] = 100 * raw["share"] / raw["round"].map(roof)
    rows = []
    for (axis, value), case in cases.items():
        own = raw[[Case(**row) == case for row in raw[names].to_dict("records")]]
        rows.append(
            {"axis": axis, "value": value, "members": case.members, "flop": case.flop,
             "ms": 1e3 * own["seconds"].median(), "percent_of_sgemm": own["share"].median()}
        )  # fmt: skip
    return pd.DataFrame(rows)


def deviation(
    *, seeds: int = 16, steps: int = 200, device: str = "cpu", **changes: object
) -> pd.DataFrame:
    """Final test NLL of the same runs trained one by one and as one stack, float32."""
    import torch

    from nfexp.run import run_stack

    torch.set_num_threads(1)
    flat = {
        "train__steps": steps,
        "train__warmup": min(50, steps),
        "train__n_evals": 2,
        "data__n_test": 2000,
    }
    flat |= {"device": device} | changes
    targets = ("moons", "circles", "spiral2", "spiral4")
    centres = [make_spec(f"data={name}", "record=none", **flat) for name in targets]
    specs = [replace(spec, seed=seed) for spec in centres for seed in range(seeds)]
    together = [r.metrics["test_nll"] for r in run_stack(specs)]
    alone = [run_stack([s])[0].metrics["test_nll"] for s in specs]
    nll = pd.DataFrame({"alone": alone, "together": together})
    gap = (nll["alone"] - nll["together"]).abs()
    seed_sd = nll["alone"].groupby([s.data.name for s in specs]).std().median()
    return pd.DataFrame(
        [{"runs": len(specs), "steps": steps, "device": device, "largest": gap.max(), "median": gap.median(),
          "seed_sd": seed_sd}]
    )  # fmt: skip


PAPER = {
    "flow__hidden_depth": (2, 4, 6),
    "flow__hidden_width": (256, 512),
    "data__n_samples": (100, 200, 400),
}
PAPER_FLOWS, PAPER_ACTIVATIONS, PAPER_MATES, PAPER_STEPS = (
    (3, 6, 9, 12),
    2,
    8,
    10_000,
)  # mates: 4 targets x 2 noises


def wall(specs: list, steps: int) -> float:
    """Wall seconds of one step of a stack: two trainings, what they share cancels."""
    from nfexp.run import run_stack

    def spent(n: int) -> float:
        begun = time.perf_counter()
        run_stack([replace(s, train=replace(s.train, steps=n)) for s in specs])
        return time.perf_counter() - begun

    spent(3)
    short = spent(3)
    return (spent(3 + steps) - short) / steps


def gpu(
    *, device: str = "cuda", hidden: Sequence[str] = tuple(HIDDEN), stacks: Sequence[int] = (1, 16, 64, 256, 512),
    paper: dict[str, Sequence[int]] = PAPER, steps: int = 100, seeds: int = 4,
) -> pd.DataFrame | None:  # fmt: skip
    """Wall time of a step on a GPU by stack size and precision, and the paper's 1,152 runs extrapolated."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: skipped")
        return None
    precisions = next(f for f in fields(Train) if f.name == "matmul_precision").metadata["choices"]
    rows = []
    for precision in precisions:
        flat = {"device": device, "train__matmul_precision": precision}
        nll = deviation(seeds=seeds, steps=steps, **flat)["largest"].iloc[0]
        for shape in hidden:
            width, depth = HIDDEN[shape]
            for members in stacks:
                case = Case(members=members, width=width, depth=depth, kernel="auto")
                ms = 1e3 * wall(stack_of(case, **flat), steps) / members
                rows.append(
                    {"what": "step", "precision": precision, "hidden": shape, "members": members, "ms": ms,
                     "gflops": case.flop / ms / 1e6, "deviation": nll}
                )  # fmt: skip
        seconds = 0.0
        for depth in paper["flow__hidden_depth"]:
            for width in paper["flow__hidden_width"]:
                for n in paper["data__n_samples"]:
                    case = Case(
                        members=PAPER_MATES,
                        width=width,
                        depth=depth,
                        batch=n,
                        full=True,
                        kernel="auto",
                    )
                    one = wall(stack_of(case, **flat), steps)
                    seconds += (
                        one * sum(PAPER_FLOWS) / case.n_flows * PAPER_ACTIVATIONS * PAPER_STEPS
                    )
        rows.append(
            {"what": "paper's grid, minutes", "precision": precision, "minutes": seconds / 60}
        )
    frame = pd.DataFrame(rows)
    solo = frame[frame["members"] == min(stacks)].set_index(["precision", "hidden"])["ms"].to_dict()
    frame["solo_ratio"] = [
        solo.get((r.precision, r.hidden), float("nan")) / r.ms for r in frame.itertuples()
    ]
    return frame


COUNTED = [  # operations of torch: of a fused kernel nothing is seen
    *(Case(members=16, width=w, kernel="torch") for w in (16, 32, 64, 128, 256)),
    Case(members=1, kernel="torch"), Case(library="normflows"), Case(library="zuko", conditioner="shared"),
]  # fmt: skip
COPIES_KB = {"memory": 64_000, "L2 cache": 200}


def roofline(
    *, cases: Sequence[Case] = COUNTED, steps: int = 4, repeats: int = 5, seconds: float = 0.2
) -> pd.DataFrame:
    """Arithmetic, traffic and time of a member-step by kind of operation, beside the rates of the machine.

    Of the fused kernel, whose operations nobody sees, there is the whole step alone, without its traffic.

    `seconds` is CPU time: of the operations of one kind, or of the whole step ("step"), measured without counting.
    The rows of the machine: `gflops` of its matrix product, and `gbytes` (read and written) per second of copies.
    """
    from importlib.util import find_spec

    cases = [c for c in cases if c.library == "nfexp" or find_spec(c.library)]
    fused = [replace(c, kernel="fused") for c in cases if c.library == "nfexp"]
    copies = [Case(library="copy", batch=kb) for kb in COPIES_KB.values()]
    with Bench() as bench:
        raw = bench.rounds(
            [Case(library="sgemm"), *copies, *cases, *fused],
            repeats=repeats,
            seconds=seconds,
            budget=60.0,
        )
        median = raw.groupby(["library", "members", "width", "batch", "kernel"])["seconds"].median()
        whole = {
            c: median[c.library, c.members, c.width, c.batch, c.kernel]
            for c in [*cases, *copies, *fused]
        }
        counted = [bench.count(c, steps) for c in cases]
    sgemm = 2 * 1024**3 / median["sgemm"].iloc[0] / 1e9
    rows = [{"contender": "machine", "kind": "sgemm", "gflops": sgemm}]
    for name, case in zip(COPIES_KB, copies, strict=True):
        rows.append(
            {"contender": "machine", "kind": name, "gbytes": 2e-6 * case.batch / whole[case]}
        )
    for case in fused:
        rows.append(
            {"contender": case.name, "hidden": f"{case.width}x{case.depth}", "kind": "step", "us": 1e6 * whole[case],
             "mflop": case.flop / 1e6, "gflops": case.flop / whole[case] / 1e9}
        )  # fmt: skip
    for case, kinds in zip(cases, counted, strict=True):
        step = whole[case]
        total = [sum(column) / case.members for column in zip(*kinds.values(), strict=True)]
        named = {k: [v / case.members for v in values] for k, values in kinds.items()}
        for kind, (calls, spent, flop, touched) in {
            **named, "step": [total[0], step, case.flop, total[3]]
        }.items():  # fmt: skip
            rows.append(
                {"contender": case.name, "hidden": f"{case.width}x{case.depth}", "kind": kind, "calls": calls,
                 "us": 1e6 * spent, "mflop": flop / 1e6, "mbytes": touched / 1e6, "flop_per_byte": flop / touched,
                 "gflops": flop / spent / 1e9, "gbytes": touched / spent / 1e9}
            )  # fmt: skip
    return pd.DataFrame(rows)
