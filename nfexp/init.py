"""How a stack starts: masks, weights and what the training points decide."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nfexp.flow import FlowStack
from nfexp.layers import Architecture
from nfexp.nn import stream

INITIAL_SCALE = 2.0  # exp(c): the largest |s| a fresh coupling can reach
FIRST_REACH = 2.5  # of `init` "spread": how far from the centre units of the first layer bend, standard deviations
FIRST_SLOPE = {"relu": 1.0, "leaky_relu": 1.0}  # the largest slope of such a unit; where σ bends smoothly:
SMOOTH_SLOPE = 3.0  # the bend is as wide as the slope is gentle, and a gentle one blurs a sharp target


def draw_mask(schedule: str, n_flows: int, dim: int, generator: torch.Generator) -> Tensor:
    """Masks of all coupling layers in data → base order; 1 marks a coordinate that passes unchanged.

    `alternating` even and odd coordinates in turn; `fixed` the same every time; `once` switches one time half-way;
    `random` a random half per layer; `half` first and second half in turn.

    Returns shape (n_flows, dim), float64.

    >>> draw_mask("once", 4, 2, stream(0, "mask"))[:, 0].tolist()
    [1.0, 1.0, 0.0, 0.0]
    """
    first = torch.arange(dim) % 2 == 0
    layer = torch.arange(n_flows)
    if schedule == "random":
        orders = torch.stack([torch.randperm(dim, generator=generator) for _ in range(n_flows)])
        return (orders < dim // 2).double()
    if schedule == "half":
        first = torch.arange(dim) < dim // 2
    flip = {
        "fixed": torch.zeros(n_flows, dtype=torch.bool),
        "once": layer >= (n_flows + 1) // 2,
        "alternating": layer % 2 == 1,
        "half": layer % 2 == 1,
    }[schedule]
    return (first ^ flip[:, None]).double()


def _uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Uniform in ±1."""
    return 2 * torch.rand(tuple(shape), generator=generator, dtype=torch.float64) - 1


def build(arch: Architecture, *, masks: Sequence[str], seeds: Sequence[int], data: Tensor) -> FlowStack:
    """A fresh stack, each member initialised from its own seed and standardised by its own training points.

    Weights and biases are uniform in ±1/√fan_in (`init` "random"). With "identity" the last layer is zero, so that
    every coupling starts as the identity. With "spread" so too, and a unit of the first layer, σ(wᵀ(x − k)), bends at
    a point k of its own, uniform over ±2.5 standard deviations of the data; the usual biases bunch the bends near the
    centre. w is uniform in ±slope/√(coordinates that pass), the slope 1 or, where σ bends smoothly, 3.

    Parameters
    ----------
    masks, seeds
        One mask schedule and one seed per member.
    data
        Training points, shape (E, N, D); NaN rows are padding. dtype and device of the stack are those of `data`.
    """
    empty = FlowStack(arch, torch.empty(1, 0), torch.empty(1, 0))
    flow = empty.with_rows(
        torch.zeros(len(seeds), empty.learned_layout.width, dtype=torch.float64),
        torch.zeros(len(seeds), empty.fixed_layout.width, dtype=torch.float64),
    )
    p, points = flow.params(), data.double().cpu()
    for e, (seed, schedule) in enumerate(zip(seeds, masks, strict=True)):
        own = points[e][~points[e].isnan().any(-1)]
        mean, var = own.mean(0), own.var(0, correction=0)
        draws, mask = stream(seed, "init"), draw_mask(schedule, arch.n_flows, arch.dim, stream(seed, "mask"))
        for name, value in p.items():
            last = f".net.{arch.hidden_depth}." in name
            if name.endswith((".weight", ".bias")) and (arch.init == "random" or not last):
                fan_in = value.shape[2] if name.endswith(".weight") else p[name[:-4] + "weight"].shape[2]
                value[e] = _uniform(value.shape[1:], draws) / math.sqrt(fan_in)
        for i in range(arch.n_flows):
            p[f"coupling.{i}.mask"][e] = mask[i]
            if arch.init == "spread":
                centre, unit = (0.0, 1.0) if arch.standardise == "moments" else (mean[:, None], var.sqrt()[:, None])
                weight, bias = (p[f"coupling.{i}.net.0.{kind}"][e] for kind in ("weight", "bias"))
                passed = mask[i][:, None]  # (D, 1)
                slope = FIRST_SLOPE.get(arch.activation, SMOOTH_SLOPE) / math.sqrt(max(float(passed.sum()), 1.0))
                weight.copy_(slope / unit * _uniform(weight.shape, draws))
                bends = centre + unit * FIRST_REACH * _uniform(weight.shape, draws)
                bias.copy_(-(passed * weight * bends).sum(1, keepdim=True))
        if arch.standardise == "moments":
            p["standardise.mean"][e], p["standardise.var"][e] = mean, var
    for name, value in p.items():
        if name.endswith(".log_scale"):
            value.fill_(math.log(INITIAL_SCALE))
        if name.endswith(".var") and (arch.standardise == "none" or name.startswith("norm.")):
            value.fill_(1.0)
    return flow.to(data)


def initialise_actnorm(flow: FlowStack, x: Tensor) -> None:
    """Set every actnorm layer in place so that the batch `x` (E, N, D) leaves it with mean 0 and variance 1."""
    if flow.arch.norm != "actnorm":
        return
    found: dict[str, Tensor] = {"initialise": torch.empty(0)}
    with torch.no_grad():
        flow.inverse(x, batch=found)
        blocks = flow.learned_layout.blocks(flow.theta)
        for name, value in found.items():
            if name in blocks:
                blocks[name].copy_(value)
