"""What a kernel must know of an architecture, and the memory it works in: arrays by name."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from nfexp.flows.kernels.bases import BASES
from nfexp.flows.kernels.elementary import ACTIVATIONS, SILU
from nfexp.flows.kernels.lanes import LANES, VECTOR
from nfexp.flows.kernels.products import rounded_up
from nfexp.flows.layers import CONTEXT, Coupling
from nfexp.flows.stack import FlowStack

# how a network's output becomes s; "learned" adds a bound
SCALES = {"tanh": 0, "learned": 0, "soft": 1, "exp": 2}
CACHE_LINE = 64  # bytes
ABSENT = -1  # the place of what an architecture does not have


# A station on the way from data to base: at station k points pass the affine layer behind coupling
# k - 1, if there is one, then coupling k. The last one has no coupling but what lies behind them
# all: a diagonal layer, the tail. `inputs` counts the numbers that a network of coupling k reads,
# the context last; `outputs` the coordinates for each of which a head has an output. The others say
# in which column of its matrix a tensor begins: `net`, `scale`, `mask` of coupling k; `gain`,
# `shift` of the affine layer behind it, at the last station of the diagonal one; `running_mean`,
# `running_var` of a batch norm.
FIELDS = (
    "inputs",
    "outputs",
    "net",
    "scale",
    "mask",
    "gain",
    "shift",
    "running_mean",
    "running_var",
)
STATION = np.dtype([(name, np.int64) for name in FIELDS])


class Plan(NamedTuple):
    """Sizes and choices of an architecture.

    `…_at` says in which column of its matrix a tensor begins. `stations` (C + 1,) says so of each
    station, in one array of records: every further array in a tuple is work for the compiler.

    `stops` cuts the stations into legs. The first leg begins at stops[0] = 0; before each of the
    others a batch norm waits for all points of a batch.

    `n_context` numbers are given at each point. To the networks they are further coordinates,
    behind the others, that always pass.
    """

    n_couplings: int
    dim: int
    n_context: int
    compact: bool
    stations: np.ndarray
    stops: np.ndarray
    depth: int
    width: int
    nets: int
    heads: int
    activation: int
    scale: int
    bound: np.float32
    base: int
    mean_at: int
    var_at: int
    context_mean_at: int
    context_var_at: int
    tail_at: int


class Weights(NamedTuple):
    """The numbers of one member, or their gradients, in panels.

    C couplings, G networks, K hidden layers, D coordinates. R numbers may be read: the coordinates
    and, behind them, the context.

    `first` (C, G, R, P, 16) the rows of the first layer, `bias` (C, G, K, P, 16) of the hidden
    layers, `hidden` (C, G, K - 1, P, 16 P, 16) between them, `last` (C, heads, D, P, 16) the
    columns of the last layer and `last_bias` (C, heads, D, L), `log_scale` (C, D, L), `log_gain`
    and `shift` (C + 1, D, L) of the affine layers, `log_power` (D, L) of the tail. From `last_bias`
    on lane 0 holds the number; of their gradients all lanes are to be summed. Those of `first`,
    `bias` and `last` have L lanes in place of 16, to be folded. Where a network reads only the
    coordinates that pass, nothing is kept for the others.
    """

    first: np.ndarray
    bias: np.ndarray
    hidden: np.ndarray
    last: np.ndarray
    last_bias: np.ndarray
    log_scale: np.ndarray
    log_gain: np.ndarray
    shift: np.ndarray
    log_power: np.ndarray


class Tiles(NamedTuple):
    """What is kept of a tile of T points on its way through the couplings, for the way back.

    Per coupling: `x` (C, D, T) what came in, `seen` (C, R, T) what the networks see of it and of
    the context, `squashed`, `gain` (C, D, T), `hidden` (C, G, K, P, T, 16) the outputs of the
    hidden layers and, for silu, their `slope`. `before` (C + 1, D, T) what came into the affine
    layers, less the mean, `straight` (D, T) into the tail. `given` (R - D, T) the context,
    standardised; `z` (D, T) where the points stand, `log_det` (1, T). On the way back `z_grad`,
    `det_grad` their gradients.

    Of one tile at a time: `raw` (heads, D, T) what the networks say and `raw_grad`, `seen_grad` (1,
    T), and `upper`, `lower` (P, T, 16), the gradients of two layers; `nothing` (P, 16), zeros. Of
    the whole batch: `moments` (C + 1, 2, D), the mean and the variance that each batch norm
    normalises by; the mean of other affine layers is 0.
    """

    x: np.ndarray
    seen: np.ndarray
    squashed: np.ndarray
    gain: np.ndarray
    hidden: np.ndarray
    slope: np.ndarray
    before: np.ndarray
    straight: np.ndarray
    given: np.ndarray
    z: np.ndarray
    log_det: np.ndarray
    z_grad: np.ndarray
    det_grad: np.ndarray
    raw: np.ndarray
    raw_grad: np.ndarray
    seen_grad: np.ndarray
    upper: np.ndarray
    lower: np.ndarray
    nothing: np.ndarray
    moments: np.ndarray


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
    couplings = [layer for layer in flow.layers if isinstance(layer, Coupling)]
    stations = np.full(len(couplings) + 1, ABSENT, dtype=STATION)
    stops = [0]
    for k, coupling in enumerate(couplings):
        station = stations[k]
        station["inputs"] = coupling.n_inputs + coupling.n_context
        station["outputs"] = coupling.n_outputs
        station["net"] = learned[f"{coupling.name}.net.0.weight"]
        station["scale"] = learned.get(f"{coupling.name}.log_scale", ABSENT)
        station["mask"] = fixed[f"{coupling.name}.mask"]
        station["gain"] = learned.get(f"norm.{k}.log_gain", ABSENT)
        station["shift"] = learned.get(f"norm.{k}.shift", ABSENT)
        station["running_mean"] = fixed.get(f"norm.{k}.mean", ABSENT)
        station["running_var"] = fixed.get(f"norm.{k}.var", ABSENT)
        if station["running_mean"] != ABSENT:
            stops.append(k + 1)
    stations[-1]["gain"] = learned.get("diagonal.log_gain", ABSENT)
    return Plan(
        n_couplings=len(couplings),
        dim=flow.dim,
        n_context=flow.n_context,
        compact=spec.conditioner_input == "passed",
        stations=stations,
        stops=np.array([*stops, len(stations)]),
        depth=spec.hidden_depth,
        width=spec.hidden_width,
        nets=spec.nets,
        heads=spec.heads,
        activation=ACTIVATIONS[spec.activation],
        scale=SCALES[spec.scale],
        bound=np.float32(np.inf if spec.tail_bound is None else spec.tail_bound),
        base=BASES[spec.base],
        mean_at=fixed["standardise.mean"],
        var_at=fixed["standardise.var"],
        context_mean_at=fixed.get(f"{CONTEXT}.mean", ABSENT),
        context_var_at=fixed.get(f"{CONTEXT}.var", ABSENT),
        tail_at=learned.get("tail.log_power", ABSENT),
    )


def zeros(*shape: int) -> np.ndarray:
    """Zeros that begin at a cache line, as every vector of a panel then does.

    A vector across two lines is read twice.
    """
    n = math.prod(shape)
    room = np.zeros(n + CACHE_LINE // 4, dtype=np.float32)
    begin = -room.ctypes.data % CACHE_LINE // 4
    return room[begin : begin + n].reshape(shape)


def make_weights(plan: Plan, *, summing: bool = False) -> Weights:
    """Zeros for one member's numbers, or for sums of their gradients."""
    c, g, d, k = plan.n_couplings, plan.nets, plan.dim, plan.depth
    r = d + plan.n_context
    p = rounded_up(plan.width, VECTOR) // VECTOR
    lanes = LANES if summing else VECTOR

    return Weights(
        first=zeros(c, g, r, p, lanes),
        bias=zeros(c, g, k, p, lanes),
        hidden=zeros(c, g, k - 1, p, p * VECTOR, VECTOR),
        last=zeros(c, plan.heads, d, p, lanes),
        last_bias=zeros(c, plan.heads, d, LANES),
        log_scale=zeros(c, d, LANES),
        log_gain=zeros(c + 1, d, LANES),
        shift=zeros(c + 1, d, LANES),
        log_power=zeros(d, LANES),
    )


def make_transposed(weights: Weights) -> np.ndarray:
    """Room for the weights between hidden layers, transposed: the gradient goes back by them."""
    return zeros(*weights.hidden.shape)


def make_tiles(plan: Plan, points: int, *, kept: int, tiles: int = 1) -> Tiles:
    """Room for so many tiles of so many points, each with what `kept` couplings leave on the way.

    All of them for the way back; one where there is none. What each tile has for itself gets a
    first axis more than :class:`Tiles` says.
    """
    g, d, k = plan.nets, plan.dim, plan.depth
    p = rounded_up(plan.width, VECTOR) // VECTOR
    silu = kept if plan.activation == SILU else 0
    return Tiles(
        x=zeros(tiles, kept, d, points),
        seen=zeros(tiles, kept, d + plan.n_context, points),
        squashed=zeros(tiles, kept, d, points),
        gain=zeros(tiles, kept, d, points),
        hidden=zeros(tiles, kept, g, k, p, points, VECTOR),
        slope=zeros(tiles, silu, g, k, p, points, VECTOR),
        before=zeros(tiles, kept + 1, d, points),
        straight=zeros(tiles, d, points),
        given=zeros(tiles, plan.n_context, points),
        z=zeros(tiles, d, points),
        log_det=zeros(tiles, 1, points),
        z_grad=zeros(tiles, d, points),
        det_grad=zeros(tiles, 1, points),
        raw=zeros(plan.heads, d, points),
        raw_grad=zeros(plan.heads, d, points),
        seen_grad=zeros(1, points),
        upper=zeros(p, points, VECTOR),
        lower=zeros(p, points, VECTOR),
        nothing=zeros(p, VECTOR),
        moments=np.zeros((plan.n_couplings + 1, 2, d)),
    )
