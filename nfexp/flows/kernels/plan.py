"""What a kernel must know of an architecture, and the memory it works in: arrays by name."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nfexp.flows.kernels.elementary import ACTIVATIONS, SILU
from nfexp.flows.kernels.lanes import LANES
from nfexp.flows.kernels.products import rounded_up
from nfexp.flows.layers import Coupling
from nfexp.flows.stack import FlowStack

SCALES = {"tanh": 0, "learned": 0, "soft": 1, "exp": 2}  # how a network's output becomes s; "learned" adds a bound
BASES = {"normal": 0, "logistic": 1, "laplace": 2, "student_t": 3, "mixture": 4}
ABSENT = -1  # the place of what an architecture does not have


class Plan(NamedTuple):
    """Sizes and choices of an architecture; `…_at` says in which column of its matrix a tensor begins.

    `net_at`, `scale_at`, `mask_at` have one entry per coupling.
    """

    n_couplings: int
    dim: int
    depth: int
    width: int
    nets: int
    heads: int
    activation: int
    scale: int
    base: int
    net_at: np.ndarray
    scale_at: np.ndarray
    mask_at: np.ndarray
    mean_at: int
    var_at: int
    diagonal_at: int


class Weights(NamedTuple):
    """The numbers of one member, or their gradients, in panels. C couplings, G networks, K hidden layers, D numbers.

    `first` (C, G, D, P, L) the rows of the first layer, `bias` (C, G, K, P, L) of the hidden layers, `hidden`
    (C, G, K - 1, P, P L, L) between them, `last` (C, heads, D, P, L) the columns of the last layer and `last_bias`
    (C, heads, D, L), `log_scale` (C, D, L), `diagonal` (D, L). Of the last three lane 0 holds the number; of their
    gradients all lanes are to be summed.
    """

    first: np.ndarray
    bias: np.ndarray
    hidden: np.ndarray
    last: np.ndarray
    last_bias: np.ndarray
    log_scale: np.ndarray
    diagonal: np.ndarray


class Tile(NamedTuple):
    """What is kept of a tile of T points on its way through the couplings, for the way back.

    Per coupling: `x` (C, D, T) what came in, `squashed`, `gain` (C, D, T), `hidden` (C, G, K, P, T, L) the outputs of
    the hidden layers and, for silu, their `slope`. `z` (D, T) where the points stand, `log_det` (1, T), `raw`
    (heads, D, T) what the networks say. On the way back `raw_grad`, `z_grad`, `det_grad` their gradients, and
    `upper`, `lower` (P, T, L) those of two layers.
    """

    x: np.ndarray
    squashed: np.ndarray
    gain: np.ndarray
    hidden: np.ndarray
    slope: np.ndarray
    z: np.ndarray
    log_det: np.ndarray
    raw: np.ndarray
    raw_grad: np.ndarray
    z_grad: np.ndarray
    det_grad: np.ndarray
    upper: np.ndarray
    lower: np.ndarray


def _columns(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """In which column each tensor begins."""
    places = {}
    column = 0
    for name, shape in shapes.items():
        places[name] = column
        column += int(np.prod(shape))
    return places


def make_plan(flow: FlowStack) -> Plan:
    """The plan of an architecture."""
    spec = flow.flow
    learned = _columns(flow.learned_layout.shapes)
    fixed = _columns(flow.fixed_layout.shapes)
    names = [layer.name for layer in flow.layers if isinstance(layer, Coupling)]
    return Plan(
        n_couplings=len(names),
        dim=flow.dim,
        depth=spec.hidden_depth,
        width=spec.hidden_width,
        nets=spec.nets,
        heads=spec.heads,
        activation=ACTIVATIONS[spec.activation],
        scale=SCALES[spec.scale],
        base=BASES[spec.base],
        net_at=np.array([learned[f"{name}.net.0.weight"] for name in names]),
        scale_at=np.array([learned.get(f"{name}.log_scale", ABSENT) for name in names]),
        mask_at=np.array([fixed[f"{name}.mask"] for name in names]),
        mean_at=fixed["standardise.mean"],
        var_at=fixed["standardise.var"],
        diagonal_at=learned.get("diagonal.log_gain", ABSENT),
    )


def make_weights(plan: Plan) -> Weights:
    """Zeros for one member's numbers."""
    c, g, d, k = plan.n_couplings, plan.nets, plan.dim, plan.depth
    p = rounded_up(plan.width, LANES) // LANES

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape, dtype=np.float32)

    return Weights(
        first=zeros(c, g, d, p, LANES),
        bias=zeros(c, g, k, p, LANES),
        hidden=zeros(c, g, k - 1, p, p * LANES, LANES),
        last=zeros(c, plan.heads, d, p, LANES),
        last_bias=zeros(c, plan.heads, d, LANES),
        log_scale=zeros(c, d, LANES),
        diagonal=zeros(d, LANES),
    )


def make_tile(plan: Plan, points: int, *, kept: int) -> Tile:
    """Room for a tile that keeps what `kept` couplings need: all for the way back, one without."""
    g, d, k = plan.nets, plan.dim, plan.depth
    p = rounded_up(plan.width, LANES) // LANES

    def room(*shape: int) -> np.ndarray:
        return np.zeros(shape, dtype=np.float32)

    silu = kept if plan.activation == SILU else 0
    return Tile(
        x=room(kept, d, points),
        squashed=room(kept, d, points),
        gain=room(kept, d, points),
        hidden=room(kept, g, k, p, points, LANES),
        slope=room(silu, g, k, p, points, LANES),
        z=room(d, points),
        log_det=room(1, points),
        raw=room(plan.heads, d, points),
        raw_grad=room(plan.heads, d, points),
        z_grad=room(d, points),
        det_grad=room(1, points),
        upper=room(p, points, LANES),
        lower=room(p, points, LANES),
    )
