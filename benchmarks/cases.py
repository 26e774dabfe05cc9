"""What is measured: one architecture trained by one library, and the arithmetic that it needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec

from hydra import compose, initialize_config_dir

from nfexp.configuration import conf_dir, spec_of
from nfexp.spec import Spec, flatten, unflatten

PEERS = {
    "normflows": "separate",
    "zuko": "shared",
    "nflows": "shared",
    "flowjax": "shared",
}  # with their conditioner
HIDDEN = {"64x2": (64, 2), "128x2": (128, 2), "256x2": (256, 2), "256x4": (256, 4)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A contender: `members` flows of one shape trained by `library` on mini-batches of `batch` points in 2-D."""

    library: str = "nfexp"
    conditioner: str = "separate"
    members: int = 1
    width: int = 64
    depth: int = 2
    n_flows: int = 6
    batch: int = 256
    kernel: str = "fused"  # train.kernel of nfexp
    full: bool = False  # the batch is all there is: `data.n_samples` points, train.batch_size=full

    @property
    def name(self) -> str:
        if self.library == "nfexp":
            return f"nfexp {self.kernel} E={self.members}"
        return self.library + (f" E={self.members}" if self.members > 1 else "")

    @property
    def flop(self) -> float:
        """Useful floating-point operations of one step of one member: matrix products only.

        Two per multiply-add, and backward counted as twice forward. In 2-D one coordinate goes into a network, and one
        comes out of each of s and t; products with masked coordinates are not useful.
        """
        if self.library in ("sgemm", "openblas"):
            return 2.0 * 1024**3
        nets, heads = (2, 1) if self.conditioner == "separate" else (1, 2)
        macs = nets * (self.width + (self.depth - 1) * self.width**2 + self.width * heads)
        return 3 * 2 * self.batch * self.n_flows * macs


SHAPES = {  # the columns of the table of steps
    **{name: Case(width=width, depth=depth) for name, (width, depth) in HIDDEN.items()},
    "64x2, batch 32": Case(batch=32),
}


def installed() -> list[str]:
    """The peers that are there; says in one line what is not."""
    found = [peer for peer in PEERS if find_spec(peer)]
    if missing := [peer for peer in PEERS if peer not in found]:
        print(f"not installed, skipped: {', '.join(missing)} (pip install 'nfexp[bench]')")
    return found


# Adam, a normal base, the mean and sd of the data: what the peers' examples do, too
CLASSIC = ("flow=classic", "train=classic")


def make_spec(*overrides: str, **flat: object) -> Spec:
    """A run by its command line, CLASSIC before it, then by its flat keys, "__" for "."."""
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        spec = spec_of(compose("config", [*CLASSIC, *overrides]))
    return unflatten(flatten(spec) | {k.replace("__", "."): v for k, v in flat.items()})


def stack_of(case: Case, **flat: object) -> list[Spec]:
    """The runs of a stack that costs nothing but its steps: one evaluation, few points, no records."""
    values = {
        "data__n_samples": case.batch if case.full else 2048, "data__n_val": 256, "data__n_test": 2,
        "train__n_evals": 1, "train__warmup": 0,
        "train__lr": 1e-3, "train__schedule": "constant", "train__batch_size": "full" if case.full else case.batch,
        "train__kernel": case.kernel, "device": "cpu",
        "flow__n_flows": case.n_flows, "flow__hidden_depth": case.depth, "flow__hidden_width": case.width,
        "flow__conditioner": case.conditioner,
    }  # fmt: skip
    one = make_spec("record=none", **values | flat)
    return [replace(one, seed=seed) for seed in range(case.members)]
