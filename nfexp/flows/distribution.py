"""A flow as one of PyTorch's distributions."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from nfexp.flows.bases import base_sample
from nfexp.flows.stack import FlowStack


class FlowDistribution(Distribution):
    """The law of x = f(z), z from the base, for the one flow of a stack.

    Given one context (1, C), if it takes one.

    Draws come from PyTorch's global generator, as with every distribution there:
    ``torch.manual_seed`` fixes them. `rsample` is differentiable in the weights, :attr:`weights`,
    once they require a gradient.

    Shapes: `log_prob` takes (…, D) to (…), in nats; `sample` and `rsample` give (\\*shape, D).
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, stack: FlowStack, context: Tensor | None = None) -> None:
        if stack.n_members != 1:
            raise ValueError(f"stack: expected one flow; got {stack.n_members}")
        self.stack = stack
        self.context = stack.theta.new_empty(1, 0) if context is None else context
        super().__init__(event_shape=torch.Size([stack.dim]), validate_args=False)

    @property
    def weights(self) -> Tensor:
        """All learned numbers, (1, P)."""
        return self.stack.theta

    def log_prob(self, value: Tensor) -> Tensor:
        if value.shape[-1:] != self.event_shape:
            raise ValueError(
                f"value: expected shape (…, {self.stack.dim}); got {tuple(value.shape)}"
            )
        points = value.to(self.stack.theta).reshape(1, -1, self.stack.dim)
        return self.stack.log_prob(points, self._given(points))[0].reshape(value.shape[:-1])

    def _given(self, points: Tensor) -> Tensor:
        """The context at each of the points (1, N, D)."""
        return self.context.expand(points.shape[1], -1).unsqueeze(0)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (as PyTorch declares it)
        shape = torch.Size(sample_shape)
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        z = base_sample(self.stack.flow.base, (1, shape.numel(), self.stack.dim), generator)
        x, _ = self.stack.forward(z.to(self.stack.theta), self._given(z))
        return x.reshape(*shape, self.stack.dim)

    def __repr__(self) -> str:
        return f"FlowDistribution(event_shape={tuple(self.event_shape)})"
