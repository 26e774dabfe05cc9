"""Stacks for the fused kernel, and what autodiff says of them."""

from dataclasses import replace

import torch

from nfexp.flows.layers import Batch
from nfexp.flows.stack import FlowStack, build
from nfexp.streams import stream
from tests.helpers.specs import small_spec

ALL_LAYERS = {"norm": "actnorm", "tail": "learned", "tail_bound": 1.0, "conditioner_input": "passed", "dim": 4}
BATCH_NORMS = ALL_LAYERS | {"norm": "batchnorm"}
BITS = {  # architectures whose bits are compared
    "relu": {},
    "three panels": {"hidden_width": 40},
    "silu": {"activation": "silu"},
    "all layers": ALL_LAYERS,
    "batch norms": BATCH_NORMS,
}
N = 150  # points: more than two tiles, the last one not full


def random_flow(*, n=N, dim=3, masks=("alternating", "random"), **changes) -> tuple[FlowStack, torch.Tensor]:
    """A stack in float32 in which no layer is the identity, and points."""
    flow = replace(small_spec().flow, **({"hidden_width": 12, "init": "random"} | changes))
    x = torch.randn(len(masks), n, dim, generator=stream(0, "x")) * 2 + 1
    stack = build(flow, masks=masks, seeds=range(len(masks)), data=x)
    draws = stream(0, "layers")
    for name, value in stack.learned_layout.views(stack.theta).items():
        if not name.startswith("coupling"):
            value.add_(0.3 * torch.randn(value.shape, generator=draws))
    for name, value in stack.fixed_layout.views(stack.fixed).items():
        if name.startswith("norm"):
            value.add_(0.3 * torch.rand(value.shape, generator=draws))
    return stack, x


def by_autodiff(flow: FlowStack, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log q of a training batch and the gradient of its negative mean, by the torch path in float64."""
    precise = flow.to("cpu", torch.float64)
    theta = precise.theta.requires_grad_()
    log_q = precise.with_rows(theta, precise.fixed).log_prob(x.double(), batch=Batch())
    (grad,) = torch.autograd.grad(-log_q.mean(1).sum(), theta)
    return log_q.detach(), grad
